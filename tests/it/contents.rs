//! What a backup holds and in which form, and that each form comes back as it was.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgreeve::backup::catalog::{self, Filter};
use pgreeve::backup::compress::Packing;
use pgreeve::backup::form::Format;
use pgreeve::backup::manifest::{self, Manifest, Role};
use pgreeve::backup::program::Programs;
use pgreeve::backup::read::{ReadError, read_stored};
use pgreeve::backup::restore::{Restore, Restored, restore};
use pgreeve::backup::seal::Identities;
use pgreeve::backup::verify::{self, verify_against};
use pgreeve::job::{Disposition, JobError, Progress};
use pgreeve::postgres::cluster::Cluster;
use pgreeve::postgres::connect::ConnectTarget;
use pgreeve::store::Store;
use proptest::prelude::*;
use sqlx::{AssertSqlSafe, Connection};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::support::backups::{Bench, executable, key};
use crate::support::cluster;
use crate::support::memory_store::MemoryStore;
use crate::support::process::until;

struct Made {
    bench: Bench,
    store: MemoryStore,
    manifest: Manifest,
    programs: Programs,
    identities: Option<Identities>,
    spool_directory: PathBuf,
}

/// A directory without room for anything.
const NO_ROOM: &str = "/proc";

/// A store and a bench whose database was filled.
async fn filled(sql: &str) -> (Bench, MemoryStore) {
    let store = MemoryStore::default();
    let mut bench = Bench::new(Arc::new(store.clone())).await;
    bench.job.sizes.part_bytes = 4096;
    bench.database.execute(sql).await;
    (bench, store)
}

async fn made((bench, store): (Bench, MemoryStore)) -> Made {
    bench.run().await.unwrap();
    let catalog = catalog::list(&store, Filter::default()).await.unwrap();
    Made {
        manifest: catalog.backups[0].manifest.clone(),
        programs: Programs::find().unwrap(),
        bench,
        store,
        identities: None,
        spool_directory: std::env::temp_dir(),
    }
}

impl Made {
    async fn restore(&self, jobs: u32) -> Result<Restored, JobError> {
        self.restore_to(&cluster().await.target("postgres"), jobs, false).await
    }

    async fn restore_to(&self, admin: &ConnectTarget, jobs: u32, create_roles: bool) -> Result<Restored, JobError> {
        restore(Restore {
            store: Arc::new(self.store.clone()),
            manifest: &self.manifest,
            programs: &self.programs,
            admin,
            into: &self.name(),
            no_owner: false,
            before_open: None,
            create_roles,
            jobs,
            spool_directory: self.spool_directory.clone(),
            identities: self.identities.clone(),
            progress: Progress::new(),
            stop: CancellationToken::new(),
        })
        .await
    }

    fn name(&self) -> String {
        format!("{}_back", self.bench.database.name)
    }

    async fn target(&self) -> ConnectTarget {
        cluster().await.target(&self.name())
    }

    /// The restored database is the one that was backed up.
    async fn assert_alike(&self) {
        let verified = verify_against(&self.programs, &self.manifest, &self.target().await)
            .await
            .unwrap();
        assert_eq!(verified.mismatches, []);
        assert_eq!(verified.compared, self.manifest.tables.len());
    }

    async fn read(&self) -> Result<(), ReadError> {
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        verify::read_through(store, &self.manifest, Progress::new(), self.identities.as_ref()).await
    }

    fn tables(&self) -> Vec<String> {
        let own = |schema: &str| schema != "pgreeve";
        let mut names: Vec<String> = self
            .manifest
            .tables
            .iter()
            .filter(|table| own(&table.schema))
            .map(|table| format!("{}.{}", table.schema, table.name))
            .collect();
        names.sort();
        names
    }
}

async fn value<T>(target: &ConnectTarget, sql: &str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    let mut connection = target.connect("test").await.unwrap();
    let value = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    value
}

const SCHEMAS: &str = "
    CREATE TABLE users (id int PRIMARY KEY); INSERT INTO users VALUES (1), (2);
    CREATE TABLE audit (id int, at timestamptz) PARTITION BY RANGE (at);
    CREATE TABLE audit_old PARTITION OF audit FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
    INSERT INTO audit VALUES (1, '2020-06-01');
    CREATE SCHEMA billing; CREATE TABLE billing.orders (id serial, note text); INSERT INTO billing.orders VALUES (7, 'x');
    CREATE TABLE billing.\"Odd.Name\" (id int); INSERT INTO billing.\"Odd.Name\" VALUES (1);
    CREATE SCHEMA scratch; CREATE TABLE scratch.junk (id int); INSERT INTO scratch.junk VALUES (1);
    CREATE FUNCTION scratch.twice(int) RETURNS int LANGUAGE sql AS 'SELECT 2 * $1';";

