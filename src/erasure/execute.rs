//! Whoever works on requests, and what may go wrong with them.

use std::collections::BTreeSet;

use jiff::tz::TimeZone;
use sqlx::{Connection, PgConnection, Postgres, Transaction};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::plan::ErasurePlan;
use super::proof::{Proof, ProofError};
use super::rule::Rule;
use crate::job::{JobError, RecordError, Recorder};
use crate::ledger::erasures::{self, Request};
use crate::ledger::leader::{Fence, FenceError};
use crate::postgres::connect::Session;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// Whoever works on requests, with all that this needs.
pub struct Worker<'a> {
    /// The connection.
    pub session: &'a mut Session,
    /// To be held first in every transaction that writes.
    pub fence: Fence,
    /// The run.
    pub run: RunId,
    /// The job's name.
    pub job: &'a str,
    /// The database's name in the configuration.
    pub database: &'a str,
    /// What happens to each table.
    pub plan: &'a ErasurePlan,
    /// What was asked for.
    pub rule: &'a Rule,
    /// What proves it.
    pub proof: &'a dyn Proof,
    /// Where records go.
    pub recorder: &'a dyn Recorder,
    /// Cancelled when the work should end at its next safe point.
    pub stop: CancellationToken,
    /// The zone in which deadlines are counted.
    pub zone: &'a TimeZone,
    /// The hash of the job's settings.
    pub policy: String,
    /// Who approved them.
    pub approved_by: Option<String>,
    /// The session's name as a worker.
    pub name: String,
    /// Whether the subject's row may be locked.
    pub may_lock: bool,
}

/// Why work on a request did not come to its end.
#[derive(Debug)]
pub enum Trouble {
    /// It is not about the request: the run ends.
    Run(JobError),
    /// Another attempt may succeed.
    Transient(String),
    /// Rows have come since the scope was known.
    Late(String),
    /// Another attempt would fail in the same way.
    Permanent(String),
    /// Another worker has it.
    Lost,
    /// The work was asked to stop.
    Stopped,
}

impl Trouble {
    /// Sorts an error of the database.
    #[must_use]
    pub fn of(operation: &str, error: &DatabaseError) -> Self {
        let text = format!("{operation}: {error}");
        match error.sqlstate.as_deref() {
            Some("23503") => Self::Late(text),
            Some("40001" | "40P01" | "55P03" | "57014") => Self::Transient(text),
            Some(code) if ["22", "23", "44", "P0"].iter().any(|class| code.starts_with(class)) => Self::Permanent(text),
            _ => Self::Run(JobError::database(operation, error)),
        }
    }

    /// The end of a run whose work is about several requests.
    #[must_use]
    pub fn into_run(self, operation: &str) -> JobError {
        match self {
            Self::Run(error) => error,
            Self::Transient(cause) | Self::Late(cause) => JobError::transient(operation, cause),
            Self::Permanent(cause) => JobError::permanent(operation, cause),
            Self::Lost => JobError::transient(operation, "another worker has taken one of them"),
            Self::Stopped => JobError::cancelled(operation),
        }
    }

    /// Sorts an error on the way to the server.
    pub fn sql(operation: &str) -> impl Fn(sqlx::Error) -> Self + use<'_> {
        move |error| Self::of(operation, &error.into())
    }
}

impl From<FenceError> for Trouble {
    fn from(error: FenceError) -> Self {
        Self::of("hold the leader's fence", &error.into())
    }
}

impl From<RecordError> for Trouble {
    fn from(error: RecordError) -> Self {
        Self::Run(error.into())
    }
}

impl From<ProofError> for Trouble {
    fn from(error: ProofError) -> Self {
        Self::Run(unproven(error))
    }
}

/// A part of the proof that could not be made, as a run's error.
#[must_use]
pub fn unproven(error: ProofError) -> JobError {
    let of = if error.transient {
        JobError::transient
    } else {
        JobError::permanent
    };
    of(error.operation, error.cause).with_remedy(error.remedy)
}

impl Worker<'_> {
    /// Begins a transaction on the session.
    pub async fn begin(&mut self) -> Result<Transaction<'_, Postgres>, JobError> {
        begin(self.session.connection()).await
    }

    /// Begins a transaction that holds the fence and the request's lease.
    pub async fn begin_on(&mut self, request: &Request) -> Result<Transaction<'_, Postgres>, Trouble> {
        let (transaction, kept) = self.begin_on_all(&[request.id.0]).await?;
        if kept.is_empty() {
            Err(Trouble::Lost)
        } else {
            Ok(transaction)
        }
    }

    /// Begins a transaction that holds the fence and the leases of those of some requests that no other
    /// worker has; these are in the answer.
    pub async fn begin_on_all(&mut self, ids: &[Uuid]) -> Result<(Transaction<'_, Postgres>, BTreeSet<Uuid>), Trouble> {
        let (fence, name) = (self.fence, self.name.clone());
        let mut transaction = self.begin().await.map_err(Trouble::Run)?;
        fence.hold(&mut transaction).await?;
        let kept = erasures::keep_leases(&mut transaction, ids, &name)
            .await
            .map_err(|error| Trouble::of("keep the requests", &error))?;
        Ok((transaction, kept))
    }
}

async fn begin(connection: &mut PgConnection) -> Result<Transaction<'_, Postgres>, JobError> {
    connection
        .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
        .await
        .map_err(|error| JobError::database("begin a transaction", &error.into()))
}
