//! `pgreeve.run_attempt`: every try of a run, also those that were followed by another.

use sqlx::{Connection, PgConnection};

use super::leader::Fence;
use super::runs::RunEnd;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// Writes down that an attempt begins, and on which server process, before it does anything.
///
/// # Errors
/// Also when the fence's epoch is over or the run is closed: then nothing may be done.
pub async fn begin(
    connection: &mut PgConnection,
    fence: Fence,
    run: RunId,
    attempt: u32,
    backend_pid: i32,
) -> Result<(), DatabaseError> {
    let attempt = i32::try_from(attempt).unwrap_or(i32::MAX);
    let mut transaction = connection.begin().await?;
    fence.hold(&mut transaction).await?;
    let open = sqlx::query(
        "UPDATE pgreeve.run SET attempt = $2, backend_pid = $3, started_at = coalesce(started_at, pg_catalog.clock_timestamp())
         WHERE run_id = $1 AND outcome IS NULL",
    )
    .bind(run.0)
    .bind(attempt)
    .bind(backend_pid)
    .execute(&mut *transaction)
    .await?;
    if open.rows_affected() != 1 {
        return Err(DatabaseError::local("the run is closed already"));
    }
    sqlx::query(
        "INSERT INTO pgreeve.run_attempt (run_id, attempt, started_at) VALUES ($1, $2, pg_catalog.clock_timestamp())",
    )
    .bind(run.0)
    .bind(attempt)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}

/// Writes down how an attempt ended.
pub async fn end(connection: &mut PgConnection, run: RunId, attempt: u32, end: &RunEnd) -> Result<(), DatabaseError> {
    sqlx::query(
        "UPDATE pgreeve.run_attempt SET finished_at = pg_catalog.clock_timestamp(), outcome = $3, reason = $4, sqlstate = $5
         WHERE run_id = $1 AND attempt = $2 AND finished_at IS NULL",
    )
    .bind(run.0)
    .bind(i32::try_from(attempt).unwrap_or(i32::MAX))
    .bind(end.outcome.as_str())
    .bind(&end.reason)
    .bind(&end.sqlstate)
    .execute(connection)
    .await?;
    Ok(())
}
