//! Rows are copied into a store before they are deleted, and can be put back as they were.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use futures::FutureExt;
use pgreeve::backup::compress::Packing;
use pgreeve::batch::ArchiveFormat;
use pgreeve::job::{Disposition, Job, Outcome};
use pgreeve::jobs::backup::OpenStore;
use pgreeve::jobs::retention::{ArchiveSettings, RetentionJob, RetentionSettings};
use pgreeve::store::Store;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::{count, events, ledger_rows, with_due_rows};
use crate::support::Database;
use crate::support::context::{Setup, context, run, run_once};
use crate::support::memory_store::MemoryStore;
use crate::support::process::{Host, until};

/// A way to open a store that is there already.
pub fn opening(store: &MemoryStore) -> OpenStore {
    let store = store.clone();
    Arc::new(move || {
        let store: Arc<dyn Store> = Arc::new(store.clone());
        async move { Ok(store) }.boxed()
    })
}

fn archiving(store: &MemoryStore, format: ArchiveFormat, keep: Option<&str>) -> RetentionJob {
    archiving_of(events(), store, format, keep)
}

/// The same for another policy.
pub fn archiving_of(
    settings: RetentionSettings,
    store: &MemoryStore,
    format: ArchiveFormat,
    keep: Option<&str>,
) -> RetentionJob {
    let settings = RetentionSettings {
        archive: Some(ArchiveSettings {
            store: "offsite".parse().unwrap(),
            format,
            compress: Packing::Gzip(4),
            keep: keep.map(|keep| keep.parse().unwrap()),
        }),
        ..settings
    };
    RetentionJob::new(settings).with_stores(BTreeMap::from([("offsite".parse().unwrap(), opening(store))]))
}

fn unpack(body: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(body)
        .read_to_string(&mut text)
        .unwrap();
    text
}

/// The keys of a store's archived objects, without manifests.
fn objects(store: &MemoryStore) -> Vec<String> {
    let mut keys = store.keys();
    keys.retain(|key| !key.ends_with("/manifest.json"));
    keys
}

fn manifest(store: &MemoryStore) -> Value {
    let keys = store.keys();
    let key = keys.iter().find(|key| key.ends_with("/manifest.json")).unwrap();
    serde_json::from_slice(&store.body(key)).unwrap()
}

