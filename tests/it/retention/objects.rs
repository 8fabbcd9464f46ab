//! Rows that own objects: the object goes first, the row last.

use std::collections::BTreeMap;

use pgreeve::job::{Disposition, Outcome};
use pgreeve::jobs::retention::{ObjectSettings, RetentionJob, RetentionSettings};
use pgreeve::store::{ObjectKey, Store};
use tokio_util::bytes::Bytes;

use super::archive::opening;
use super::{count, events};
use crate::support::Database;
use crate::support::context::{Setup, refusal, run_once};
use crate::support::memory_store::MemoryStore;

fn job(store: &MemoryStore, column: &str) -> RetentionJob {
    let settings = RetentionSettings {
        table: "data_exports".parse().unwrap(),
        objects: Some(ObjectSettings {
            store: "exports".parse().unwrap(),
            key_column: column.to_owned(),
        }),
        ..events()
    };
    RetentionJob::new(settings).with_stores(BTreeMap::from([("exports".parse().unwrap(), opening(store))]))
}

/// Exports 1 to `due` are due, five more are not; each owns an object.
async fn exports(due: u32, store: &MemoryStore) -> Database {
    let database = Database::create().await;
    database
        .execute(&format!(
            "CREATE TABLE data_exports (id int PRIMARY KEY, created_at timestamptz, object_key text UNIQUE);
             CREATE INDEX ON data_exports (created_at);
             INSERT INTO data_exports SELECT n, now() - CASE WHEN n <= {due} THEN interval '40 days' + n * interval '1 s' ELSE interval '1 day' END,
                 'users/' || n || '/export.zip' FROM generate_series(1, {due} + 5) n"
        ))
        .await;
    for id in 1..=due + 5 {
        put(store, &format!("users/{id}/export.zip")).await;
    }
    database
}

async fn put(store: &MemoryStore, key: &str) {
    let key = ObjectKey::new(key).unwrap();
    store
        .create(&key, Bytes::from_static(b"zip"), "application/zip")
        .await
        .unwrap();
}

#[tokio::test]
async fn objects_of_due_rows_are_gone_and_all_others_stay() {
    let store = MemoryStore::default();
    let database = exports(250, &store).await;
    let report = run_once(&database, &job(&store, "object_key")).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(report.body["objects"]["deleted"], 250);
    assert_eq!(report.body["rows"], 250);
    assert_eq!(store.keys().len(), 5);
    assert_eq!(count(&database, "data_exports").await, 5);
    assert!(!report.body.to_string().contains("users/"));
}

#[tokio::test]
async fn a_store_that_refuses_keeps_the_rows_and_no_message_holds_a_key() {
    let store = MemoryStore::default();
    let database = exports(150, &store).await;
    store.fail("delete", "users/");
    let error = run_once(&database, &job(&store, "object_key")).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Transient);
    assert!(!format!("{error:?}").contains("users/"), "{error:?}");
    assert_eq!((count(&database, "data_exports").await, store.keys().len()), (155, 155));
    // One batch gets through, the next does not.
    store.fail("head", "users/1/");
    let report = run_once(&database, &job(&store, "object_key")).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    let gone = report.body["rows"].as_u64().unwrap();
    assert!((1..150).contains(&gone), "{report:?}");
    assert_eq!(count(&database, "data_exports").await, 155 - gone);
    assert!(!format!("{report:?}").contains("users/"));
    // What was deleted in the store before the failure is deleted again without harm.
    store.heal();
    let report = run_once(&database, &job(&store, "object_key")).await.unwrap();
    assert_eq!((report.outcome, store.keys().len()), (Outcome::Succeeded, 5));
}

#[tokio::test]
async fn a_key_that_leaves_the_prefix_keeps_its_row_and_one_without_key_goes() {
    let store = MemoryStore::default();
    let database = exports(3, &store).await;
    let long = "k".repeat(901);
    let bad = [
        "../secret",
        "a/../b",
        "/etc/passwd",
        "a//b",
        "a/",
        ".",
        "",
        "sp ace",
        "back\\slash",
        "ümlaut",
        &long,
    ];
    for (n, key) in (100..).zip(bad) {
        assert!(ObjectKey::new(key).is_err(), "{key}");
        sqlx::query("INSERT INTO data_exports VALUES ($1, '2001-01-01', $2)")
            .bind(n)
            .bind(key)
            .execute(&mut database.connect().await)
            .await
            .unwrap();
    }
    let good = ["...", "a.b/..c", "a]b^c[d", "!~"];
    for (n, key) in (200..).zip(good) {
        put(&store, key).await;
        sqlx::query("INSERT INTO data_exports VALUES ($1, '2001-01-01', $2)")
            .bind(n)
            .bind(key)
            .execute(&mut database.connect().await)
            .await
            .unwrap();
    }
    database
        .execute("INSERT INTO data_exports VALUES (300, '2001-01-01', NULL)")
        .await;
    let report = run_once(&database, &job(&store, "object_key")).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(
        report
            .reason
            .as_ref()
            .unwrap()
            .contains("objects: rows are kept because `object_key`"),
        "{report:?}"
    );
    let objects = &report.body["objects"];
    assert_eq!(objects["rows_with_unusable_key"], bad.len());
    assert_eq!(
        (&objects["rows_without_key"], &objects["deleted"]),
        (&1.into(), &7.into())
    );
    assert_eq!(
        count(&database, "data_exports WHERE id BETWEEN 100 AND 199").await,
        bad.len() as u64
    );
    assert_eq!(
        count(&database, "data_exports WHERE created_at < now() - interval '30 days'").await,
        bad.len() as u64
    );
    assert_eq!(store.keys().len(), 5);
}

#[tokio::test]
async fn an_object_that_a_younger_row_names_too_is_left_to_that_row() {
    let store = MemoryStore::default();
    let database = exports(2, &store).await;
    database
        .execute(
            "ALTER TABLE data_exports DROP CONSTRAINT data_exports_object_key_key;
             INSERT INTO data_exports VALUES (50, now(), 'users/1/export.zip')",
        )
        .await;
    let report = run_once(&database, &job(&store, "object_key")).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert_eq!(report.body["objects"]["kept_for_other_rows"], 1);
    assert!(report.body["warnings"].to_string().contains("no index finds the rows"));
    assert!(store.keys().contains(&"users/1/export.zip".to_owned()));
    assert!(!store.keys().contains(&"users/2/export.zip".to_owned()));
}

#[tokio::test]
async fn a_key_column_that_holds_no_keys_is_refused() {
    let store = MemoryStore::default();
    let database = exports(1, &store).await;
    for column in ["id", "objekt_key"] {
        let error = refusal(&database, &job(&store, column), &Setup::default()).await;
        assert_eq!(error.setting, Some("objects"), "{error:?}");
    }
}
