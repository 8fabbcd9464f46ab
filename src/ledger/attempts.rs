//! `pgreeve.run_attempt`: every try of a run, also those that were followed by another.

use sqlx::{Connection, PgConnection};

use super::leader::{Fence, FenceError};
use super::runs::RunEnd;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// Whether an attempt may do anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// It may.
    Yes,
    /// It may not, and never will: another leader has taken over, or closed the run.
    No(String),
}

/// Writes down that an attempt begins, and on which server process, before it does anything.
///
/// # Errors
/// When the ledger cannot be written; then nothing may be done.
pub async fn begin(
    connection: &mut PgConnection,
    fence: Fence,
    run: RunId,
    attempt: u32,
    backend_pid: i32,
) -> Result<Begun, DatabaseError> {
    let attempt = i32::try_from(attempt).unwrap_or(i32::MAX);
    let mut transaction = connection.begin().await?;
    match fence.hold(&mut transaction).await {
        Ok(()) => {}
        Err(error @ FenceError::Superseded(_)) => return Ok(Begun::No(format!("not_leader: {error}"))),
        Err(FenceError::Database(error)) => return Err(error),
    }
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
        return Ok(Begun::No("closed: a later leader has closed the run".to_owned()));
    }
    sqlx::query(
        "INSERT INTO pgreeve.run_attempt (run_id, attempt, started_at) VALUES ($1, $2, pg_catalog.clock_timestamp())",
    )
    .bind(run.0)
    .bind(attempt)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Begun::Yes)
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
