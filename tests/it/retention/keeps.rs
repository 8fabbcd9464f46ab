//! Rows that stay: the newest of a group, and those that others reference.

use std::time::Duration;

use pgreeve::job::Outcome;
use pgreeve::jobs::retention::{RetentionJob, RetentionSettings};
use sqlx::{Connection, Executor};

use super::contention::until_somebody_waits;
use super::{count, events, with_due_rows};
use crate::support::Database;
use crate::support::context::{Setup, context, refusal, run, run_once};

fn latest(columns: &[&str]) -> RetentionJob {
    RetentionJob::new(RetentionSettings {
        keep_latest_per: columns.iter().map(|column| (*column).to_owned()).collect(),
        ..events()
    })
}

fn unreferenced() -> RetentionJob {
    RetentionJob::new(RetentionSettings {
        skip_if_referenced: true,
        ..events()
    })
}

#[tokio::test]
async fn among_equals_the_greatest_key_stays_and_only_that() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (id int PRIMARY KEY, user_id int NOT NULL, created_at timestamptz);
             INSERT INTO events SELECT 100 - n, n % 4, '2001-01-01' FROM generate_series(1, 40) n",
        )
        .await;
    let report = run_once(&database, &latest(&["user_id"])).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert_eq!((&report.body["rows"], &report.body["exempt"]), (&36.into(), &4.into()));
    let left: Vec<i32> = database.value("SELECT array_agg(id ORDER BY id) FROM events").await;
    assert_eq!(left, [96, 97, 98, 99]);
    assert!(
        report.body["warnings"]
            .to_string()
            .contains("no index of public.events begins with user_id")
    );
    // A younger row takes its place.
    database.execute("INSERT INTO events VALUES (1, 0, now())").await;
    let report = run_once(&database, &latest(&["user_id"])).await.unwrap();
    assert_eq!((&report.body["rows"], &report.body["exempt"]), (&1.into(), &3.into()));
}

#[tokio::test]
async fn a_group_column_that_does_not_exist_is_named() {
    let database = with_due_rows(1, true).await;
    let error = refusal(&database, &latest(&["procesed"]), &Setup::default()).await;
    assert_eq!(error.setting, Some("keep_latest_per"));
    assert!(error.remedy.unwrap().contains("processed"));
}

#[tokio::test]
async fn rows_of_one_table_that_reference_each_other_go_from_the_end() {
    let database = Database::create().await;
    // Each row references the one before; 9 and 10 reference each other, 11 itself, 5 is young.
    database
        .execute(
            "CREATE TABLE events (id int PRIMARY KEY, parent int REFERENCES events DEFERRABLE INITIALLY DEFERRED, created_at timestamptz);
             INSERT INTO events SELECT n, nullif(n - 1, 0), '2001-01-01' FROM generate_series(1, 8) n;
             UPDATE events SET created_at = now() WHERE id = 5;
             BEGIN; INSERT INTO events VALUES (9, 10, '2001-01-01'), (10, 9, '2001-01-01'), (11, 11, '2001-01-01'); COMMIT",
        )
        .await;
    let report = run_once(&database, &unreferenced()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    let left: Vec<i32> = database.value("SELECT array_agg(id ORDER BY id) FROM events").await;
    assert_eq!(left, [1, 2, 3, 4, 5, 9, 10]);
    assert_eq!(
        (&report.body["rows"], &report.body["exempt_referenced"]),
        (&4.into(), &6.into())
    );
}

#[tokio::test]
async fn a_reference_made_while_a_batch_waits_is_not_lost_to_a_cascade() {
    for index in [true, false] {
        let database = with_due_rows(200, index).await;
        database
            .execute("CREATE TABLE marks (event_id bigint PRIMARY KEY REFERENCES events ON DELETE CASCADE)")
            .await;
        let mut session = database.connect().await;
        let mut writing = session.begin().await.unwrap();
        writing.execute("INSERT INTO marks VALUES (7)").await.unwrap();
        let setup = Setup {
            lock_timeout: Duration::from_secs(20),
            ..Setup::default()
        };
        let job = unreferenced();
        let mut context = context(&database, &job, &setup).await;
        let (report, ()) = tokio::join!(run(&job, &mut context), async {
            until_somebody_waits(&database).await;
            writing.commit().await.unwrap();
        });
        let report = report.unwrap();
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
        assert_eq!(
            (&report.body["rows"], &report.body["exempt_referenced"]),
            (&199.into(), &1.into())
        );
        assert_eq!(count(&database, "marks").await, 1);
    }
}

#[tokio::test]
async fn references_that_the_role_may_not_see_are_refused_with_the_grant() {
    let database = with_due_rows(10, true).await;
    pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
    let role = format!("{}_reeve", database.name);
    database
        .execute(&format!(
            "CREATE TABLE notes (event_id bigint REFERENCES events); CREATE ROLE {role} LOGIN;
             GRANT SELECT, DELETE ON events TO {role}; GRANT USAGE ON SCHEMA pgreeve TO {role};
             GRANT ALL ON ALL TABLES IN SCHEMA pgreeve TO {role}"
        ))
        .await;
    let setup = Setup {
        target: Some(crate::support::cluster().await.target_as(&role, &database.name)),
        ..Setup::default()
    };
    for grant in [
        "GRANT SELECT ON \"public\".\"notes\"",
        "GRANT UPDATE (\"created_at\") ON \"public\".\"events\"",
    ] {
        let error = refusal(&database, &unreferenced(), &setup).await;
        assert_eq!(error.setting, Some("skip_if_referenced"));
        let remedy = error.remedy.unwrap();
        assert!(remedy.starts_with(grant), "{remedy}");
        database.execute(&remedy).await;
    }
    let report = run(&unreferenced(), &mut context(&database, &unreferenced(), &setup).await)
        .await
        .unwrap();
    assert_eq!(report.body["rows"], 10);
}
