//! Archives along every driver, and beside holds, locks, references and limits.

use std::collections::BTreeMap;
use std::time::Duration;

use pgreeve::batch::ArchiveFormat;
use pgreeve::job::{Job, Outcome};
use pgreeve::jobs::retention::{ObjectSettings, RetentionJob, RetentionSettings};
use pgreeve::ledger::archives;
use pgreeve::postgres::catalog;
use pgreeve::store::{ObjectKey, Store};
use serde_json::Value;
use sqlx::{Connection, Executor};
use tokio_util::bytes::Bytes;

use super::archive::{archiving_of, lines, opening};
use super::contention::until_somebody_waits;
use super::elsewhere::{FOREIGN, STORED, two_databases};
use super::holds::place_within;
use super::{count, events, with_due_rows};
use crate::support::Database;
use crate::support::context::{Setup, context, refusal, run, run_once};
use crate::support::memory_store::MemoryStore;

fn archiving(store: &MemoryStore) -> RetentionJob {
    archiving_of(events(), store, ArchiveFormat::Jsonl, None)
}

/// The `id` of each archived row, in order.
fn ids(store: &MemoryStore) -> Vec<i64> {
    let id = |line: &String| serde_json::from_str::<Value>(line).unwrap()["id"].as_i64().unwrap();
    let mut ids: Vec<i64> = lines(store).iter().map(id).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn every_driver_archives_each_row_once() {
    for (driver, key, index) in [
        (
            "time_range",
            "bigserial PRIMARY KEY",
            "CREATE INDEX ON events (created_at)",
        ),
        ("key_range", "bigserial PRIMARY KEY", ""),
        ("tid_range", "bigserial", ""),
    ] {
        let database = Database::create().await;
        database
            .execute(&format!(
                "CREATE TABLE events (id {key}, created_at timestamptz); {index};
                 INSERT INTO events (created_at) SELECT CASE WHEN n % 5 = 0 THEN now() ELSE '2001-01-01'::timestamptz + n * interval '1 s' END
                 FROM generate_series(1, 30000) n; ANALYZE events"
            ))
            .await;
        let store = MemoryStore::default();
        let job = archiving(&store);
        let mut context = context(&database, &job, &Setup::default()).await;
        let plan = job.plan(&mut context).await.unwrap();
        assert_eq!(plan.intent()["driver"], driver);
        let report = plan.execute(&mut context).await.unwrap();
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
        let expected: Vec<i64> = (1..=30_000).filter(|id| id % 5 != 0).collect();
        assert_eq!(ids(&store), expected, "{driver}");
        assert_eq!(count(&database, "events").await, 6000);
        let ends: String = database
            .value("SELECT min(oldest) || ' to ' || max(youngest) FROM pgreeve.archive_object")
            .await;
        assert_eq!(ends, "2001-01-01 00:00:01+00 to 2001-01-01 08:19:59+00", "{driver}");
    }
}

#[tokio::test]
async fn rows_of_another_server_are_refused_by_name() {
    let (_there, here) = two_databases(STORED).await;
    here.execute(FOREIGN).await;
    let error = refusal(&here, &archiving(&MemoryStore::default()), &Setup::default()).await;
    assert_eq!(error.setting, Some("archive"));
    assert!(error.cause.contains("events is on another server"), "{error:?}");
}

#[tokio::test]
async fn a_hold_placed_while_a_batch_waits_for_it_keeps_its_rows_out_of_the_archive() {
    let database = with_due_rows(100, true).await;
    let store = MemoryStore::default();
    let job = archiving(&store);
    let setup = Setup {
        lock_timeout: Duration::from_secs(20),
        ..Setup::default()
    };
    let mut context = context(&database, &job, &setup).await;
    let plan = job.plan(&mut context).await.unwrap();
    let mut other = database.connect().await;
    let mut placing = other.begin().await.unwrap();
    place_within(&mut placing, "events", "id <= 10").await;
    let placed = async {
        until_somebody_waits(&database).await;
        placing.commit().await.unwrap();
    };
    let (report, ()) = tokio::join!(plan.execute(&mut context), placed);
    let report = report.unwrap();
    assert_eq!((report.outcome, &report.body["held"]), (Outcome::Succeeded, &10.into()));
    assert_eq!(ids(&store), (11..=100).collect::<Vec<_>>());
    assert_eq!(count(&database, "events WHERE id BETWEEN 1 AND 10").await, 10);
}

#[tokio::test]
async fn a_row_that_gets_a_reference_under_the_copy_stays_with_what_references_it() {
    let database = with_due_rows(100, true).await;
    database
        .execute(
            "CREATE TABLE cases (id int, event bigint REFERENCES events ON DELETE CASCADE); CREATE INDEX ON cases (event)",
        )
        .await;
    let store = MemoryStore::default();
    let settings = RetentionSettings {
        skip_if_referenced: true,
        ..events()
    };
    let job = archiving_of(settings, &store, ArchiveFormat::Csv, None);
    let setup = Setup {
        lock_timeout: Duration::from_secs(20),
        ..Setup::default()
    };
    let mut context = context(&database, &job, &setup).await;
    let mut other = database.connect().await;
    let mut referencing = other.begin().await.unwrap();
    referencing.execute("INSERT INTO cases VALUES (1, 50)").await.unwrap();
    let plan = job.plan(&mut context).await.unwrap();
    let referenced = async {
        until_somebody_waits(&database).await;
        referencing.commit().await.unwrap();
    };
    let (report, ()) = tokio::join!(plan.execute(&mut context), referenced);
    let report = report.unwrap();
    assert_eq!(
        (report.outcome, &report.body["exempt_referenced"]),
        (Outcome::Succeeded, &1.into())
    );
    assert_eq!(
        (
            count(&database, "cases").await,
            count(&database, "events WHERE id = 50").await
        ),
        (1, 1)
    );
    // Of each object the first line is the header.
    let archived = lines(&store);
    assert_eq!(archived.iter().filter(|line| !line.starts_with('"')).count(), 99);
    assert!(!archived.iter().any(|line| line.starts_with("50,")));
}

#[tokio::test]
async fn rows_that_others_hold_are_archived_by_the_next_run_and_all_others_now() {
    for index in [true, false] {
        let database = with_due_rows(3000, index).await;
        let store = MemoryStore::default();
        let job = archiving(&store);
        let mut holder = database.connect().await;
        let mut holding = holder.begin().await.unwrap();
        holding
            .execute("SELECT FROM events WHERE id IN (7, 2000) FOR UPDATE")
            .await
            .unwrap();
        let setup = Setup {
            lock_timeout: Duration::from_millis(50),
            ..Setup::default()
        };
        let report = run(&job, &mut context(&database, &job, &setup).await).await.unwrap();
        assert_eq!((report.outcome, &report.body["locked"]), (Outcome::Partial, &2.into()));
        assert_eq!(ids(&store).len(), 2998);
        holding.rollback().await.unwrap();
        run_once(&database, &job).await.unwrap();
        assert_eq!(ids(&store), (1..=3000).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn the_archives_of_a_table_are_found_under_its_new_name_until_they_expire() {
    let database = with_due_rows(5, true).await;
    let store = MemoryStore::default();
    run_once(&database, &archiving(&store)).await.unwrap();
    database.execute("ALTER TABLE events RENAME TO past").await;
    let mut connection = database.connect().await;
    let table = catalog::resolve(&mut connection, &"past".parse().unwrap())
        .await
        .unwrap();
    let found = archives::of_table(&mut connection, &table).await.unwrap();
    assert_eq!(found.len(), 1);
    let (archive, objects) = &found[0];
    assert_eq!(
        (archive.store.as_str(), archive.relation.as_str()),
        ("offsite", "public.events")
    );
    assert_eq!((objects.len(), objects[0].rows), (1, 5));
    assert!(store.keys().contains(&objects[0].key));
    assert!(objects[0].oldest < objects[0].youngest);
    database.execute("CREATE TABLE other ()").await;
    let other = catalog::resolve(&mut connection, &"other".parse().unwrap())
        .await
        .unwrap();
    assert!(archives::of_table(&mut connection, &other).await.unwrap().is_empty());
    database.execute("UPDATE pgreeve.archive SET state = 'expired'").await;
    assert!(archives::of_table(&mut connection, &table).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_row_beyond_max_rows_keeps_its_object() {
    let database = with_due_rows(500, true).await;
    database
        .execute("ALTER TABLE events ADD object_key text; UPDATE events SET object_key = 'export/' || id")
        .await;
    let store = MemoryStore::default();
    for id in 1..=500 {
        let key = ObjectKey::new(format!("export/{id}")).unwrap();
        store
            .create(&key, Bytes::from_static(b"x"), "text/plain")
            .await
            .unwrap();
    }
    let settings = RetentionSettings {
        max_rows: Some(500),
        objects: Some(ObjectSettings {
            store: "exports".parse().unwrap(),
            key_column: "object_key".to_owned(),
        }),
        ..events()
    };
    let job = RetentionJob::new(settings).with_stores(BTreeMap::from([("exports".parse().unwrap(), opening(&store))]));
    let mut context = context(&database, &job, &Setup::default()).await;
    let plan = job.plan(&mut context).await.unwrap();
    // More come due after the plan; the run may not touch them all.
    database
        .execute(
            "INSERT INTO events SELECT n, now() - interval '50 days', true, 'export/' || n FROM generate_series(501, 600) n",
        )
        .await;
    for id in 501..=600 {
        let key = ObjectKey::new(format!("export/{id}")).unwrap();
        store
            .create(&key, Bytes::from_static(b"x"), "text/plain")
            .await
            .unwrap();
    }
    let report = plan.execute(&mut context).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(report.reason.unwrap().starts_with("max_rows: "));
    let left = count(&database, "events WHERE id > 0").await;
    assert_eq!((left, store.keys().len() as u64), (100, left));
}
