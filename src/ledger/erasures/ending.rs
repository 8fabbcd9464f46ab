//! How requests end.

use std::collections::BTreeMap;

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
    close_all(transaction, &[(id.0, end)]).await
}

/// Closes several requests.
pub async fn close_all(transaction: &mut PgConnection, ends: &[(Uuid, &End<'_>)]) -> Result<(), DatabaseError> {
    let ids: Vec<Uuid> = ends.iter().map(|(id, _)| *id).collect();
    sqlx::query("DELETE FROM pgreeve.erasure_scope WHERE request_id = ANY ($1)")
        .bind(&ids)
        .execute(&mut *transaction)
        .await?;
    let ends = || ends.iter().map(|(_, end)| end);
    sqlx::query(
        "UPDATE pgreeve.erasure_request AS r
         SET state = e.state, reason = e.reason, finished_at = pg_catalog.clock_timestamp(), subject_key = NULL, mask_key = NULL,
             lease_until = NULL, residue = e.residue, certificate = e.certificate, certificate_sha256 = e.sha256,
             rescan_share = e.share,
             scanned_at = CASE WHEN e.residue IS NULL THEN NULL ELSE pg_catalog.clock_timestamp() END,
             rescan_due_at = CASE WHEN e.residue IS NULL THEN NULL ELSE pg_catalog.clock_timestamp() + interval '1 day' END
         FROM ROWS FROM (pg_catalog.unnest($1::uuid[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]),
                         pg_catalog.unnest($4::jsonb[]), pg_catalog.unnest($5::jsonb[]), pg_catalog.unnest($6::text[]),
                         pg_catalog.unnest($7::bytea[])) AS e (id, state, reason, residue, certificate, sha256, share)
         WHERE r.request_id = e.id",
    )
    .bind(&ids)
    .bind(ends().map(|end| end.state.as_str()).collect::<Vec<_>>())
    .bind(ends().map(|end| end.reason).collect::<Vec<_>>())
    .bind(ends().map(|end| end.residue.clone()).collect::<Vec<_>>())
    .bind(ends().map(|end| end.certificate.clone()).collect::<Vec<_>>())
    .bind(ends().map(|end| end.certificate_sha256.as_deref()).collect::<Vec<_>>())
    .bind(ends().map(|end| end.rescan_share.as_deref()).collect::<Vec<_>>())
    .execute(transaction)
    .await?;
    Ok(())
}

/// Those of some requests of one job for whose subject another was received before and finished after
/// they came, with that one.
pub async fn duplicates(
    connection: &mut PgConnection,
    job: &str,
    requests: &[&Request],
) -> Result<BTreeMap<Uuid, RequestId>, DatabaseError> {
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "SELECT DISTINCT ON (n.id) n.id, r.request_id
         FROM ROWS FROM (pg_catalog.unnest($2::uuid[]), pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::timestamptz[]))
             AS n (id, token, received_at)
         JOIN pgreeve.erasure_request r ON r.subject_token = n.token AND r.request_id <> n.id AND r.finished_at >= n.received_at
         WHERE r.job = $1 AND r.state IN ('completed', 'completed_with_exceptions') ORDER BY n.id, r.finished_at",
    )
    .bind(job)
    .bind(requests.iter().map(|request| request.id.0).collect::<Vec<_>>())
    .bind(requests.iter().map(|request| request.token.token.as_str()).collect::<Vec<_>>())
    .bind(requests.iter().map(|request| SqlTimestamp::from(request.received_at)).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|(id, other)| (id, RequestId(other))).collect())
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
