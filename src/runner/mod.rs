//! One run from intent to outcome. Knows sessions, limits, attempts, panics and records; knows no
//! kind.
//!
//! The order is the promise: the ledger row is open before [`Runner::execute`] is called; the
//! attempt is written down before the job plans; the plan is durable in the audit log before the
//! job acts; the ledger is closed before the audit log is, so that a crash between the two can be
//! told apart and mended at the next start.

mod attempt;
mod claim;
mod retry;
mod supervise;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use attempt::plan_only;

use crate::audit::{AuditLog, Entry, RecordKind};
use crate::job::{Exclusion, Job, Outcome, Progress, Trigger};
use crate::ledger::leader::Fence;
use crate::ledger::runs::{self, RunEnd, RunRecord};
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;
use crate::telemetry;
use crate::values::{JobName, Name, RunId};

/// How often, and how long apart, the ledger is tried when a run is to be closed.
const CLOSE_ATTEMPTS: u32 = 5;
const CLOSE_PAUSE: Duration = Duration::from_secs(1);

/// A job with the limits of its configuration.
#[derive(Clone)]
pub struct RunnableJob {
    /// Its name.
    pub name: JobName,
    /// What it does.
    pub job: Arc<dyn Job>,
    /// The fingerprint of its settings.
    pub policy: String,
    /// Whether a destructive policy must be approved before it acts.
    pub approval_required: bool,
    /// How long a run may take, all attempts together; waiting for other runs does not count.
    pub run_timeout: Duration,
    /// How long a statement may wait for a lock.
    pub lock_timeout: Duration,
    /// How many attempts may follow the first.
    pub retries: u32,
    /// What it shares with other runs.
    pub sharing: Sharing,
}

impl RunnableJob {
    /// What no other run may use meanwhile, by name, in the order in which all runs take it, so that
    /// two of them never wait for each other.
    #[must_use]
    pub fn resources(&self) -> Vec<String> {
        let exclusions = self.job.exclusions();
        let groups = self.sharing.groups.iter().map(|group| format!("group {group}"));
        let mut names: Vec<String> = exclusions.iter().map(Exclusion::lock_name).chain(groups).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// How a run goes about what it shares with others.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// Jobs of one database that share a group never run at the same time.
    pub groups: Vec<Name>,
    /// How long it may wait for what another run uses.
    pub start_deadline: Duration,
    /// What it does when another session runs the same job.
    pub same_job: SameJob,
}

/// What a run does when another session, such as an operator's, runs the same job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameJob {
    /// It does not run.
    Skip,
    /// It waits.
    Wait,
    /// It ends the other one.
    Replace,
}

impl Default for Sharing {
    fn default() -> Self {
        Self {
            groups: Vec::new(),
            start_deadline: Duration::from_mins(10),
            same_job: SameJob::Skip,
        }
    }
}

/// Where a run happens, and by which right.
#[derive(Debug, Clone)]
pub struct Site {
    /// The database's name in the configuration.
    pub database: String,
    /// How to reach it.
    pub target: ConnectTarget,
    /// Which cluster it is.
    pub system_identifier: String,
    /// The right to write.
    pub fence: Fence,
}

/// How a run is asked to end early.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    /// End at the next safe point: a shutdown has begun.
    pub soft: CancellationToken,
    /// End now: an operator cancelled, the lead was lost, or the shutdown's limit is reached.
    pub hard: CancellationToken,
    /// Who or what ends it now; the first one to say so.
    reason: Arc<OnceLock<String>>,
}

impl Stops {
    /// Stops of a part: it ends when the whole does, and can be ended alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            soft: self.soft.child_token(),
            hard: self.hard.child_token(),
            reason: Arc::default(),
        }
    }

    /// Ends it now, and says why: `uid:0`, `the lead was lost`.
    pub fn end_now(&self, reason: &str) {
        let _ = self.reason.set(reason.to_owned());
        self.soft.cancel();
        self.hard.cancel();
    }

    /// Why it was ended, where that was said.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Whether the run is asked to end, soon or now.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.soft.is_cancelled() || self.hard.is_cancelled()
    }

    /// Waits until the run is asked to end, soon or now.
    pub async fn asked(&self) {
        tokio::select! {
            () = self.soft.cancelled() => {}
            () = self.hard.cancelled() => {}
        }
    }
}