/// All lines of all archived objects.
pub fn lines(store: &MemoryStore) -> Vec<String> {
    let bodies = objects(store).into_iter().map(|key| unpack(&store.body(&key)));
    bodies
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// A table of everything that is hard to write and read back, and a copy of what is due.
async fn with_awkward_rows() -> Database {
    let database = Database::create().await;
    database
        .execute(
            r#"CREATE TYPE mood AS ENUM ('so "so"', 'fine');
            CREATE DOMAIN facts AS jsonb;
            CREATE TABLE events (
                id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, created_at timestamptz, at timestamp, day date,
                note text, fixed char(5), raw json, facts jsonb, more facts, bytes bytea, numbers int[], texts text[],
                amount numeric(20, 5), ratio double precision, ok boolean, mood mood, span interval, life tstzrange,
                address inet, key uuid, "Odd ""name""" text, doubled text GENERATED ALWAYS AS (note || note) STORED);
            INSERT INTO events (created_at, at, day, note, fixed, raw, facts, more, bytes, numbers, texts, amount, ratio,
                                ok, mood, span, life, address, key, "Odd ""name""") VALUES
            ('2001-02-03 04:05:06.000007+00', '1999-12-31 23:59:59.999999', '0044-03-15 BC', E'a "quote", a ''quote''\n\\N \\. tab\t,',
             'ab', E'{"b" : 1,\n "a":\t[null], "b": 2}', '{"a": [1.10, "x\ny"], "ü": null}', '"text"', '\x00ff5c22'::bytea,
             '[2:3]={1,NULL}', ARRAY['a,b', NULL, 'NULL', '', '"', E'\\'], 12345678901234.10000, 'NaN', true, 'so "so"',
             '1 mon -2 days 03:04:05.000006', '[2001-01-01,infinity)', '10.0.0.1/8', '00000000-0000-0000-0000-000000000001', 'x'),
            ('-infinity', NULL, NULL, '', '', 'null', 'null', 'null', '', '{}', '{{a,b},{c,d}}', 'NaN', '-Infinity',
             false, 'fine', NULL, 'empty', '::1', NULL, ''),
            ('2001-02-03', 'infinity', 'infinity', E'\x01\x02\r\n', NULL, '"s"', '5', '[1]', NULL, NULL, NULL, NULL,
             1.1e-300, NULL, NULL, '0', NULL, NULL, NULL, NULL),
            ('2001-02-03 00:00:00.1', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
             NULL, NULL, NULL, NULL, NULL),
            ('2001-02-04', NULL, NULL, '\.', NULL, '1e5', '"a"', '{}', NULL, NULL, NULL, 1e14, 0.1, NULL, NULL, NULL, NULL,
             NULL, NULL, '{"json": "in text"}'),
            (now(), NULL, NULL, 'stays', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
             NULL, NULL, NULL);
            CREATE TABLE expected AS SELECT id AS key_of, events::text AS whole FROM events WHERE created_at < '2002-01-01';
            CREATE TABLE restored (LIKE events INCLUDING ALL)"#,
        )
        .await;
    database
}

/// Fails unless the restored rows are the expected ones, to the byte.
async fn assert_restored(database: &Database) {
    let difference = "((SELECT id, restored::text FROM restored EXCEPT ALL SELECT key_of, whole FROM expected)
                       UNION ALL (SELECT key_of, whole FROM expected EXCEPT ALL SELECT id, restored::text FROM restored)) AS d";
    assert_eq!(count(database, difference).await, 0);
    assert_eq!(count(database, "restored").await, 5);
    assert_eq!(count(database, "events").await, 1);
}

#[tokio::test]
async fn an_archive_in_csv_puts_the_deleted_rows_back_byte_for_byte() {
    let database = with_awkward_rows().await;
    let store = MemoryStore::default();
    let report = run_once(&database, &archiving(&store, ArchiveFormat::Csv, None))
        .await
        .unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    let columns = manifest(&store)["objects"][0]["columns"].clone();
    let columns: Vec<String> = columns
        .as_array()
        .unwrap()
        .iter()
        .map(|name| format!("\"{}\"", name.as_str().unwrap().replace('"', "\"\"")))
        .collect();
    assert!(!columns.contains(&"\"doubled\"".to_owned()));
    for key in objects(&store) {
        let mut connection = database.connect().await;
        let sql = format!(
            "COPY restored ({}) FROM STDIN (FORMAT csv, HEADER match)",
            columns.join(", ")
        );
        let mut copy = connection.copy_in_raw(&sql).await.unwrap();
        copy.send(unpack(&store.body(&key)).as_bytes()).await.unwrap();
        copy.finish().await.unwrap();
    }
    assert_restored(&database).await;
}

