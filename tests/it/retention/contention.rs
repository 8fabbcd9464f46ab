//! Other sessions, time limits and other leaders in the way.

use std::time::{Duration, Instant};

use pgreeve::job::{Disposition, Job, Outcome};
use pgreeve::jobs::retention::{RetentionJob, RetentionSettings};
use sqlx::{Connection, Executor};

use super::{count, events, job, ledger_rows, with_due_rows};
use crate::support::Database;
use crate::support::context::{Setup, context, run, run_once};

/// Waits until some session of the database waits for a lock.
pub async fn until_somebody_waits(database: &Database) {
    let started = Instant::now();
    loop {
        let waiting: bool = database
            .value(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                                AND application_name LIKE 'pgreeve:%' AND wait_event_type = 'Lock')",
            )
            .await;
        if waiting {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "nobody waits for a lock");
    }
}

#[tokio::test]
async fn rows_that_others_hold_are_counted_and_deleted_by_the_next_run() {
    for index in [true, false] {
        let database = with_due_rows(3000, index).await;
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
        let report = run(&job(), &mut context(&database, &job(), &setup).await)
            .await
            .unwrap();
        assert_eq!(report.outcome, Outcome::Partial);
        assert!(report.reason.unwrap().starts_with("locked: "));
        assert_eq!(report.body["locked"], 2);
        assert_eq!(report.body["remaining"], 2);
        assert_eq!(report.body["rows"], 2998);
        assert_eq!(count(&database, "events WHERE id > 0").await, 2);
        assert_eq!(count(&database, "pgreeve.purge WHERE isfinite(purged_until)").await, 0);
        holding.rollback().await.unwrap();
        let report = run_once(&database, &job()).await.unwrap();
        assert_eq!((report.outcome, &report.body["rows"]), (Outcome::Succeeded, &2.into()));
        assert_eq!(count(&database, "pgreeve.purge").await, 1);
    }
}

#[tokio::test]
async fn without_the_right_to_lock_rows_those_beside_a_held_one_are_left() {
    let database = with_due_rows(3000, true).await;
    pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
    let role = format!("{}_reeve", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT, DELETE ON events TO {role};
             GRANT USAGE ON SCHEMA pgreeve TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA pgreeve TO {role}"
        ))
        .await;
    let mut holder = database.connect().await;
    let mut holding = holder.begin().await.unwrap();
    holding
        .execute("SELECT FROM events WHERE id = 1500 FOR UPDATE")
        .await
        .unwrap();
    let setup = Setup {
        lock_timeout: Duration::from_millis(50),
        target: Some(crate::support::cluster().await.target_as(&role, &database.name)),
        ..Setup::default()
    };
    let report = run(&job(), &mut context(&database, &job(), &setup).await)
        .await
        .unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    let locked = report.body["locked"].as_u64().unwrap();
    assert!((1..=125).contains(&locked), "{locked}");
    assert_eq!(report.body["remaining"].as_u64().unwrap(), locked);
    assert_eq!(count(&database, "events WHERE id > 0").await, locked);
    assert!(
        report.body["warnings"]
            .to_string()
            .contains("without the privilege UPDATE")
    );
}

#[tokio::test]
async fn a_row_that_becomes_young_again_while_a_batch_waits_for_it_stays() {
    for index in [true, false] {
        let database = with_due_rows(30, index).await;
        let mut application = database.connect().await;
        let mut active = application.begin().await.unwrap();
        active
            .execute("UPDATE events SET created_at = now() WHERE id = 7")
            .await
            .unwrap();
        let setup = Setup {
            lock_timeout: Duration::from_secs(20),
            ..Setup::default()
        };
        let job = job();
        let mut context = context(&database, &job, &setup).await;
        let (report, ()) = tokio::join!(run(&job, &mut context), async {
            until_somebody_waits(&database).await;
            active.commit().await.unwrap();
        });
        let report = report.unwrap();
        assert_eq!((report.outcome, &report.body["rows"]), (Outcome::Succeeded, &29.into()));
        assert_eq!(count(&database, "events WHERE id = 7").await, 1);
    }
}

