//! Yielding to others: signals, and what a run does about them.

use std::time::Duration;

use pgreeve::batch::Throttle;
use pgreeve::job::Outcome;
use pgreeve::jobs::retention::RetentionJob;
use sqlx::{Connection, Executor};

use super::{events, ledger_rows, with_due_rows};
use crate::support::Database;
use crate::support::context::{Setup, context, run, run_once};
use crate::support::process::until;

/// A throttle that looks at nothing.
fn off() -> Throttle {
    Throttle {
        replica_lag: None,
        slot_wal: None,
        archive_backlog: None,
        wal_rate: None,
        autovacuum: false,
        oldest_snapshot: None,
        patience: Duration::from_mins(1),
        yield_to_others: false,
    }
}

fn throttled(throttle: Throttle) -> RetentionJob {
    RetentionJob::new(events()).with_throttle(throttle)
}

#[tokio::test]
async fn a_run_waits_while_a_slot_retains_too_much_and_goes_on_when_it_is_gone() {
    let database = with_due_rows(3000, true).await;
    let slot = format!("{}_slot", database.name);
    database
        .execute(&format!("SELECT pg_create_physical_replication_slot('{slot}', true)"))
        .await;
    let job = throttled(Throttle {
        slot_wal: Some(1),
        ..off()
    });
    let mut context = context(&database, &job, &Setup::default()).await;
    let pid = context.session.backend_pid();
    let (report, ()) = tokio::join!(run(&job, &mut context), async {
        // Two samples without a batch between them: the run is waiting.
        let sampled = format!(
            "SELECT query LIKE '%pg_replication_slots%' AND state = 'idle' FROM pg_stat_activity WHERE pid = {pid}"
        );
        until("the run waits", async || database.value::<bool>(&sampled).await).await;
        assert_eq!(ledger_rows(&database).await, 0);
        database
            .execute(&format!("SELECT pg_drop_replication_slot('{slot}')"))
            .await;
    });
    let report = report.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert_eq!(report.body["signals"]["slot_wal"]["state"], "hold");
    let held = report.body["signals"]["slot_wal"]["held_ms"].as_u64().unwrap();
    assert!(
        held > 0 && report.body["throttle_ms"].as_u64().unwrap() > 0,
        "{report:?}"
    );
    assert_eq!(report.body["signals"]["replica_lag"]["state"], "ok");
}

#[tokio::test]
async fn waiting_ends_with_the_time_of_the_run_and_says_why() {
    let database = with_due_rows(100, true).await;
    let mut session = database.connect().await;
    let mut old = session
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ")
        .await
        .unwrap();
    old.execute("SELECT count(*) FROM events").await.unwrap();
    let job = throttled(Throttle {
        oldest_snapshot: Some(Duration::ZERO),
        patience: Duration::from_hours(1),
        ..off()
    });
    let setup = Setup {
        time: Duration::from_secs(4),
        ..Setup::default()
    };
    let report = run(&job, &mut context(&database, &job, &setup).await).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    let reason = report.reason.unwrap();
    assert!(
        reason.starts_with("throttled: oldest_snapshot held the run for"),
        "{reason}"
    );
    assert_eq!(
        (&report.body["rows"], &report.body["remaining"]),
        (&0.into(), &100.into())
    );
    // A snapshot may last for hours: patience ends first.
    let job = throttled(Throttle {
        oldest_snapshot: Some(Duration::ZERO),
        patience: Duration::from_millis(1),
        ..off()
    });
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(
        (report.outcome, &report.body["rows"]),
        (Outcome::Succeeded, &100.into())
    );
}

#[tokio::test]
async fn what_the_role_may_not_see_is_unknown() {
    let database = with_due_rows(100, true).await;
    pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
    let role = format!("{}_reeve", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT, DELETE ON events TO {role};
             GRANT USAGE ON SCHEMA pgreeve TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA pgreeve TO {role}"
        ))
        .await;
    let setup = Setup {
        target: Some(crate::support::cluster().await.target_as(&role, &database.name)),
        ..Setup::default()
    };
    let job = throttled(Throttle::default());
    let report = run(&job, &mut context(&database, &job, &setup).await).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert_eq!(report.body["signals"]["oldest_snapshot"]["state"], "unknown");
}

