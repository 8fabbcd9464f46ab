//! Restores: a database as it was, or none.

use std::sync::Arc;

use pgreeve::backup::catalog::{self, Filter};
use pgreeve::backup::manifest::{Manifest, Role};
use pgreeve::backup::parts::PartSizes;
use pgreeve::backup::program::Programs;
use pgreeve::backup::restore::{Restore, Restored, restore};
use pgreeve::backup::verify::{self, Difference, verify_against};
use pgreeve::job::{Disposition, JobError, Progress};
use pgreeve::postgres::connect::ConnectTarget;
use pgreeve::store::Store;
use sqlx::{AssertSqlSafe, Connection};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::support::backups::{Bench, executable, until};
use crate::support::cluster;
use crate::support::memory_store::MemoryStore;

/// All that is awkward to dump and restore.
const SCHEMA: &str = r#"
CREATE TABLE measured (at timestamptz NOT NULL, value double precision, payload jsonb) PARTITION BY RANGE (at);
CREATE TABLE measured_1 PARTITION OF measured FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE measured_2 PARTITION OF measured FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
INSERT INTO measured SELECT '2026-01-15'::timestamptz + n * interval '1 hour', random() / 3, jsonb_build_object('n', n, 'text', E'a\\b\n"c"')
    FROM generate_series(1, 700) n;
CREATE TABLE animal (name text); CREATE TABLE bird (wings int) INHERITS (animal);
INSERT INTO animal VALUES ('cat'); INSERT INTO bird VALUES ('robin', 2);
CREATE TABLE numbered (id int GENERATED ALWAYS AS IDENTITY, price numeric, gross numeric GENERATED ALWAYS AS (price * 1.19) STORED);
INSERT INTO numbered (price) SELECT n FROM generate_series(1, 50) n;
CREATE SCHEMA "Odd Schema"; CREATE TABLE "Odd Schema"."say ""x"".y" ("a b" bytea, j json, tags text[]);
INSERT INTO "Odd Schema"."say ""x"".y" VALUES ('\x00ff5c0a', '{"k":  [1, 2]}', ARRAY['', NULL, 'ä,"']), (NULL, NULL, NULL), ('\x', 'null', '{}');
CREATE TABLE empty (id int); CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES;
CREATE TABLE chicken (id int PRIMARY KEY, egg int); CREATE TABLE egg (id int PRIMARY KEY, chicken int REFERENCES chicken);
INSERT INTO chicken VALUES (1, 1); INSERT INTO egg VALUES (1, 1);
ALTER TABLE chicken ADD FOREIGN KEY (egg) REFERENCES egg;
CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n FROM measured;
SELECT lo_from_bytea(4711, decode(repeat('00ff0a5c', 20000), 'hex')); SELECT lo_create(4712);
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql AS 'SELECT 2 * $1';
CREATE INDEX ON measured (at);
"#;

struct Made {
    bench: Bench,
    store: Arc<dyn Store>,
    manifest: Manifest,
    programs: Programs,
    jobs: u32,
}

async fn backed_up(sql: &str, max_parts: u32) -> Made {
    backed_up_in(Arc::new(MemoryStore::default()), sql, max_parts).await
}

async fn backed_up_in(store: Arc<dyn Store>, sql: &str, max_parts: u32) -> Made {
    let mut bench = Bench::new(Arc::clone(&store)).await;
    bench.job.sizes = PartSizes {
        part_bytes: 4096,
        max_parts,
    };
    bench.database.execute(sql).await;
    bench.run().await.unwrap();
    let catalog = catalog::list(store.as_ref(), Filter::default()).await.unwrap();
    Made {
        manifest: catalog.backups[0].manifest.clone(),
        programs: Programs::find().unwrap(),
        bench,
        store,
        jobs: 1,
    }
}

impl Made {
    fn name(&self) -> String {
        format!("{}_restored", self.bench.database.name)
    }

    async fn restore(&self, into: &str) -> Result<Restored, JobError> {
        self.restore_with(into, false, CancellationToken::new()).await
    }

    async fn restore_with(&self, into: &str, no_owner: bool, stop: CancellationToken) -> Result<Restored, JobError> {
        let admin = cluster().await.target("postgres");
        restore(Restore {
            store: Arc::clone(&self.store),
            manifest: &self.manifest,
            programs: &self.programs,
            admin: &admin,
            into,
            no_owner,
            before_open: None,
            create_roles: false,
            jobs: self.jobs,
            spool_directory: std::env::temp_dir(),
            identities: None,
            progress: Progress::new(),
            stop,
        })
        .await
    }

    async fn target(&self) -> ConnectTarget {
        cluster().await.target(&self.name())
    }

    fn data_key(&self) -> String {
        self.manifest.data().next().unwrap().key.clone()
    }
}

async fn exists(name: &str) -> bool {
    let mut connection = cluster().await.target("postgres").connect("test").await.unwrap();
    let exists = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)")
        .bind(name)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    exists
}

