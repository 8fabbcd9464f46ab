//! `pgreeve.erasure_scope`: what finds the subject of a request, while it is open.

use sqlx::PgConnection;

use crate::erasure::{Identifier, Identifiers, RequestId};
use crate::postgres::sqlstate::DatabaseError;

/// Puts values into a request's scope, each under its source, once.
pub async fn put(
    transaction: &mut PgConnection,
    id: RequestId,
    sources: &[&str],
    values: &[&str],
) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT INTO pgreeve.erasure_scope (request_id, source, value)
         SELECT $1, new.source, ARRAY[new.value] FROM ROWS FROM (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) AS new (source, value)
         EXCEPT SELECT request_id, source, value FROM pgreeve.erasure_scope WHERE request_id = $1 AND source = ANY ($2)",
    )
    .bind(id.0)
    .bind(sources)
    .bind(values)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Removes one source of a request's scope.
pub async fn clear(transaction: &mut PgConnection, id: RequestId, source: &str) -> Result<(), DatabaseError> {
    sqlx::query("DELETE FROM pgreeve.erasure_scope WHERE request_id = $1 AND source = $2")
        .bind(id.0)
        .bind(source)
        .execute(transaction)
        .await?;
    Ok(())
}

/// The identifiers in a request's scope.
pub async fn identifiers(connection: &mut PgConnection, id: RequestId) -> Result<Identifiers, DatabaseError> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT DISTINCT substring(source FROM 12), value[1] FROM pgreeve.erasure_scope
         WHERE request_id = $1 AND pg_catalog.starts_with(source, 'identifier ') ORDER BY 1, 2",
    )
    .bind(id.0)
    .fetch_all(connection)
    .await?;
    let found = rows.into_iter().map(|(source, value)| Identifier::new(source, value));
    Ok(Identifiers(found.collect()))
}

/// The scope is known; the key of the request's tokens is drawn, once.
pub async fn resolved(
    transaction: &mut PgConnection,
    id: RequestId,
    found: bool,
    mask_key: &[u8],
) -> Result<(), DatabaseError> {
    sqlx::query(
        "UPDATE pgreeve.erasure_request
         SET resolved_at = pg_catalog.clock_timestamp(), found = coalesce(found, false) OR $2, mask_key = coalesce(mask_key, $3)
         WHERE request_id = $1",
    )
    .bind(id.0)
    .bind(found)
    .bind(mask_key)
    .execute(transaction)
    .await?;
    Ok(())
}
