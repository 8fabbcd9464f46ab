//! One batch: one transaction that holds the fence, does the work and records it in the ledger.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::outside::{Outside, STORE_TIME, Trouble};
use super::statement::{Range, Statements};
use super::stride::{End, GUESSED_TIME};
use super::throttle::Weight;
use crate::job::JobContext;
use crate::ledger::admission::{self, Admitted, Request};
use crate::ledger::batches::{self, Batch};
use crate::ledger::holds::{self, Holds};
use crate::ledger::leader::{Fence, FenceError};
use crate::postgres::catalog::{Relation, RelationKind};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// How long one batch may take at most, whatever the run may: its locks are held so long.
const BATCH_TIME: Duration = Duration::from_secs(15);

/// What a batch is to cover.
#[derive(Debug, Clone)]
pub(super) enum Slice {
    /// The next old rows by age.
    Ages {
        /// Younger than this; from the beginning without.
        after: Option<String>,
        /// Until where.
        end: End,
    },
    /// The next so many rows by key.
    Keys {
        /// The key's column.
        column: String,
        /// Greater than this.
        after: i64,
        /// Not greater than this.
        last: i64,
        /// How many, old or not.
        rows: u64,
    },
    /// Some blocks.
    Blocks {
        /// From this one,
        from: u32,
        /// to before this one.
        until: u32,
    },
}

impl Slice {
    /// Whether it ends where rows were only expected to end.
    pub(super) fn is_guessed(&self) -> bool {
        matches!(
            self,
            Self::Ages {
                end: End::Guessed(_),
                ..
            }
        )
    }
}

/// How far a batch may go for a row that another session holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Wait for it, up to the session's `lock_timeout`.
    Wait,
    /// Leave it out and count it.
    Leave,
    /// Change nothing and count what is due: without the right to lock rows one by one.
    Count,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attempt {
    /// It is committed.
    Done {
        /// How many rows it deleted or changed.
        rows: u64,
        /// How many due rows it left to other sessions.
        locked: u64,
        /// The part of the table it covered.
        range: Range,
        /// What it was to others.
        weight: Weight,
    },
    /// Too many rows share the age at the batch's end; nothing was changed.
    Crowded,
}

/// Why a batch changed nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// It would exceed the rows that the run may touch.
    TooMany,
    /// A legal hold was placed or released since the statements were compiled.
    HoldsChanged,
    /// Another leader has taken over.
    Superseded(FenceError),
    /// The batch took too long.
    TimedOut(DatabaseError),
    /// Another session holds a lock, or was preferred in a deadlock.
    Contended(DatabaseError),
    /// Something outside the database.
    Outside(Trouble),
    /// The commit was not answered; it may have happened.
    Unanswered(DatabaseError),
    /// Anything else.
    Other(DatabaseError),
}

impl Failure {
    fn at_commit(error: sqlx::Error) -> Self {
        let error = DatabaseError::from(error);
        if error.leaves_in_doubt() {
            Self::Unanswered(error)
        } else {
            Self::Other(error)
        }
    }

    fn of(error: DatabaseError, elapsed: Duration, limit: Duration) -> Self {
        match error.sqlstate.as_deref() {
            // The code is the same when somebody cancels the statement; then it ran for less.
            Some("57014") if elapsed >= limit.mul_f64(0.9) => Self::TimedOut(error),
            Some("55P03" | "40P01" | "40001") => Self::Contended(error),
            _ => Self::Other(error),
        }
    }
}

/// The batch to run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    /// The rule.
    pub(super) statements: &'a Statements,
    /// The legal holds that are part of it.
    pub(super) holds: &'a Holds,
    /// Whose rows.
    pub(super) leaf: &'a Relation,
    /// Which of them.
    pub(super) slice: &'a Slice,
    /// How far it may go for a row that another session holds.
    pub(super) patience: Patience,
    /// The most rows it may touch.
    pub(super) allowed: Option<u64>,
}

/// Runs one batch. Whatever fails, the transaction is rolled back before this returns; only a commit
/// that was not answered may have happened.
pub(super) async fn run(context: &mut JobContext, part: &Part<'_>, outside: &mut Outside) -> Result<Attempt, Failure> {
    let (fence, run) = (context.fence, context.run);
    let mut transaction = context
        .session
        .connection()
        .begin_with(isolation(outside))
        .await
        .map_err(|error| Failure::Other(error.into()))?;
    let result = within(&mut transaction, fence, run, part, outside).await;
    if let Ok(Attempt::Done { .. }) = &result {
        let committed = transaction.commit().await;
        // Where the answer is lost, the ledger tells later what became of the batch.
        outside.committed();
        committed.map_err(Failure::at_commit)?;
    } else {
        if let Err(error) = transaction.rollback().await {
            // The batch's own error says more; a connection that is gone has rolled back.
            tracing::debug!(error = %DatabaseError::from(error), "a batch could not be rolled back in good order");
        }
        outside.rolled_back().await;
    }
    result
}

