//! One batch: one transaction that holds the fence, does the work and records it in the ledger.

mod brief;
mod work;

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use self::work::{apply, left, range};
use super::attempt::{Attempt, Failure, Part, Patience, Slice};
use super::outside::{Outside, STORE_TIME, Trouble};
use super::statement::{Range, Statements};
use super::stride::GUESSED_TIME;
use super::throttle::Weight;
use crate::job::JobContext;
use crate::ledger::admission::{self, Admitted, Request};
use crate::ledger::batches::{self, Batch, Footprint};
use crate::ledger::holds;
use crate::ledger::leader::{Fence, FenceError};
use crate::postgres::catalog::Relation;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// How long one batch may take at most, whatever the run may: its locks are held so long.
const BATCH_TIME: Duration = Duration::from_secs(15);

const READ_COMMITTED: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

/// Runs one batch. Whatever fails, the transaction is rolled back before this returns; only a commit
/// that was not answered may have happened.
pub(super) async fn run(context: &mut JobContext, part: &Part<'_>, outside: &mut Outside) -> Result<Attempt, Failure> {
    let (fence, run) = (context.fence, context.run);
    let connection = context.session.connection();
    if let Some(range) = brief::suits(part, outside) {
        let settings = settings(part.slice, None);
        let request = (&request(fence, part.slice, &settings, true), run);
        return brief::run(connection, request, part, range).await;
    }
    let mut transaction = connection
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
    if rows > 0 {
        outside.record(&mut *transaction).await.map_err(Failure::Other)?;
    }
    let batch = place(statements, leaf, &range, rows, elapsed);
    let closing = batches::closing(run, &batch, (&admitted.wal, part.holds));
    let row = sqlx::raw_sql(AssertSqlSafe(closing)).fetch_one(transaction).await;
    let footprint = row.and_then(|row| Footprint::read(&row)).map_err(|error| {
        let error = DatabaseError::from(error);
        if batches::holds_changed(&error) {
            Failure::HoldsChanged
        } else {
            Failure::Other(error)
        }
    })?;
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
        READ_COMMITTED
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
    let idle = outside.is_busy().then(|| (STORE_TIME * 2).as_millis().to_string());
    let settings = settings(slice, idle.as_deref());
    // Where the table of holds is frozen, nobody who holds its lock could go on.
    admission::admit(transaction, &request(fence, slice, &settings, !outside.archives())).await
}

fn request<'a>(fence: Fence, slice: &Slice, settings: &'a [(&'a str, &'a str)], share_holds: bool) -> Request<'a> {
    Request {
        fence,
        share_holds,
        settings,
        statement_timeout: if slice.is_guessed() { GUESSED_TIME } else { BATCH_TIME },
    }
}

/// The settings of a transaction; `idle` is for how long it may be idle where something outside the
/// database is waited for.
fn settings<'a>(slice: &Slice, idle: Option<&'a str>) -> Vec<(&'static str, &'a str)> {
    let mut settings = vec![
        // The commits need not wait for the disk: the record that closes the run is written after them
        // and does wait, and the WAL is one sequence. Beside a store, which is not rewound with the
        // database, they do wait.
        ("synchronous_commit", if idle.is_some() { "on" } else { "off" }),
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
    if let Some(idle) = idle {
        settings.push(("idle_in_transaction_session_timeout", idle));
    }
    settings
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
