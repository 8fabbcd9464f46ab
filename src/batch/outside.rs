//! What a run does outside the database with the rows it deletes: archive them, delete their objects.

use std::time::Duration;

use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, PgConnection};

use super::archive::{ArchiveRule, Archiver, CopyError};
use super::attempt::{Part, Patience};
use super::cutoff::Cutoff;
use super::objects::{ObjectRule, Objects, RemoveError};
use super::pace::{self, Aim};
use super::partitions::PartitionMode;
use super::preflight::Target;
use super::statement::{Range, Statements};
use crate::job::{JobContext, JobError};
use crate::postgres::catalog::{Relation, RelationKind};
use crate::postgres::sqlstate::DatabaseError;
use crate::store::StoreError;

/// How large an archive's object should become, packed.
const OBJECT_BYTES: u64 = 8 << 20;

/// How long a store may take with one batch: its transaction is open meanwhile, and a legal hold
/// waits for it.
pub(super) const STORE_TIME: Duration = Duration::from_secs(40);

/// A batch with work outside may take so many times as long as one without: fewer, larger objects.
const SLOWER: u32 = 8;

/// What is done beside the deletion of rows. Default: nothing outside the database.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// They are archived.
    pub archive: Option<ArchiveRule>,
    /// Their objects are deleted.
    pub objects: Option<ObjectRule>,
    /// What becomes of whole partitions; nothing is "dropped, where nothing speaks against it".
    pub partitions: Option<PartitionMode>,
}

impl Beside {
    /// Whether something is done outside the database with each row.
    pub(super) fn needs_rows(&self) -> bool {
        self.archive.is_some() || self.objects.is_some()
    }

    /// Checks all that can be checked before a row is touched; answers with warnings.
    pub(super) async fn check(&self, connection: &mut PgConnection, target: &Target) -> Result<Vec<String>, JobError> {
        let mut warnings = Vec::new();
        if let Some(archive) = &self.archive {
            let foreign = target
                .leaves
                .iter()
                .find(|leaf| leaf.relation.kind == RelationKind::Foreign);
            if let Some(leaf) = foreign {
                return Err(unarchived(target, &leaf.relation));
            }
            archive.probe().await?;
        }
        if let Some(objects) = &self.objects {
            warnings.extend(objects.check(connection, target).await?);
        }
        Ok(warnings)
    }

    /// Keeps rows whose objects cannot be told.
    pub(super) fn narrow(&self, statements: &mut Statements) {
        if let Some(objects) = &self.objects {
            let condition = objects.condition(statements);
            statements.require(condition);
        }
    }

    /// What the plan says of it, by key of the configuration.
    pub(super) fn intent(&self) -> Map<String, Value> {
        let archive = self.archive.as_ref().map(|rule| ("archive".to_owned(), rule.intent()));
        let objects = self.objects.as_ref().map(|rule| ("objects".to_owned(), rule.intent()));
        archive.into_iter().chain(objects).collect()
    }
}

/// Two servers do not commit as one: rows could be gone there while the ledger does not know their
/// object.
fn unarchived(target: &Target, leaf: &Relation) -> JobError {
    JobError::refused(
        format!("check {}", target.relation.display()),
        format!(
            "{} is on another server, and its rows cannot be archived from here",
            leaf.display()
        ),
        "run the job against the server that stores it, or leave `archive` out",
    )
    .about("archive")
}

/// The work outside of one run.
#[derive(Debug, Default)]
pub(super) struct Outside {
    archive: Option<Archiver>,
    objects: Option<Objects>,
    /// The packed size of the last object.
    packed: u64,
}

/// Why a batch's work outside failed. The batch's transaction is rolled back.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server refused.
    Database(DatabaseError),
    /// The batch is more than one object takes.
    TooLarge,
    /// The batch has more rows than the run may touch.
    TooMany,
    /// A store took too long.
    Slow(StoreError),
    /// A store refused.
    Store(StoreError),
    /// The session cannot be used any more.
    Lost(DatabaseError),
    /// Not as many rows were deleted as were copied, or they could not be packed.
    Unequal(String),
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

impl From<CopyError> for Trouble {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::TooLarge => Self::TooLarge,
            CopyError::TooMany => Self::TooMany,
            CopyError::Slow(error) => Self::Slow(error),
            CopyError::Unequal(cause) => Self::Unequal(cause),
            CopyError::Store(error) => Self::Store(error),
            CopyError::Database(error) => Self::Database(error),
            CopyError::Lost(error) => Self::Lost(error),
            CopyError::Pack(error) => Self::Unequal(format!("the rows could not be packed: {error}")),
        }
    }
}

impl From<RemoveError> for Trouble {
    fn from(error: RemoveError) -> Self {
        match error {
            RemoveError::Slow(error) => Self::Slow(error),
            RemoveError::Store(error) => Self::Store(error),
            RemoveError::Database(error) => Self::Database(error),
        }
    }
}

impl Outside {
    /// Makes everything ready, before the first row is touched.
    pub(super) async fn begin(
        beside: &Beside,
        context: &mut JobContext,
        table: &Relation,
        cutoff: &Cutoff,
    ) -> Result<Self, JobError> {
        let archive = match &beside.archive {
            Some(rule) => Some(Archiver::begin(rule.clone(), context, table, cutoff).await?),
            None => None,
        };
        Ok(Self {
            archive,
            objects: beside.objects.clone().map(Objects::new),
            packed: 0,
        })
    }

