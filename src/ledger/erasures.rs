//! `pgreeve.erasure_request`, `…_step`, `…_scope`: requests for erasure, and what was done of each.

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::erasure::{Identifier, Identifiers, RequestId, RequestState, SubjectKey, SubjectToken};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// How long a worker that does not answer keeps a request.
const LEASE: &str = "5 minutes";

/// A request as it is kept.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its identity.
    pub id: RequestId,
    /// Its job.
    pub job: String,
    /// The key of the application's own row, where that asked.
    pub source_id: Option<String>,
    /// Who asked.
    pub requested_by: String,
    /// The subject, while the request is open.
    pub subject: Option<SubjectKey>,
    /// What stands for the subject.
    pub token: SubjectToken,
    /// How far it is.
    pub state: RequestState,
    /// Why.
    pub reason: Option<String>,
    /// When it was received.
    pub received_at: Timestamp,
    /// By when it must be done.
    pub due_at: Timestamp,
    /// How many months the deadline was extended by.
    pub extended_months: i16,
    /// The part of its time, in per cent, at which was warned last.
    pub warned: i16,
    /// How many attempts were made.
    pub attempt: i32,
    /// Whether its scope is known.
    pub resolved: bool,
    /// Whether the subject's row was there.
    pub found: Option<bool>,
    /// When the first row was about to go.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub finished_at: Option<Timestamp>,
}

/// The columns of [`Request`].
const COLUMNS: &str = "request_id, job, source_id, requested_by, subject_key, subject_token, token_key, state, reason, \
                       received_at, due_at, extended_months, warned, attempt, resolved_at IS NOT NULL AS resolved, found, \
                       started_at, finished_at";

fn from_row(row: &PgRow) -> Result<Request, sqlx::Error> {
    let word: String = row.try_get("state")?;
    let time = |column: &str| -> Result<Option<Timestamp>, sqlx::Error> {
        let time: Option<SqlTimestamp> = row.try_get(column)?;
        Ok(time.map(SqlTimestamp::to_jiff))
    };
    let subject: Option<String> = row.try_get("subject_key")?;
    Ok(Request {
        id: RequestId(row.try_get("request_id")?),
        job: row.try_get("job")?,
        source_id: row.try_get("source_id")?,
        requested_by: row.try_get("requested_by")?,
        subject: subject.map(SubjectKey::new),
        token: SubjectToken {
            key_id: row.try_get("token_key")?,
            token: row.try_get("subject_token")?,
        },
        state: RequestState::from_word(&word).ok_or(sqlx::Error::RowNotFound)?,
        reason: row.try_get("reason")?,
        received_at: row.try_get::<SqlTimestamp, _>("received_at")?.to_jiff(),
        due_at: row.try_get::<SqlTimestamp, _>("due_at")?.to_jiff(),
        extended_months: row.try_get("extended_months")?,
        warned: row.try_get("warned")?,
        attempt: row.try_get("attempt")?,
        resolved: row.try_get("resolved")?,
        found: row.try_get("found")?,
        started_at: time("started_at")?,
        finished_at: time("finished_at")?,
    })
}

/// A request to keep.
#[derive(Debug, Clone)]
pub struct NewRequest<'a> {
    /// Its identity.
    pub id: RequestId,
    /// Its job.
    pub job: &'a str,
    /// The key of the application's own row, where that asks.
    pub source_id: Option<&'a str>,
    /// Who asks.
    pub requested_by: &'a str,
    /// The subject.
    pub subject: &'a SubjectKey,
    /// What stands for the subject.
    pub token: &'a SubjectToken,
    /// Its first state: received, or awaiting identity.
    pub state: RequestState,
    /// When it was received.
    pub received_at: Timestamp,
    /// By when it must be done.
    pub due_at: Timestamp,
}

