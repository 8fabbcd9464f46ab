//! What people decide about a request, and what they are told of all of them.

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::Serialize;
use sqlx::PgConnection;

use super::{COLUMNS, Request, exist, from_row};
use crate::erasure::RequestId;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// Extends the deadline of an open request that is not due yet; `false` when there is none such, or
/// when it was extended before.
pub async fn extend(
    transaction: &mut PgConnection,
    id: RequestId,
    due_at: Timestamp,
    months: i16,
    reason: &str,
    actor: &str,
) -> Result<bool, DatabaseError> {
    let done = sqlx::query(
        "UPDATE pgreeve.erasure_request
         SET due_at = $2, extended_months = $3, extended_at = pg_catalog.clock_timestamp(), extended_by = $5,
             extension_reason = $4, warned = 0
         WHERE request_id = $1 AND finished_at IS NULL AND extended_months = 0 AND due_at > pg_catalog.clock_timestamp()",
    )
    .bind(id.0)
    .bind(SqlTimestamp::from(due_at))
    .bind(months)
    .bind(reason)
    .bind(actor)
    .execute(transaction)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes an open request out of work for a decision about it, within the transaction; none when it
/// is over, was begun, or is being worked on.
pub async fn take_unbegun(transaction: &mut PgConnection, id: RequestId) -> Result<Option<Request>, DatabaseError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM pgreeve.erasure_request
         WHERE request_id = $1 AND finished_at IS NULL AND started_at IS NULL
           AND state NOT IN ('processing', 'verifying') FOR UPDATE"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(id.0)
        .fetch_optional(transaction)
        .await?;
    Ok(row.as_ref().map(from_row).transpose()?)
}

/// An awaited identity is known: the request goes on.
pub async fn identified(transaction: &mut PgConnection, job: &str, source_id: &str) -> Result<bool, DatabaseError> {
    let done = sqlx::query(
        "UPDATE pgreeve.erasure_request SET state = 'received', reason = NULL
         WHERE job = $1 AND source_id = $2 AND state = 'awaiting_identity'",
    )
    .bind(job)
    .bind(source_id)
    .execute(transaction)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Remembers at which part of its time was warned of a request.
pub async fn warned(transaction: &mut PgConnection, id: RequestId, percent: i16) -> Result<(), DatabaseError> {
    sqlx::query("UPDATE pgreeve.erasure_request SET warned = $2 WHERE request_id = $1")
        .bind(id.0)
        .bind(percent)
        .execute(transaction)
        .await?;
    Ok(())
}

/// The plan that a run's policy was first shown or approved with, and who approved it.
pub async fn approved_plan(
    connection: &mut PgConnection,
    run: RunId,
) -> Result<Option<(String, serde_json::Value, Option<String>)>, DatabaseError> {
    Ok(sqlx::query_as(
        "SELECT r.policy, coalesce(p.plan, 'null'::jsonb), p.approved_by
         FROM pgreeve.run r LEFT JOIN pgreeve.policy p ON p.policy = r.policy WHERE r.run_id = $1",
    )
    .bind(run.0)
    .fetch_optional(connection)
    .await?)
}

/// How the open requests of a job stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outlook {
    /// How many there are.
    pub open: i64,
    /// How many are overdue.
    pub overdue: i64,
    /// When the oldest was received.
    pub oldest_received_at: Option<Timestamp>,
    /// When the next is due.
    pub next_due_at: Option<Timestamp>,
}

/// How the open requests of a job stand; none before its first run.
pub async fn outlook(connection: &mut PgConnection, job: &str) -> Result<Option<Outlook>, DatabaseError> {
    if !exist(connection).await? {
        return Ok(None);
    }
    let (open, overdue, oldest, due): (i64, i64, Option<SqlTimestamp>, Option<SqlTimestamp>) = sqlx::query_as(
        "SELECT count(*), count(*) FILTER (WHERE due_at <= pg_catalog.clock_timestamp()), min(received_at), min(due_at)
         FROM pgreeve.erasure_request WHERE job = $1 AND finished_at IS NULL",
    )
    .bind(job)
    .fetch_one(connection)
    .await?;
    Ok(Some(Outlook {
        open,
        overdue,
        oldest_received_at: oldest.map(SqlTimestamp::to_jiff),
        next_due_at: due.map(SqlTimestamp::to_jiff),
    }))
}
