//! Every slot and every run comes to one terminal state, whatever ended before its time.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pgreeve::audit::{AuditLog, Entry, RecordKind, runs as traces};
use pgreeve::job::{Outcome, Trigger};
use pgreeve::ledger::leader::{Campaign, Leader};
use pgreeve::ledger::runs::{self, NewRun, RunEnd};
use pgreeve::ledger::slots::{self, Evaluated};
use pgreeve::ledger::{attempts, locks, migrate};
use pgreeve::schedule::cron::Schedule;
use pgreeve::schedule::marks::first_seen;
use pgreeve::schedule::policy::Missed;
use pgreeve::schedule::recovery;
use pgreeve::schedule::rows::{Admission, Writer};
use pgreeve::schedule::slots::{CHUNK, ScheduledJob};
use pgreeve::values::{RunId, Timezone};
use serde_json::json;

use crate::support::Database;
use crate::support::bench::{Bench, green};
use crate::support::process::until;

/// A run that is open in the ledger, under the bench's epoch.
async fn open_run(bench: &Bench) -> RunId {
    let row = NewRun {
        run: RunId::new(),
        job: "purge".parse().unwrap(),
        kind: pgreeve::job::Kind::Retention,
        scheduled_for: None,
        timezone: "UTC".to_owned(),
        adjusted: None,
        trigger: Trigger::Manual,
        actor: "a guest".to_owned(),
        instance: "a guest".to_owned(),
        epoch: bench.site.fence.epoch,
        policy: "sha256:test".to_owned(),
    };
    assert!(runs::admit(&mut bench.database.connect().await, &row).await.unwrap());
    row.run
}

async fn record_start(audit: &AuditLog, run: RunId, database: &str) {
    let entry = Entry::new(RecordKind::RunStart, json!({}))
        .run(run)
        .job("purge".parse().unwrap())
        .database(database.to_owned());
    audit.append(entry).await.unwrap();
}

async fn outcome(database: &Database, run: RunId) -> Option<String> {
    database
        .value(&format!("SELECT outcome FROM pgreeve.run WHERE run_id = '{run}'"))
        .await
}

#[tokio::test]
async fn a_run_of_one_database_is_not_closed_by_the_leader_of_another_in_the_same_cluster() {
    let bench = Bench::set_up().await;
    let other = Database::create().await;
    migrate::apply(&other.target).await.unwrap();
    let run = open_run(&bench).await;
    record_start(&bench.audit, run, &bench.site.system_identifier).await;
    let Campaign::Won(mut lead) = Leader::campaign(&other.target, "bench", None).await.unwrap() else {
        panic!("nobody else leads")
    };
    recovery::recover(&mut lead, &bench.audit, &other.name).await.unwrap();
    assert_eq!(bench.audit_kinds(), ["run.start"], "the run goes on");
}

#[tokio::test]
async fn a_run_that_another_host_closed_gets_its_end_in_the_audit_log_of_its_own() {
    let mut bench = Bench::set_up().await;
    let run = open_run(&bench).await;
    record_start(&bench.audit, run, &bench.site.system_identifier).await;
    let end = RunEnd::without_report(Outcome::Abandoned, "the process of instance bench ended while it ran");
    assert!(
        runs::finish(&mut bench.database.connect().await, run, &end)
            .await
            .unwrap()
    );
    recovery::recover(&mut bench.lead, &bench.audit, &bench.database.name)
        .await
        .unwrap();
    assert_eq!(bench.audit_kinds(), ["run.start", "run.interrupted"]);
    let known = traces(&bench.directory.path().join("audit")).unwrap();
    assert!(!known[&run].is_open());
}

#[tokio::test]
async fn a_guest_run_whose_process_died_is_closed_while_the_leader_goes_on() {
    let mut bench = Bench::set_up().await;
    let (dead, never_started, alive) = (open_run(&bench).await, open_run(&bench).await, open_run(&bench).await);
    let mut guest = bench.database.connect().await;
    let begun = attempts::begin(&mut guest, bench.site.fence, dead, 1, 1).await.unwrap();
    assert_eq!(begun, attempts::Begun::Yes);
    record_start(&bench.audit, dead, &bench.site.system_identifier).await;
    let close = async |bench: &mut Bench, quiet_for| {
        recovery::close_strays(&mut bench.lead, &bench.audit, &[alive], quiet_for)
            .await
            .unwrap();
    };
    // Its lock is held: somebody works on the job.
    assert!(
        locks::try_lock(&mut guest, locks::JOB_CLASS, locks::key("purge"))
            .await
            .unwrap()
    );
    close(&mut bench, Duration::ZERO).await;
    assert_eq!(outcome(&bench.database, dead).await, None);
    // The lock is free, but it may be between two attempts.
    sqlx::Connection::close(guest).await.unwrap();
    close(&mut bench, Duration::from_mins(5)).await;
    assert_eq!(outcome(&bench.database, dead).await, None);
    until("the server has ended the guest's session", async || {
        close(&mut bench, Duration::ZERO).await;
        outcome(&bench.database, dead).await.is_some()
    })
    .await;
    assert_eq!(outcome(&bench.database, dead).await.as_deref(), Some("abandoned"));
    assert_eq!(
        outcome(&bench.database, never_started).await.as_deref(),
        Some("abandoned")
    );
    assert_eq!(outcome(&bench.database, alive).await, None, "the process knows it");
    assert_eq!(bench.audit_kinds(), ["run.start", "run.interrupted", "run.interrupted"]);
}