async fn within(
    transaction: &mut PgConnection,
    fence: Fence,
    run: RunId,
    part: &Part<'_>,
    outside: &mut Outside,
) -> Result<Attempt, Failure> {
    let started = Instant::now();
    let (statements, leaf, patience) = (part.statements, part.leaf, part.patience);
    let database = |error: DatabaseError| Failure::of(error, Duration::ZERO, BATCH_TIME);
    // Where all statements see one snapshot, it must be younger than the lock.
    if outside.archives() {
        holds::freeze(&mut *transaction).await.map_err(database)?;
    }
    let admitted = admit(&mut *transaction, fence, part.slice, outside)
        .await
        .map_err(|error| match error {
            FenceError::Database(error) => database(error),
            FenceError::Superseded(_) => Failure::Superseded(error),
        })?;
    // What is done in the database alone can still be taken back when it is recorded.
    if outside.is_busy()
        && !holds::unchanged(&mut *transaction, part.holds)
            .await
            .map_err(database)?
    {
        return Err(Failure::HoldsChanged);
    }
    let mut statement_started = Instant::now();
    let work = async {
        let Some(range) = range(&mut *transaction, statements, leaf, part.slice).await? else {
            return Ok(None);
        };
        statement_started = Instant::now();
        let rows = apply(&mut *transaction, part, &range, outside).await?;
        let locked = match patience {
            Patience::Wait => 0,
            Patience::Leave | Patience::Count => left(&mut *transaction, statements, leaf, &range).await?,
        };
        Ok(Some((range, rows, locked)))
    };
    let done: Result<_, Trouble> = work.await;
    let done = done.map_err(|trouble| match trouble {
        // What the snapshot does not show holds on to a row: the next one shows it.
        Trouble::Database(error) if error.is("23503") && outside.archives() && statements.keeps_referenced() => {
            Failure::Contended(error)
        }
        Trouble::Database(error) => Failure::of(error, statement_started.elapsed(), admitted.statement_timeout),
        trouble => Failure::Outside(trouble),
    })?;
    let Some((range, rows, locked)) = done else {
        return Ok(Attempt::Crowded);
    };
    if part.allowed.is_some_and(|most| rows > most) {
        return Err(Failure::TooMany);
    }
    let elapsed = started.elapsed();
    let footprint = if rows > 0 {
        let batch = place(statements, leaf, &range, rows, elapsed);
        outside.record(&mut *transaction).await.map_err(Failure::Other)?;
        let known = (admitted.wal.as_str(), part.holds);
        batches::record_and_weigh(transaction, run, &batch, known).await
    } else {
        batches::footprint(transaction, &admitted.wal).await.map(Some)
    };
    let footprint = footprint.map_err(Failure::Other)?.ok_or(Failure::HoldsChanged)?;
    Ok(Attempt::Done {
        rows,
        locked,
        range,
        weight: Weight { elapsed, footprint },
    })
}

/// A copy and the deletion after it must see the same rows.
fn isolation(outside: &Outside) -> &'static str {
    if outside.archives() {
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE"
    } else {
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
    }
}

/// Holds the fence, keeps new holds out, and makes the settings of the transaction.
async fn admit(
    transaction: &mut PgConnection,
    fence: Fence,
    slice: &Slice,
    outside: &Outside,
) -> Result<Admitted, FenceError> {
    // What waits for a store in between is not idle for nothing.
    let idle = (STORE_TIME * 2).as_millis().to_string();
    let mut settings = vec![
        // The commits need not wait for the disk: the record that closes the run is written after them
        // and does wait, and the WAL is one sequence. Beside a store, which is not rewound with the
        // database, they do wait.
        ("synchronous_commit", if outside.is_busy() { "on" } else { "off" }),
        // The index was chosen from the catalog; stale statistics must not turn each batch into a read
        // of the whole table, nor its made-up cost into a compilation.
        (
            "enable_seqscan",
            match slice {
                Slice::Ages { .. } | Slice::Keys { .. } => "off",
                Slice::Blocks { .. } => "on",
            },
        ),
        ("jit", "off"),
        // Tells the triggers of rollups that rows go, and what was counted of them stays.
        ("pgreeve.retention", "on"),
    ];
    if outside.is_busy() {
        settings.push(("idle_in_transaction_session_timeout", &idle));
    }
    let request = Request {
        fence,
        // Where the table of holds is frozen, nobody who holds this lock could go on.
        share_holds: !outside.archives(),
        settings: &settings,
        statement_timeout: if slice.is_guessed() { GUESSED_TIME } else { BATCH_TIME },
    };
    admission::admit(transaction, &request).await
}

