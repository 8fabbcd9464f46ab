//! Runs from intent to outcome.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgreeve::audit::AuditLog;
use pgreeve::job::{Exclusion, JobError, Kind};
use pgreeve::ledger::leader::{Campaign, Leader};
use pgreeve::ledger::migrate;
use pgreeve::ledger::runs::RunRecord;
use pgreeve::postgres::sqlstate::DatabaseError;
use pgreeve::runner::{SameJob, Sharing, Stops};
use pgreeve::schedule::recovery;
use serde_json::json;

use crate::support::Database;
use crate::support::bench::{Bench, Script, Scripted, green};
use crate::support::process::until;

fn sleep_in_the_server() -> Arc<Script> {
    Arc::new(|context| {
        Box::pin(async move {
            sqlx::query("SELECT pg_sleep(3600)")
                .execute(context.session.connection())
                .await
                .map_err(|error| JobError::database("sleep", &DatabaseError::from(error)))?;
            Ok(green())
        })
    })
}

#[tokio::test]
async fn two_daemons_that_start_together_migrate_once() {
    let database = Database::create().await;
    let starts = (0..4).map(|_| migrate::apply(&database.target));
    for result in futures::future::join_all(starts).await {
        result.unwrap();
    }
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"))
        .unwrap()
        .count();
    let applied: i64 = database.value("SELECT count(*) FROM pgreeve.migration").await;
    assert_eq!(usize::try_from(applied).unwrap(), files);
    assert_eq!(database.value::<i64>("SELECT count(*) FROM pgreeve.leader").await, 1);
}

#[tokio::test]
async fn a_run_leaves_one_row_and_a_start_and_an_end_in_the_audit_log() {
    let bench = Bench::set_up().await;
    let record = bench
        .run(Bench::job("green", Arc::new(|_| Box::pin(async { Ok(green()) }))))
        .await;
    assert_eq!(record.outcome.as_deref(), Some("succeeded"), "{record:?}");
    assert_eq!((record.attempt, &record.report), (1, &json!({ "done": true })));
    assert!(record.started_at.unwrap() <= record.finished_at.unwrap());
    assert_eq!(bench.audit_kinds(), ["run.start", "run.end"]);
    let attempts: i64 = bench
        .database
        .value("SELECT count(*) FROM pgreeve.run_attempt WHERE outcome = 'succeeded'")
        .await;
    assert_eq!(attempts, 1);
}

#[tokio::test]
async fn a_panic_is_a_failed_run_and_its_session_ends() {
    let bench = Bench::set_up().await;
    let record = bench
        .run(Bench::job(
            "panics",
            Arc::new(|_| Box::pin(async { panic!("a test's panic") })),
        ))
        .await;
    assert_eq!(record.outcome.as_deref(), Some("failed"));
    assert!(
        !record.reason.unwrap().contains("a test's panic"),
        "a panic's text may hold anything"
    );
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgreeve:panics:%'";
    assert_eq!(bench.database.value::<i64>(sessions).await, 0);
    assert_eq!(bench.audit_kinds(), ["run.start", "run.end"]);
}

#[tokio::test]
async fn a_run_over_its_time_is_cancelled_on_the_server_too() {
    let bench = Bench::set_up().await;
    let mut job = Bench::job("slow", sleep_in_the_server());
    job.run_timeout = Duration::from_millis(300);
    let record = bench.run(job).await;
    assert_eq!(record.outcome.as_deref(), Some("timed_out"), "{record:?}");
    let left: i64 = bench
        .database
        .value("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(3600)%' AND datname = current_database()")
        .await;
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_cancelled_run_ends_as_cancelled() {
    let bench = Bench::set_up().await;
    let stops = Stops::default();
    let hard = stops.hard.clone();
    let job = Bench::job("cancelled", sleep_in_the_server());
    let (record, ()) = tokio::join!(bench.run_with(job, stops), async {
        until("the statement runs", async || {
            bench.database.value::<bool>("SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(3600)%' AND datname = current_database())").await
        })
        .await;
        hard.cancel();
    });
    assert_eq!(record.outcome.as_deref(), Some("cancelled"), "{record:?}");
}

#[tokio::test]
async fn a_transient_error_is_tried_again_and_each_attempt_is_a_row() {
    let bench = Bench::set_up().await;
    let tries = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&tries);
    let mut job = Bench::job(
        "flaky",
        Arc::new(move |_| {
            let attempt = counter.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                if attempt == 0 {
                    Err(JobError::transient("reach the moon", "it has set"))
                } else {
                    Ok(green())
                }
            })
        }),
    );
    job.retries = 3;
    let record = bench.run(job).await;
    assert_eq!((record.outcome.as_deref(), record.attempt), (Some("succeeded"), 2));
    let outcomes: Vec<String> = sqlx::query_scalar("SELECT outcome FROM pgreeve.run_attempt ORDER BY attempt")
        .fetch_all(&mut bench.database.connect().await)
        .await
        .unwrap();
    assert_eq!(outcomes, ["failed", "succeeded"]);
}