#[tokio::test]
async fn only_what_is_included_and_not_excluded_is_dumped_and_it_can_be_restored() {
    for (include, exclude, tables, left_out) in [
        (
            &[][..],
            &["audit", "scratch.*", "billing.\"Odd.Name\""][..],
            &["billing.orders", "public.users"][..],
            &["billing.\"Odd.Name\"", "public.audit", "public.audit_old", "scratch.*"][..],
        ),
        (
            &["public.*", "orders", "pgreeve.*"],
            &["users"],
            &["billing.orders", "public.audit_old"],
            &["billing.\"Odd.Name\"", "public.users", "scratch.*"],
        ),
    ] {
        let (mut bench, store) = filled(SCHEMAS).await;
        bench.job.settings.include = include.iter().map(|name| name.parse().unwrap()).collect();
        bench.job.settings.exclude = exclude.iter().map(|name| name.parse().unwrap()).collect();
        let made = made((bench, store)).await;
        assert_eq!(made.tables(), tables);
        assert_eq!(made.manifest.left_out, left_out);
        made.restore(1).await.unwrap();
        made.assert_alike().await;
        // Functions are there whatever was left out, and so is a table's own sequence.
        let target = made.target().await;
        assert_eq!(value::<i32>(&target, "SELECT scratch.twice(4)").await, 8);
        assert_eq!(
            value::<i64>(&target, "SELECT nextval('billing.orders_id_seq')").await,
            1
        );
    }
}

#[tokio::test]
async fn a_selection_that_means_nothing_or_cannot_be_restored_is_refused_by_name() {
    let (mut bench, _) = filled(&format!(
        "{SCHEMAS} CREATE TABLE owned (id int REFERENCES users); CREATE VIEW seen AS SELECT * FROM billing.orders;
         CREATE SCHEMA more; CREATE TABLE more.junk (); CREATE TABLE more.users ()"
    ))
    .await;
    for (include, exclude, cause) in [
        (
            &[][..],
            &["userz"][..],
            "`exclude` names userz, and there is no such table",
        ),
        (&["nowhere.*"], &[], "`include` names nowhere.*"),
        (&[], &["junk"], "which several schemas have"),
        (&["scratch.junk"], &["scratch.*"], "leave no table"),
        (&[], &["public.users"], "owned needs public.users"),
        (&["public.*"], &[], "seen needs billing.orders"),
        (&[], &["audit_old", "billing.orders"], "seen needs billing.orders"),
    ] {
        bench.job.settings.include = include.iter().map(|name| name.parse().unwrap()).collect();
        bench.job.settings.exclude = exclude.iter().map(|name| name.parse().unwrap()).collect();
        let error = bench.run().await.unwrap_err();
        assert_eq!(error.disposition, Disposition::Refused, "{error}");
        // regclass leaves out the schema that the search path finds.
        let text = error
            .to_string()
            .replace("public.seen", "seen")
            .replace("public.owned", "owned");
        assert!(text.contains(cause), "{text}");
        assert!(bench.states().await.is_empty());
    }
}

#[tokio::test]
async fn a_role_needs_no_rights_on_what_is_left_out() {
    let (mut bench, store) = filled(SCHEMAS).await;
    let role = format!("part_{}", bench.database.name);
    bench
        .database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA pgreeve TO {role};
             GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA pgreeve TO {role};
             GRANT SELECT ON users TO {role}; ALTER TABLE audit ENABLE ROW LEVEL SECURITY"
        ))
        .await;
    bench.job.settings.include = ["users", "pgreeve.*"].map(|name| name.parse().unwrap()).into();
    bench.job.settings.globals = false;
    let target = cluster().await.target_as(&role, &bench.database.name);
    bench.run_as(&target).await.unwrap();
    let catalog = catalog::list(&store, Filter::default()).await.unwrap();
    let manifest = &catalog.backups[0].manifest;
    assert!(
        manifest
            .tables
            .iter()
            .any(|table| table.name == "users" && table.rows == 2)
    );
    assert!(manifest.objects.iter().all(|object| object.role == Role::Data));
}

