//! One try of a run: session, locks, plan, intent, execution.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::claim::{Claimed, claim};
use super::supervise::{self, Watched};
use super::tried::{self, Done, Tried};
use super::{RunRequest, RunnableJob, Site, entry};
use crate::audit::{AuditLog, Entry, RecordKind, RunRecorder};
use crate::job::{JobContext, JobError, Outcome, Plan, Progress};
use crate::ledger::attempts::{self, Begun};
use crate::ledger::leader::Fence;
use crate::ledger::policies;
use crate::ledger::runs::RunEnd;
use crate::postgres::connect::{Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// Tries a run once. What it waits for other runs is added to `deadline`.
pub(super) async fn run(audit: &AuditLog, request: &RunRequest, attempt: u32, deadline: &mut Instant) -> Tried {
    let name = application_name(&request.job, request.run);
    let mut session = match open(request, &name, deadline).await {
        Ok(session) => session,
        Err(tried) => return tried,
    };
    let backend_pid = session.backend_pid();
    let begun = attempts::begin(
        session.connection(),
        request.site.fence,
        request.run,
        attempt,
        backend_pid,
    )
    .await;
    let refused = match begun {
        Ok(Begun::Yes) => None,
        Ok(Begun::No(reason)) => Some(Tried::last(RunEnd::without_report(Outcome::Skipped, reason))),
        Err(error) => Some(Tried::from_database("open the attempt in the ledger", &error)),
    };
    if let Some(tried) = refused {
        session.close().await;
        return tried.not_begun();
    }
    let stop = if request.job.job.stops_between_batches() {
        request.stops.soft.child_token()
    } else {
        request.stops.hard.child_token()
    };
    let recorder = RunRecorder {
        log: audit.clone(),
        run: Some(request.run),
        job: request.job.name.clone(),
        database: Some(request.site.system_identifier.clone()),
        policy: Some(request.job.policy.clone()),
        actor: Some(request.actor.clone()),
    };
    let mut context = JobContext {
        run: request.run,
        attempt,
        job: request.job.name.clone(),
        database: request.site.database.clone(),
        target: request.site.target.clone(),
        session,
        fence: request.site.fence,
        stop: stop.clone(),
        deadline: *deadline,
        recorder: Arc::new(recorder),
        progress: request.progress.clone(),
    };
    let work = Work {
        audit: audit.clone(),
        job: request.job.clone(),
        start: entry(request, RecordKind::RunStart, Value::Null),
        preface: json!({
            "attempt": attempt, "trigger": request.trigger, "scheduled_for": request.scheduled_for, "reason": request.note,
        }),
    };
    let task = async move {
        let result = work.run(&mut context).await;
        context.session.close().await;
        result
    };
    // The span goes with the work, so that its log lines name the run.
    let task = tokio::spawn(task.in_current_span());
    let watched = Watched {
        target: &request.site.target,
        backend_pid,
        deadline: *deadline,
        stop: &stop,
        hard: &request.stops.hard,
    };
    let ended = supervise::supervise(task, watched).await;
    let mut tried = tried::conclude(ended);
    if let (Outcome::Cancelled, Some(by)) = (tried.end.outcome, request.stops.reason()) {
        let said = tried.end.reason.unwrap_or_default();
        tried.end.reason = Some(format!("cancelled by {by}; {said}"));
    }
    if let Err(error) = close_attempt(request, attempt, backend_pid, &name, &tried.end).await {
        tracing::warn!(error = %error, "the attempt could not be closed in the ledger");
    }
    tried
}

/// What a run would do, without doing it: the same session, the same plan, nothing written.
///
/// # Errors
/// As the run itself would refuse or fail.
pub async fn plan_only(
    job: &RunnableJob,
    site: &Site,
    recorder: Arc<dyn crate::job::Recorder>,
) -> Result<Value, JobError> {
    let run = RunId::new();
    let session = Session::open(&site.target, &run_settings(job, &application_name(job, run)))
        .await
        .map_err(|error| JobError::database("open a session", &error))?;
    let mut context = JobContext {
        run,
        attempt: 1,
        job: job.name.clone(),
        database: site.database.clone(),
        target: site.target.clone(),
        session,
        fence: Fence { epoch: -1 },
        stop: CancellationToken::new(),
        deadline: Instant::now() + job.run_timeout,
        recorder,
        progress: Progress::new(),
    };
    let intent = job.job.plan(&mut context).await.map(|plan| plan.intent());
    context.session.close().await;
    intent
}

/// The part of an attempt that runs in a task of its own, so that a panic stays inside.
struct Work {
    audit: AuditLog,
    job: RunnableJob,
    start: Entry,
    preface: Value,
}

impl Work {
    async fn run(self, context: &mut JobContext) -> Result<Done, JobError> {
        tracing::info!(attempt = context.attempt, "run started");
        let plan: Box<dyn Plan> = self.job.job.plan(context).await?;
        let intent = plan.intent();
        if self.job.approval_required && self.job.job.kind().needs_approval() {
            let proposed = policies::propose(context.session.connection(), &self.job.policy, &self.job.name, &intent)
                .await
                .map_err(|error| JobError::database("keep the policy's plan", &error))?;
            if proposed == policies::Approval::Waiting {
                let reason = format!(
                    "the policy is new or changed; look at its plan and run `pgreeve approve {}`",
                    self.job.policy
                );
                return Ok(Done::Gated(reason, json!({ "plan": intent })));
            }
        }
        let mut body = self.preface;
        body["intent"] = intent;
        // Nothing has been changed so far; if the intent cannot be made durable, nothing will be.
        self.audit.append(Entry { body, ..self.start }).await.map_err(|error| {
            JobError::permanent("write the run's intent to the audit log", error.to_string())
                .with_remedy("nothing was changed; make the audit directory writable and run again")
        })?;
        plan.execute(context).await.map(Done::Reported)
    }
}

pub(super) fn application_name(job: &RunnableJob, run: RunId) -> String {
    format!("pgreeve:{}:{run}", job.name)
}

fn run_settings(job: &RunnableJob, application_name: &str) -> SessionSettings {
    // A count of a large table may take long and holds nobody up; what holds locks limits itself.
    SessionSettings::run(application_name, job.lock_timeout, job.run_timeout)
}

/// Opens the run's session and claims on it what the run needs. The run's time begins when it has
/// that: what it waited for others is added to its deadline.
async fn open(request: &RunRequest, application_name: &str, deadline: &mut Instant) -> Result<Session, Tried> {
    let mut session = Session::open(&request.site.target, &run_settings(&request.job, application_name))
        .await
        .map_err(|error| Tried::from_database("open the run's session", &error).not_begun())?;
    let backend_pid = session.backend_pid();
    let tried = match claim(&mut session, request).await {
        Ok(Claimed::All(waited)) => {
            *deadline += waited;
            return Ok(session);
        }
        Ok(Claimed::Not(end)) => Tried::last(end),
        Ok(Claimed::Stopped(end)) => {
            // Closing does not interrupt a server process that waits; it would keep the job's lock.
            if let Err(error) = supervise::confirm_gone(&request.site.target, backend_pid, application_name).await {
                tracing::warn!(error = %error, "the run's session could not be ended");
            }
            Tried::last(end)
        }
        Err(error) => Tried::from_database("take the run's locks", &error),
    };
    session.close().await;
    Err(tried.not_begun())
}

/// Ends what the attempt left on the server, and writes down how it ended, in one session: a new one
/// costs a busy server more than both.
async fn close_attempt(
    request: &RunRequest,
    attempt: u32,
    backend_pid: i32,
    name: &str,
    end: &RunEnd,
) -> Result<(), DatabaseError> {
    let settings = SessionSettings::control(format!("pgreeve:close:{}", request.job.name));
    supervise::answered_in_time(async {
        let mut session = Session::open(&request.site.target, &settings).await?;
        supervise::end_sessions(session.connection(), Some(backend_pid), name).await?;
        attempts::end(session.connection(), request.run, attempt, end).await?;
        session.close().await;
        Ok(())
    })
    .await
}