#[tokio::test]
async fn a_permanent_error_is_not_tried_again() {
    let bench = Bench::set_up().await;
    let mut job = Bench::job(
        "broken",
        Arc::new(|_| Box::pin(async { Err(JobError::permanent("divide", "by zero")) })),
    );
    job.retries = 3;
    let record = bench.run(job).await;
    assert_eq!((record.outcome.as_deref(), record.attempt), (Some("failed"), 1));
}

#[tokio::test]
async fn the_same_job_twice_at_once_is_skipped_as_overlap() {
    let bench = Bench::set_up().await;
    let stops = Stops::default();
    let hard = stops.hard.clone();
    let (_, second) = tokio::join!(
        bench.run_with(Bench::job("twice", sleep_in_the_server()), stops),
        async {
            until("the first one runs", async || {
            bench.database.value::<bool>("SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(3600)%' AND datname = current_database())").await
        })
        .await;
            let second = bench
                .run(Bench::job("twice", Arc::new(|_| Box::pin(async { Ok(green()) }))))
                .await;
            hard.cancel();
            second
        }
    );
    assert_eq!(second.outcome.as_deref(), Some("skipped"));
    assert!(second.reason.unwrap().starts_with("overlap: "));
}

#[tokio::test]
async fn jobs_that_exclude_each_other_run_one_after_the_other() {
    let bench = Bench::set_up().await;
    let running = Arc::new(AtomicU32::new(0));
    let most = Arc::new(AtomicU32::new(0));
    let job = |name: &str| {
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
        let mut job = Bench::job(name, Arc::clone(&script));
        job.job = Arc::new(Scripted {
            kind: Kind::Backup,
            exclusions: vec![Exclusion::Snapshot],
            script,
        });
        job
    };
    let (first, second) = tokio::join!(bench.run(job("one")), bench.run(job("other")));
    assert_eq!(
        (first.outcome.as_deref(), second.outcome.as_deref()),
        (Some("succeeded"), Some("succeeded"))
    );
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn nothing_runs_when_the_audit_log_cannot_be_written() {
    let bench = Bench::set_up().await;
    let ran = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&ran);
    let job = Bench::job(
        "never",
        Arc::new(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Ok(green()) })
        }),
    );
    let directory = bench.directory.path().join("audit");
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o555)).unwrap();
    let record = bench.run(job).await;
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(
        ran.load(Ordering::Relaxed),
        0,
        "the job acted without its intent on record"
    );
    assert_eq!(record.outcome.as_deref(), Some("failed"));
    assert!(record.reason.unwrap().contains("nothing was changed"));
}

#[tokio::test]
async fn a_destructive_policy_waits_for_its_approval() {
    let bench = Bench::set_up().await;
    let script: Arc<Script> = Arc::new(|_| Box::pin(async { Ok(green()) }));
    let mut job = Bench::job("purge", Arc::clone(&script));
    job.job = Arc::new(Scripted {
        kind: Kind::Retention,
        exclusions: Vec::new(),
        script,
    });
    job.approval_required = true;
    let record = bench.run(job.clone()).await;
    assert_eq!(record.outcome.as_deref(), Some("gated"));
    assert!(record.reason.unwrap().contains("pgreeve approve sha256:test"));
    pgreeve::ledger::policies::approve(
        &mut bench.database.connect().await,
        "sha256:test",
        &job.name,
        &json!({}),
        "a test",
    )
    .await
    .unwrap();
    assert_eq!(bench.run(job).await.outcome.as_deref(), Some("succeeded"));
}

