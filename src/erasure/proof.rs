//! The way from the engine to what proves an erasure. The engine knows of steps and counts; whoever
//! implements [`Proof`] knows of keys, files, scans and signatures.

use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::objects::Removed;
use super::request::{Identifiers, RequestId, RequestState, SubjectKey};
use crate::job::{JobContext, JobError};
use crate::store::ObjectKey;
use crate::values::Name;

/// What proves an erasure, and makes it last.
pub trait Proof: Send + Sync {
    /// The keyed digest that stands for a subject from now on.
    fn token(&self, subject: &Subject<'_>) -> Result<SubjectToken, ProofError>;

    /// Makes it durable on the host that some subjects are about to be erased, so that a restore from
    /// an older backup knows of them. Called before the first destructive step, again by each attempt:
    /// repeating it changes nothing. Answers, in their order, with what the audit record says of each
    /// entry.
    fn remember<'a>(&'a self, accounts: &'a [Account]) -> BoxFuture<'a, Result<Vec<Value>, ProofError>>;

    /// Searches what is left of subjects, all in one pass; reads only, and answers for each with
    /// counts, never values.
    fn scan<'a>(
        &'a self,
        connection: &'a mut PgConnection,
        searches: &'a [Search],
    ) -> BoxFuture<'a, Result<Vec<Residue>, ProofError>>;

    /// Keeps what second scans need apart from the database; what it answers with, in their order, is
    /// kept there, and means nothing by itself. Called after the scan and before the transactions that
    /// close the requests.
    fn seal<'a>(
        &'a self,
        searches: &'a [(RequestId, &'a Search)],
    ) -> BoxFuture<'a, Result<Vec<Option<Vec<u8>>>, ProofError>>;

    /// Deletes objects of a store, and makes sure that they are gone. Called in the transaction that
    /// deletes their rows, before it is committed; again by each attempt.
    fn remove<'a>(&'a self, store: &'a Name, keys: Vec<ObjectKey>) -> BoxFuture<'a, Result<Removed, ProofError>>;

    /// Closes the host's entries and signs the certificates, which are kept with the requests. Called
    /// before the transactions that close the requests, again by each attempt.
    ///
    /// Answers, in their order, with `{"sha256": …, "document": TEXT}`: the signature is over the bytes
    /// of the text.
    fn certify<'a>(&'a self, accounts: &'a [Account]) -> BoxFuture<'a, Result<Vec<Value>, ProofError>>;

    /// Does what is to be done after the requests of a run, also when there was none: recipients are
    /// told, objects deleted, second scans made, the ledger copied to the stores. Answers with what
    /// the run's report says of it.
    fn attend<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Value, JobError>> {
        let _ = context;
        Box::pin(std::future::ready(Ok(Value::Null)))
    }
}

/// Who is meant: a row of the subject's table, by its key.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The database's name in the configuration.
    pub database: &'a str,
    /// The subject's table, `schema.name`.
    pub table: &'a str,
    /// The value of its key column.
    pub key: &'a SubjectKey,
}

/// What stands for a subject where no personal data may stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectToken {
    /// Which key made it.
    pub key_id: String,
    /// 64 lowercase hexadecimal digits.
    pub token: String,
}

/// Why a part of the proof could not be made; no personal data.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation}: {cause}")]
pub struct ProofError {
    /// What was tried, with its object.
    pub operation: String,
    /// What went wrong.
    pub cause: String,
    /// What an operator can do.
    pub remedy: String,
    /// Whether another attempt may succeed.
    pub transient: bool,
}

/// A request as it stands: what a certificate says of it. No personal data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// The request.
    pub request: RequestId,
    /// The job.
    pub job: String,
    /// The database's name in the configuration.
    pub database: String,
    /// The subject's table, `schema.name`, and its key column.
    pub subject_table: String,
    /// The key column.
    pub subject_column: String,
    /// The subject.
    pub subject: SubjectToken,
    /// Its state, or the one that it is about to take.
    pub state: RequestState,
    /// Why, where it is not plainly completed.
    pub reason: Option<String>,
    /// Who asked.
    pub requested_by: String,
    /// By how many months the deadline was extended.
    pub extended_months: i16,
    /// Whether the subject's row was there; unknown before the work began.
    pub found: Option<bool>,
    /// When it was received.
    pub received_at: Timestamp,
    /// By when it must be done.
    pub due_at: Timestamp,
    /// When the first row was about to go.
    pub started_at: Option<Timestamp>,
    /// When the last step was done.
    pub finished_at: Option<Timestamp>,
    /// The hash of the job's settings.
    pub policy: String,
    /// Who approved the policy, where it was approved.
    pub approved_by: Option<String>,
    /// The digest of the part of the schema in reach.
    pub schema_digest: String,
    /// What was done, in order.
    pub steps: Vec<StepAccount>,
    /// The holds that keep rows of the subject.
    pub holds: Vec<uuid::Uuid>,
    /// What was kept on purpose.
    pub kept: Vec<Kept>,
    /// What the first scan found.
    pub residue: Option<Residue>,
}

/// One step as it was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepAccount {
    /// Its place in the order, from 1.
    pub step: i32,
    /// `schema.table`.
    pub table: String,
    /// `delete`, `mask` or `unlink`.
    pub action: String,
    /// How many rows it deleted or changed.
    pub rows: u64,
    /// How many rows a legal hold kept from it.
    pub held: u64,
    /// How many objects that the rows owned are gone from their store.
    #[serde(default, skip_serializing_if = "is_none")]
    pub objects: u64,
    /// Of how many of them the store keeps an older version, which its own rules let expire.
    #[serde(default, skip_serializing_if = "is_none")]
    pub object_versions: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// A table whose rows stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// `schema.table`.
    pub table: String,
    /// On which ground: `Art. 17(3)(b)`.
    pub basis: String,
    /// For how long.
    pub until: Option<String>,
    /// How many rows of the subject there are.
    pub rows: u64,
}

/// Where a residual scan looks, and what it may find there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScanScope {
    /// Columns in which an identifier may stay: those of kept tables, and keys that masked rows
    /// keep. All columns of the table where none is named.
    pub kept: Vec<(Oid, Option<String>)>,
    /// Tables whose statistics should be made anew first (`ANALYZE`), where rows went.
    pub changed: Vec<Oid>,
}

/// One subject that a scan looks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    /// Where.
    pub scope: ScanScope,
    /// For what.
    pub identifiers: Identifiers,
}

/// What a scan found. Counts only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residue {
    /// Each column in which an identifier was found.
    pub places: Vec<ResiduePlace>,
    /// What could not be searched, and why.
    pub unsearched: Vec<String>,
    /// How many tables, partitions and materialised views were looked at.
    #[serde(default)]
    pub tables: u64,
    /// How many of their columns can hold text.
    #[serde(default)]
    pub columns: u64,
    /// How many identifiers were searched for.
    #[serde(default)]
    pub identifiers: u64,
    /// How many were not, because a text that short means nobody.
    #[serde(default)]
    pub too_short: u64,
}

/// A column in which an identifier was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResiduePlace {
    /// `schema.table`.
    pub table: String,
    /// Its column.
    pub column: String,
    /// `rows`, or `statistics` for `pg_stats`.
    pub what: String,
    /// How many.
    pub count: u64,
    /// Whether it stays there on purpose.
    pub kept: bool,
    /// What removes it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Residue {
    /// Whether nothing was found but what is kept on purpose, and all was searched.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.unsearched.is_empty() && self.places.iter().all(|place| place.kept)
    }
}