#[tokio::test]
async fn statistics_that_know_nothing_of_the_rows_do_not_make_a_batch_overshoot() {
    let database = with_due_rows(0, true).await;
    // The planner believes in ten rows, so it would join and scan in the order that suits so few.
    database
        .execute(
            "ALTER TABLE events SET (autovacuum_enabled = false);
             INSERT INTO events SELECT n, now() - interval '40 days' - n * interval '1 second' FROM generate_series(1, 5000) n",
        )
        .await;
    let mut holder = database.connect().await;
    let mut holding = holder.begin().await.unwrap();
    holding
        .execute("SELECT FROM events WHERE id % 100 = 0 FOR UPDATE")
        .await
        .unwrap();
    let setup = Setup {
        lock_timeout: Duration::from_millis(20),
        ..Setup::default()
    };
    let job = RetentionJob::new(RetentionSettings {
        max_rows: Some(1000),
        ..events()
    });
    let mut context = context(&database, &job, &setup).await;
    let plan = job.plan(&mut context).await.unwrap();
    assert_eq!(plan.intent()["eligible"], 5000);
    plan.execute(&mut context).await.unwrap_err();
    // Approved by hand: as many as that may go, in batches that leave the locked rows out.
    let job = self::job();
    let report = run(&job, &mut self::context(&database, &job, &setup).await)
        .await
        .unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert_eq!(
        (&report.body["rows"], &report.body["locked"]),
        (&4950.into(), &50.into())
    );
    let most: i64 = database.value("SELECT max(rows) FROM pgreeve.run_batch").await;
    assert!(most <= 2000, "{most} rows in one batch");
    holding.rollback().await.unwrap();
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!((report.outcome, &report.body["rows"]), (Outcome::Succeeded, &50.into()));
}

#[tokio::test]
async fn a_batch_that_runs_into_its_time_limit_is_halved_until_it_fits() {
    let database = with_due_rows(2500, true).await;
    database
        .execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN IF (SELECT count(*) FROM gone) > 300 THEN PERFORM pg_sleep(60); END IF; RETURN NULL; END $$;
             CREATE TRIGGER slow AFTER DELETE ON events REFERENCING OLD TABLE AS gone
                 FOR EACH STATEMENT EXECUTE FUNCTION slow()",
        )
        .await;
    let setup = Setup {
        statement_timeout: Duration::from_millis(500),
        ..Setup::default()
    };
    let mut context = context(&database, &job(), &setup).await;
    let plan = job().plan(&mut context).await.unwrap();
    assert_eq!(plan.intent()["triggers"], serde_json::json!(["public.events.slow"]));
    let report = plan.execute(&mut context).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(count(&database, "events").await, 10);
    assert_eq!(ledger_rows(&database).await, 2500);
    assert_eq!(count(&database, "pgreeve.run_batch WHERE rows > 300").await, 0);
}

#[tokio::test]
async fn after_another_leader_took_over_nothing_more_is_deleted() {
    let database = with_due_rows(5000, true).await;
    pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
    // The first batch commits; from then on the epoch is over.
    database
        .execute(
            "CREATE FUNCTION take_over() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN UPDATE pgreeve.leader SET epoch = epoch + 1, instance = 'other'; RETURN NULL; END $$;
             CREATE TRIGGER take_over AFTER DELETE ON events FOR EACH STATEMENT EXECUTE FUNCTION take_over()",
        )
        .await;
    let error = run_once(&database, &job()).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Displaced);
    assert!(error.cause.contains("taken over"), "{error}");
    let gone = 5010 - count(&database, "events").await;
    assert_eq!(gone, 1000);
    assert_eq!(ledger_rows(&database).await, gone);
    assert_eq!(error.partial.unwrap()["rows"], 1000);
    assert_eq!(count(&database, "pgreeve.leader WHERE epoch = 1").await, 1);
}

