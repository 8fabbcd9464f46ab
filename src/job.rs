//! The contract between the runner and the kinds: what a job is given, and what it must answer.
//!
//! A run has two halves. [`Job::plan`] reads and decides; it changes nothing. What it decided is
//! written to the audit log as the run's intent. Only then [`Plan::execute`] acts. A dry run ends
//! after the first half, so what `pgreeve plan` shows is what a run would do.
//!
//! An implementor must **not** retry, log its own start or end, look at the clock of the host to
//! decide what is due, or open a transaction that writes without [`Fence::hold`] first. The runner
//! owns locks, time limits, attempts, panics and the records.

use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::ledger::leader::Fence;
use crate::postgres::connect::{ConnectTarget, Session};
use crate::postgres::grant::Grant;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::{JobName, RunId};

/// What a job does. The word is the same in TOML, SQL, JSON and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Deletes rows past their keep period.
    Retention,
    /// Moves rows from one state to another when they are old enough.
    Transition,
    /// Streams `pg_dump` to a store.
    Backup,
    /// Erases people who asked for it.
    Erasure,
    /// Makes partitions ahead of the time they are needed.
    Partitions,
}

impl Kind {
    /// The kind's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Transition => "transition",
            Self::Backup => "backup",
            Self::Erasure => "erasure",
            Self::Partitions => "partitions",
        }
    }

    /// Whether a run destroys or changes rows of the application, so that it needs an approved
    /// policy.
    #[must_use]
    pub fn is_destructive(self) -> bool {
        matches!(self, Self::Retention | Self::Transition | Self::Erasure)
    }
}

/// Whether a new or changed policy must be approved before its first run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// A destructive policy is planned, and runs after `pgreeve approve HASH`.
    Required,
    /// It runs at once.
    None,
}

impl Approval {
    /// Every choice, with its word.
    pub const WORDS: [(&'static str, Self); 2] = [("required", Self::Required), ("none", Self::None)];
}

/// How a run ended. Only [`Outcome::Succeeded`] is green.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All that was due is done, and that was checked.
    Succeeded,
    /// Something was done and something due is left.
    Partial,
    /// Another job's state, or a missing approval, held the run back.
    Gated,
    /// A precondition does not hold; nothing was changed.
    Refused,
    /// An error ended the run.
    Failed,
    /// The run's time limit ended it.
    TimedOut,
    /// An operator or a shutdown ended it.
    Cancelled,
    /// The slot was due and was deliberately not run.
    Skipped,
    /// The slot was due while nobody could run it.
    Missed,
    /// The process that ran it died.
    Abandoned,
    /// Whether its last effect happened cannot be known.
    Unknown,
}

impl Outcome {
    /// The outcome's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Partial => "partial",
            Self::Gated => "gated",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
            Self::Missed => "missed",
            Self::Abandoned => "abandoned",
            Self::Unknown => "unknown",
        }
    }

    /// Every outcome, for readers of stored words.
    pub const ALL: [Self; 11] = [
        Self::Succeeded,
        Self::Partial,
        Self::Gated,
        Self::Refused,
        Self::Failed,
        Self::TimedOut,
        Self::Cancelled,
        Self::Skipped,
        Self::Missed,
        Self::Abandoned,
        Self::Unknown,
    ];

    /// The outcome that a stored word stands for.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }
}

/// What started a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// Its slot came.
    Schedule,
    /// Its slot had passed while nobody ran it.
    CatchUp,
    /// An operator asked.
    Manual,
}

impl Trigger {
    /// The trigger's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::CatchUp => "catch_up",
            Self::Manual => "manual",
        }
    }
}

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

/// Where a run writes records of its own beside the runner's `run.start` and `run.end`.
pub trait Recorder: Send + Sync {
    /// Makes a record durable, or says why not. `kind` is a word of the audit log's list, such as
    /// `backup.committed`; `body` holds no personal data.
    fn record<'a>(&'a self, kind: &'static str, body: Value) -> BoxFuture<'a, Result<(), RecordError>>;
}

/// The audit log could not be written; what the record announced must not be done.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the audit log cannot be written: {0}")]
pub struct RecordError(pub String);

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
            disposition: if error.is_transient() {
                Disposition::Transient
            } else {
                Disposition::Permanent
            },
            ..Self::permanent(operation, error.to_string())
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