#[tokio::test]
async fn one_archive_is_restored_by_several_processes_also_where_it_has_no_room() {
    let mut made = made(filled(SCHEMAS).await).await;
    assert_eq!(made.manifest.data().count(), 1);
    for directory in [std::env::temp_dir().as_path(), Path::new(NO_ROOM)] {
        directory.clone_into(&mut made.spool_directory);
        made.restore(2).await.unwrap();
        made.assert_alike().await;
        made.bench
            .database
            .execute(&format!("DROP DATABASE {}", made.name()))
            .await;
    }
}

/// The commands of the README's page on recovery, as they stand there, but for the download: that is
/// anybody's.
#[tokio::test]
async fn the_three_commands_of_the_readme_restore_a_backup_without_pgreeve() {
    let readme = include_str!("../../README.md");
    let (_, page) = readme.split_once("## Recovery without pgreeve").unwrap();
    let commands: Vec<&str> = page.split("```").nth(1).unwrap().trim().lines().collect();
    let [download, create, restore] = commands[..] else {
        panic!("{commands:?}");
    };
    assert!(download.starts_with("aws s3 cp s3://") && download.ends_with("/data.dump.gz data.dump.gz"));

    let made = made(filled(SCHEMAS).await).await;
    let directory = TempDir::new().unwrap();
    let key = format!("{}/data.dump.gz", made.manifest.prefix());
    std::fs::write(directory.path().join("data.dump.gz"), made.store.body(&key)).unwrap();
    let script = [create, restore].join("\n").replace("restored", &made.name());
    let admin = cluster().await.target("postgres");
    let done = tokio::process::Command::new("bash")
        .args(["-e", "-o", "pipefail", "-c", &script])
        .current_dir(directory.path())
        .envs([("PGHOST", admin.host.as_str()), ("PGUSER", "postgres")])
        .status()
        .await
        .unwrap();
    assert!(done.success(), "{script}");
    made.assert_alike().await;
}

#[tokio::test]
async fn definitions_alone_are_restored_without_rows() {
    let (mut bench, store) = filled(SCHEMAS).await;
    bench.job.settings.schema_only = true;
    let made = made((bench, store)).await;
    assert!(made.manifest.schema_only && made.manifest.tables.is_empty() && made.manifest.toc_entries > 10);
    made.restore(2).await.unwrap();
    assert_eq!(
        value::<i64>(&made.target().await, "SELECT count(*) FROM users").await,
        0
    );
    // Nothing can be compared, and that is not called a proof.
    verify_against(&made.programs, &made.manifest, &made.target().await)
        .await
        .unwrap_err();
}

#[tokio::test]
async fn a_script_is_restored_and_a_script_that_was_cut_off_is_no_backup() {
    let directory = TempDir::new().unwrap();
    let (mut bench, store) = filled(SCHEMAS).await;
    bench.job.settings.format = Format::Plain;
    bench.job.settings.compress = Packing::Zstd(3);
    let made = made((bench, store)).await;
    let data = made.manifest.data().next().unwrap();
    assert!(data.key.ends_with("/data.sql.zst"), "{data:?}");
    assert_eq!(made.manifest.warnings, Vec::<String>::new());
    made.restore(1).await.unwrap();
    let target = made.target().await;
    assert_eq!(value::<i64>(&target, "SELECT count(*) FROM users").await, 2);
    made.read().await.unwrap();

    let (mut bench, store) = filled(SCHEMAS).await;
    bench.job.settings.format = Format::Plain;
    let real = Programs::find().unwrap().pg_dump;
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exec {0} --version\n{0} \"$@\" | head -c 3000\nexit 0\n",
        real.display()
    );
    let mut programs = Programs::find().unwrap();
    programs.pg_dump = executable(&directory, "pg_dump", &script);
    bench.job.programs = Some(programs);
    let error = bench.run().await.unwrap_err();
    assert!(
        error.operation.contains("stage walk") && error.cause.contains("too early"),
        "{error}"
    );
    assert_eq!(store.keys(), Vec::<String>::new());
}