#[tokio::test]
async fn an_archive_in_json_lines_puts_the_deleted_rows_back_byte_for_byte() {
    let database = with_awkward_rows().await;
    let store = MemoryStore::default();
    let report = run_once(&database, &archiving(&store, ArchiveFormat::Jsonl, None))
        .await
        .unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    let lines = lines(&store);
    assert_eq!(lines.len(), 5);
    for line in &lines {
        serde_json::from_str::<Value>(line).unwrap();
    }
    // What people look for stands there as such.
    let first: Value = serde_json::from_str(lines.iter().find(|line| line.contains("quote")).unwrap()).unwrap();
    assert_eq!((&first["ok"], &first["facts"]["a"][1]), (&true.into(), &"x\ny".into()));
    let columns: String = database
        .value(
            "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
             WHERE attrelid = 'restored'::regclass AND attnum > 0 AND attgenerated = ''",
        )
        .await;
    let values: String = database
        .value(
            "SELECT string_agg(format('(line->>%L)::%s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum)
             FROM pg_attribute WHERE attrelid = 'restored'::regclass AND attnum > 0 AND attgenerated = ''",
        )
        .await;
    let sql = format!(
        "INSERT INTO restored ({columns}) OVERRIDING SYSTEM VALUE SELECT {values} FROM (SELECT t::json AS line FROM unnest($1::text[]) t) AS l"
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(&lines)
        .execute(&mut database.connect().await)
        .await
        .unwrap();
    assert_restored(&database).await;
}

#[tokio::test]
async fn the_manifest_the_ledger_and_the_report_agree_about_every_object() {
    let database = with_due_rows(45_000, true).await;
    let store = MemoryStore::default();
    let job = archiving(&store, ArchiveFormat::Jsonl, None);
    let mut context = context(&database, &job, &Setup::default()).await;
    let intent = job.plan(&mut context).await.unwrap().intent();
    assert_eq!(intent["archive"]["format"], "jsonl");
    let report = run(&job, &mut context).await.unwrap();
    assert_eq!(
        (report.outcome, &report.body["rows"]),
        (Outcome::Succeeded, &45_000.into())
    );
    let archive = &report.body["archive"];
    let manifest = manifest(&store);
    for whole in [archive, &manifest] {
        assert_eq!(whole["rows"], 45_000);
        assert_eq!(whole["bytes"], manifest["bytes"]);
    }
    let listed = manifest["objects"].as_array().unwrap();
    assert!((2..=4).contains(&listed.len()), "{listed:?}");
    assert_eq!(archive["objects"], listed.len());
    let run = context.run;
    let keys: Vec<String> = (1..=listed.len())
        .map(|n| format!("{}/the-job/archive/{run}/{n:06}.jsonl.gz", database.name))
        .collect();
    assert_eq!(objects(&store), keys);
    for object in listed {
        let body = store.body(object["key"].as_str().unwrap());
        assert_eq!(object["bytes"], body.len());
        assert_eq!(object["sha256"], pgreeve::backup::digest::sha256_hex(&body));
        let text = unpack(&body);
        assert_eq!(
            object["sha256_raw"],
            pgreeve::backup::digest::sha256_hex(text.as_bytes())
        );
        assert_eq!(object["rows"], text.lines().count());
    }
    assert_eq!(lines(&store).len(), 45_000);
    assert_eq!(
        count(
            &database,
            "pgreeve.archive_object o JOIN pgreeve.run_batch b ON b.run_id = o.run_id AND b.rows = o.rows AND o.oldest >= b.low::timestamptz AND o.youngest <= b.high::timestamptz"
        )
        .await,
        listed.len() as u64
    );
    assert_eq!(count(&database, "pgreeve.archive WHERE state = 'closed'").await, 1);
    assert_eq!(count(&database, "events").await, 10);
}

#[tokio::test]
async fn rows_stay_when_the_store_refuses_their_object() {
    let database = with_due_rows(30, true).await;
    let store = MemoryStore::default();
    let job = archiving(&store, ArchiveFormat::Jsonl, None);
    store.fail("create", ".jsonl.gz");
    let error = run_once(&database, &job).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Transient, "{error:?}");
    assert_eq!(count(&database, "events").await, 40);
    // An object that cannot be confirmed counts as none, and is taken away again.
    store.fail("head", ".jsonl.gz");
    run_once(&database, &job).await.unwrap_err();
    assert_eq!(count(&database, "events").await, 40);
    assert_eq!(objects(&store), Vec::<String>::new());
    store.heal();
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!((report.outcome, lines(&store).len()), (Outcome::Succeeded, 30));
}

