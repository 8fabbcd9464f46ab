//! A run's way to the audit log.

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;

use super::AuditLog;
use super::kind::RecordKind;
use super::record::Entry;
use crate::values::{JobName, RunId};

/// Where a run writes records of its own beside the runner's `run.start` and `run.end`.
pub trait Recorder: Send + Sync {
    /// Makes a record durable, or says why not. `kind` is a word of the audit log's list, such as
    /// `backup.committed`; `body` holds no personal data.
    fn record<'a>(&'a self, kind: &'static str, body: Value) -> BoxFuture<'a, Result<(), RecordError>>;

    /// The same of several records of one kind, in their order. An audit log waits for its device once.
    fn record_all<'a>(&'a self, kind: &'static str, bodies: Vec<Value>) -> BoxFuture<'a, Result<(), RecordError>> {
        async move {
            for body in bodies {
                self.record(kind, body).await?;
            }
            Ok(())
        }
        .boxed()
    }
}

/// The audit log could not be written; what the record announced must not be done.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the audit log cannot be written: {0}")]
pub struct RecordError(pub String);

/// Writes records in the name of one run, or of one job.
#[derive(Debug, Clone)]
pub struct RunRecorder {
    /// Where they go.
    pub log: AuditLog,
    /// The run; none for what is done about a job outside any run.
    pub run: Option<RunId>,
    /// Its job.
    pub job: JobName,
    /// Its database, by system identifier or name.
    pub database: Option<String>,
    /// The hash of the job's settings.
    pub policy: Option<String>,
    /// Who caused the run.
    pub actor: Option<String>,
}

impl RunRecorder {
    /// An entry that carries the run's identity.
    #[must_use]
    pub fn entry(&self, kind: RecordKind, body: Value) -> Entry {
        Entry {
            kind,
            run: self.run,
            job: Some(self.job.clone()),
            database: self.database.clone(),
            policy: self.policy.clone(),
            actor: self.actor.clone(),
            body,
        }
    }
}

impl Recorder for RunRecorder {
    fn record<'a>(&'a self, kind: &'static str, body: Value) -> BoxFuture<'a, Result<(), RecordError>> {
        self.record_all(kind, vec![body])
    }

    fn record_all<'a>(&'a self, kind: &'static str, bodies: Vec<Value>) -> BoxFuture<'a, Result<(), RecordError>> {
        async move {
            let kind = RecordKind::from_word(kind)
                .ok_or_else(|| RecordError(format!("`{kind}` is no kind of audit record")))?;
            let entries = bodies.into_iter().map(|body| self.entry(kind, body)).collect();
            match self.log.append_all(entries).await {
                Ok(()) => Ok(()),
                Err(error) => Err(RecordError(format!("{error}; {}", error.remedy))),
            }
        }
        .boxed()
    }
}