    /// Whether rows are archived.
    pub(super) fn archives(&self) -> bool {
        self.archive.is_some()
    }

    /// Whether there is anything to do beside the deletion.
    pub(super) fn is_busy(&self) -> bool {
        self.archive.is_some() || self.objects.is_some()
    }

    /// Rows of the first batch, and the bounds of all.
    pub(super) fn rows(&self, usual: (u64, u64, u64)) -> (u64, u64, u64) {
        match (&self.archive, &self.objects) {
            (None, None) => usual,
            (Some(_), None) => (20_000, 1, 50_000),
            (_, Some(_)) => (100, 1, 1000),
        }
    }

    /// How long a batch took and how long it should take, as the pace of the next is to see them.
    pub(super) fn paced(&self, elapsed: Duration, aim: Aim) -> (Duration, Aim) {
        if !self.is_busy() {
            return (elapsed, aim);
        }
        // Small steps would make small objects; the server does little meanwhile.
        let aim = Aim {
            time: pace::ALONE.time * SLOWER,
            wal: u64::MAX,
        };
        let elapsed = match self.packed {
            packed if packed > OBJECT_BYTES => Duration::MAX,
            // Near the size that is wanted the next object is not made larger.
            packed if packed > OBJECT_BYTES / 2 => elapsed.max(aim.time),
            _ => elapsed,
        };
        (elapsed, aim)
    }

    /// Copies the rows of a part of a leaf, deletes them, deletes their objects; answers how many
    /// there were.
    pub(super) async fn apply(
        &mut self,
        transaction: &mut PgConnection,
        part: &Part<'_>,
        range: &Range,
    ) -> Result<u64, Trouble> {
        let Part { statements, leaf, .. } = *part;
        let unlocked;
        let range = if part.patience == Patience::Leave {
            unlocked = unlocked_rows(transaction, part, range).await?;
            &unlocked
        } else {
            range
        };
        let copied = match &mut self.archive {
            Some(archive) => {
                let copied = archive.copy(transaction, part, range).await?;
                self.packed = copied.bytes;
                Some(copied.rows)
            }
            None => None,
        };
        let (deleted, keys) = delete(transaction, statements, leaf, range, self.objects.as_ref()).await?;
        if let Some(copied) = copied.filter(|copied| *copied != deleted) {
            return Err(Trouble::Unequal(format!(
                "{copied} rows were copied and {deleted} would be deleted: a trigger keeps rows, or `where` does not \
                 depend on the row alone"
            )));
        }
        // What is gone from a store does not come back with its row.
        if part.allowed.is_some_and(|most| deleted > most) {
            return Err(Trouble::TooMany);
        }
        if let Some(objects) = &mut self.objects {
            objects.remove(transaction, statements, keys).await?;
        }
        Ok(deleted)
    }

    /// Notes what lies outside, within the batch's transaction.
    pub(super) async fn record(&self, transaction: &mut PgConnection) -> Result<(), DatabaseError> {
        match &self.archive {
            Some(archive) => archive.record(transaction).await,
            None => Ok(()),
        }
    }

    /// The batch is committed; or nobody knows, and then the ledger decides later.
    pub(super) fn committed(&mut self) {
        if let Some(archive) = &mut self.archive {
            archive.committed();
        }
        if let Some(objects) = &mut self.objects {
            objects.committed();
        }
    }

    /// The batch is rolled back.
    pub(super) async fn rolled_back(&mut self) {
        if let Some(archive) = &mut self.archive {
            archive.rolled_back().await;
        }
        if let Some(objects) = &mut self.objects {
            objects.rolled_back();
        }
    }

    /// Brings the work to its end; answers with the report, by key of the configuration, and with what
    /// is wrong.
    pub(super) async fn finish(
        &mut self,
        context: &mut JobContext,
        statements: &Statements,
    ) -> (Map<String, Value>, Vec<String>) {
        let (mut report, mut problems) = (Map::new(), Vec::new());
        if let Some(archive) = &mut self.archive {
            let (body, problem) = archive.finish(context).await;
            report.insert("archive".to_owned(), body);
            problems.extend(problem);
        }
        if let Some(objects) = &self.objects {
            let (body, problem) = objects.finish(context.session.connection(), statements).await;
            report.insert("objects".to_owned(), body);
            problems.extend(problem);
        }
        (report, problems)
    }
}

/// The rows of a part of a leaf that no other session holds, locked.
async fn unlocked_rows(transaction: &mut PgConnection, part: &Part<'_>, range: &Range) -> Result<Range, sqlx::Error> {
    let places = sqlx::query_scalar(AssertSqlSafe(part.statements.lock(part.leaf, range, false)))
        .persistent(false)
        .fetch_all(transaction)
        .await?;
    Ok(Range::Places(places))
}

/// Deletes rows; answers how many, and the keys of their objects.
async fn delete(
    transaction: &mut PgConnection,
    statements: &Statements,
    leaf: &Relation,
    range: &Range,
    objects: Option<&Objects>,
) -> Result<(u64, Vec<Option<String>>), sqlx::Error> {
    let Some(objects) = objects else {
        let done = sqlx::query(AssertSqlSafe(statements.apply(leaf, range)))
            .persistent(false)
            .execute(transaction)
            .await?;
        return Ok((done.rows_affected(), Vec::new()));
    };
    let sql = statements.apply_returning(leaf, range, &objects.rule().key_column);
    let keys: Vec<Option<String>> = sqlx::query_scalar(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_all(transaction)
        .await?;
    Ok((keys.len() as u64, keys))
}