#[tokio::test]
async fn a_store_that_fails_in_the_middle_keeps_the_rows_of_that_object_only() {
    let database = with_due_rows(30_000, true).await;
    let store = MemoryStore::default();
    let job = archiving(&store, ArchiveFormat::Jsonl, None);
    store.fail("create", "000002.jsonl.gz");
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(report.reason.as_ref().unwrap().starts_with("store: "), "{report:?}");
    let archived = lines(&store).len() as u64;
    assert_eq!(report.body["rows"], archived);
    assert_eq!(count(&database, "events").await, 30_010 - archived);
    assert_eq!(manifest(&store)["rows"], archived);
    store.heal();
    assert_eq!(run_once(&database, &job).await.unwrap().outcome, Outcome::Succeeded);
    assert_eq!(lines(&store).len(), 30_000);
}

#[tokio::test]
async fn a_trigger_that_keeps_rows_fails_the_run_and_leaves_rows_and_store_alike() {
    let database = with_due_rows(20, true).await;
    database
        .execute(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
             CREATE TRIGGER keep BEFORE DELETE ON events FOR EACH ROW WHEN (OLD.id <= 3) EXECUTE FUNCTION keep()",
        )
        .await;
    let store = MemoryStore::default();
    let error = run_once(&database, &archiving(&store, ArchiveFormat::Csv, None))
        .await
        .unwrap_err();
    assert!(
        error.cause.starts_with("20 rows were copied and 17 would be deleted"),
        "{error:?}"
    );
    assert_eq!(count(&database, "events").await, 30);
    assert_eq!(objects(&store), Vec::<String>::new());
}

#[tokio::test]
async fn a_row_that_changes_under_the_copy_is_archived_as_it_was_deleted() {
    let database = with_due_rows(10, true).await;
    let store = MemoryStore::default();
    let job = archiving(&store, ArchiveFormat::Jsonl, None);
    let mut context = context(
        &database,
        &job,
        &Setup {
            lock_timeout: std::time::Duration::from_secs(20),
            ..Setup::default()
        },
    )
    .await;
    let mut other = database.connect().await;
    let mut change = other.begin().await.unwrap();
    change
        .execute("UPDATE events SET processed = false WHERE id = 1")
        .await
        .unwrap();
    let plan = job.plan(&mut context).await.unwrap();
    let finished = async {
        // The copy is made, and the deletion waits for the row that changes.
        until("the object is there", async || !objects(&store).is_empty()).await;
        change.commit().await.unwrap();
    };
    let (report, ()) = tokio::join!(plan.execute(&mut context), finished);
    assert_eq!(report.unwrap().outcome, Outcome::Succeeded);
    let lines = lines(&store);
    assert_eq!(lines.len(), 10);
    assert!(
        lines
            .iter()
            .any(|line| line.contains("\"id\":1,") && line.contains("\"processed\":false"))
    );
    assert_eq!(count(&database, "events").await, 10);
}

