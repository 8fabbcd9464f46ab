//! Drivers, partitions, crowds of rows, and what the report says.

use std::time::{Duration, Instant};

use pgreeve::job::{Job, Outcome};
use pgreeve::jobs::retention::{RetentionJob, RetentionSettings};
use sqlx::{Connection, Executor};

use super::{count, events, job, with_due_rows};
use crate::support::Database;
use crate::support::context::{Setup, context, run, run_once};

#[tokio::test]
async fn the_plan_names_its_driver_and_why_and_changes_nothing() {
    for (index, driver, why) in [
        (true, "time_range", "the index events_age leads with created_at"),
        (
            false,
            "tid_range",
            "no valid, non-partial btree index leads with created_at",
        ),
    ] {
        let database = with_due_rows(50, index).await;
        let job = job();
        let mut context = context(&database, &job, &Setup::default()).await;
        let intent = job.plan(&mut context).await.unwrap().intent();
        assert_eq!(intent["driver"], driver);
        assert!(intent["why"].as_str().unwrap().starts_with(why), "{intent}");
        assert_eq!(intent["eligible"], 50);
        assert_eq!(intent["estimated"], false);
        assert_eq!(intent["table"], "public.events");
        assert!(intent["where"].as_str().unwrap().contains("::timestamptz"));
        assert_eq!(count(&database, "events").await, 60);
    }
}

#[tokio::test]
async fn a_report_holds_exactly_the_published_keys() {
    let database = with_due_rows(5, true).await;
    let report = run_once(&database, &job()).await.unwrap();
    let keys: Vec<&String> = report.body.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "batches",
            "cutoff",
            "driver",
            "exempt",
            "exempt_referenced",
            "gates",
            "held",
            "hidden_not_erased",
            "locked",
            "longest_batch_ms",
            "oldest_remaining",
            "remaining",
            "rows",
            "signals",
            "table",
            "throttle_ms",
            "warnings",
            "why"
        ]
    );
    let purged: String = database
        .value("SELECT to_char(purged_until AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS') FROM pgreeve.purge WHERE relation = 'public.events'")
        .await;
    assert!(report.body["cutoff"].as_str().unwrap().starts_with(&purged));
}

#[tokio::test]
async fn a_row_as_old_as_the_cutoff_stays_and_the_next_older_one_goes_in_every_zone() {
    for age in ["timestamptz", "timestamp", "date"] {
        for zone in ["America/New_York", "UTC", "Asia/Tokyo"] {
            let database = Database::create().await;
            // What the database itself takes for its zone must not matter.
            database
                .execute(&format!(
                    "CREATE TABLE events (id int, created_at {age}); ALTER DATABASE {} SET TimeZone = 'Asia/Kolkata'",
                    database.name
                ))
                .await;
            let job = RetentionJob::new(RetentionSettings {
                timezone: Some(zone.parse().unwrap()),
                ..events()
            });
            let mut context = context(&database, &job, &Setup::default()).await;
            let plan = job.plan(&mut context).await.unwrap();
            let cutoff = plan.intent()["cutoff"].as_str().unwrap().to_owned();
            let local = format!("timestamptz '{cutoff}' AT TIME ZONE '{zone}'");
            let row = match age {
                "timestamptz" => format!("timestamptz '{cutoff}' + n * interval '1 microsecond'"),
                "timestamp" => format!("{local} + n * interval '1 microsecond'"),
                // The day that holds the cutoff is not over before it.
                _ => format!("({local})::date + n"),
            };
            database
                .execute(&format!(
                    "INSERT INTO events SELECT n, {row} FROM generate_series(-1, 1) n"
                ))
                .await;
            assert_eq!(plan.execute(&mut context).await.unwrap().outcome, Outcome::Succeeded);
            let left: Vec<i32> = database.value("SELECT array_agg(id ORDER BY id) FROM events").await;
            assert_eq!(left, [0, 1], "{age} in {zone}");
        }
    }
}

