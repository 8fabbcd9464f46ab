//! What keeps runs apart, and what a run does while it waits or cannot begin.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgreeve::job::{Exclusion, JobError, Kind};
use pgreeve::ledger::locks;
use pgreeve::postgres::connect::{Session, SessionSettings};
use pgreeve::postgres::sqlstate::DatabaseError;
use pgreeve::runner::{RunnableJob, Stops};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::support::bench::{Bench, Script, Scripted, green};
use crate::support::process::until;
use crate::support::{Database, cluster};

/// A job that excludes others.
fn exclusive(name: &str, exclusion: Exclusion, script: Arc<Script>) -> RunnableJob {
    RunnableJob {
        job: Arc::new(Scripted {
            kind: Kind::Backup,
            exclusions: vec![exclusion],
            script: Arc::clone(&script),
        }),
        ..Bench::job(name, script)
    }
}

fn at_once() -> Arc<Script> {
    Arc::new(|_| Box::pin(async { Ok(green()) }))
}

/// Another session that holds what a snapshot excludes.
async fn hold_the_snapshot(bench: &Bench) -> PgConnection {
    let mut connection = bench.database.connect().await;
    let key = locks::key("snapshot of the database");
    assert!(
        locks::try_lock(&mut connection, locks::EXCLUSION_CLASS, key)
            .await
            .unwrap()
    );
    connection
}

async fn somebody_waits(bench: &Bench) {
    let sql = "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";
    until("the run waits", async || bench.database.value::<bool>(sql).await).await;
}

#[tokio::test]
async fn one_table_under_two_names_is_one_table() {
    let bench = Bench::set_up().await;
    bench
        .database
        .execute(
            "CREATE TABLE events (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
        )
        .await;
    let (running, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let job = |job: &str, table: &str| {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        let script: Arc<Script> = Arc::new(move |context| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            Box::pin(async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sqlx::query("SELECT pg_sleep(0.3)")
                    .execute(context.session.connection())
                    .await
                    .unwrap();
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(green())
            })
        });
        exclusive(job, Exclusion::Rows(table.to_owned()), script)
    };
    let runs = [
        job("short", "events"),
        job("long", "public.events"),
        job("part", "events_2026"),
    ];
    for record in futures::future::join_all(runs.map(|job| bench.run(job))).await {
        assert_eq!(record.outcome.as_deref(), Some("succeeded"), "{record:?}");
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn waiting_for_another_run_is_not_counted_as_the_run_s_own_time() {
    let bench = Bench::set_up().await;
    let other = hold_the_snapshot(&bench).await;
    let mut job = exclusive("patient", Exclusion::Snapshot, at_once());
    job.run_timeout = Duration::from_millis(400);
    let (record, ()) = tokio::join!(bench.run(job), async {
        somebody_waits(&bench).await;
        // Longer than the run may take.
        tokio::time::sleep(Duration::from_millis(900)).await;
        other.close().await.unwrap();
    });
    assert_eq!(record.outcome.as_deref(), Some("succeeded"), "{record:?}");
}

#[tokio::test]
async fn a_run_that_is_cancelled_while_it_waits_leaves_no_session_that_goes_on_waiting() {
    let bench = Bench::set_up().await;
    let other = hold_the_snapshot(&bench).await;
    let stops = Stops::default();
    let hard = stops.hard.clone();
    let run = bench.run_with(exclusive("waits", Exclusion::Snapshot, at_once()), stops);
    let (record, ()) = tokio::join!(run, async {
        somebody_waits(&bench).await;
        hard.cancel();
    });
    assert_eq!(record.outcome.as_deref(), Some("cancelled"), "{record:?}");
    let left = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgreeve:waits:%'";
    assert_eq!(
        bench.database.value::<i64>(left).await,
        0,
        "it would keep the job's lock"
    );
    other.close().await.unwrap();
}

#[tokio::test]
async fn a_run_admitted_before_a_shutdown_is_not_begun_in_it() {
    let bench = Bench::set_up().await;
    let stops = Stops::default();
    stops.soft.cancel();
    let began = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&began);
    let script: Arc<Script> = Arc::new(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(green()) })
    });
    let record = bench.run_with(Bench::job("late", script), stops).await;
    assert_eq!(record.outcome.as_deref(), Some("cancelled"), "{record:?}");
    assert_eq!((began.load(Ordering::SeqCst), record.attempt), (0, 0));
    assert_eq!(bench.audit_kinds(), ["run.end"]);
}

#[tokio::test]
async fn a_run_of_a_term_that_is_over_is_skipped_and_not_tried_again() {
    let bench = Bench::set_up().await;
    let mut job = Bench::job("late", at_once());
    job.retries = 3;
    let request = bench.admit(job, Stops::default()).await;
    bench
        .database
        .execute("UPDATE pgreeve.leader SET epoch = epoch + 1")
        .await;
    let record = pgreeve::runner::Runner::new(bench.audit.clone()).execute(request).await;
    assert_eq!(record.outcome.as_deref(), Some("skipped"), "{record:?}");
    let reason = record.reason.unwrap();
    assert!(
        reason.contains("another pgreeve") && !reason.contains("standby"),
        "{reason}"
    );
    assert_eq!(bench.audit_kinds(), ["skipped"]);
}

