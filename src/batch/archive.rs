//! Rows are copied into a store before they are deleted.
//!
//! Copy, upload and deletion happen under one snapshot in one transaction: the object is there and
//! has the right size before the rows go, and the deletion must meet exactly as many rows as were
//! copied. That transaction also writes the object into the ledger, so after a crash an object that
//! the ledger does not know holds rows that are still in their table; [`settle`] removes it before
//! the job's next run. Each run's objects are listed, with their digests, in a manifest.

mod copy;
mod expiry;
mod manifest;
mod settle;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;
use sqlx::postgres::types::Oid;
use tokio_util::bytes::Bytes;

pub(super) use self::copy::CopyError;
use self::settle::settle;
use super::attempt::Part;
use super::cutoff::Cutoff;
use super::fenced;
use super::outside::STORE_TIME;
use super::statement::Range;
use crate::backup::compress::Packing;
use crate::backup::sweep::store_error;
use crate::job::{JobContext, JobError};
use crate::ledger::archives::{self, Archive, ArchivedObject};
use crate::postgres::catalog::Relation;
use crate::postgres::catalog::columns::{self, Column};
use crate::postgres::sqlstate::DatabaseError;
use crate::store::{ObjectKey, Store, StoreError, StoreErrorKind};
use crate::values::{Period, RunId, Timezone};

/// How archived rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArchiveFormat {
    /// One JSON object per row. Numbers, booleans and objects and arrays of `jsonb` are written as
    /// such; everything else as PostgreSQL's text of it, so that `(line->>'column')::type` is the
    /// value again.
    Jsonl,
    /// PostgreSQL's CSV with a header, for `COPY … FROM … (FORMAT csv, HEADER)`.
    Csv,
}

impl ArchiveFormat {
    /// Every format, with its word.
    pub const WORDS: [(&'static str, Self); 2] = [("jsonl", Self::Jsonl), ("csv", Self::Csv)];

    /// The format's word, also the ending of its objects.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
        }
    }
}

/// Where deleted rows are kept, and how.
#[derive(Debug, Clone)]
pub struct ArchiveRule {
    /// The store's name in the configuration.
    pub store_name: String,
    /// The store.
    pub store: Arc<dyn Store>,
    /// How rows are written.
    pub format: ArchiveFormat,
    /// How objects are packed.
    pub packing: Packing,
    /// How long an archive is kept; for ever without.
    pub keep: Option<Period>,
    /// The zone in which the days of `keep` are counted.
    pub zone: Timezone,
}

/// What was copied for one batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    /// Its rows.
    pub(super) rows: u64,
    /// The size of its object.
    pub(super) bytes: u64,
}

/// The archive of one run.
#[derive(Debug)]
pub(super) struct Archiver {
    rule: ArchiveRule,
    archive: Archive,
    /// The number of the next object.
    next: i32,
    columns: HashMap<Oid, Vec<Column>>,
    /// The object of the transaction under way.
    pending: Option<(ObjectKey, ArchivedObject)>,
}

impl Archiver {
    /// Removes what earlier runs left behind, and notes that this run is about to write.
    pub(super) async fn begin(
        rule: ArchiveRule,
        context: &mut JobContext,
        table: &Relation,
        cutoff: &Cutoff,
    ) -> Result<Self, JobError> {
        let left = archives::open(context.session.connection(), context.job.as_str(), &rule.store_name)
            .await
            .map_err(|error| JobError::database("read the journal of archives", &error))?;
        for archive in left {
            settle(context, &rule, &archive).await?;
        }
        let archive = Archive {
            run: context.run,
            job: context.job.to_string(),
            store: rule.store_name.clone(),
            prefix: format!("{}/{}", home(context), context.run),
            relation: table.plain(),
            table: table.oid,
            cutoff: cutoff.instant.clone(),
            format: rule.format.as_str().to_owned(),
            compress: rule.packing.to_string(),
        };
        let operation = "write the journal of archives";
        let failed = |error: DatabaseError| JobError::database(operation, &error);
        let fence = context.fence;
        let mut transaction = fenced::begin(context.session.connection(), fence, operation).await?;
        archives::begin(&mut transaction, &archive).await.map_err(failed)?;
        let objects = archives::objects(&mut transaction, archive.run).await.map_err(failed)?;
        fenced::commit(transaction, operation).await?;
        Ok(Self {
            rule,
            archive,
            next: objects.last().map_or(1, |object| object.seq.saturating_add(1)),
            columns: HashMap::new(),
            pending: None,
        })
    }

