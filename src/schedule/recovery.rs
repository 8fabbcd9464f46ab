//! What a new leader does before it admits anything: runs that a dead process left open get their
//! one terminal state, in the ledger and in the audit log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;
use sqlx::PgConnection;

use crate::audit::{AuditError, AuditLog, Entry, RecordKind, Trace};
use crate::job::Outcome;
use crate::ledger::leader::{CONFIRM_EVERY, Leader};
use crate::ledger::locks;
use crate::ledger::reconcile::{self, OpenRun};
use crate::ledger::runs::{self, RunEnd};
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// Why the records could not be mended.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The ledger.
    #[error("{0}")]
    Ledger(#[from] DatabaseError),
    /// The audit log.
    #[error("{0}")]
    Audit(#[from] AuditError),
}

impl RecoveryError {
    /// The error with its remedy, where one is known.
    #[must_use]
    pub fn explain(&self) -> String {
        let remedy = match self {
            Self::Ledger(error) => error.remedy(),
            Self::Audit(error) => Some(error.remedy.clone()),
        };
        remedy.map_or_else(|| self.to_string(), |remedy| format!("{self}; {remedy}"))
    }
}

/// Whether a server is in recovery, asked before anything is written to it.
pub async fn is_standby(target: &ConnectTarget) -> Result<bool, DatabaseError> {
    let mut session = Session::open(target, &SessionSettings::control("pgreeve:start")).await?;
    let standby = sqlx::query_scalar("SELECT pg_catalog.pg_is_in_recovery()")
        .fetch_one(session.connection())
        .await?;
    session.close().await;
    Ok(standby)
}

/// Closes what is open of earlier terms, and ends in the audit log what ended in the ledger only.
/// Safe to repeat, also after it was stopped half-way.
pub async fn recover(leader: &mut Leader, audit: &AuditLog, database: &str) -> Result<(), RecoveryError> {
    let traces = read_traces(leader, audit).await?;
    let epoch = leader.term.fence.epoch;
    let cluster = leader.term.cluster.clone();
    let mut closed = BTreeSet::new();
    for open in reconcile::open_before(leader.connection(), epoch).await? {
        close_open_run(leader.connection(), audit, &traces, &cluster, &open).await?;
        closed.insert(open.run);
    }
    for (run, trace) in &traces {
        // The traces were read before: what was closed just above still looks open in them.
        if trace.is_open() && trace.database.as_deref() == Some(cluster.as_str()) && !closed.contains(run) {
            close_open_trace(leader.connection(), audit, database, *run, trace).await?;
        }
    }
    Ok(())
}

/// Reads the audit log, however long that is; meanwhile the leader's session is not silent, and no
/// follower takes it for dead.
async fn read_traces(leader: &mut Leader, audit: &AuditLog) -> Result<BTreeMap<RunId, Trace>, RecoveryError> {
    let reading = audit.traces();
    tokio::pin!(reading);
    loop {
        tokio::select! {
            traces = &mut reading => return Ok(traces?),
            () = tokio::time::sleep(CONFIRM_EVERY) => leader.confirm().await?,
        }
    }
}

/// Closes runs of the leader's own term that nobody works on any more: those of another process
/// under this epoch that died (`pgreeve run`), and those whose end could not be written to the
/// ledger. `known` are the runs of this process. A run is left alone while its job's lock is held,
/// and until nothing was heard of it for `quiet_for`, which must be longer than the longest pause
/// between two attempts.
pub async fn close_strays(
    leader: &mut Leader,
    audit: &AuditLog,
    known: &[RunId],
    quiet_for: Duration,
) -> Result<(), RecoveryError> {
    let epoch = leader.term.fence.epoch;
    let cluster = leader.term.cluster.clone();
    let quiet = reconcile::quiet(leader.connection(), epoch, known, quiet_for).await?;
    if quiet.is_empty() {
        return Ok(());
    }
    let traces = audit.traces().await?;
    for open in quiet {
        let key = locks::key(&open.job);
        if locks::holder(leader.connection(), locks::JOB_CLASS, key)
            .await?
            .is_none()
        {
            close_open_run(leader.connection(), audit, &traces, &cluster, &open).await?;
        }
    }
    Ok(())
}

async fn close_open_run(
    connection: &mut PgConnection,
    audit: &AuditLog,
    traces: &BTreeMap<RunId, Trace>,
    cluster: &str,
    open: &OpenRun,
) -> Result<(), RecoveryError> {
    let trace = traces.get(&open.run);
    let ended = trace
        .and_then(|trace| trace.ended.as_deref())
        .and_then(Outcome::from_word);
    let report = json!({ "rows": open.rows, "batches": open.batches, "recovered": true });
    let end = if let Some(outcome) = ended {
        RunEnd {
            outcome,
            reason: Some("closed from the audit log after a crash".to_owned()),
            sqlstate: None,
            report,
        }
    } else if open.started || open.scheduled_for.is_none() {
        let when = if open.started {
            "while it ran"
        } else {
            "before it started"
        };
        let reason = format!("the process of instance {} ended {when}", open.instance);
        RunEnd {
            outcome: Outcome::Abandoned,
            reason: Some(reason),
            sqlstate: None,
            report,
        }
    } else {
        RunEnd::without_report(
            Outcome::Missed,
            format!("the process of instance {} ended before it started", open.instance),
        )
    };
    if ended.is_none() {
        let kind = if end.outcome == Outcome::Missed {
            RecordKind::Missed
        } else {
            RecordKind::RunInterrupted
        };
        let body = json!({
            "outcome": end.outcome, "reason": end.reason, "scheduled_for": open.scheduled_for, "report": end.report,
        });
        let mut entry = Entry::new(kind, body).run(open.run).database(cluster.to_owned());
        if let Ok(job) = open.job.parse() {
            entry = entry.job(job);
        }
        audit.append(entry).await?;
    }
    runs::finish(connection, open.run, &end).await?;
    tracing::warn!(run.id = %open.run, job.name = open.job, outcome = end.outcome.as_str(), rows = open.rows, "closed a run that was left open");
    Ok(())
}

/// A run whose start is in the audit log and whose end is not.
async fn close_open_trace(
    connection: &mut PgConnection,
    audit: &AuditLog,
    database: &str,
    run: RunId,
    trace: &Trace,
) -> Result<(), RecoveryError> {
    let record = runs::find(connection, database, run).await?;
    let (kind, body) = match record {
        // It runs now, in another process under this leader's epoch.
        Some(record) if record.outcome.is_none() => return Ok(()),
        // Another host led meanwhile and closed it; its audit log says so, this one not yet.
        Some(record) if record.outcome() == Some(Outcome::Abandoned) => (
            RecordKind::RunInterrupted,
            json!({ "outcome": record.outcome, "reason": record.reason, "report": record.report }),
        ),
        Some(record) => (
            RecordKind::RunEnd,
            json!({ "outcome": record.outcome, "reason": record.reason, "report": record.report, "recovered": true }),
        ),
        None => (
            RecordKind::RunInterrupted,
            json!({ "outcome": Outcome::Unknown, "reason": "the ledger has no such run: the database was set back to an earlier state" }),
        ),
    };
    let mut entry = Entry::new(kind, body).run(run);
    if let Some(job) = trace.job.as_deref().and_then(|job| job.parse().ok()) {
        entry = entry.job(job);
    }
    if let Some(cluster) = &trace.database {
        entry = entry.database(cluster.clone());
    }
    audit.append(entry).await?;
    Ok(())
}
