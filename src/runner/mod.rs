//! One run from intent to outcome. Knows sessions, limits, attempts, panics and records; knows no
//! kind.
//!
//! The order is the promise: the ledger row is open before [`Runner::execute`] is called; the
//! attempt is written down before the job plans; the plan is durable in the audit log before the
//! job acts; the ledger is closed before the audit log is, so that a crash between the two can be
//! told apart and mended at the next start.

mod attempt;
mod claim;
mod request;
mod retry;
mod settle;
mod supervise;
mod tried;

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;
use tracing::Instrument;

pub use attempt::plan_only;
pub use request::{RunRequest, RunnableJob, SameJob, Sharing, Site};

use self::tried::Tried;
use crate::audit::{AuditLog, Entry, RecordKind};
use crate::job::Outcome;
use crate::ledger::lag;
use crate::ledger::runs::{RunEnd, RunRecord};
pub use crate::stops::Stops;
use crate::telemetry;

/// How often, and how long apart, the ledger is tried when a run is to be closed.
const CLOSE_ATTEMPTS: u32 = 5;
const CLOSE_PAUSE: Duration = Duration::from_secs(1);

/// Runs jobs.
#[derive(Clone)]
pub struct Runner {
    audit: AuditLog,
}

impl Runner {
    /// A runner whose records go to this log.
    #[must_use]
    pub fn new(audit: AuditLog) -> Self {
        Self { audit }
    }

    /// Runs a job to its one terminal state, and closes its records.
    pub async fn execute(&self, request: RunRequest) -> RunRecord {
        let span = tracing::info_span!("run", job.name = %request.job.name, run.id = %request.run);
        self.execute_in_span(request).instrument(span).await
    }

    async fn execute_in_span(&self, request: RunRequest) -> RunRecord {
        let started = Instant::now();
        telemetry::metrics::run_started(request.job.name.as_str(), request.scheduled_for);
        let mut deadline = started + request.job.run_timeout;
        let mut attempt = 0;
        let mut before: Option<Tried> = None;
        let tried = loop {
            if before.is_none() && request.stops.is_asked() {
                // Admitted, but not begun: a shutdown begins nothing any more.
                break Tried::last(RunEnd::without_report(
                    Outcome::Cancelled,
                    "stopped before it was begun",
                ));
            }
            attempt += 1;
            let tried = attempt::run(&self.audit, &request, attempt, &mut deadline).await;
            let tried = match before.take() {
                Some(before) => tried.after(before),
                None => tried,
            };
            if !tried.transient || attempt > request.job.retries || request.stops.is_asked() {
                break tried;
            }
            let pause = retry::pause_before(attempt);
            if Instant::now() + pause >= deadline {
                break tried;
            }
            if let Some(next) = request.retry_until.filter(|next| Timestamp::now() + pause >= *next) {
                break tried.without_another(next);
            }
            tracing::warn!(
                reason = tried.end.reason.as_deref(),
                pause_ms = pause.as_millis(),
                "attempt {attempt} failed; another follows"
            );
            tokio::select! {
                () = tokio::time::sleep(pause) => before = Some(tried),
                () = request.stops.asked() => break tried,
            }
        };
        let transient = tried.transient;
        let record = self.close(&request, attempt, tried, started).await;
        let may_pass = transient && record.outcome() == Some(Outcome::Failed);
        RunRecord { may_pass, ..record }
    }

    async fn close(&self, request: &RunRequest, attempt: u32, tried: Tried, started: Instant) -> RunRecord {
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (end, record) = self.close_ledger(request, tried).await;
        telemetry::metrics::run_ended(request.job.name.as_str(), end.outcome, started.elapsed(), &end.report);
        let looked = Timestamp::now()
            .checked_sub(started.elapsed())
            .unwrap_or(Timestamp::MIN);
        if let Some(until) = lag::kept_within_until(&end.report, looked) {
            telemetry::metrics::kept_within(request.job.name.as_str(), until);
        }
        let outcome = end.outcome.as_str();
        let reason = end.reason.as_deref();
        if end.outcome == Outcome::Succeeded {
            tracing::info!(outcome, duration_ms, "run finished");
        } else if matches!(end.outcome, Outcome::Skipped | Outcome::Gated | Outcome::Cancelled) {
            tracing::warn!(outcome, duration_ms, reason, "run finished");
        } else {
            tracing::error!(outcome, duration_ms, reason, "run finished");
        }
        let kind = if end.outcome == Outcome::Skipped {
            RecordKind::Skipped
        } else {
            RecordKind::RunEnd
        };
        let body = json!({
            "outcome": outcome, "reason": end.reason, "sqlstate": end.sqlstate, "attempt": attempt,
            "scheduled_for": request.scheduled_for, "report": end.report,
        });
        if let Err(error) = self.audit.append(entry(request, kind, body)).await {
            tracing::error!(error = %error, "the audit log could not be closed for this run; the next start mends it");
        }
        record.unwrap_or_else(|| fallback(request, attempt, end))
    }

    /// Closes the run's row, and answers with the end that it has now. Where the ledger cannot be
    /// asked what an attempt in doubt did, that is unknown.
    async fn close_ledger(&self, request: &RunRequest, tried: Tried) -> (RunEnd, Option<RunRecord>) {
        let mut asked = 0;
        loop {
            asked += 1;
            match supervise::answered_in_time(settle::close(request, &tried)).await {
                Ok(closed) => return closed,
                // At the end of a shutdown there is no time; the next start closes the run.
                Err(error) if asked < CLOSE_ATTEMPTS && !request.stops.hard.is_cancelled() => {
                    tracing::warn!(error = %error, "the ledger could not be closed; trying again");
                    tokio::time::sleep(CLOSE_PAUSE).await;
                }
                Err(error) => {
                    tracing::error!(error = %error, "the ledger could not be closed; the leader of the database will close it");
                    return (settle::unasked(tried), None);
                }
            }
        }
    }
}

/// An audit entry about a run.
pub(crate) fn entry(request: &RunRequest, kind: RecordKind, body: serde_json::Value) -> Entry {
    Entry::new(kind, body)
        .run(request.run)
        .job(request.job.name.clone())
        .database(request.site.system_identifier.clone())
        .policy(request.job.policy.clone())
        .actor(request.actor.clone())
}

/// The record of a run whose ledger row cannot be read back.
fn fallback(request: &RunRequest, attempt: u32, end: RunEnd) -> RunRecord {
    RunRecord {
        run_id: request.run,
        job: request.job.name.to_string(),
        kind: request.job.job.kind().as_str().to_owned(),
        database: request.site.database.clone(),
        scheduled_for: request.scheduled_for,
        started_at: None,
        finished_at: None,
        attempt: i32::try_from(attempt).unwrap_or(i32::MAX),
        trigger: request.trigger.as_str().to_owned(),
        outcome: Some(end.outcome.as_str().to_owned()),
        reason: end.reason,
        report: end.report,
        may_pass: false,
    }
}