/// Whether the database has a place for erasures yet.
pub async fn exist(connection: &mut PgConnection) -> Result<bool, DatabaseError> {
    Ok(
        sqlx::query_scalar("SELECT pg_catalog.to_regclass('pgreeve.erasure_request') IS NOT NULL")
            .fetch_one(connection)
            .await?,
    )
}

/// Keeps a request; `false` when the application's row has an open one.
pub async fn insert(transaction: &mut PgConnection, new: &NewRequest<'_>) -> Result<bool, DatabaseError> {
    let done = sqlx::query(
        "INSERT INTO pgreeve.erasure_request
             (request_id, job, source, source_id, requested_by, subject_key, subject_token, token_key, state, received_at, due_at)
         VALUES ($1, $2, CASE WHEN $3::text IS NULL THEN 'operator' ELSE 'table' END, $3, $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT (job, source_id) WHERE finished_at IS NULL DO NOTHING",
    )
    .bind(new.id.0)
    .bind(new.job)
    .bind(new.source_id)
    .bind(new.requested_by)
    .bind(new.subject.expose())
    .bind(&new.token.token)
    .bind(&new.token.key_id)
    .bind(new.state.as_str())
    .bind(SqlTimestamp::from(new.received_at))
    .bind(SqlTimestamp::from(new.due_at))
    .execute(transaction)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The requests of a job, or of all, those that are open first.
pub async fn list(connection: &mut PgConnection, job: Option<&str>, limit: i64) -> Result<Vec<Request>, DatabaseError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM pgreeve.erasure_request WHERE $1::text IS NULL OR job = $1
         ORDER BY finished_at IS NOT NULL, finished_at DESC, due_at, request_id LIMIT $2"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(job)
        .bind(limit)
        .fetch_all(connection)
        .await?;
    Ok(rows.iter().map(from_row).collect::<Result<_, _>>()?)
}

/// One request.
pub async fn find(connection: &mut PgConnection, id: RequestId) -> Result<Option<Request>, DatabaseError> {
    let sql = format!("SELECT {COLUMNS} FROM pgreeve.erasure_request WHERE request_id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(id.0)
        .fetch_optional(connection)
        .await?;
    Ok(row.as_ref().map(from_row).transpose()?)
}

/// The open requests of a job, the most urgent first.
pub async fn open(connection: &mut PgConnection, job: &str) -> Result<Vec<Request>, DatabaseError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM pgreeve.erasure_request WHERE job = $1 AND finished_at IS NULL ORDER BY due_at, request_id"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(job)
        .fetch_all(connection)
        .await?;
    Ok(rows.iter().map(from_row).collect::<Result<_, _>>()?)
}

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

/// This session's name as a worker: its server process and when that began.
pub async fn worker(connection: &mut PgConnection) -> Result<String, DatabaseError> {
    Ok(sqlx::query_scalar(
        "SELECT a.pid || '@' || extract(epoch FROM a.backend_start) FROM pg_catalog.pg_stat_activity a
         WHERE a.pid = pg_catalog.pg_backend_pid()",
    )
    .fetch_one(connection)
    .await?)
}

/// Locks a request for the transaction and renews its lease; `false` when another worker has it.
pub async fn keep_lease(transaction: &mut PgConnection, id: RequestId, worker: &str) -> Result<bool, DatabaseError> {
    let sql = format!(
        "UPDATE pgreeve.erasure_request SET lease_until = pg_catalog.clock_timestamp() + interval '{LEASE}'
         WHERE request_id = $1 AND worker = $2 AND state IN ('processing', 'verifying')"
    );
    let done = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(id.0)
        .bind(worker)
        .execute(transaction)
        .await?;
    Ok(done.rows_affected() == 1)
}

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

/// One step as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRow {
    /// Its place in the order.
    pub step: i32,
    /// `schema.table`.
    pub relation: String,
    /// `delete`, `mask`, `unlink` or `keep`.
    pub action: String,
    /// `open`, `done` or `held`.
    pub state: String,
    /// How many rows it deleted, changed or counted.
    pub rows: u64,
    /// How many rows holds keep from it.
    pub held: u64,
    /// How many objects of its rows are gone.
    pub objects: u64,
    /// Of how many of them an older version stays.
    pub object_versions: u64,
}

