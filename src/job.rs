//! The contract between the runner and the kinds: what a job is given, and what it must answer.
//!
//! A run has two halves. [`Job::plan`] reads and decides; it changes nothing. What it decided is
//! written to the audit log as the run's intent. Only then [`Plan::execute`] acts. A dry run ends
//! after the first half, so what `pgreeve plan` shows is what a run would do.
//!
//! An implementor must **not** retry, log its own start or end, look at the clock of the host to
//! decide what is due, or open a transaction that writes without [`Fence::hold`] first. The runner
//! owns locks, time limits, attempts, panics and the records.

mod lane;

use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

pub use crate::audit::recorder::{RecordError, Recorder};
use crate::ledger::leader::Fence;
use crate::postgres::connect::{ConnectTarget, Session};
use crate::postgres::grant::Grant;
use crate::postgres::sqlstate::{DatabaseError, Nature};
use crate::values::{JobName, RunId};
pub use crate::words::{Approval, Kind, Outcome, Trigger};

/// Something two runs on one database must not use at the same time. The runner holds it as an
/// advisory lock on the run's own connection, so it ends with the work and never outlives it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Exclusion {
    /// A snapshot of the whole database held for long (a dump): one at a time, and apart from
    /// whatever needs every snapshot gone.
    Snapshot,
    /// The rows of one table, named as in the configuration.
    Rows(String),
}

impl Exclusion {
    /// What is locked, in words that are also the lock's name.
    #[must_use]
    pub fn lock_name(&self) -> String {
        match self {
            Self::Snapshot => "snapshot of the database".to_owned(),
            Self::Rows(table) => format!("rows of {table}"),
        }
    }
}

/// One entry of the configuration, ready to run.
pub trait Job: Send + Sync {
    /// What it does.
    fn kind(&self) -> Kind;

    /// What no other run may use meanwhile.
    fn exclusions(&self) -> Vec<Exclusion>;

    /// Whether a shutdown may end the run at its next safe point with its work so far kept. A run
    /// whose work counts only as a whole goes on until the shutdown's limit.
    fn stops_between_batches(&self) -> bool {
        true
    }

    /// Removes what a process that died in the middle of a run left outside the database. Called
    /// when a database's lead is taken, before or beside any run; must be safe to repeat.
    fn clean_up(&self, context: RecoveryContext) -> BoxFuture<'_, Result<(), JobError>> {
        drop(context);
        Box::pin(std::future::ready(Ok(())))
    }

    /// The statements that give the session's role what a run needs, each with whether the role has
    /// it; `None` where the kind cannot tell. Reads only.
    fn grants<'a>(&'a self, _connection: &'a mut PgConnection) -> BoxFuture<'a, Result<Option<Vec<Grant>>, JobError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Reads the catalog and decides what a run would do. Must change nothing, in the database or
    /// elsewhere. A precondition that does not hold is [`Disposition::Refused`].
    fn plan<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>>;
}

/// What a run is about to do.
pub trait Plan: Send {
    /// The plan as it is shown to operators and kept in the audit log: a JSON object, no personal
    /// data.
    fn intent(&self) -> Value;

    /// Does it. Called at most once, after the intent is durable. Stops at the next safe point when
    /// `context.stop` is cancelled.
    fn execute<'a>(self: Box<Self>, context: &'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>>
    where
        Self: 'a;
}

/// All that a run can reach.
pub struct JobContext {
    /// This execution.
    pub run: RunId,
    /// This try of it, from 1.
    pub attempt: u32,
    /// The job's name.
    pub job: JobName,
    /// The database's name in the configuration.
    pub database: String,
    /// How to open further connections to the same database.
    pub target: ConnectTarget,
    /// The run's own connection, with its settings read back. The run's locks live on it.
    pub session: Session,
    /// To be held first in every transaction that writes.
    pub fence: Fence,
    /// Cancelled when the run should end at its next safe point.
    pub stop: CancellationToken,
    /// When the run's time is up; the runner enforces it, a run may look at it to stop in time.
    pub deadline: Instant,
    /// Where records of the run go.
    pub recorder: Arc<dyn Recorder>,
    /// Who is told how far the work is.
    pub progress: Progress,
}

/// All that [`Job::clean_up`] can reach.
pub struct RecoveryContext {
    /// The job's name.
    pub job: JobName,
    /// The database's name in the configuration.
    pub database: String,
    /// How to connect to it.
    pub target: ConnectTarget,
    /// To be held first in every transaction that writes.
    pub fence: Fence,
    /// Where records go.
    pub recorder: Arc<dyn Recorder>,
}

/// How far a run is. Cheap to clone; readers see the last value.
#[derive(Debug, Clone)]
pub struct Progress(Arc<tokio::sync::watch::Sender<ProgressState>>);

