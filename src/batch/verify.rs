//! After the run: what is still due, asked with the text that the batches used.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::cutoff::rfc3339;
use super::estimate::LIMIT_STATEMENT;
use super::statement::Statements;
use crate::postgres::sqlstate::DatabaseError;

/// What is left of a table's old rows. Counts stop at [`super::COUNT_LIMIT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remains {
    /// Rows that are due all the same.
    pub(super) rows: u64,
    /// The age of the oldest of them, RFC 3339.
    pub(super) oldest: Option<String>,
    /// Rows that are old enough and do not meet the operator's condition, or are the newest of their
    /// group.
    pub(super) exempt: u64,
    /// Rows that would be due but for a legal hold.
    pub(super) held: u64,
    /// Rows that would be due but for a row that references them.
    pub(super) referenced: u64,
}

/// Counts what is left, in time for the deadline; with several processes where no other sessions work.
pub(super) async fn remains(
    connection: &mut PgConnection,
    statements: &Statements,
    deadline: Instant,
    beside_others: bool,
) -> Result<Remains, DatabaseError> {
    let mut reading = connection
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    share_out(&mut reading, beside_others).await?;
    let result = count(&mut reading, statements, deadline).await;
    reading.rollback().await?;
    result
}

async fn count(
    reading: &mut PgConnection,
    statements: &Statements,
    deadline: Instant,
) -> Result<Remains, DatabaseError> {
    limit(reading, deadline).await?;
    let (rows, mut oldest): (i64, Option<String>) = sqlx::query_as(AssertSqlSafe(statements.remaining()))
        .persistent(false)
        .fetch_one(&mut *reading)
        .await?;
    if rows > 0 {
        // The oldest of those counted will do when the oldest of all takes too long to find.
        let mut savepoint = reading.begin().await?;
        let all: Result<Option<String>, DatabaseError> =
            sqlx::query_scalar(AssertSqlSafe(statements.oldest_remaining()))
                .persistent(false)
                .fetch_one(&mut *savepoint)
                .await
                .map_err(DatabaseError::from);
        savepoint.rollback().await?;
        match all {
            Ok(all) => oldest = all,
            Err(error) if error.is("57014") => {}
            Err(error) => return Err(error),
        }
    }
    let mut staying = [0; 3];
    for (count, sql) in staying.iter_mut().zip(statements.staying()) {
        let Some(sql) = sql else { continue };
        limit(reading, deadline).await?;
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .persistent(false)
            .fetch_one(&mut *reading)
            .await?;
        *count = rows.unsigned_abs();
    }
    let [exempt, held, referenced] = staying;
    Ok(Remains {
        rows: rows.unsigned_abs(),
        oldest: oldest.as_deref().map(rfc3339),
        exempt,
        held,
        referenced,
    })
}

/// The planner expects rows that are gone, so it would see no use for more than one process.
async fn share_out(reading: &mut PgConnection, beside_others: bool) -> Result<(), DatabaseError> {
    if beside_others {
        return alone(reading).await;
    }
    let sql = "SELECT set_config('parallel_setup_cost', '0', true), set_config('parallel_tuple_cost', '0', true)";
    sqlx::query(sql).execute(reading).await?;
    Ok(())
}

/// Has the rest of a transaction read with one process, which leaves the other processors to others.
pub(super) async fn alone(reading: &mut PgConnection) -> Result<(), DatabaseError> {
    let sql = "SELECT set_config('max_parallel_workers_per_gather', '0', true)";
    sqlx::query(sql).execute(reading).await?;
    Ok(())
}

/// No statement may outlive the run.
async fn limit(reading: &mut PgConnection, deadline: Instant) -> Result<(), DatabaseError> {
    let left = deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(100));
    sqlx::query(LIMIT_STATEMENT)
        .bind(i64::try_from(left.as_millis()).unwrap_or(i64::MAX))
        .execute(reading)
        .await?;
    Ok(())
}