#[tokio::test]
async fn an_encrypted_backup_is_opened_by_its_identities_only() {
    let ((ours, secret, file), (theirs, _, _), (_, _, stranger)) = (key(), key(), key());
    let (mut bench, store) = filled(SCHEMAS).await;
    bench.job.settings.encrypt = vec![ours.parse().unwrap(), theirs.parse().unwrap()];
    bench.job.settings.compress = Packing::Zstd(3);
    let mut made = made((bench, store)).await;
    assert_eq!(made.manifest.encrypted_to, [ours, theirs]);
    let names: Vec<&str> = made
        .manifest
        .objects
        .iter()
        .filter_map(|object| object.key.rsplit('/').next())
        .collect();
    assert_eq!(names, ["data.dump.zst.age", "globals.sql.gz.age"]);
    for object in &made.manifest.objects {
        assert!(
            made.store.body(&object.key).starts_with(b"age-encryption.org/v1\n"),
            "{object:?}"
        );
    }

    // Without an identity, or with another, nothing is said of the backup but that it is closed.
    for identities in [None, Some(Identities::read(stranger.path()).unwrap())] {
        made.identities = identities;
        let error = made.read().await.unwrap_err();
        assert!(matches!(error, ReadError::Sealed(_)), "{error:?}");
        let error = made.restore(1).await.unwrap_err();
        assert!(error.cause.contains("identit"), "{error}");
    }
    read_stored(Arc::new(made.store.clone()), &made.manifest, Progress::new())
        .await
        .unwrap();

    made.identities = Some(Identities::read(file.path()).unwrap());
    made.read().await.unwrap();
    made.restore(2).await.unwrap();
    made.assert_alike().await;

    // Anybody's age opens it too.
    let identity: age::x25519::Identity = secret.parse().unwrap();
    let opened = age::decrypt(&identity, &made.store.body(&made.manifest.objects[0].key)).unwrap();
    assert!(zstd::decode_all(opened.as_slice()).unwrap().starts_with(b"PGDMP"));
}

#[tokio::test]
async fn several_dumps_of_one_snapshot_hold_each_row_once() {
    let directory = TempDir::new().unwrap();
    let (bench, store) = filled(SCHEMAS).await;
    let (host, name) = (bench.database.target.host.clone(), bench.database.name.clone());
    bench
        .database
        .execute(
            "INSERT INTO users SELECT n FROM generate_series(3, 5000) n; CREATE MATERIALIZED VIEW sums AS SELECT count(*) FROM users;
             INSERT INTO billing.orders SELECT n, repeat('y', 50) FROM generate_series(8, 5000) n;
             SELECT setval('billing.orders_id_seq', 6000); SELECT lo_from_bytea(77, '\\x00ff')",
        )
        .await;
    // A row that is committed after the snapshot is in none of them.
    let script = format!(
        "env -u PGOPTIONS psql -Xq -h {host} -U postgres -d {name} -c \"INSERT INTO users SELECT max(id) + 1 FROM users ON CONFLICT DO NOTHING; INSERT INTO billing.orders DEFAULT VALUES\" || exit 9\nexec $REAL \"$@\""
    );
    let mut bench = bench.with_pg_dump(&directory, &script);
    bench.job.settings.parallel = 3;
    let made = made((bench, store)).await;
    let names: Vec<&str> = made
        .manifest
        .data()
        .filter_map(|object| object.key.rsplit('/').next())
        .collect();
    assert_eq!(
        names,
        [
            "schema.dump.gz",
            "data.dump.gz",
            "tables-01.dump.gz",
            "tables-02.dump.gz"
        ]
    );
    let mut once = made.tables();
    once.dedup();
    assert_eq!(once, made.tables());
    let rows = |name: &str| {
        made.manifest
            .tables
            .iter()
            .find(|table| table.name == name)
            .unwrap()
            .rows
    };
    assert_eq!((rows("users"), rows("orders")), (5000, 4994));
    assert_eq!(made.manifest.large_objects.count, 1);
    made.restore(3).await.unwrap();
    made.assert_alike().await;
    let target = made.target().await;
    assert_eq!(value::<i64>(&target, "SELECT count FROM sums").await, 5000);
    // A sequence is not bound to the snapshot, and never behind it.
    assert!(value::<i64>(&target, "SELECT nextval('billing.orders_id_seq')").await > 6000);
}

