//! `pgreeve.erasure_scope`: what finds the subject of a request, while it is open.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::erasure::{Identifier, Identifiers, RequestId};
use crate::postgres::sqlstate::DatabaseError;

/// Puts values into a request's scope, each under its source, once.
pub async fn put(
    transaction: &mut PgConnection,
    id: RequestId,
    sources: &[&str],
    values: &[&str],
) -> Result<(), DatabaseError> {
    put_all(transaction, &vec![id.0; values.len()], sources, values).await
}

/// The same for several requests: each value with its request and its source.
pub async fn put_all(
    transaction: &mut PgConnection,
    ids: &[Uuid],
    sources: &[&str],
    values: &[&str],
) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT INTO pgreeve.erasure_scope (request_id, source, value)
         SELECT new.id, new.source, ARRAY[new.value]
         FROM ROWS FROM (pg_catalog.unnest($1::uuid[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) AS new (id, source, value)
         EXCEPT SELECT request_id, source, value FROM pgreeve.erasure_scope WHERE request_id = ANY ($1) AND source = ANY ($2)",
    )
    .bind(ids)
    .bind(sources)
    .bind(values)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Removes one source of the scopes of requests.
pub async fn clear(transaction: &mut PgConnection, ids: &[Uuid], source: &str) -> Result<(), DatabaseError> {
    sqlx::query("DELETE FROM pgreeve.erasure_scope WHERE request_id = ANY ($1) AND source = $2")
        .bind(ids)
        .bind(source)
        .execute(transaction)
        .await?;
    Ok(())
}

/// The identifiers in the scopes of requests, in the order of the requests.
pub async fn identifiers(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Identifiers>, DatabaseError> {
    let rows: Vec<(Uuid, String, String)> = sqlx::query_as(
        "SELECT DISTINCT request_id, substring(source FROM 12), value[1] FROM pgreeve.erasure_scope
         WHERE request_id = ANY ($1) AND pg_catalog.starts_with(source, 'identifier ') ORDER BY 1, 2, 3",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    let mut found: BTreeMap<Uuid, Vec<Identifier>> = BTreeMap::new();
    for (id, source, value) in rows {
        found.entry(id).or_default().push(Identifier::new(source, value));
    }
    let of = |id: &Uuid| Identifiers(found.remove(id).unwrap_or_default());
    Ok(ids.iter().map(of).collect())
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

/// The statement of a script that does the same for the request that an expression names, but for the
/// key. `found` is an expression, too.
#[must_use]
pub fn resolved_in(request: &str, found: &str) -> String {
    format!(
        "UPDATE pgreeve.erasure_request AS r
         SET resolved_at = pg_catalog.clock_timestamp(), found = coalesce(r.found, false) OR {found}
         WHERE r.request_id = {request}"
    )
}

/// Keeps a key for the tokens of each request that has none yet.
pub async fn keep_mask_keys(
    transaction: &mut PgConnection,
    ids: &[Uuid],
    mask_keys: &[&[u8]],
) -> Result<(), DatabaseError> {
    sqlx::query(
        "UPDATE pgreeve.erasure_request AS r SET mask_key = new.mask_key
         FROM ROWS FROM (pg_catalog.unnest($1::uuid[]), pg_catalog.unnest($2::bytea[])) AS new (id, mask_key)
         WHERE r.request_id = new.id AND r.mask_key IS NULL",
    )
    .bind(ids)
    .bind(mask_keys)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Those of some requests whose scope is known, each with whether the subject's row was there.
pub async fn known(connection: &mut PgConnection, ids: &[Uuid]) -> Result<BTreeMap<Uuid, bool>, DatabaseError> {
    let rows: Vec<(Uuid, bool)> = sqlx::query_as(
        "SELECT request_id, coalesce(found, false) FROM pgreeve.erasure_request
         WHERE request_id = ANY ($1) AND resolved_at IS NOT NULL",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}
