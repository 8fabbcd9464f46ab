//! Every slot and every run comes to one terminal state, whatever ended before its time.

use std::time::Duration;

use pgreeve::audit::{AuditLog, Entry, RecordKind, runs as traces};
use pgreeve::job::{Outcome, Trigger};
use pgreeve::ledger::leader::{Campaign, Leader};
use pgreeve::ledger::runs::{self, NewRun, RunEnd};
use pgreeve::ledger::{attempts, locks, migrate};
use pgreeve::schedule::recovery;
use pgreeve::values::RunId;
use serde_json::json;

use crate::support::Database;
use crate::support::bench::Bench;
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
    attempts::begin(&mut guest, bench.site.fence, dead, 1, 1).await.unwrap();
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
