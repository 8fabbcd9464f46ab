//! Retention on real tables.

pub mod archive;
mod archive_beside;
mod brakes;
pub mod contention;
mod elsewhere;
mod equivalence;
pub mod holds;
mod keeps;
mod killed;
mod objects;
mod partitions;
mod reading;
mod refusals;
mod throttle;
mod walks;

use pgreeve::jobs::retention::{RetentionJob, RetentionSettings};

use crate::support::Database;

/// The policy of most tests: rows of `events` older than 30 days.
pub fn events() -> RetentionSettings {
    RetentionSettings {
        table: "events".parse().unwrap(),
        age_column: "created_at".to_owned(),
        keep: "30d".parse().unwrap(),
        predicate: None,
        timezone: None,
        keep_latest_per: Vec::new(),
        skip_if_referenced: false,
        after: Vec::new(),
        max_fraction: None,
        max_rows: None,
        archive: None,
        objects: None,
        partitions: None,
    }
}

/// The job of [`events`].
pub fn job() -> RetentionJob {
    RetentionJob::new(events())
}

/// A table `events` with so many rows that are due and ten that are not.
pub async fn with_due_rows(rows: u32, index: bool) -> Database {
    let database = Database::create().await;
    let index = if index {
        "CREATE INDEX events_age ON events (created_at);"
    } else {
        ""
    };
    database
        .execute(&format!(
            "CREATE TABLE events (id bigint PRIMARY KEY, created_at timestamptz, processed boolean DEFAULT true);
             INSERT INTO events SELECT n, now() - interval '40 days' - n * interval '1 second' FROM generate_series(1, {rows}) n;
             INSERT INTO events SELECT -n, now() - interval '20 days' FROM generate_series(1, 10) n;
             {index} ANALYZE events;"
        ))
        .await;
    database
}

/// How many rows a query counts.
pub async fn count(database: &Database, of: &str) -> u64 {
    let rows: i64 = database.value(&format!("SELECT count(*) FROM {of}")).await;
    rows.unsigned_abs()
}

/// How many rows the ledger says are gone.
pub async fn ledger_rows(database: &Database) -> u64 {
    let rows: i64 = database
        .value("SELECT coalesce(sum(rows), 0)::bigint FROM pgreeve.run_batch")
        .await;
    rows.unsigned_abs()
}
