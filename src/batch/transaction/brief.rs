//! A batch in two exchanges: what admits it goes with the work, what records it with the commit.
//!
//! Only where the slice alone tells which rows are meant, and nothing outside the database is touched.
//! Each exchange costs a switch to this process and back, which a busy server makes wait; and all that
//! time the batch holds its locks.

use std::time::{Duration, Instant};

use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, Either, PgConnection};

use super::{BATCH_TIME, READ_COMMITTED, place};
use crate::batch::attempt::{Attempt, Failure, Part, Patience, Slice};
use crate::batch::outside::Outside;
use crate::batch::statement::Range;
use crate::batch::stride::End;
use crate::batch::throttle::Weight;
use crate::ledger::admission::{self, Admitted, Request};
use crate::ledger::batches::{self, Footprint};
use crate::ledger::leader::FenceError;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// The rows of a batch that can be done so; nothing where it cannot.
pub(super) fn suits(part: &Part<'_>, outside: &Outside) -> Option<Range> {
    if outside.is_busy() || part.statements.keeps_referenced() || part.patience != Patience::Wait {
        return None;
    }
    match part.slice {
        Slice::Blocks { from, until } => Some(Range::Blocks {
            from: *from,
            until: *until,
        }),
        Slice::Ages {
            after,
            end: End::Guessed(through),
        } => Some(Range::Ages {
            after: after.clone(),
            through: through.clone(),
        }),
        Slice::Ages { .. } | Slice::Keys { .. } => None,
    }
}

/// Runs the batch. Where it fails, it is rolled back before this returns. A future that is dropped
/// leaves the transaction open: its session is not to be used any more.
pub(super) async fn run(
    connection: &mut PgConnection,
    (request, run): (&Request<'_>, RunId),
    part: &Part<'_>,
    range: Range,
) -> Result<Attempt, Failure> {
    let started = Instant::now();
    let result = match work(connection, request, part, &range).await {
        Ok((rows, _)) if part.allowed.is_some_and(|most| rows > most) => Err(Failure::TooMany),
        Ok((rows, admitted)) => {
            let elapsed = started.elapsed();
            let batch = place(part.statements, part.leaf, &range, rows, elapsed);
            let known = (admitted.wal.as_str(), part.holds);
            let footprint = commit(connection, &batches::closing(run, &batch, known)).await;
            footprint.map(|footprint| Attempt::Done {
                rows,
                locked: 0,
                range,
                weight: Weight { elapsed, footprint },
            })
        }
        Err(failure) => Err(failure),
    };
    if result.is_err() {
        let back = sqlx::raw_sql("ROLLBACK").execute(connection).await;
        if let Err(error) = back {
            // The batch's own error says more; a connection that is gone has rolled back.
            tracing::debug!(error = %DatabaseError::from(error), "a batch could not be rolled back in good order");
        }
    }
    result
}

/// Begins, is admitted and does the work: how many rows.
async fn work(
    connection: &mut PgConnection,
    request: &Request<'_>,
    part: &Part<'_>,
    range: &Range,
) -> Result<(u64, Admitted), Failure> {
    let sql = format!(
        "{READ_COMMITTED}; {}; {}",
        request.statement(),
        part.statements.apply(part.leaf, range)
    );
    let started = Instant::now();
    let (mut admitted, mut rows) = (None, 0);
    let mut answers = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_many(connection);
    let answered = loop {
        match answers.try_next().await {
            Ok(Some(Either::Right(row))) => match Admitted::read(&row) {
                Ok(read) => admitted = Some(read),
                Err(error) => break Err(error),
            },
            // The last one counts.
            Ok(Some(Either::Left(done))) => rows = done.rows_affected(),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    match (answered.map_err(DatabaseError::from), admitted) {
        (Ok(()), Some(admitted)) => Ok((rows, admitted)),
        (Ok(()), None) => Err(Failure::Other(DatabaseError::local(
            "the server did not admit the batch",
        ))),
        (Err(error), _) if admission::refused(&error) => {
            Err(Failure::Superseded(FenceError::Superseded(request.fence.epoch)))
        }
        (Err(error), None) => Err(Failure::of(error, Duration::ZERO, BATCH_TIME)),
        (Err(error), Some(admitted)) => Err(Failure::of(error, started.elapsed(), admitted.statement_timeout)),
    }
}

/// Records and commits: what the batch was to others.
async fn commit(connection: &mut PgConnection, closing: &str) -> Result<Footprint, Failure> {
    let sql = format!("{closing}; COMMIT");
    let mut footprint = None;
    let mut answers = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_many(connection);
    let answered = loop {
        match answers.try_next().await {
            // That it is committed counts, whatever it weighed.
            Ok(Some(Either::Right(row))) => footprint = Footprint::read(&row).ok(),
            Ok(Some(Either::Left(_))) => {}
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    match answered {
        Ok(()) => Ok(footprint.unwrap_or_default()),
        Err(error) => {
            let failure = Failure::at_commit(error);
            Err(match failure {
                Failure::Other(error) if batches::holds_changed(&error) => Failure::HoldsChanged,
                failure => failure,
            })
        }
    }
}