#[tokio::test]
async fn one_of_several_dumps_that_fails_leaves_nothing_of_the_others() {
    let directory = TempDir::new().unwrap();
    let (bench, store) = filled(SCHEMAS).await;
    let script = "case \"$*\" in *--table=*) echo 'pg_dump: error: out of luck' >&2; exit 1;; esac\nexec $REAL \"$@\"";
    let mut bench = bench.with_pg_dump(&directory, script);
    bench.job.settings.parallel = 2;
    let error = bench.run().await.unwrap_err();
    assert!(error.cause.contains("out of luck"), "{error}");
    assert_eq!(store.keys(), Vec::<String>::new());
    assert_eq!(
        (store.open_uploads(), bench.states().await),
        (0, vec!["aborted".to_owned()])
    );
}

#[tokio::test]
async fn one_flipped_byte_in_any_object_is_found_and_the_object_is_named() {
    let (recipient, _, file) = key();
    for (packing, parallel, encrypt) in [
        (Packing::Gzip(4), 1, false),
        (Packing::Zstd(3), 2, false),
        (Packing::None, 1, false),
        (Packing::Zstd(1), 1, true),
    ] {
        let (mut bench, store) = filled(SCHEMAS).await;
        bench.job.settings.compress = packing;
        bench.job.settings.parallel = parallel;
        bench.job.settings.encrypt = encrypt.then(|| recipient.parse().unwrap()).into_iter().collect();
        let mut made = made((bench, store)).await;
        made.identities = Some(Identities::read(file.path()).unwrap());
        made.read().await.unwrap();
        let stored = async || read_stored(Arc::new(made.store.clone()), &made.manifest, Progress::new()).await;
        for object in &made.manifest.objects {
            let whole = made.store.body(&object.key);
            for at in [0, 9, whole.len() / 2, whole.len() - 1] {
                made.store.damage(&object.key, |bytes| bytes[at] ^= 0x10);
                for found in [stored().await, made.read().await] {
                    let error = found.unwrap_err();
                    let named = matches!(&error, ReadError::Damaged(cause) if cause.contains(&object.key));
                    assert!(named, "{packing} at {at} of {}: {error}", object.key);
                }
                made.store.damage(&object.key, |bytes| *bytes = whole.to_vec());
            }
        }
        stored().await.unwrap();
        // And in the manifest itself.
        let key = format!("{}/{}", made.manifest.prefix(), manifest::NAME);
        for at in [0, 20, made.store.body(&key).len() / 2, made.store.body(&key).len() - 10] {
            made.store.damage(&key, |bytes| bytes[at] ^= 0x01);
            let error = catalog::find(&made.store, &made.manifest.id).await.unwrap_err();
            assert!(error.operation.contains(&key), "{at}: {error}");
            made.store.damage(&key, |bytes| bytes[at] ^= 0x01);
        }
        catalog::find(&made.store, &made.manifest.id).await.unwrap();
    }
}