/// One execution of a job, whose ledger row is open.
pub struct RunRequest {
    /// Its identity.
    pub run: RunId,
    /// Its job.
    pub job: RunnableJob,
    /// Where.
    pub site: Site,
    /// Its slot.
    pub scheduled_for: Option<Timestamp>,
    /// What started it.
    pub trigger: Trigger,
    /// Who asked.
    pub actor: String,
    /// Why, in the operator's words.
    pub note: Option<String>,
    /// How it is asked to end early.
    pub stops: Stops,
    /// Who is told how far it is.
    pub progress: Progress,
    /// No further attempt begins at or after this instant: the next slot's run is due.
    pub retry_until: Option<Timestamp>,
}

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
        let mut before: Option<RunEnd> = None;
        let (end, transient) = loop {
            if before.is_none() && request.stops.is_asked() {
                // Admitted, but not begun: a shutdown begins nothing any more.
                break (
                    RunEnd::without_report(Outcome::Cancelled, "stopped before it was begun"),
                    false,
                );
            }
            attempt += 1;
            let tried = attempt::run(&self.audit, &request, attempt, &mut deadline).await;
            let transient = tried.transient;
            let end = match before.take() {
                Some(before) => tried.after(before),
                None => tried.end,
            };
            if !transient || attempt > request.job.retries || request.stops.is_asked() {
                break (end, transient);
            }
            let pause = retry::pause_before(attempt);
            if Instant::now() + pause >= deadline {
                break (end, transient);
            }
            if let Some(next) = request.retry_until.filter(|next| Timestamp::now() + pause >= *next) {
                break (without_another(end, next), transient);
            }
            tracing::warn!(
                reason = end.reason.as_deref(),
                pause_ms = pause.as_millis(),
                "attempt {attempt} failed; another follows"
            );
            tokio::select! {
                () = tokio::time::sleep(pause) => before = Some(end),
                () = request.stops.asked() => break (end, transient),
            }
        };
        let may_pass = transient && end.outcome == Outcome::Failed;
        let record = self.close(&request, attempt, end, started).await;
        RunRecord { may_pass, ..record }
    }

    async fn close(&self, request: &RunRequest, attempt: u32, end: RunEnd, started: Instant) -> RunRecord {
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        telemetry::metrics::run_ended(request.job.name.as_str(), end.outcome, started.elapsed(), &end.report);
        let outcome = end.outcome.as_str();
        let reason = end.reason.as_deref();
        if end.outcome == Outcome::Succeeded {
            tracing::info!(outcome, duration_ms, "run finished");
        } else if matches!(end.outcome, Outcome::Skipped | Outcome::Gated | Outcome::Cancelled) {
            tracing::warn!(outcome, duration_ms, reason, "run finished");
        } else {
            tracing::error!(outcome, duration_ms, reason, "run finished");
        }
        let record = match self.close_ledger(request, &end).await {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(error = %error, "the ledger could not be closed; the leader of the database will close it");
                None
            }
        };
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

    async fn close_ledger(&self, request: &RunRequest, end: &RunEnd) -> Result<Option<RunRecord>, DatabaseError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match supervise::answered_in_time(close_once(request, end)).await {
                // At the end of a shutdown there is no time; the next start closes the run.
                Err(error) if tries < CLOSE_ATTEMPTS && !request.stops.hard.is_cancelled() => {
                    tracing::warn!(error = %error, "the ledger could not be closed; trying again");
                    tokio::time::sleep(CLOSE_PAUSE).await;
                }
                other => return other,
            }
        }
    }
}

/// An end that another attempt might have mended, had the next slot not been due.
fn without_another(end: RunEnd, next: Timestamp) -> RunEnd {
    let reason = end.reason.unwrap_or_default();
    RunEnd {
        reason: Some(format!("{reason}; no further attempt, the slot at {next} is next")),
        ..end
    }
}

async fn close_once(request: &RunRequest, end: &RunEnd) -> Result<Option<RunRecord>, DatabaseError> {
    let settings = SessionSettings::control(format!("pgreeve:close:{}", request.job.name));
    let mut session = Session::open(&request.site.target, &settings).await?;
    let connection = session.connection();
    // While a statement of the run may be under way, the run is not over.
    let name = attempt::application_name(&request.job, request.run);
    let backend_pid = runs::backend_pid(connection, request.run).await?;
    supervise::end_sessions(connection, backend_pid, &name).await?;
    runs::finish(connection, request.run, end).await?;
    let record = runs::find(connection, &request.site.database, request.run).await?;
    session.close().await;
    Ok(record)
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
