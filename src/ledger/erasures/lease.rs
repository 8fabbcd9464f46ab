//! Who works on a request, and when it may be worked on.

use std::collections::BTreeSet;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{COLUMNS, Request, from_row};
use crate::erasure::{RequestId, RequestState};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// How long a worker that does not answer keeps a request.
const LEASE: &str = "5 minutes";

/// Lets every request that waits for nothing else begin under a plan, and those go on that waited
/// for a hold which is released. Answers with how many go on.
pub async fn ready(
    transaction: &mut PgConnection,
    job: &str,
    policy: &str,
    schema_digest: &str,
) -> Result<u64, DatabaseError> {
    sqlx::query(
        "UPDATE pgreeve.erasure_request SET state = 'approved', policy = $2, schema_digest = $3
         WHERE job = $1 AND state IN ('received', 'planned')",
    )
    .bind(job)
    .bind(policy)
    .bind(schema_digest)
    .execute(&mut *transaction)
    .await?;
    let resumed = sqlx::query(
        "UPDATE pgreeve.erasure_request r SET state = 'retry', not_before = '-infinity', reason = NULL, policy = $2, schema_digest = $3
         WHERE job = $1 AND state = 'on_hold'
           AND EXISTS (SELECT FROM pgreeve.erasure_step s
                       WHERE s.request_id = r.request_id AND s.state = 'held'
                         AND (s.holds = '{}' OR s.holds && ARRAY(SELECT hold_id FROM pgreeve.hold WHERE released_at IS NOT NULL)))",
    )
    .bind(job)
    .bind(policy)
    .bind(schema_digest)
    .execute(transaction)
    .await?;
    Ok(resumed.rows_affected())
}