#[tokio::test]
async fn equal_places_in_two_partitions_are_told_apart() {
    let database = Database::create().await;
    // The old and the new row have the same ctid, each in its own partition.
    database
        .execute(
            "CREATE TABLE events (id int, created_at timestamptz) PARTITION BY LIST (id);
             CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1);
             CREATE TABLE events_2 PARTITION OF events FOR VALUES IN (2);
             INSERT INTO events VALUES (1, '2001-01-01'), (2, now())",
        )
        .await;
    let report = run_once(&database, &job()).await.unwrap();
    assert_eq!((report.outcome, &report.body["rows"]), (Outcome::Succeeded, &1.into()));
    assert_eq!(count(&database, "events WHERE id = 2").await, 1);
    assert_eq!(
        count(&database, "pgreeve.run_batch WHERE relation = 'public.events_1'").await,
        1
    );
}

#[tokio::test]
async fn a_crowd_of_one_age_is_deleted_in_many_batches() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (id int, created_at timestamptz, pad text);
             INSERT INTO events SELECT n, '2001-01-01', repeat('x', 100) FROM generate_series(1, 30000) n;
             INSERT INTO events SELECT n, now(), repeat('x', 100) FROM generate_series(1, 1000) n;
             CREATE INDEX ON events (created_at); ANALYZE events",
        )
        .await;
    let report = run_once(&database, &job()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert_eq!(report.body["rows"], 30_000);
    assert!(report.body["batches"].as_u64().unwrap() >= 5, "{report:?}");
    assert_eq!(count(&database, "events").await, 1000);
}

#[tokio::test]
async fn a_pinned_snapshot_does_not_make_batches_walk_dead_rows_again() {
    const ROWS: u32 = 60_000;
    let database = with_due_rows(ROWS, true).await;
    let mut old_session = database.connect().await;
    let mut snapshot = old_session
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ")
        .await
        .unwrap();
    snapshot.execute("SELECT count(*) FROM events").await.unwrap();
    let job = job();
    let mut context = context(&database, &job, &Setup::default()).await;
    let report = run(&job, &mut context).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert_eq!(report.body["rows"], ROWS);
    // The server publishes a session's statistics at the latest when it ends.
    let pid = context.session.backend_pid();
    context.session.close().await;
    let started = Instant::now();
    while database
        .value::<bool>(&format!(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid})"
        ))
        .await
    {
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    let read: i64 = database
        .value("SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'events_age'")
        .await;
    // Each row is read to find a batch's end, to delete it, and by the plan and the verification;
    // walking dead entries again would at least double that.
    let most = i64::from(ROWS) * 9 / 2;
    assert!(
        (i64::from(ROWS)..most).contains(&read),
        "{read} index entries were read"
    );
}

#[tokio::test]
async fn rows_exempt_by_the_condition_are_counted() {
    let database = with_due_rows(300, true).await;
    database
        .execute("UPDATE events SET processed = CASE WHEN id % 3 = 0 THEN NULL ELSE false END WHERE id <= 30")
        .await;
    let job = RetentionJob::new(RetentionSettings {
        predicate: Some("processed".to_owned()),
        ..events()
    });
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert_eq!(report.body["exempt"], 30);
    assert_eq!(report.body["rows"], 270);
}