/// A session that works all the time, in a database of its own.
async fn busy(database: &Database, stop: &tokio_util::sync::CancellationToken) {
    let mut session = database.connect().await;
    while !stop.is_cancelled() {
        session.execute("SELECT 1").await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn beside_others_a_run_works_a_part_of_the_time_in_small_batches() {
    let database = with_due_rows(20_000, true).await;
    let job = throttled(Throttle {
        yield_to_others: true,
        ..off()
    });
    let mut context = context(&database, &job, &Setup::default()).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let (report, ()) = tokio::join!(
        async {
            let report = run(&job, &mut context).await.unwrap();
            stop.cancel();
            report
        },
        busy(&database, &stop)
    );
    assert_eq!(
        (report.outcome, &report.body["rows"]),
        (Outcome::Succeeded, &20_000.into())
    );
    assert_eq!(report.body["signals"]["activity"]["state"], "hold");
    // It rests four times as long as it works, once it has seen the others.
    let worked: i64 = database
        .value("SELECT sum(milliseconds)::int8 FROM pgreeve.run_batch")
        .await;
    let rested = report.body["throttle_ms"].as_u64().unwrap();
    assert!(rested > worked.unsigned_abs(), "rested {rested} ms, worked {worked} ms");
}

#[tokio::test]
async fn a_run_that_is_short_of_time_does_not_rest() {
    let database = with_due_rows(20_000, true).await;
    let job = throttled(Throttle {
        wal_rate: Some(1),
        ..off()
    });
    let setup = Setup {
        time: Duration::from_secs(3),
        ..Setup::default()
    };
    // A rate that can never be kept is a limit, and the run says that it was not enough.
    let report = run(&job, &mut context(&database, &job, &setup).await).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(report.body["rows"].as_u64().unwrap() >= 1000);
    assert!(report.body["throttle_ms"].as_u64().unwrap() > 500);
}

#[tokio::test]
async fn a_session_that_waits_for_a_batch_makes_the_next_ones_smaller() {
    let database = with_due_rows(6000, true).await;
    database
        .execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4712); RETURN NULL; END $$;
             CREATE TRIGGER wait AFTER DELETE ON events FOR EACH STATEMENT EXECUTE FUNCTION wait()",
        )
        .await;
    let mut gate = database.connect().await;
    gate.execute("SELECT pg_advisory_lock(4712)").await.unwrap();
    let job = throttled(off());
    let setup = Setup {
        lock_timeout: Duration::from_secs(30),
        ..Setup::default()
    };
    let mut context = context(&database, &job, &setup).await;
    let mut other = database.connect().await;
    let (report, ()) = tokio::join!(run(&job, &mut context), async {
        super::contention::until_somebody_waits(&database).await;
        let first: i64 = 6000;
        let waiting = other.execute(sqlx::AssertSqlSafe(format!("DELETE FROM events WHERE id = {first}")));
        let release = async {
            until("the other session waits too", async || {
                database
                    .value::<bool>(
                        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                                        AND application_name = 'test' AND wait_event_type = 'Lock')",
                    )
                    .await
            })
            .await;
            gate.execute("SELECT pg_advisory_unlock(4712)").await.unwrap();
        };
        let (done, ()) = tokio::join!(waiting, release);
        done.unwrap();
    });
    let report = report.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert!(
        report.body["signals"]["lock_waiters"]["count"].as_u64().unwrap() >= 1,
        "{report:?}"
    );
    let second: i64 = database.value("SELECT rows FROM pgreeve.run_batch WHERE seq = 2").await;
    assert!(second <= 600, "{second}");
}