#[tokio::test]
async fn a_stop_ends_the_run_after_the_batch_under_way() {
    let database = with_due_rows(5000, false).await;
    database
        .execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NULL; END $$;
             CREATE TRIGGER wait AFTER DELETE ON events FOR EACH STATEMENT EXECUTE FUNCTION wait()",
        )
        .await;
    let mut holder = database.connect().await;
    holder.execute("SELECT pg_advisory_lock(4711)").await.unwrap();
    let setup = Setup {
        lock_timeout: Duration::from_secs(20),
        ..Setup::default()
    };
    let job = job();
    let mut context = context(&database, &job, &setup).await;
    let stop = context.stop.clone();
    let (result, ()) = tokio::join!(run(&job, &mut context), async {
        until_somebody_waits(&database).await;
        stop.cancel();
        holder.execute("SELECT pg_advisory_unlock(4711)").await.unwrap();
    });
    let error = result.unwrap_err();
    assert_eq!(error.disposition, Disposition::Cancelled);
    let gone = 5010 - count(&database, "events").await;
    assert!((1..5000).contains(&gone), "{gone}");
    assert_eq!(error.partial.unwrap()["rows"].as_u64().unwrap(), gone);
    assert_eq!(ledger_rows(&database).await, gone);
    // The next attempt goes on where this one stopped.
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert_eq!(report.body["rows"].as_u64().unwrap(), 5000 - gone);
}

#[tokio::test]
async fn a_run_that_is_out_of_time_says_how_much_is_left() {
    let database = with_due_rows(500, true).await;
    let job = job();
    let mut context = context(&database, &job, &Setup::default()).await;
    let plan = job.plan(&mut context).await.unwrap();
    context.deadline = Instant::now();
    let report = plan.execute(&mut context).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(report.reason.unwrap().starts_with("budget: "));
    assert_eq!(report.body["remaining"], 500);
    assert_eq!(report.body["rows"], 0);
    let oldest: jiff::Timestamp = report.body["oldest_remaining"].as_str().unwrap().parse().unwrap();
    let stored: String = database
        .value("SELECT extract(epoch FROM min(created_at))::text FROM events")
        .await;
    assert!(stored.starts_with(&oldest.as_second().to_string()));
}

#[tokio::test]
async fn max_rows_is_never_exceeded_even_when_more_rows_become_due() {
    let database = with_due_rows(900, true).await;
    let job = RetentionJob::new(RetentionSettings {
        max_rows: Some(900),
        ..events()
    });
    let mut context = context(&database, &job, &Setup::default()).await;
    let plan = job.plan(&mut context).await.unwrap();
    database
        .execute("INSERT INTO events SELECT n + 10000, '2001-01-01' FROM generate_series(1, 500) n")
        .await;
    let report = plan.execute(&mut context).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(report.reason.unwrap().starts_with("max_rows: "));
    let gone = 1410 - count(&database, "events").await;
    assert!((1..=900).contains(&gone), "{gone}");
    assert_eq!(report.body["rows"].as_u64().unwrap(), gone);
}

#[tokio::test]
async fn rows_that_are_still_referenced_are_named_and_left() {
    let database = with_due_rows(100, true).await;
    database
        .execute(
            "CREATE TABLE notes (event_id bigint REFERENCES events); INSERT INTO notes VALUES (5), (6);
             CREATE TABLE marks (event_id bigint PRIMARY KEY REFERENCES events ON DELETE CASCADE); INSERT INTO marks VALUES (7)",
        )
        .await;
    let job = job();
    let mut context = context(&database, &job, &Setup::default()).await;
    let plan = job.plan(&mut context).await.unwrap();
    let intent = plan.intent();
    assert_eq!(
        intent["foreign_keys"],
        serde_json::json!([
            {"constraint": "marks_event_id_fkey", "table": "public.marks", "on_delete": "CASCADE", "indexed": true, "rows": 1},
            {"constraint": "notes_event_id_fkey", "table": "public.notes", "on_delete": "NO ACTION", "indexed": false, "rows": 2},
        ])
    );
    assert!(
        intent["warnings"]
            .to_string()
            .contains("no index finds the rows of public.notes")
    );
    let error = plan.execute(&mut context).await.unwrap_err();
    assert_eq!(error.sqlstate.as_deref(), Some("23503"));
    assert!(
        error.cause.contains("notes_event_id_fkey") && !error.cause.contains("(5)"),
        "{error}"
    );
    assert!(error.remedy.unwrap().contains("reference"));
    assert_eq!(count(&database, "events").await, 110);
}