#[tokio::test]
async fn a_pending_detach_is_reported_as_hidden_and_not_as_done() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (id int, created_at timestamptz) PARTITION BY LIST (id);
             CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1);
             CREATE TABLE events_2 PARTITION OF events FOR VALUES IN (2);
             INSERT INTO events VALUES (1, '2001-01-01'), (2, '2001-01-01')",
        )
        .await;
    // A reader of the partition makes the second half of the detach wait, and time out.
    let mut reader = database.connect().await;
    let mut reading = reader
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ")
        .await
        .unwrap();
    reading.execute("SELECT FROM events").await.unwrap();
    let mut detacher = database.connect().await;
    detacher.execute("SET lock_timeout = '100ms'").await.unwrap();
    detacher
        .execute("ALTER TABLE events DETACH PARTITION events_1 CONCURRENTLY")
        .await
        .unwrap_err();
    reading.rollback().await.unwrap();
    let report = run_once(&database, &job()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert_eq!(report.body["hidden_not_erased"], serde_json::json!(["public.events_1"]));
    assert_eq!(report.body["rows"], 1);
    assert!(
        report.body["warnings"]
            .to_string()
            .contains(r#"ALTER TABLE \"public\".\"events\" DETACH PARTITION \"public\".\"events_1\" FINALIZE"#),
        "{report:?}"
    );
    assert_eq!(count(&database, "events_1").await, 1);
}

#[tokio::test]
async fn a_count_that_takes_too_long_is_estimated_and_the_run_still_verified() {
    let database = with_due_rows(60, true).await;
    database
        .execute(
            "CREATE FUNCTION slow(bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.02); RETURN true; END $$",
        )
        .await;
    let job = RetentionJob::new(RetentionSettings {
        predicate: Some("public.slow(id)".to_owned()),
        ..events()
    });
    let mut context = context(&database, &job, &Setup::default()).await;
    // A quarter of the time is for the count.
    context.deadline = Instant::now() + Duration::from_millis(1600);
    let plan = job.plan(&mut context).await.unwrap();
    assert_eq!(plan.intent()["estimated"], true);
    context.deadline = Instant::now() + Duration::from_mins(1);
    let report = plan.execute(&mut context).await.unwrap();
    assert_eq!((report.outcome, &report.body["rows"]), (Outcome::Succeeded, &60.into()));
}

#[tokio::test]
async fn an_estimate_is_of_all_rows_also_where_several_processes_would_count() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (id int, created_at timestamptz, note text);
             INSERT INTO events SELECT n, '2001-01-01', repeat('x', 200) FROM generate_series(1, 60000) n;
             ANALYZE events;
             CREATE FUNCTION slow(int) RETURNS boolean LANGUAGE plpgsql PARALLEL SAFE COST 1000 AS $$
                 BEGIN PERFORM pg_sleep(0.001); RETURN true; END $$",
        )
        .await;
    let plan: Vec<String> = database
        .value("SELECT array_agg(setting) FROM pg_settings WHERE name = 'max_parallel_workers_per_gather'")
        .await;
    assert_ne!(plan, ["0"]);
    let job = RetentionJob::new(RetentionSettings {
        predicate: Some("public.slow(id)".to_owned()),
        ..events()
    });
    let mut context = context(&database, &job, &Setup::default()).await;
    // A quarter of the time is for the count.
    context.deadline = Instant::now() + Duration::from_millis(1600);
    let intent = job.plan(&mut context).await.unwrap().intent();
    assert_eq!(intent["estimated"], true);
    // The planner expects a third of the rows to meet a condition that it cannot see through.
    let expected = intent["eligible"].as_u64().unwrap();
    assert!((19_000..21_000).contains(&expected), "{expected}");
}

#[tokio::test]
async fn a_trigger_that_keeps_rows_is_found_by_the_verification() {
    let database = with_due_rows(20, true).await;
    database
        .execute(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
             CREATE TRIGGER keep BEFORE DELETE ON events FOR EACH ROW WHEN (OLD.id <= 3) EXECUTE FUNCTION keep()",
        )
        .await;
    let report = run_once(&database, &job()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert_eq!(
        (&report.body["rows"], &report.body["remaining"]),
        (&17.into(), &3.into())
    );
}

#[tokio::test]
async fn a_burst_among_evenly_spread_rows_is_deleted_with_them() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (id int, created_at timestamptz);
             INSERT INTO events SELECT n, timestamptz '2001-01-01' + n * interval '1 minute' FROM generate_series(1, 12000) n;
             INSERT INTO events SELECT n, timestamptz '2001-01-06' + n * interval '1 millisecond' FROM generate_series(1, 30000) n;
             INSERT INTO events SELECT n, timestamptz '2011-01-06' + n * interval '1 day' FROM generate_series(1, 300) n;
             INSERT INTO events SELECT n, now() FROM generate_series(1, 10) n;
             CREATE INDEX ON events (created_at); ANALYZE events",
        )
        .await;
    let report = run_once(&database, &job()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert_eq!(report.body["rows"], 42_300);
    // Ends that are guessed neither creep through the gap of ten years nor tear the burst to pieces.
    assert!(report.body["batches"].as_u64().unwrap() < 60, "{report:?}");
    assert_eq!(count(&database, "events").await, 10);
}