/// One reading of [`Progress`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ProgressState {
    /// What is counted: `rows` or `bytes`.
    pub unit: &'static str,
    /// How much is done.
    pub done: u64,
    /// How much there is in all, where that is known.
    pub total: Option<u64>,
}

impl Progress {
    /// A progress nobody has reported to yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(tokio::sync::watch::Sender::new(ProgressState::default())))
    }

    /// Reports how far the work is.
    pub fn set(&self, unit: &'static str, done: u64, total: Option<u64>) {
        self.0.send_replace(ProgressState { unit, done, total });
    }

    /// Follows the reports.
    #[must_use]
    pub fn subscribe(&self) -> tokio::sync::watch::Receiver<ProgressState> {
        self.0.subscribe()
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

/// What a run that came to its end did.
#[derive(Debug, Clone)]
pub struct JobReport {
    /// [`Outcome::Succeeded`], [`Outcome::Partial`] or [`Outcome::Gated`].
    pub outcome: Outcome,
    /// Why it is not green, in words.
    pub reason: Option<String>,
    /// The kind's published report: a JSON object.
    pub body: Value,
}

/// What the runner should do about a [`JobError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Another attempt may succeed.
    Transient,
    /// Another attempt would fail in the same way.
    Permanent,
    /// A precondition does not hold; nothing was changed.
    Refused,
    /// `context.stop` was cancelled.
    Cancelled,
    /// The run may not write any more: the server is a standby now, or another pgreeve leads.
    Displaced,
}

/// Why a run did not come to its end: operation, cause, remedy, and what was done before.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation}: {cause}")]
pub struct JobError {
    /// What was tried, with its object: `delete a batch from public.events`.
    pub operation: String,
    /// What went wrong; no personal data.
    pub cause: String,
    /// What an operator can do about it.
    pub remedy: Option<String>,
    /// Which key of the job's settings it is about: `table`.
    pub setting: Option<&'static str>,
    /// PostgreSQL's five-character code, where PostgreSQL refused.
    pub sqlstate: Option<String>,
    /// What the runner should do.
    pub disposition: Disposition,
    /// The report of what was done before; it must reach the auditor all the same.
    pub partial: Option<Value>,
    /// Whether its last effect may have happened all the same: a commit that nobody answered.
    pub in_doubt: bool,
}

impl JobError {
    /// An error that another attempt would meet again.
    pub fn permanent(operation: impl Into<String>, cause: impl Into<String>) -> Self {
        Self {
            operation: operation.into(),
            cause: cause.into(),
            remedy: None,
            setting: None,
            sqlstate: None,
            disposition: Disposition::Permanent,
            partial: None,
            in_doubt: false,
        }
    }

    /// An error that may pass.
    pub fn transient(operation: impl Into<String>, cause: impl Into<String>) -> Self {
        Self {
            disposition: Disposition::Transient,
            ..Self::permanent(operation, cause)
        }
    }

    /// A precondition that does not hold, and how to mend it.
    pub fn refused(operation: impl Into<String>, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            disposition: Disposition::Refused,
            remedy: Some(remedy.into()),
            ..Self::permanent(operation, cause)
        }
    }

    /// The run was asked to stop.
    pub fn cancelled(operation: impl Into<String>) -> Self {
        Self {
            disposition: Disposition::Cancelled,
            ..Self::permanent(operation, "stopped on request")
        }
    }

    /// An error of the database, classified by its SQLSTATE.
    pub fn database(operation: impl Into<String>, error: &DatabaseError) -> Self {
        Self {
            sqlstate: error.sqlstate.clone(),
            remedy: error.remedy(),
            disposition: match error.nature {
                Nature::Passing => Disposition::Transient,
                Nature::Lasting => Disposition::Permanent,
                Nature::Displaced => Disposition::Displaced,
            },
            ..Self::permanent(operation, error.to_string())
        }
    }

    /// An error at a commit, which may have happened all the same.
    pub fn at_commit(operation: impl Into<String>, error: &DatabaseError) -> Self {
        Self {
            in_doubt: error.leaves_in_doubt(),
            ..Self::database(operation, error)
        }
    }

    /// Adds the report of what was done before the error.
    #[must_use]
    pub fn with_partial(mut self, report: Value) -> Self {
        self.partial = Some(report);
        self
    }

    /// Names the key of the job's settings that it is about.
    #[must_use]
    pub fn about(mut self, setting: &'static str) -> Self {
        self.setting = Some(setting);
        self
    }

    /// Adds what an operator can do.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl From<RecordError> for JobError {
    fn from(error: RecordError) -> Self {
        Self::permanent("write the audit record", error.to_string())
            .with_remedy("free space on, or restore write access to, the audit directory")
    }
}
