//! How requests end.

use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::PgConnection;
use uuid::Uuid;

use super::Request;
use crate::erasure::{RequestId, RequestState};
use crate::postgres::sqlstate::DatabaseError;

/// How a request ends.
#[derive(Debug, Clone)]
pub struct End<'a> {
    /// Its last state.
    pub state: RequestState,
    /// Why.
    pub reason: Option<&'a str>,
    /// What the scan found.
    pub residue: Option<serde_json::Value>,
    /// Its certificate.
    pub certificate: Option<serde_json::Value>,
    /// The digest of the certificate's text, hexadecimal.
    pub certificate_sha256: Option<String>,
    /// Half of what the second scan looks for.
    pub rescan_share: Option<Vec<u8>>,
}

/// Closes a request: what finds the subject goes in the same transaction.
pub async fn close(transaction: &mut PgConnection, id: RequestId, end: &End<'_>) -> Result<(), DatabaseError> {
    sqlx::query("DELETE FROM pgreeve.erasure_scope WHERE request_id = $1")
        .bind(id.0)
        .execute(&mut *transaction)
        .await?;
    sqlx::query(
        "UPDATE pgreeve.erasure_request
         SET state = $2, reason = $3, finished_at = pg_catalog.clock_timestamp(), subject_key = NULL, mask_key = NULL,
             lease_until = NULL, residue = $4, scanned_at = CASE WHEN $4 IS NULL THEN NULL ELSE pg_catalog.clock_timestamp() END,
             certificate = $5, certificate_sha256 = $6, rescan_share = $7,
             rescan_due_at = CASE WHEN $4 IS NULL THEN NULL ELSE pg_catalog.clock_timestamp() + interval '1 day' END
         WHERE request_id = $1",
    )
    .bind(id.0)
    .bind(end.state.as_str())
    .bind(end.reason)
    .bind(&end.residue)
    .bind(&end.certificate)
    .bind(&end.certificate_sha256)
    .bind(&end.rescan_share)
    .execute(transaction)
    .await?;
    Ok(())
}

/// A finished request for the same subject, received before and finished after another one came.
pub async fn duplicate_of(
    connection: &mut PgConnection,
    request: &Request,
) -> Result<Option<RequestId>, DatabaseError> {
    let id: Option<Uuid> = sqlx::query_scalar(
        "SELECT request_id FROM pgreeve.erasure_request
         WHERE job = $1 AND subject_token = $2 AND request_id <> $3 AND state IN ('completed', 'completed_with_exceptions')
           AND finished_at >= $4 ORDER BY finished_at LIMIT 1",
    )
    .bind(&request.job)
    .bind(&request.token.token)
    .bind(request.id.0)
    .bind(SqlTimestamp::from(request.received_at))
    .fetch_optional(connection)
    .await?;
    Ok(id.map(RequestId))
}

/// What the first scan of a request found.
pub async fn residue(
    connection: &mut PgConnection,
    id: RequestId,
) -> Result<Option<crate::erasure::Residue>, DatabaseError> {
    let found: Option<Option<sqlx::types::Json<crate::erasure::Residue>>> =
        sqlx::query_scalar("SELECT residue FROM pgreeve.erasure_request WHERE request_id = $1")
            .bind(id.0)
            .fetch_optional(connection)
            .await?;
    Ok(found.flatten().map(|residue| residue.0))
}
