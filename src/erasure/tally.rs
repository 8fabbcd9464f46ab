//! What a run did, and what it warns of.

use jiff::Timestamp;
use serde_json::json;

use super::deadline;
use super::execute::Worker;
use super::intake::Taken;
use super::rule::Action;
use crate::job::{JobError, JobReport, Outcome};
use crate::ledger::erasures;
use crate::postgres::sqlstate::DatabaseError;

/// What a run did, by number of requests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) taken: Taken,
    pub(super) completed: u64,
    pub(super) exceptions: u64,
    pub(super) not_found: u64,
    pub(super) duplicates: u64,
    pub(super) on_hold: u64,
    pub(super) failed: u64,
    pub(super) retry: u64,
    pub(super) rows: u64,
}

/// Warns of deadlines, once at each part of the time.
pub(super) async fn warn(worker: &mut Worker<'_>) -> Result<(), JobError> {
    let failed = |error: DatabaseError| JobError::database("look at the deadlines", &error);
    let job = worker.job;
    let now = Timestamp::now();
    for request in erasures::open(worker.session.connection(), job).await.map_err(failed)? {
        let part = deadline::elapsed(request.received_at, request.due_at, now);
        if part <= request.warned {
            continue;
        }
        tracing::warn!(
            request.id = %request.id, request.due_at = %request.due_at, request.state = request.state.as_str(), percent = part,
            "an erasure is not done and {} of its time is up",
            if part == 100 { "all".to_owned() } else { format!("{part} %") }
        );
        let fence = worker.fence;
        let mut transaction = worker.begin().await?;
        fence
            .hold(&mut transaction)
            .await
            .map_err(|error| failed(error.into()))?;
        erasures::warned(&mut transaction, request.id, part)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

pub(super) async fn report(worker: &mut Worker<'_>, tally: &Tally) -> Result<JobReport, JobError> {
    let job = worker.job;
    let open = erasures::open(worker.session.connection(), job)
        .await
        .map_err(|error| JobError::database("read the open requests", &error))?;
    let now = Timestamp::now();
    let oldest = open.iter().min_by_key(|request| request.due_at);
    let overdue = open.iter().filter(|request| request.due_at <= now).count();
    let late = open.iter().filter(|request| request.warned >= 50).count();
    let unmapped: i64 = tally.taken.unmapped.values().sum();
    let mut reasons = Vec::new();
    for (count, what) in [
        (tally.failed, "cannot be done as they stand"),
        (tally.exceptions, "left something behind that the certificate names"),
        (tally.retry, "are tried again"),
        (u64::try_from(overdue).unwrap_or(u64::MAX), "are overdue"),
    ] {
        if count > 0 {
            reasons.push(format!("{count} requests {what}"));
        }
    }
    if unmapped > 0 {
        let words: Vec<&str> = tally.taken.unmapped.keys().map(String::as_str).collect();
        reasons.push(format!(
            "{unmapped} requests have a status that the configuration does not know: {}",
            words.join(", ")
        ));
    }
    let body = json!({
        "received": tally.taken.received, "completed": tally.completed, "completed_with_exceptions": tally.exceptions,
        "not_found": tally.not_found, "duplicates": tally.duplicates, "on_hold": tally.on_hold, "failed": tally.failed,
        "retry": tally.retry, "rows": tally.rows, "unmapped": tally.taken.unmapped, "open": open.len(),
        "overdue": overdue, "warned": late,
        "oldest_received_at": open.iter().map(|request| request.received_at).min(),
        "next_due_at": oldest.map(|request| request.due_at),
        "days_left": oldest.map(|request| deadline::days_left(request.due_at, now)),
        "warnings": worker.plan.warnings,
        "kept": worker.plan.reach.nodes.iter().filter(|node| node.action() == Action::Keep)
            .map(|node| node.relation.display()).collect::<Vec<_>>(),
    });
    Ok(JobReport {
        outcome: if reasons.is_empty() {
            Outcome::Succeeded
        } else {
            Outcome::Partial
        },
        reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
        body,
    })
}