/// Takes the most urgent requests that can be worked on, as many as are wanted: those that wait, and
/// those whose worker is gone.
pub async fn claim(
    transaction: &mut PgConnection,
    job: &str,
    run: RunId,
    worker: &str,
    most: i64,
) -> Result<Vec<Request>, DatabaseError> {
    // `= ANY (ARRAY(SELECT … LIMIT …))`: with `IN` the planner may run the subquery once for each row,
    // and take more.
    let sql = format!(
        "UPDATE pgreeve.erasure_request SET state = 'processing', attempt = attempt + 1, worker = $2, run_id = $3,
                lease_until = pg_catalog.clock_timestamp() + interval '{LEASE}', reason = NULL
         WHERE request_id = ANY (ARRAY(
             SELECT request_id FROM pgreeve.erasure_request
             WHERE job = $1 AND finished_at IS NULL
               AND (state IN ('approved', 'retry') AND not_before <= pg_catalog.clock_timestamp()
                    OR state IN ('processing', 'verifying')
                       AND (lease_until < pg_catalog.clock_timestamp() OR worker <> ALL (ARRAY(
                           SELECT a.pid || '@' || extract(epoch FROM a.backend_start) FROM pg_catalog.pg_stat_activity a))))
             ORDER BY due_at, request_id LIMIT $4 FOR UPDATE SKIP LOCKED))
         RETURNING {COLUMNS}"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(job)
        .bind(worker)
        .bind(run.0)
        .bind(most)
        .fetch_all(transaction)
        .await?;
    let mut requests: Vec<Request> = rows.iter().map(from_row).collect::<Result<_, _>>()?;
    requests.sort_by_key(|request| (request.due_at, request.id));
    Ok(requests)
}

/// Takes a request that was just kept, whatever else waits.
pub async fn begin_now(
    transaction: &mut PgConnection,
    id: RequestId,
    run: RunId,
    worker: &str,
    policy: &str,
    schema_digest: &str,
) -> Result<Request, DatabaseError> {
    let sql = format!(
        "UPDATE pgreeve.erasure_request SET state = 'processing', attempt = 1, worker = $2, run_id = $3, policy = $4, schema_digest = $5,
                lease_until = pg_catalog.clock_timestamp() + interval '{LEASE}'
         WHERE request_id = $1 RETURNING {COLUMNS}"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(id.0)
        .bind(worker)
        .bind(run.0)
        .bind(policy)
        .bind(schema_digest)
        .fetch_one(transaction)
        .await?;
    Ok(from_row(&row)?)
}

/// This session's name as a worker: its server process and when that began.
pub async fn worker(connection: &mut PgConnection) -> Result<String, DatabaseError> {
    Ok(sqlx::query_scalar(
        "SELECT a.pid || '@' || extract(epoch FROM a.backend_start) FROM pg_catalog.pg_stat_activity a
         WHERE a.pid = pg_catalog.pg_backend_pid()",
    )
    .fetch_one(connection)
    .await?)
}

/// Locks requests for the transaction and renews their leases; answers with those that no other worker has.
pub async fn keep_leases(
    transaction: &mut PgConnection,
    ids: &[Uuid],
    worker: &str,
) -> Result<BTreeSet<Uuid>, DatabaseError> {
    let sql = format!(
        "UPDATE pgreeve.erasure_request SET lease_until = pg_catalog.clock_timestamp() + interval '{LEASE}'
         WHERE request_id = ANY ($1) AND worker = $2 AND state IN ('processing', 'verifying') RETURNING request_id"
    );
    let kept: Vec<Uuid> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .bind(ids)
        .bind(worker)
        .fetch_all(transaction)
        .await?;
    Ok(kept.into_iter().collect())
}

/// The requests stand in the ledger on the host, and their steps may begin.
pub async fn started(transaction: &mut PgConnection, ids: &[Uuid], worker: &str) -> Result<(), DatabaseError> {
    sqlx::query(
        "UPDATE pgreeve.erasure_request
         SET started_at = coalesce(started_at, pg_catalog.clock_timestamp()), remembered_at = pg_catalog.clock_timestamp()
         WHERE request_id = ANY ($1) AND worker = $2 AND state IN ('processing', 'verifying')",
    )
    .bind(ids)
    .bind(worker)
    .execute(transaction)
    .await?;
    Ok(())
}

/// The steps of the requests are done: what is left is to search, and to close them. Renews the
/// leases of those that the worker still has.
pub async fn verifying(transaction: &mut PgConnection, ids: &[Uuid], worker: &str) -> Result<(), DatabaseError> {
    let sql = format!(
        "UPDATE pgreeve.erasure_request
         SET state = 'verifying', lease_until = pg_catalog.clock_timestamp() + interval '{LEASE}'
         WHERE request_id = ANY ($1) AND worker = $2 AND state IN ('processing', 'verifying')"
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(ids)
        .bind(worker)
        .execute(transaction)
        .await?;
    Ok(())
}

/// Rows have come since the scope was known: it is to be collected again, and every step done again.
pub async fn reopen(transaction: &mut PgConnection, id: RequestId) -> Result<(), DatabaseError> {
    sqlx::query("UPDATE pgreeve.erasure_step SET state = 'open' WHERE request_id = $1 AND action <> 'keep'")
        .bind(id.0)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("UPDATE pgreeve.erasure_request SET resolved_at = NULL WHERE request_id = $1")
        .bind(id.0)
        .execute(transaction)
        .await?;
    Ok(())
}

/// Lets a request wait: for a hold, for its next attempt, or for its scan.
pub async fn wait(
    transaction: &mut PgConnection,
    id: RequestId,
    state: RequestState,
    reason: Option<&str>,
    seconds: f64,
) -> Result<(), DatabaseError> {
    sqlx::query(
        "UPDATE pgreeve.erasure_request
         SET state = $2, reason = $3, not_before = pg_catalog.clock_timestamp() + $4 * interval '1 second'
         WHERE request_id = $1",
    )
    .bind(id.0)
    .bind(state.as_str())
    .bind(reason)
    .bind(seconds)
    .execute(transaction)
    .await?;
    Ok(())
}