#[tokio::test]
async fn a_server_that_turns_read_only_in_the_middle_of_a_run_is_a_standby() {
    let bench = Bench::set_up().await;
    let script: Arc<Script> = Arc::new(|context| {
        Box::pin(async move {
            // What the server answers to whoever writes after its primary was demoted.
            let written = sqlx::raw_sql("BEGIN READ ONLY; DELETE FROM pgreeve.run_batch")
                .execute(context.session.connection())
                .await;
            let error = DatabaseError::from(written.unwrap_err());
            Err(JobError::database("delete a batch", &error))
        })
    });
    let mut job = Bench::job("demoted", script);
    job.retries = 3;
    let record = bench.run(job).await;
    assert_eq!(
        (record.outcome.as_deref(), record.attempt),
        (Some("skipped"), 1),
        "{record:?}"
    );
    let reason = record.reason.unwrap();
    assert!(reason.starts_with("standby: ") && reason.contains("25006"), "{reason}");
    assert_eq!(bench.audit_kinds(), ["run.start", "skipped"]);
}

#[tokio::test]
async fn a_run_that_somebody_closed_is_not_begun_again() {
    let bench = Bench::set_up().await;
    let mut job = Bench::job("late", at_once());
    job.retries = 3;
    let request = bench.admit(job, Stops::default()).await;
    bench
        .database
        .execute("UPDATE pgreeve.run SET outcome = 'missed', finished_at = now()")
        .await;
    let record = pgreeve::runner::Runner::new(bench.audit.clone()).execute(request).await;
    assert_eq!(record.outcome.as_deref(), Some("missed"), "the ledger's word stands");
    assert_eq!(bench.audit_kinds(), ["skipped"]);
}

#[tokio::test]
async fn a_retry_that_cannot_begin_keeps_what_the_first_attempt_did() {
    let bench = Bench::set_up().await;
    let target = bench.database.target.clone();
    let script: Arc<Script> = Arc::new(move |_| {
        let target = target.clone();
        Box::pin(async move {
            // An operator's own run takes the job as soon as this attempt lets go of it.
            let mut guest = target.connect("guest").await.unwrap();
            tokio::spawn(async move {
                sqlx::query("SELECT pg_advisory_lock($1, $2), pg_sleep(10)")
                    .bind(locks::JOB_CLASS)
                    .bind(locks::key("flaky"))
                    .execute(&mut guest)
                    .await
            });
            Err(JobError::transient("reach the moon", "it has set").with_partial(json!({ "rows": 7 })))
        })
    });
    let mut job = Bench::job("flaky", script);
    job.retries = 1;
    let record = bench.run(job).await;
    assert_eq!(record.outcome.as_deref(), Some("failed"), "{record:?}");
    assert_eq!(record.report, json!({ "rows": 7 }));
    let reason = record.reason.unwrap();
    assert!(reason.contains("it has set") && reason.contains("overlap"), "{reason}");
    assert_eq!(bench.audit_kinds(), ["run.start", "run.end"]);
}

#[tokio::test]
async fn a_run_that_is_over_has_no_session_left_whoever_opened_it() {
    let bench = Bench::set_up().await;
    let script: Arc<Script> = Arc::new(|context| {
        let (target, name) = (
            context.target.clone(),
            format!("pgreeve:{}:{}", context.job, context.run),
        );
        Box::pin(async move {
            // As pg_dump does: a session of the same name that outlives the one who began it.
            let mut second = target.connect(&name).await.unwrap();
            tokio::spawn(async move { sqlx::query("SELECT pg_sleep(3600)").execute(&mut second).await });
            Err(JobError::permanent("dump", "the pipe broke"))
        })
    });
    let record = bench.run(Bench::job("dumps", script)).await;
    assert_eq!(record.outcome.as_deref(), Some("failed"));
    let left = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgreeve:dumps:%'";
    assert_eq!(bench.database.value::<i64>(left).await, 0);
}

#[tokio::test]
async fn a_statement_may_take_as_long_as_its_run() {
    let bench = Bench::set_up().await;
    let script: Arc<Script> = Arc::new(|context| {
        Box::pin(async move {
            let limit: String = sqlx::query_scalar("SELECT current_setting('statement_timeout')")
                .fetch_one(context.session.connection())
                .await
                .unwrap();
            assert_eq!(
                limit, "2h",
                "else a count of a large table never ends, and nothing is verified"
            );
            Ok(green())
        })
    });
    let mut job = Bench::job("counts", script);
    job.run_timeout = Duration::from_hours(2);
    assert_eq!(bench.run(job).await.outcome.as_deref(), Some("succeeded"));
}

#[tokio::test]
async fn what_a_role_sets_for_itself_does_not_reach_a_session() {
    let database = Database::create().await;
    let role = format!("role_of_{}", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN;
             ALTER ROLE {role} SET default_transaction_isolation = 'serializable';
             ALTER ROLE {role} SET statement_timeout = '1ms';
             ALTER ROLE {role} SET search_path = public"
        ))
        .await;
    let target = cluster().await.target_as(&role, &database.name);
    let settings = SessionSettings::control("pgreeve:test");
    let mut session = Session::open(&target, &settings).await.unwrap();
    let held: Vec<String> = sqlx::query_scalar(
        "SELECT pg_catalog.current_setting(name) FROM unnest(ARRAY['default_transaction_isolation', 'statement_timeout',
             'search_path', 'client_connection_check_interval']) WITH ORDINALITY AS s (name, n) ORDER BY n",
    )
    .fetch_all(session.connection())
    .await
    .unwrap();
    assert_eq!(held, ["read committed", "30s", "pg_catalog", "10s"]);
}