/// The part of the table that a slice covers; `None` when too many rows share the age at its end.
async fn range(
    transaction: &mut PgConnection,
    statements: &Statements,
    leaf: &Relation,
    slice: &Slice,
) -> Result<Option<Range>, sqlx::Error> {
    let (after, rows) = match slice {
        Slice::Blocks { from, until } => {
            return Ok(Some(Range::Blocks {
                from: *from,
                until: *until,
            }));
        }
        Slice::Keys {
            column,
            after,
            last,
            rows,
        } => {
            let through: Option<i64> =
                sqlx::query_scalar(AssertSqlSafe(statements.upper_key(leaf, column, *after, *last, *rows)))
                    .persistent(false)
                    .fetch_optional(transaction)
                    .await?;
            return Ok(Some(Range::Keys {
                column: column.clone(),
                after: *after,
                through: through.unwrap_or(*last),
            }));
        }
        Slice::Ages { after, end } => match end {
            End::Guessed(through) => {
                return Ok(Some(Range::Ages {
                    after: after.clone(),
                    through: through.clone(),
                }));
            }
            End::Searched { rows } => (after, *rows),
        },
    };
    let limit = rows.saturating_mul(4).saturating_add(1);
    let upper: Option<(String, i64)> = sqlx::query_as(AssertSqlSafe(statements.upper_bound(
        leaf,
        after.as_deref(),
        rows,
        limit,
    )))
    .persistent(false)
    .fetch_optional(transaction)
    .await?;
    let crowded = upper.as_ref().is_some_and(|(_, crowd)| crowd.unsigned_abs() >= limit);
    // Only where rows can be walked block by block instead.
    if crowded && leaf.kind == RelationKind::Table {
        return Ok(None);
    }
    Ok(Some(Range::Ages {
        after: after.clone(),
        through: upper.map(|(age, _)| age),
    }))
}

async fn apply(
    transaction: &mut PgConnection,
    part: &Part<'_>,
    range: &Range,
    outside: &mut Outside,
) -> Result<u64, Trouble> {
    let Part {
        statements,
        leaf,
        patience,
        ..
    } = *part;
    if outside.is_busy() && patience != Patience::Count {
        return outside.apply(transaction, part, range).await;
    }
    if statements.keeps_referenced() && patience != Patience::Count {
        return Ok(apply_locked(transaction, statements, leaf, range, patience == Patience::Wait).await?);
    }
    let sql = match patience {
        Patience::Wait => statements.apply(leaf, range),
        Patience::Leave => statements.apply_unlocked(leaf, range),
        Patience::Count => return Ok(0),
    };
    // Without values to bind, one exchange is enough.
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(transaction).await?;
    Ok(done.rows_affected())
}

/// In two statements: a row that is locked gets no new reference, so what the second one does not see
/// then cannot be lost to a cascade.
async fn apply_locked(
    transaction: &mut PgConnection,
    statements: &Statements,
    leaf: &Relation,
    range: &Range,
    waiting: bool,
) -> Result<u64, sqlx::Error> {
    let places: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statements.lock(leaf, range, waiting)))
        .persistent(false)
        .fetch_all(&mut *transaction)
        .await?;
    if places.is_empty() {
        return Ok(0);
    }
    let done = sqlx::query(AssertSqlSafe(statements.apply_locked(leaf)))
        .bind(places)
        .persistent(false)
        .execute(transaction)
        .await?;
    Ok(done.rows_affected())
}

async fn left(
    transaction: &mut PgConnection,
    statements: &Statements,
    leaf: &Relation,
    range: &Range,
) -> Result<u64, sqlx::Error> {
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(statements.count_within(leaf, range)))
        .persistent(false)
        .fetch_one(transaction)
        .await?;
    Ok(rows.unsigned_abs())
}

/// The batch as the ledger keeps it.
fn place(statements: &Statements, leaf: &Relation, range: &Range, rows: u64, elapsed: Duration) -> Batch {
    let (low, high) = match range {
        Range::Ages { after, through } => (
            after.clone().unwrap_or_else(|| "-infinity".to_owned()),
            through.clone().unwrap_or_else(|| statements.last_age().to_owned()),
        ),
        Range::Blocks { from, until } => (from.to_string(), until.to_string()),
        // A key may be about a person; the ledger holds none.
        Range::Keys { .. } | Range::Places(_) => (String::new(), String::new()),
    };
    Batch {
        relation: leaf.display(),
        rows,
        low,
        high,
        milliseconds: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
    }
}
