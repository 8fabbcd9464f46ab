//! Requests to end a run: columns of `pgreeve.run`, so that they reach whoever runs it, on
//! whichever host.

use sqlx::{PgConnection, Row};

use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// A run that is asked to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelRequest {
    /// Which.
    pub run: RunId,
    /// Who asked.
    pub actor: String,
}

/// Asks whoever runs it to end a run. `false` when there is no such open run here.
pub async fn request(connection: &mut PgConnection, run: RunId, actor: &str) -> Result<bool, DatabaseError> {
    let done = sqlx::query(
        "UPDATE pgreeve.run SET cancel_requested_at = coalesce(cancel_requested_at, pg_catalog.clock_timestamp()),
                cancel_requested_by = coalesce(cancel_requested_by, $2)
         WHERE run_id = $1 AND outcome IS NULL",
    )
    .bind(run.0)
    .bind(actor)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The open runs that are asked to end.
pub async fn requested(connection: &mut PgConnection) -> Result<Vec<CancelRequest>, DatabaseError> {
    let rows = sqlx::query(
        "SELECT run_id, cancel_requested_by FROM pgreeve.run WHERE outcome IS NULL AND cancel_requested_at IS NOT NULL",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .iter()
        .map(|row| CancelRequest {
            run: RunId(row.get("run_id")),
            actor: row.get("cancel_requested_by"),
        })
        .collect())
}

/// Ends the server process that a run's attempt wrote down and waits until it is gone. Answers
/// whether there was one. Its name guards against a number that belongs to somebody else by now.
pub async fn end_session(connection: &mut PgConnection, run: RunId) -> Result<bool, DatabaseError> {
    Ok(sqlx::query_scalar(
        "SELECT coalesce(bool_or(pg_catalog.pg_terminate_backend(a.pid, 5000)), false) FROM pg_catalog.pg_stat_activity a
         JOIN pgreeve.run r ON r.run_id = $1 AND r.backend_pid = a.pid
         WHERE a.application_name = pg_catalog.left('pgreeve:' || r.job || ':' || r.run_id, 63)",
    )
    .bind(run.0)
    .fetch_one(connection)
    .await?)
}