/// A job with a slot each minute that was last evaluated at `since`.
async fn minutely(bench: &mut Bench, since: Timestamp, now: Timestamp) -> ScheduledJob {
    let runnable = Bench::job("purge", Arc::new(|_| Box::pin(async { Ok(green()) })));
    let schedule = Schedule::parse("* * * * *", Timezone::utc()).unwrap();
    let known = Evaluated {
        schedule: schedule.to_string(),
        timezone: "UTC".to_owned(),
        until: since,
    };
    slots::save(bench.lead.connection(), &runnable.name, &known)
        .await
        .unwrap();
    let mut jobs = vec![ScheduledJob::new(
        runnable,
        schedule,
        Missed::RunOnce,
        Duration::from_hours(24),
    )];
    first_seen(bench.lead.connection(), &mut jobs, &bench.audit, now)
        .await
        .unwrap();
    jobs.remove(0)
}

/// Evaluates a job once, as the dispatcher does; answers which runs may start, and until when.
async fn evaluate(bench: &mut Bench, job: &mut ScheduledJob, now: Timestamp) -> (Vec<Admission>, Timestamp) {
    let (decision, until) = job.due_until(now);
    let term = bench.lead.term.clone();
    let writer = Writer {
        audit: &bench.audit,
        instance: "bench",
        term: &term,
        job,
    };
    let connection = bench.lead.connection();
    (
        writer
            .write(connection, decision, Vec::new(), None, until)
            .await
            .unwrap(),
        until,
    )
}

#[tokio::test]
async fn weeks_of_missed_minutes_are_accounted_for_in_pieces_and_the_newest_runs() {
    let mut bench = Bench::set_up().await;
    let now: Timestamp = "2026-03-01T00:00:30Z".parse().unwrap();
    let minutes = 2 * i64::try_from(CHUNK).unwrap() + 300;
    let mut job = minutely(&mut bench, now - SignedDuration::from_mins(minutes), now).await;
    let mut admitted = Vec::new();
    for last in [false, false, true] {
        let (runs, until) = evaluate(&mut bench, &mut job, now).await;
        admitted.extend(runs);
        assert_eq!(until == now, last);
    }
    assert!(job.due_until(now).0.is_empty());
    assert_eq!(admitted.len(), 1);
    assert_eq!(admitted[0].scheduled_for.to_string(), "2026-03-01T00:00:00Z");
    let missed = "SELECT count(*) FROM pgreeve.run WHERE outcome = 'missed'";
    assert_eq!(bench.database.value::<i64>(missed).await, minutes - 1);
    let recorded: u64 = bench
        .audit_records()
        .iter()
        .filter(|record| record["kind"] == "missed")
        .map(|record| record["body"]["slots"].as_u64().unwrap())
        .sum();
    assert_eq!(i64::try_from(recorded).unwrap(), minutes - 1);
}

#[tokio::test]
async fn a_run_whose_admission_was_committed_without_an_answer_is_started_all_the_same() {
    let mut bench = Bench::set_up().await;
    let now: Timestamp = "2026-03-01T00:00:30Z".parse().unwrap();
    let since = now - SignedDuration::from_mins(1);
    let mut job = minutely(&mut bench, since, now).await;
    let (first, _) = evaluate(&mut bench, &mut job, now).await;
    // The process never saw the answer: it still believes that nothing was evaluated.
    let sql = format!("UPDATE pgreeve.schedule SET evaluated_until = '{since}'");
    bench.database.execute(&sql).await;
    let mut jobs = vec![job];
    first_seen(bench.lead.connection(), &mut jobs, &bench.audit, now)
        .await
        .unwrap();
    job = jobs.remove(0);
    let (again, _) = evaluate(&mut bench, &mut job, now).await;
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].run, first[0].run);
}

#[tokio::test]
async fn slots_that_the_database_refuses_are_not_announced() {
    let mut bench = Bench::set_up().await;
    let now: Timestamp = "2026-03-01T00:00:30Z".parse().unwrap();
    let mut job = minutely(&mut bench, now - SignedDuration::from_mins(10), now).await;
    bench
        .database
        .execute("UPDATE pgreeve.leader SET epoch = epoch + 1")
        .await;
    let (decision, until) = job.due_until(now);
    let term = bench.lead.term.clone();
    let writer = Writer {
        audit: &bench.audit,
        instance: "bench",
        term: &term,
        job: &mut job,
    };
    let result = writer
        .write(bench.lead.connection(), decision, Vec::new(), None, until)
        .await;
    assert!(result.is_err());
    assert!(bench.audit_records().iter().all(|record| record["kind"] != "missed"));
    assert!(!job.due_until(now).0.is_empty(), "they are due as before");
}
