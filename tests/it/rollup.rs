//! Rollups on real tables.

mod again;
mod calendar;
mod exact;
mod gates;
mod query;
mod reference;
mod refusals;
mod stress;

use pgreeve::job::{Job, JobReport, Outcome};
use pgreeve::jobs::rollup::RollupJob;
use pgreeve::ledger::migrate;
use pgreeve::rollup::measure::Measure;
use pgreeve::rollup::spec::{Form, Mode, Source};
use pgreeve::rollup::{Rollup, Task, init};
use serde_json::json;
use sqlx::Connection;

use crate::support::Database;
use crate::support::context::run_once;

/// Events by minute and company.
pub fn by_minute() -> Rollup {
    Rollup {
        bucket: "1m".parse().unwrap(),
        timezone: None,
        target: "event_minutes".parse().unwrap(),
        lateness: "1s".parse().unwrap(),
        form: Form::Source(Source {
            source: "events".parse().unwrap(),
            time_column: "created_at".to_owned(),
            column_timezone: None,
            bucket_column: "bucket".to_owned(),
            group_by: vec!["company".to_owned()],
            measures: [
                ("events", "count(*)"),
                ("total", "sum(amount)"),
                ("least", "min(amount)"),
                ("paid", "count(*) FILTER (WHERE amount > 0)"),
                ("people", "count(DISTINCT person)"),
                ("mean", "avg(amount)"),
            ]
            .map(|(name, expression)| Measure::new(name, expression).unwrap())
            .to_vec(),
            predicate: None,
            mode: Mode::Recompute,
        }),
    }
}

/// The same with changes to its source's part.
pub fn with(rollup: Rollup, change: impl FnOnce(&mut Source)) -> Rollup {
    let Form::Source(mut source) = rollup.form.clone() else {
        panic!("a rollup of a table")
    };
    change(&mut source);
    Rollup {
        form: Form::Source(source),
        ..rollup
    }
}

/// A database with an empty table of events.
pub async fn events() -> Database {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, company int, person int, amount numeric, created_at timestamptz);
             CREATE INDEX ON events (created_at)",
        )
        .await;
    database
}

/// Initialises a rollup under the tests' job, as `rollup init` does.
pub async fn initialise(database: &Database, rollup: &Rollup) {
    migrate::apply(&database.target).await.unwrap();
    let mut connection = crate::support::context::context(
        database,
        &RollupJob::new(rollup.clone()),
        &crate::support::context::Setup::default(),
    )
    .await
    .session;
    let mut transaction = connection.connection().begin().await.unwrap();
    init::init(&mut transaction, rollup, &"the-job".parse().unwrap(), "test", true)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
}

/// Runs a rollup once; it must be green.
pub async fn refresh(database: &Database, rollup: &Rollup) -> JobReport {
    let report = run_once(database, &RollupJob::new(rollup.clone())).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    report
}

/// Runs another task of a rollup.
pub async fn task(database: &Database, rollup: &Rollup, task: Task) -> JobReport {
    run_once(database, &RollupJob::new(rollup.clone()).with_task(task))
        .await
        .unwrap()
}

/// The whole target as text, in order.
pub async fn contents(database: &Database) -> String {
    database
        .value("SELECT coalesce(string_agg(t::text, ' ' ORDER BY t::text), '') FROM event_minutes t")
        .await
}