async fn execute(target: &ConnectTarget, sql: &str) {
    let mut connection = target.connect("test").await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_restored_database_is_the_one_that_was_backed_up() {
    // In three segments, so that joining them is part of it.
    let made = backed_up(SCHEMA, 2).await;
    assert!(made.manifest.data().count() > 1);
    assert_eq!(made.manifest.large_objects.count, 2);
    let restored = made.restore(&made.name()).await.unwrap();
    assert_eq!(restored.rows, made.manifest.rows());

    let target = made.target().await;
    let verified = verify_against(&made.programs, &made.manifest, &target).await.unwrap();
    assert_eq!(verified.mismatches, []);
    assert_eq!(verified.compared, made.manifest.tables.len());
    let own = made
        .manifest
        .tables
        .iter()
        .filter(|table| table.schema != "pgreeve")
        .count();
    assert_eq!(own, 10, "the schema's own tables; the ledger's are compared too");

    let at = "2026-11-21T06:14:59Z".parse().unwrap();
    verify::record_proof(made.store.as_ref(), &made.manifest, at, 2, &verified)
        .await
        .unwrap();
    let entry = catalog::find(made.store.as_ref(), &made.manifest.id).await.unwrap();
    assert_eq!(entry.verified_at, Some(at));

    let mut connection = target.connect("test").await.unwrap();
    let total: i64 = sqlx::query_scalar("SELECT n FROM total")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let public: bool = sqlx::query_scalar(
        "SELECT datacl IS NULL OR datacl::text LIKE '%=Tc/%' FROM pg_database WHERE datname = current_database()",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert!(total == 700 && public);
    connection.close().await.unwrap();
}

#[tokio::test]
async fn verification_finds_every_kind_of_difference() {
    let made = backed_up(
        "CREATE TABLE a (id int, t text); INSERT INTO a VALUES (1, 'x'), (2, 'y');
        CREATE TABLE b AS TABLE a; CREATE TABLE c AS TABLE a; SELECT lo_create(5)",
        9000,
    )
    .await;
    made.restore(&made.name()).await.unwrap();
    let target = made.target().await;
    execute(&target, "UPDATE a SET t = 'z' WHERE id = 2; DELETE FROM b WHERE id = 1; DROP TABLE c; CREATE TABLE d (); SELECT lo_unlink(5)").await;
    let verified = verify_against(&made.programs, &made.manifest, &target).await.unwrap();
    let found: Vec<_> = verified
        .mismatches
        .iter()
        .map(|found| (found.object.as_str(), found.difference))
        .collect();
    assert_eq!(
        found,
        [
            ("public.a", Difference::Content),
            ("public.b", Difference::Rows),
            ("public.c", Difference::Missing),
            ("public.d", Difference::Unexpected),
            ("large objects", Difference::Rows),
        ]
    );
    let at = "2026-11-21T06:14:59Z".parse().unwrap();
    verify::record_proof(made.store.as_ref(), &made.manifest, at, 2, &verified)
        .await
        .unwrap_err();
    // Nothing compared is a failure, not a success.
    execute(&target, "DROP SCHEMA public CASCADE; DROP SCHEMA pgreeve CASCADE").await;
    verify_against(&made.programs, &made.manifest, &target)
        .await
        .unwrap_err();
    let mut empty = made.manifest.clone();
    empty.tables.clear();
    verify_against(&made.programs, &empty, &target).await.unwrap_err();
}

#[tokio::test]
async fn damage_anywhere_leaves_no_database() {
    let memory = MemoryStore::default();
    let mut made = backed_up_in(Arc::new(memory.clone()), SCHEMA, 9000).await;
    let key = made.data_key();
    let length = memory.body(&key).len();
    let whole = memory.body(&key);
    for (what, damage, jobs) in [
        ("the first byte", 0_usize, 1),
        ("the middle", length / 2, 1),
        ("the middle", length / 2, 2),
        ("the trailer", length - 1, 1),
        ("the trailer", length - 1, 2),
    ] {
        made.jobs = jobs;
        memory.damage(&key, |bytes| bytes[damage] ^= 1);
        let error = made.restore(&made.name()).await.unwrap_err();
        assert!(!exists(&made.name()).await, "{what}: {error}");
        verify::read_through(Arc::clone(&made.store), &made.manifest, Progress::new(), None)
            .await
            .unwrap_err();
        memory.damage(&key, |bytes| *bytes = whole.to_vec());
    }
    memory.damage(&key, |bytes| bytes.truncate(length - 1));
    made.restore(&made.name()).await.unwrap_err();
    assert!(!exists(&made.name()).await);
    let error = verify::check_sizes(made.store.as_ref(), &made.manifest)
        .await
        .unwrap_err();
    assert!(error.cause.contains(&format!("instead of {length}")), "{error}");
    memory.damage(&key, |bytes| *bytes = whole.to_vec());

    // All bytes are right, and a table's figure in the manifest is not.
    made.manifest.tables[0].rows += 1;
    let error = made.restore(&made.name()).await.unwrap_err();
    assert!(error.cause.contains("other tables"), "{error}");
    assert!(!exists(&made.name()).await);
    made.manifest.tables[0].rows -= 1;
    verify::check_sizes(made.store.as_ref(), &made.manifest).await.unwrap();
    let store: Arc<dyn Store> = Arc::clone(&made.store);
    verify::read_through(store, &made.manifest, Progress::new(), None)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_restore_that_fails_or_is_stopped_leaves_no_database() {
    let directory = TempDir::new().unwrap();
    let mut made = backed_up(SCHEMA, 9000).await;
    let real = made.programs.pg_restore.clone();
    let script = |body: &str| {
        let text = format!(
            "#!/bin/sh\nREAL={}\n[ \"$1\" = --version ] && exec $REAL --version\n{body}\n",
            real.display()
        );
        executable(&directory, "pg_restore", &text)
    };
    made.programs.pg_restore = script("$REAL \"$@\" || exit 2\necho 'pg_restore: error: out of luck' >&2\nexit 1");
    let error = made.restore(&made.name()).await.unwrap_err();
    assert!(error.cause.contains("out of luck"), "{error}");
    assert!(!exists(&made.name()).await);

    made.programs.pg_restore = script("exec sleep 600");
    let stop = CancellationToken::new();
    let name = made.name();
    let cancel = async {
        until("the database exists", async || exists(&name).await).await;
        let closed = format!("SELECT NOT has_database_privilege('public', '{name}', 'CONNECT')");
        until("it is closed to others", async || {
            made.bench.database.value::<bool>(&closed).await
        })
        .await;
        stop.cancel();
    };
    let (result, ()) = tokio::join!(made.restore_with(&name, false, stop.clone()), cancel);
    assert_eq!(result.unwrap_err().disposition, Disposition::Cancelled);
    assert!(!exists(&name).await);

    // Also when nobody waits for the restore any more.
    tokio::select! {
        result = made.restore(&name) => panic!("{result:?}"),
        () = until("the database exists", async || exists(&name).await) => {}
    }
    until("the database is gone", async || !exists(&name).await).await;
}

#[tokio::test]
async fn an_existing_database_is_never_touched() {
    let made = backed_up("CREATE TABLE a (id int); INSERT INTO a VALUES (1)", 9000).await;
    let error = made.restore(&made.bench.database.name).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Refused);
    assert!(error.cause.contains("exists already"), "{error}");
    assert_eq!(made.bench.database.value::<i64>("SELECT count(*) FROM a").await, 1);
}

#[tokio::test]
async fn missing_roles_are_named_before_anything_is_created() {
    let role = format!("owner_of_{}", std::process::id());
    let made = backed_up(
        &format!(
            "CREATE ROLE {role}; CREATE TABLE a (id int); ALTER TABLE a OWNER TO {role}; INSERT INTO a VALUES (1)"
        ),
        9000,
    )
    .await;
    let globals = made
        .manifest
        .objects
        .iter()
        .find(|object| object.role == Role::Globals)
        .unwrap();
    assert!(globals.bytes > 0);
    made.bench
        .database
        .execute(&format!("REASSIGN OWNED BY {role} TO postgres; DROP ROLE {role}"))
        .await;
    let error = made.restore(&made.name()).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Refused);
    assert!(
        error.cause.contains(&role) && error.remedy.as_ref().unwrap().contains("--no-owner"),
        "{error:?}"
    );
    assert!(!exists(&made.name()).await);

    made.restore_with(&made.name(), true, CancellationToken::new())
        .await
        .unwrap();
    let target = made.target().await;
    let verified = verify_against(&made.programs, &made.manifest, &target).await.unwrap();
    assert_eq!(verified.mismatches, []);
}

#[tokio::test]
async fn a_database_that_writes_bytea_in_another_form_has_the_same_digests() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let bench = Bench::new(Arc::clone(&store)).await;
    let name = bench.database.name.clone();
    bench
        .database
        .execute(&format!(
            "CREATE TABLE a (b bytea); INSERT INTO a VALUES ('\\x00ff');
             ALTER DATABASE {name} SET bytea_output = 'escape'; ALTER DATABASE {name} SET DateStyle = 'German, DMY'"
        ))
        .await;
    bench.run().await.unwrap();
    let catalog = catalog::list(store.as_ref(), Filter::default()).await.unwrap();
    let made = Made {
        manifest: catalog.backups[0].manifest.clone(),
        programs: Programs::find().unwrap(),
        bench,
        store,
        jobs: 1,
    };
    made.restore(&made.name()).await.unwrap();
    let verified = verify_against(&made.programs, &made.manifest, &made.target().await)
        .await
        .unwrap();
    assert_eq!(verified.mismatches, []);
}