#[tokio::test]
async fn a_new_leader_fences_the_old_one_and_closes_its_runs() {
    let bench = Bench::set_up().await;
    let stops = Stops::default();
    let job = Bench::job("orphan", sleep_in_the_server());
    let audit: AuditLog = bench.audit.clone();
    let request = bench.admit(job, stops).await;
    let run = request.run;
    let runner = pgreeve::runner::Runner::new(audit.clone());
    let task = tokio::spawn(async move { runner.execute(request).await });
    until("the statement runs", async || {
        bench.database.value::<bool>("SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(3600)%' AND datname = current_database())").await
    })
    .await;
    // The old leader dies with its connection; its run's session is still at work.
    task.abort();
    let Bench {
        database, lead, site, ..
    } = bench;
    lead.resign().await;
    let Campaign::Won(mut successor) = Leader::campaign(&database.target, "successor", None).await.unwrap() else {
        panic!("the lead is free")
    };
    assert_eq!(successor.term.fence.epoch, site.fence.epoch + 1);
    let mut connection = database.connect().await;
    let mut transaction = sqlx::Connection::begin(&mut connection).await.unwrap();
    assert!(
        site.fence.hold(&mut transaction).await.is_err(),
        "a write of the old epoch must be refused"
    );
    transaction.rollback().await.unwrap();
    recovery::recover(&mut successor, &audit, &database.name).await.unwrap();
    let sql = format!("SELECT outcome FROM pgreeve.run WHERE run_id = '{run}'");
    assert_eq!(database.value::<String>(&sql).await, "abandoned");
}

#[tokio::test]
async fn a_broken_leader_connection_resumes_its_term() {
    let bench = Bench::set_up().await;
    let Bench { database, lead, .. } = bench;
    let term = lead.term.clone();
    let Campaign::Held { .. } = Leader::campaign(&database.target, "other", None).await.unwrap() else {
        panic!("the lead is taken")
    };
    lead.resign().await;
    let Campaign::Won(again) = Leader::campaign(&database.target, "bench", Some(&term)).await.unwrap() else {
        panic!("the lead is free")
    };
    assert_eq!(again.term, term);
}

#[tokio::test]
async fn a_retry_that_would_meet_the_next_slot_is_not_tried() {
    let bench = Bench::set_up().await;
    let mut job = Bench::job(
        "flaky",
        Arc::new(|_| Box::pin(async { Err(JobError::transient("connect", "refused")) })),
    );
    job.retries = 3;
    let mut request = bench.admit(job, Stops::default()).await;
    request.retry_until = Some(jiff::Timestamp::now());
    let record = pgreeve::runner::Runner::new(bench.audit.clone()).execute(request).await;
    assert_eq!((record.outcome.as_deref(), record.attempt), (Some("failed"), 1));
    assert!(record.reason.unwrap().contains("is next"));
}

/// Runs a job while another session holds its lock, and lets that session go once the run waits.
async fn meet_another_session(same_job: SameJob, lets_go: bool) -> RunRecord {
    let bench = Bench::set_up().await;
    let mut other = bench.database.connect().await;
    let key = pgreeve::ledger::locks::key("twice");
    assert!(
        pgreeve::ledger::locks::try_lock(&mut other, pgreeve::ledger::locks::JOB_CLASS, key)
            .await
            .unwrap()
    );
    let mut job = Bench::job("twice", Arc::new(|_| Box::pin(async { Ok(green()) })));
    job.sharing = Sharing {
        same_job,
        start_deadline: Duration::from_secs(if lets_go { 30 } else { 1 }),
        ..Sharing::default()
    };
    let (record, held) = tokio::join!(bench.run(job), async {
        if !lets_go {
            return Some(other);
        }
        until("the run waits for the lock", async || {
            bench
                .database
                .value::<bool>("SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))")
                .await
        })
        .await;
        sqlx::Connection::close(other).await.unwrap();
        None
    });
    drop(held);
    record
}

#[tokio::test]
async fn a_run_that_queues_waits_for_the_session_that_runs_its_job() {
    let record = Box::pin(meet_another_session(SameJob::Wait, true)).await;
    assert_eq!(record.outcome.as_deref(), Some("succeeded"), "{record:?}");
    let record = Box::pin(meet_another_session(SameJob::Wait, false)).await;
    assert_eq!(record.outcome.as_deref(), Some("skipped"));
    assert!(record.reason.unwrap().contains("(start_deadline)"));
}

#[tokio::test]
async fn a_run_that_replaces_ends_the_session_that_runs_its_job() {
    let record = Box::pin(meet_another_session(SameJob::Replace, false)).await;
    assert_eq!(record.outcome.as_deref(), Some("succeeded"), "{record:?}");
}
