//! Ending a run that somebody else runs: a guest's on this host, or another host's. The request is
//! put into the ledger; whoever runs it looks there, ends its work on the server, and closes it.
//! A run that nobody answers for any more is ended on the server and closed here.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinHandle;

use super::recovery::RecoveryError;
use crate::audit::{AuditLog, Entry, RecordKind};
use crate::job::Outcome;
use crate::ledger::leader::identify;
use crate::ledger::runs::{self, RunEnd, RunRecord};
use crate::ledger::{cancels, locks};
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;
use crate::runner::Stops;
use crate::values::RunId;

/// How often a run's process looks whether it is to end.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a run's process may take to end it in good order: its statement is cancelled after 2 s
/// and its session ended after 32 s.
const GOOD_ORDER: Duration = Duration::from_secs(45);
/// How often the ledger is asked whether the run is closed.
const POLL: Duration = Duration::from_millis(250);

/// Ends an open run of a database and answers with its record; `None` when it has no such run.
///
/// # Errors
/// When the database or the audit log cannot be used; the request may stand then.
pub async fn cancel(
    target: &ConnectTarget,
    database: &str,
    audit: &AuditLog,
    run: RunId,
    actor: &str,
) -> Result<Option<RunRecord>, RecoveryError> {
    let mut session = Session::open(target, &SessionSettings::control("pgreeve:cancel")).await?;
    let Some(record) = runs::find(session.connection(), database, run).await? else {
        session.close().await;
        return Ok(None);
    };
    if record.outcome.is_some() {
        session.close().await;
        return Ok(Some(record));
    }
    let cluster = identify(session.connection()).await?;
    audit.append(entry(&record, &cluster, actor)).await?;
    cancels::request(session.connection(), run, actor).await?;
    let started = Instant::now();
    while started.elapsed() < GOOD_ORDER {
        tokio::time::sleep(POLL).await;
        match runs::find(session.connection(), database, run).await? {
            Some(record) if record.outcome.is_none() => {}
            found => {
                session.close().await;
                return Ok(found);
            }
        }
        // A process that has gone holds no lock: nothing is gained by waiting for it.
        let deaf = started.elapsed() > LOOK_EVERY * 3;
        if deaf && !is_alive(&mut session, &record).await? {
            break;
        }
    }
    close_here(&mut session, audit, &record, &cluster, actor).await?;
    let record = runs::find(session.connection(), database, run).await?;
    session.close().await;
    Ok(record)
}

/// What the audit log says about a request to end a run.
#[must_use]
pub fn entry(record: &RunRecord, cluster: &str, actor: &str) -> Entry {
    let entry = Entry::new(
        RecordKind::RunCancel,
        json!({ "trigger": record.trigger, "scheduled_for": record.scheduled_for }),
    )
    .run(record.run_id)
    .database(cluster)
    .actor(actor);
    match record.job.parse() {
        Ok(job) => entry.job(job),
        Err(_) => entry,
    }
}

/// Whether some session holds the lock of the run's job.
async fn is_alive(session: &mut Session, record: &RunRecord) -> Result<bool, DatabaseError> {
    let holder = locks::holder(session.connection(), locks::JOB_CLASS, locks::key(&record.job)).await?;
    Ok(holder.is_some())
}

/// Ends what is left of a run on the server and closes its row.
async fn close_here(
    session: &mut Session,
    audit: &AuditLog,
    record: &RunRecord,
    cluster: &str,
    actor: &str,
) -> Result<(), RecoveryError> {
    let ended = cancels::end_session(session.connection(), record.run_id).await?;
    let how = if ended {
        "its session was ended on the server"
    } else {
        "nobody ran it any more"
    };
    let end = RunEnd::without_report(Outcome::Cancelled, format!("cancelled by {actor}; {how}"));
    let body = json!({ "outcome": end.outcome, "reason": end.reason, "scheduled_for": record.scheduled_for });
    let mut closing = Entry::new(RecordKind::RunInterrupted, body)
        .run(record.run_id)
        .database(cluster)
        .actor(actor);
    if let Ok(job) = record.job.parse() {
        closing = closing.job(job);
    }
    audit.append(closing).await?;
    runs::finish(session.connection(), record.run_id, &end).await?;
    Ok(())
}

/// Looks for a request to end a run for as long as the handle lives, and ends it. For a process
/// that runs it outside a daemon.
#[must_use]
pub fn listen(target: ConnectTarget, run: RunId, stops: Stops) -> Listening {
    Listening(tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match look(&target, run).await {
                Ok(Some(actor)) => {
                    stops.end_now(&actor);
                    return;
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(error = %error, "could not look for a request to end the run"),
            }
        }
    }))
}

/// Ends with the run.
pub struct Listening(JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn look(target: &ConnectTarget, run: RunId) -> Result<Option<String>, DatabaseError> {
    let mut session = Session::open(target, &SessionSettings::control("pgreeve:listen")).await?;
    let requests = cancels::requested(session.connection()).await?;
    session.close().await;
    Ok(requests
        .into_iter()
        .find(|request| request.run == run)
        .map(|request| request.actor))
}