#[tokio::test]
async fn a_rollup_that_was_not_initialised_is_refused_and_one_that_was_writes_its_table() {
    let database = events().await;
    database
        .execute("INSERT INTO events (company, person, amount, created_at) SELECT n % 2, n % 3, n, now() - n * interval '1 minute' FROM generate_series(1, 100) n")
        .await;
    let rollup = by_minute();
    let error = crate::support::context::refusal(
        &database,
        &RollupJob::new(rollup.clone()),
        &crate::support::context::Setup::default(),
    )
    .await;
    assert!(error.cause.contains("not initialised"), "{error:?}");
    initialise(&database, &rollup).await;
    let report = refresh(&database, &rollup).await;
    assert_eq!(report.body["rows_written"], 100);
    let sums: String = database
        .value("SELECT sum(events) || ' ' || sum(total) || ' ' || sum(mean_sum) || ' ' || sum(mean_count) || ' ' || max(mean) FROM event_minutes")
        .await;
    assert_eq!(sums, "100 5050 5050 100 100");
    // The seal is behind the clock by its margin, and no more than a bucket besides.
    let lag: f64 = database
        .value("SELECT extract(epoch FROM now() - sealed_until)::float8 FROM pgreeve.rollup")
        .await;
    assert!((0.0..90.0).contains(&lag), "{lag}");
    let job = RollupJob::new(rollup);
    let mut context =
        crate::support::context::context(&database, &job, &crate::support::context::Setup::default()).await;
    let intent = job.plan(&mut context).await.unwrap().intent();
    assert_eq!(intent["sources"], json!(["public.events"]));
}

#[tokio::test]
async fn a_rerun_and_a_backfill_change_nothing_the_second_time() {
    let database = events().await;
    database
        .execute("INSERT INTO events (company, person, amount, created_at) SELECT nullif(n % 5, 0), n % 7, n, now() - interval '5 minutes' - n * interval '13 seconds' FROM generate_series(1, 2000) n")
        .await;
    let rollup = by_minute();
    initialise(&database, &rollup).await;
    refresh(&database, &rollup).await;
    let first = contents(&database).await;
    assert!(!first.is_empty());
    refresh(&database, &rollup).await;
    assert_eq!(contents(&database).await, first);
    for _ in 0..2 {
        let range = Task::Backfill {
            from: jiff::Timestamp::now() - jiff::SignedDuration::from_hours(20),
            to: jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1),
        };
        let report = task(&database, &rollup, range).await;
        assert_eq!(
            (report.outcome, &report.body["rows_written"]),
            (
                Outcome::Succeeded,
                &json!(database.value::<i64>("SELECT count(*) FROM event_minutes").await)
            )
        );
        assert_eq!(contents(&database).await, first);
    }
}

#[tokio::test]
async fn a_row_that_is_committed_late_is_counted_because_its_transaction_was_seen() {
    let database = events().await;
    let rollup = Rollup {
        bucket: "1s".parse().unwrap(),
        ..by_minute()
    };
    initialise(&database, &rollup).await;
    refresh(&database, &rollup).await;
    let mut late = database.connect().await;
    sqlx::raw_sql("BEGIN; SELECT 1").execute(&mut late).await.unwrap();
    let began: f64 = sqlx::query_scalar("SELECT extract(epoch FROM now())::float8")
        .fetch_one(&mut late)
        .await
        .unwrap();
    let now = async || database.value::<f64>("SELECT extract(epoch FROM now())::float8").await;
    // Others write, and are committed, after it began; the seal would pass it by the clock alone.
    crate::support::process::until("the margin and a bucket have passed", async || {
        database
            .execute("INSERT INTO events (company, created_at) VALUES (1, now())")
            .await;
        now().await > began + 7.5
    })
    .await;
    let report = refresh(&database, &rollup).await;
    let sealed: f64 = database
        .value("SELECT extract(epoch FROM sealed_until)::float8 FROM pgreeve.rollup")
        .await;
    assert!(sealed <= began, "{sealed} {began}");
    assert!(
        report.body["held_by"].as_str().unwrap().contains("server process"),
        "{report:?}"
    );
    sqlx::raw_sql("INSERT INTO events (company, created_at) VALUES (2, now()); COMMIT")
        .execute(&mut late)
        .await
        .unwrap();
    refresh(&database, &rollup).await;
    let (rows, counted): (i64, i64) = (
        database.value("SELECT count(*) FROM events").await,
        database.value("SELECT sum(events)::int8 FROM event_minutes").await,
    );
    assert_eq!(rows, counted);
    let sealed: f64 = database
        .value("SELECT extract(epoch FROM sealed_until)::float8 FROM pgreeve.rollup")
        .await;
    assert!(sealed > began, "{sealed} {began}");
}