/// The columns of a [`StepRow`], in their order.
type StepColumns = (i32, String, String, String, i64, i64, i64, i64);

/// The steps of a request that were begun, in order.
pub async fn steps(connection: &mut PgConnection, id: RequestId) -> Result<Vec<StepRow>, DatabaseError> {
    let rows: Vec<StepColumns> = sqlx::query_as(
        "SELECT step, relation, action, state, rows, held, objects, object_versions FROM pgreeve.erasure_step WHERE request_id = $1 ORDER BY step",
    )
    .bind(id.0)
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(
            |(step, relation, action, state, rows, held, objects, versions)| StepRow {
                step,
                relation,
                action,
                state,
                rows: rows.unsigned_abs(),
                held: held.unsigned_abs(),
                objects: objects.unsigned_abs(),
                object_versions: versions.unsigned_abs(),
            },
        )
        .collect())
}

/// Adds what steps did to their rows, in the steps' own transaction. A step that counts (`keep`)
/// replaces its number. `holds` keep rows from those that are held.
pub async fn record_steps(
    transaction: &mut PgConnection,
    id: RequestId,
    run: RunId,
    rows: &[StepRow],
    holds: &[Uuid],
) -> Result<(), DatabaseError> {
    let texts = |of: fn(&StepRow) -> &str| rows.iter().map(of).collect::<Vec<_>>();
    let numbers = |of: fn(&StepRow) -> u64| {
        let numbers = rows.iter().map(|row| i64::try_from(of(row)).unwrap_or(i64::MAX));
        numbers.collect::<Vec<_>>()
    };
    sqlx::query(
        "INSERT INTO pgreeve.erasure_step (request_id, step, relation, action, state, rows, held, objects, object_versions, holds, run_id)
         SELECT $1, new.*, CASE WHEN new.state = 'held' THEN $8::uuid[] ELSE '{}' END, $9
         FROM ROWS FROM (pg_catalog.unnest($2::int[]), pg_catalog.unnest($3::text[]), pg_catalog.unnest($4::text[]),
                         pg_catalog.unnest($5::text[]), pg_catalog.unnest($6::int8[]), pg_catalog.unnest($7::int8[]),
                         pg_catalog.unnest($10::int8[]), pg_catalog.unnest($11::int8[]))
             AS new (step, relation, action, state, rows, held, objects, object_versions)
         ON CONFLICT (request_id, step) DO UPDATE
         SET state = excluded.state, held = excluded.held, holds = excluded.holds, run_id = excluded.run_id,
             rows = excluded.rows + CASE WHEN excluded.action = 'keep' THEN 0 ELSE pgreeve.erasure_step.rows END,
             objects = pgreeve.erasure_step.objects + excluded.objects,
             object_versions = pgreeve.erasure_step.object_versions + excluded.object_versions,
             committed_at = pg_catalog.clock_timestamp()",
    )
    .bind(id.0)
    .bind(rows.iter().map(|row| row.step).collect::<Vec<_>>())
    .bind(texts(|row| &row.relation))
    .bind(texts(|row| &row.action))
    .bind(texts(|row| &row.state))
    .bind(numbers(|row| row.rows))
    .bind(numbers(|row| row.held))
    .bind(holds)
    .bind(run.0)
    .bind(numbers(|row| row.objects))
    .bind(numbers(|row| row.object_versions))
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

/// The holds that keep rows of a request.
pub async fn holds_on(connection: &mut PgConnection, id: RequestId) -> Result<Vec<Uuid>, DatabaseError> {
    Ok(sqlx::query_scalar(
        "SELECT DISTINCT unnest(holds) FROM pgreeve.erasure_step WHERE request_id = $1 AND state = 'held' ORDER BY 1",
    )
    .bind(id.0)
    .fetch_all(connection)
    .await?)
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