    /// Copies the rows of a part of a leaf that are due into a new object; no object for no rows.
    pub(super) async fn copy(
        &mut self,
        transaction: &mut PgConnection,
        part: &Part<'_>,
        range: &Range,
    ) -> Result<Stored, CopyError> {
        let Part { statements, leaf, .. } = *part;
        let seen = copy::summary(transaction, statements, leaf, range).await?;
        if part.allowed.is_some_and(|most| seen.rows > most) {
            return Err(CopyError::TooMany);
        }
        let (Some(oldest), Some(youngest)) = (seen.oldest, seen.youngest) else {
            return Ok(Stored { rows: 0, bytes: 0 });
        };
        let key = self.key(self.next).map_err(CopyError::Store)?;
        let columns = match self.columns.entry(leaf.oid) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let found = columns::of(transaction, leaf.oid).await.map_err(CopyError::Database)?;
                unknown.insert(found.into_iter().filter(|column| !column.computed).collect())
            }
        };
        let (copied, body) = copy::rows(transaction, statements, leaf, range, columns, &self.rule).await?;
        if copied.rows != seen.rows {
            return Err(CopyError::Unequal(format!(
                "{} rows were counted and {} were copied: `where` does not depend on the row alone",
                seen.rows, copied.rows
            )));
        }
        let object = ArchivedObject {
            seq: self.next,
            key: key.to_string(),
            relation: leaf.plain(),
            columns: columns.iter().map(|column| column.name.clone()).collect(),
            oldest,
            youngest,
            rows: copied.rows,
            bytes: copied.packed.bytes,
            sha256: copied.packed.sha256.clone(),
            bytes_raw: copied.raw.bytes,
            sha256_raw: copied.raw.sha256.clone(),
        };
        let stored = Stored {
            rows: object.rows,
            bytes: object.bytes,
        };
        self.next = self.next.saturating_add(1);
        self.pending = Some((key.clone(), object));
        let Ok(uploaded) = tokio::time::timeout(STORE_TIME, self.upload(&key, body)).await else {
            let cause = format!("it was not stored after {} s", STORE_TIME.as_secs());
            let error = StoreError::new(StoreErrorKind::Transient, format!("create {key}"), cause);
            return Err(CopyError::Slow(error));
        };
        uploaded.map_err(CopyError::Store)?;
        Ok(stored)
    }

    /// Notes the pending object, within the transaction that deletes its rows.
    pub(super) async fn record(&self, transaction: &mut PgConnection) -> Result<(), DatabaseError> {
        match &self.pending {
            Some((_, object)) => archives::record(transaction, self.archive.run, object).await,
            None => Ok(()),
        }
    }

    /// The transaction is committed: the object stays.
    pub(super) fn committed(&mut self) {
        self.pending = None;
    }

    /// The transaction is rolled back, its rows stay: the object goes. One that cannot be removed now
    /// is found and removed when the archive is settled.
    pub(super) async fn rolled_back(&mut self) {
        let Some((key, object)) = self.pending.take() else {
            return;
        };
        match self.rule.store.delete(&key).await {
            Ok(_) => self.next = object.seq,
            Err(error) => {
                tracing::warn!(archive.key = %key, %error, "an object of rows that stay could not be removed; the next run removes it");
            }
        }
    }

    /// Writes the manifest and enforces the archives' own keep period. Answers with the report, and
    /// what is wrong, if anything.
    pub(super) async fn finish(&mut self, context: &mut JobContext) -> (Value, Option<String>) {
        let mut problems = Vec::new();
        let settled = settle(context, &self.rule, &self.archive).await;
        let (objects, rows, bytes) = match &settled {
            Ok(settled) => (settled.objects, settled.rows, settled.bytes),
            Err(error) => {
                problems.push(format!(
                    "archive: {error}; its objects are complete, and the next run writes its manifest"
                ));
                self.known(context).await
            }
        };
        let expired = match expiry::enforce(context, &self.rule, self.archive.run).await {
            Ok(expired) => expired,
            Err(error) => {
                problems.push(format!("archive: old archives could not be removed: {error}"));
                Value::Null
            }
        };
        let report = json!({
            "store": self.rule.store_name,
            "prefix": self.archive.prefix,
            "format": self.archive.format,
            "compress": self.archive.compress,
            "objects": objects,
            "rows": rows,
            "bytes": bytes,
            "expired": expired,
        });
        (report, (!problems.is_empty()).then(|| problems.join("; ")))
    }

    /// What the ledger knows of the run's objects.
    async fn known(&self, context: &mut JobContext) -> (usize, u64, u64) {
        let known = archives::objects(context.session.connection(), self.archive.run).await;
        let objects = known.unwrap_or_else(|error| {
            tracing::warn!(%error, "the ledger could not be asked for the archive's objects");
            Vec::new()
        });
        settle::sums(&objects)
    }

    fn key(&self, seq: i32) -> Result<ObjectKey, StoreError> {
        let packed = self.rule.packing.suffix();
        ObjectKey::new(format!(
            "{}/{seq:06}.{}{packed}",
            self.archive.prefix,
            self.rule.format.as_str()
        ))
    }

    /// Creates the object and makes sure that the store holds all of it.
    async fn upload(&self, key: &ObjectKey, body: Bytes) -> Result<(), StoreError> {
        let bytes = body.len() as u64;
        self.rule
            .store
            .create(key, body, self.rule.packing.content_type())
            .await?;
        match self.rule.store.head(key).await? {
            Some(info) if info.bytes == bytes => Ok(()),
            held => {
                let cause = held.map_or_else(
                    || "the store does not hold it".to_owned(),
                    |info| format!("the store holds {} bytes instead of {bytes}", info.bytes),
                );
                Err(StoreError::permanent(format!("check {key}"), cause))
            }
        }
    }
}

/// The prefix of all archives of a job.
fn home(context: &JobContext) -> String {
    format!("{}/{}/archive", context.database, context.job)
}

/// The run of an archive's key below [`home`].
fn run_of(key: &str, home: &str) -> Option<RunId> {
    let (run, _) = key.strip_prefix(home)?.strip_prefix('/')?.split_once('/')?;
    run.parse().ok().map(RunId)
}

/// Opens what the plan says of the rule.
impl ArchiveRule {
    /// Whether the store takes what will be sent to it.
    pub(super) async fn probe(&self) -> Result<(), JobError> {
        let failed = |error| store_error(format!("use the store {}", self.store_name), error).about("archive");
        self.store.probe().await.map(drop).map_err(failed)
    }

    /// The rule as the plan shows it.
    pub(super) fn intent(&self) -> Value {
        json!({
            "store": self.store_name,
            "place": self.store.describe(),
            "format": self.format.as_str(),
            "compress": self.packing.to_string(),
            "keep": self.keep.map(|keep| keep.to_string()),
        })
    }
}