#[tokio::test]
async fn missing_roles_are_created_from_the_backup_and_no_other_is_touched() {
    let (bench, store) = filled("CREATE TABLE a (id int); INSERT INTO a VALUES (1)").await;
    let role = format!("Maker of {}", bench.database.name);
    bench
        .database
        .execute(&format!(
            "CREATE ROLE \"{role}\" LOGIN CONNECTION LIMIT 3 PASSWORD 'secret'; ALTER TABLE a OWNER TO \"{role}\";
             GRANT pg_monitor TO \"{role}\""
        ))
        .await;
    let made = made((bench, store)).await;
    let elsewhere = tokio::task::spawn_blocking(|| Cluster::start("").unwrap())
        .await
        .unwrap();
    let admin = elsewhere.target("postgres");
    let error = made.restore_to(&admin, 1, false).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Refused);
    assert!(error.remedy.unwrap().contains("--create-roles"));
    made.restore_to(&admin, 1, true).await.unwrap();
    let made_as = format!(
        "SELECT rolcanlogin AND rolconnlimit = 3 AND rolpassword IS NULL AND pg_has_role(oid, 'pg_monitor', 'MEMBER')
         FROM pg_authid WHERE rolname = '{role}'"
    );
    assert!(value::<bool>(&admin, &made_as).await);
    let restored = elsewhere.target(&made.name());
    let owner: String = value(
        &restored,
        "SELECT tableowner::text FROM pg_tables WHERE tablename = 'a'",
    )
    .await;
    assert_eq!(owner, role);
    tokio::task::spawn_blocking(move || drop(elsewhere)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_from_a_standby_holds_all_that_was_committed_before() {
    let (primary, standby) = tokio::task::spawn_blocking(|| {
        let primary = Cluster::start("").unwrap();
        let standby = Cluster::standby_of(&primary, "hot_standby = on").unwrap();
        (primary, standby)
    })
    .await
    .unwrap();
    let (mut bench, store) = filled("SELECT 1").await;
    pgreeve::ledger::migrate::apply(&primary.target("postgres"))
        .await
        .unwrap();
    let mut connection = primary.target("postgres").connect("test").await.unwrap();
    let mut replica = standby.target("postgres").connect("test").await.unwrap();
    sqlx::raw_sql("SELECT pg_wal_replay_pause()")
        .execute(&mut replica)
        .await
        .unwrap();
    sqlx::raw_sql("CREATE TABLE t AS SELECT generate_series(1, 30000) AS id; CREATE UNLOGGED TABLE u AS SELECT 1")
        .execute(&mut connection)
        .await
        .unwrap();
    bench.job.settings.standby = Some(standby.target("postgres"));
    let primary_target = primary.target("postgres");
    for rows in [30_000, 60_000] {
        // It is behind when the run begins, and goes on when it is waited for.
        let go_on = async {
            until("the standby is waited for", async || {
                let waits = "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgreeve:standby')";
                sqlx::query_scalar(waits).fetch_one(&mut replica).await.unwrap()
            })
            .await;
            sqlx::raw_sql("SELECT pg_wal_replay_resume()")
                .execute(&mut replica)
                .await
                .unwrap();
        };
        let (report, ()) = tokio::join!(bench.run_as(&primary_target), go_on);
        let report = report.unwrap();
        let catalog = catalog::list(&store, Filter::default()).await.unwrap();
        let entry = catalog
            .backups
            .iter()
            .find(|entry| report.body["backup_id"] == entry.id)
            .unwrap();
        let manifest = &entry.manifest;
        assert!(
            manifest.from_standby && manifest.warnings[0].contains("1 unlogged tables"),
            "{manifest:?}"
        );
        assert_eq!(
            manifest.tables.iter().find(|table| table.name == "t").unwrap().rows,
            rows
        );
        sqlx::raw_sql("SELECT pg_wal_replay_pause()")
            .execute(&mut replica)
            .await
            .unwrap();
        sqlx::raw_sql("INSERT INTO t SELECT generate_series(1, 30000)")
            .execute(&mut connection)
            .await
            .unwrap();
    }
    // A standby of something else, and a server that is none.
    bench.job.settings.standby = Some(primary.target("postgres"));
    let error = bench.run_as(&primary.target("postgres")).await.unwrap_err();
    assert!(error.cause.contains("is not one"), "{error}");
    bench.job.settings.standby = Some(standby.target("postgres"));
    let error = bench.run().await.unwrap_err();
    assert!(error.cause.contains("does not follow the primary"), "{error}");
    tokio::task::spawn_blocking(move || drop((standby, primary)))
        .await
        .unwrap();
}

/// Pieces of a schema, each awkward in its own way; `$n` is a number of rows.
const PIECES: [&str; 10] = [
    "CREATE TABLE part (at int NOT NULL, v float8, j jsonb) PARTITION BY RANGE (at);
     CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (20) PARTITION BY LIST (at);
     CREATE TABLE part_1a PARTITION OF part_1 DEFAULT; CREATE TABLE part_2 PARTITION OF part DEFAULT;
     INSERT INTO part SELECT n, sin(n), jsonb_build_object('n', n, 't', E'\\\\ \\n \"') FROM generate_series(1, $n) n;
     CREATE INDEX ON part (at);",
    "CREATE TABLE animal (name text); CREATE TABLE bird (wings int) INHERITS (animal);
     INSERT INTO animal SELECT 'cat' || n FROM generate_series(1, $n) n; INSERT INTO bird VALUES ('robin', 2);",
    "CREATE TABLE numbered (id int GENERATED ALWAYS AS IDENTITY, price numeric, gross numeric GENERATED ALWAYS AS (price * 1.19) STORED);
     INSERT INTO numbered (price) SELECT n / 7.0 FROM generate_series(1, $n) n;",
    r#"CREATE SCHEMA "Odd Schema.*"; CREATE TABLE "Odd Schema.*"."say ""x"".$|y" ("a b" bytea, j json, tags text[]);
     INSERT INTO "Odd Schema.*"."say ""x"".$|y" SELECT decode(md5(n::text), 'hex'), '{"k":  [1, 2]}', ARRAY['', NULL, 'ä,"\'] FROM generate_series(1, $n) n;
     INSERT INTO "Odd Schema.*"."say ""x"".$|y" VALUES (NULL, NULL, NULL), ('', 'null', '{}');"#,
    "SELECT lo_from_bytea(0, decode(repeat('00ff0a5c', 1 + n), 'hex')) FROM generate_series(1, $n) n; SELECT lo_create(0);",
    "CREATE TABLE counted AS SELECT n FROM generate_series(1, $n) n; CREATE MATERIALIZED VIEW total AS SELECT count(*) FROM counted;
     CREATE VIEW seen AS SELECT * FROM total;",
    "CREATE TABLE empty (id int); CREATE TABLE nothing (); INSERT INTO nothing SELECT FROM generate_series(1, $n);",
    "CREATE TABLE chicken (id int PRIMARY KEY, egg int); CREATE TABLE egg (id int PRIMARY KEY, chicken int REFERENCES chicken);
     INSERT INTO chicken SELECT n, n FROM generate_series(1, $n) n; INSERT INTO egg SELECT n, n FROM generate_series(1, $n) n;
     ALTER TABLE chicken ADD FOREIGN KEY (egg) REFERENCES egg;",
    "CREATE TYPE mood AS ENUM ('so', 'la, la'); CREATE DOMAIN short AS text CHECK (length(value) < 9);
     CREATE TABLE felt (m mood, s short DEFAULT 'x', r int4range, t timestamptz, i interval);
     INSERT INTO felt SELECT 'la, la', 'a' || n, int4range(n, n + 3), '2026-03-29 02:30+01'::timestamptz + n * interval '1 hour', n * interval '1 mon' FROM generate_series(1, $n) n;",
    "CREATE TABLE wide (big text); INSERT INTO wide SELECT repeat(md5(n::text), 3000) FROM generate_series(1, $n) n;
     CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''not in a restore''; END';
     CREATE TRIGGER bump BEFORE INSERT ON wide FOR EACH ROW EXECUTE FUNCTION bump();",
];

/// Any mix of pieces, in any form.
#[derive(Debug)]
struct Mix {
    pieces: Vec<usize>,
    rows: usize,
    packing: Packing,
    threads: u32,
    parallel: u32,
    encrypt: bool,
    jobs: u32,
    room: bool,
    max_parts: u32,
}

fn mixes() -> impl Strategy<Value = Mix> {
    let pieces = proptest::sample::subsequence((0..PIECES.len()).collect::<Vec<_>>(), 1..=PIECES.len());
    let packing = proptest::sample::select(vec![Packing::Gzip(1), Packing::Zstd(3), Packing::None]);
    (
        pieces,
        0_usize..60,
        packing,
        1_u32..4,
        1_u32..4,
        any::<bool>(),
        1_u32..4,
        any::<bool>(),
        1_u32..9,
    )
        .prop_map(
            |(pieces, rows, packing, threads, parallel, encrypt, jobs, room, max_parts)| Mix {
                pieces,
                rows,
                packing,
                threads,
                parallel,
                encrypt,
                jobs,
                room,
                max_parts,
            },
        )
}

async fn comes_back(mix: &Mix) {
    let (recipient, _, file) = key();
    let sql: String = mix
        .pieces
        .iter()
        .filter_map(|piece| PIECES.get(*piece).copied())
        .collect();
    let (mut bench, store) = filled(&sql.replace("$n", &mix.rows.to_string())).await;
    let settings = &mut bench.job.settings;
    (settings.compress, settings.threads, settings.parallel) = (mix.packing, mix.threads, mix.parallel);
    settings.encrypt = mix.encrypt.then(|| recipient.parse().unwrap()).into_iter().collect();
    bench.job.sizes.max_parts = mix.max_parts;
    let mut made = made((bench, store)).await;
    made.identities = Some(Identities::read(file.path()).unwrap());
    if !mix.room {
        made.spool_directory = NO_ROOM.into();
    }
    made.read().await.unwrap();
    made.restore(mix.jobs).await.unwrap();
    made.assert_alike().await;
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 8, ..ProptestConfig::with_cases(8) })]
    #[test]
    fn whatever_a_database_holds_it_comes_back_as_it_was(mix in mixes()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(comes_back(&mix));
    }
}