#[tokio::test]
async fn every_leaf_is_archived_with_its_own_columns() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (id int, created_at timestamptz);
             CREATE TABLE heir (extra text) INHERITS (events);
             INSERT INTO events VALUES (1, '2001-01-01'); INSERT INTO heir VALUES (2, '2001-01-01', 'kept')",
        )
        .await;
    let store = MemoryStore::default();
    run_once(&database, &archiving(&store, ArchiveFormat::Jsonl, None))
        .await
        .unwrap();
    assert_eq!(objects(&store).len(), 2);
    assert!(lines(&store).iter().any(|line| line.contains(r#""extra":"kept""#)));
}

#[tokio::test]
async fn an_archive_past_its_own_keep_period_is_removed_and_recorded() {
    let database = with_due_rows(5, true).await;
    let store = MemoryStore::default();
    let job = archiving(&store, ArchiveFormat::Jsonl, Some("2y"));
    let mut first = context(&database, &job, &Setup::default()).await;
    run(&job, &mut first).await.unwrap();
    let prefix = format!("{}/the-job/archive/{}", database.name, first.run);
    // One microsecond younger than two years, as the database counts, it stays.
    let age = |age: &str| format!("UPDATE pgreeve.archive SET started_at = now() - interval '2 years' {age}");
    database.execute(&age("+ interval '1 minute'")).await;
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(report.body["archive"]["expired"]["archives"], 0);
    assert_eq!(store.keys().len(), 2);
    database.execute(&age("")).await;
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert_eq!(report.body["archive"]["expired"]["objects"], 2);
    assert!(store.keys().iter().all(|key| !key.starts_with(&prefix)));
    assert_eq!(count(&database, "pgreeve.archive WHERE state = 'expired'").await, 1);
}

#[tokio::test]
async fn a_kill_between_upload_and_deletion_archives_no_row_twice() {
    let database = with_due_rows(500, true).await;
    let directory = tempfile::tempdir().unwrap();
    let host = Host::new(&format!(
        "[databases.main]\nurl = \"{}\"\n[stores.offsite]\nurl = \"file://{}\"\n[jobs.purge]\nschedule = \"0 0 1 1 *\"\n\
         approval = \"none\"\nlock_timeout = \"50s\"\nretention = {{ table = \"events\", age_column = \"created_at\", \
         keep = \"30d\", max_fraction = 1.0, archive = {{ store = \"offsite\", compress = \"none\" }} }}\n",
        url(&database),
        directory.path().display()
    ));
    let mut other = database.connect().await;
    let mut lock = other.begin().await.unwrap();
    lock.execute("SELECT id FROM events WHERE id = 250 FOR UPDATE")
        .await
        .unwrap();
    let mut process = host.command(&["run", "purge"]).spawn().unwrap();
    let archived = || found(directory.path(), ".jsonl");
    // The object is complete and confirmed; the deletion waits for the row.
    until("the deletion waits", async || {
        count(&database, "pg_stat_activity WHERE query LIKE 'DELETE FROM ONLY%' AND wait_event_type = 'Lock' AND datname = current_database()").await == 1
    })
    .await;
    assert_eq!(archived().len(), 1);
    process.kill().unwrap();
    process.wait().unwrap();
    lock.rollback().await.unwrap();
    assert_eq!(archived().len(), 1);
    until("the session of the dead run is gone", async || {
        count(
            &database,
            "pg_stat_activity WHERE application_name LIKE 'pgreeve:purge:%'",
        )
        .await
            == 0
    })
    .await;
    assert_eq!(count(&database, "events").await, 510);
    assert_eq!(count(&database, "pgreeve.archive WHERE state = 'open'").await, 1);
    host.run(&["run", "purge"]).expect_code(0);
    assert_eq!(count(&database, "events").await, 10);
    let objects = archived();
    assert_eq!(objects.len(), 1, "{objects:?}");
    let mut lines: Vec<String> = std::fs::read_to_string(&objects[0])
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len(), 500);
    assert_eq!(found(directory.path(), "manifest.json").len(), 1);
    assert_eq!(count(&database, "pgreeve.archive").await, 1);
    assert_eq!(ledger_rows(&database).await, 500);
    let kinds: Vec<String> = host
        .audit_records()
        .iter()
        .map(|record| record["kind"].as_str().unwrap().to_owned())
        .collect();
    assert!(kinds.contains(&"archive.swept".to_owned()) && kinds.contains(&"archive.committed".to_owned()));
}

/// Files below a directory whose names end so.
fn found(directory: &std::path::Path, end: &str) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(found(&path, end));
        } else if path.to_string_lossy().ends_with(end) {
            files.push(path);
        }
    }
    files
}

fn url(database: &Database) -> String {
    let target = &database.target;
    format!(
        "postgresql:///{}?host={}&port={}&user={}",
        target.dbname, target.host, target.port, target.user
    )
}
