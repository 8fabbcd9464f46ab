//! Pausing a job and putting it back, by the daemon for an operator or by the operator's own
//! process. The intent is on record before the ledger is changed; whoever leads the database reads
//! the ledger at each slot.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::cron::Occurrence;
use super::recovery::RecoveryError;
use crate::audit::{AuditLog, Entry, RecordKind};
use crate::job::Trigger;
use crate::ledger::leader::identify;
use crate::ledger::pauses::{self, Pause};
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::values::JobName;

/// Takes a job off its schedule for so long.
pub async fn pause(
    target: &ConnectTarget,
    audit: &AuditLog,
    job: &JobName,
    length: Duration,
    reason: &str,
    actor: &str,
) -> Result<Pause, RecoveryError> {
    let mut session = Session::open(target, &SessionSettings::control("pgreeve:pause")).await?;
    let cluster = identify(session.connection()).await?;
    let body = json!({ "seconds": length.as_secs(), "reason": reason });
    let entry = Entry::new(RecordKind::JobPaused, body)
        .job(job.clone())
        .database(cluster)
        .actor(actor);
    audit.append(entry).await?;
    let pause = pauses::place(session.connection(), job, length, reason, actor).await?;
    session.close().await;
    tracing::info!(job.name = %job, until = %pause.until, reason, actor, "job paused");
    Ok(pause)
}

/// Puts a job back on its schedule. `false`, and no record, when it was not paused.
pub async fn resume(
    target: &ConnectTarget,
    audit: &AuditLog,
    job: &JobName,
    actor: &str,
) -> Result<bool, RecoveryError> {
    let mut session = Session::open(target, &SessionSettings::control("pgreeve:resume")).await?;
    let known = pauses::load(session.connection()).await?;
    if pauses::covering(&known, job, Timestamp::now()).is_none() {
        session.close().await;
        return Ok(false);
    }
    let cluster = identify(session.connection()).await?;
    let entry = Entry::new(RecordKind::JobResumed, json!({}))
        .job(job.clone())
        .database(cluster)
        .actor(actor);
    audit.append(entry).await?;
    let lifted = pauses::lift(session.connection(), job, actor).await?;
    session.close().await;
    tracing::info!(job.name = %job, actor, "job resumed");
    Ok(lifted)
}

/// A slot that does not run, and why.
pub type Held = (Occurrence, String);

/// Parts the slots that fell into a pause from the others.
pub(super) fn split(pauses: &[Pause], job: &JobName, found: Vec<Occurrence>) -> (Vec<Occurrence>, Vec<Held>) {
    let (mut free, mut held) = (Vec::new(), Vec::new());
    for slot in found {
        match pauses::covering(pauses, job, slot.scheduled_for) {
            Some(pause) => held.push((slot, pause.explain())),
            None => free.push(slot),
        }
    }
    (free, held)
}

/// Holds back what would run now, while the job is paused, for a slot from before the pause.
pub(super) fn hold_back(
    pauses: &[Pause],
    job: &JobName,
    now: Timestamp,
    run: &mut Vec<(Occurrence, Trigger)>,
    held: &mut Vec<Held>,
) {
    if let Some(pause) = pauses::covering(pauses, job, now) {
        held.extend(run.drain(..).map(|(slot, _)| (slot, pause.explain())));
    }
}
