//! `pgreeve.erasure_request`, `…_step`, `…_scope`: requests for erasure, and what was done of each.

mod decisions;
mod ending;
mod lease;
mod scope;
mod steps;

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

pub use self::decisions::{Outlook, approved_plan, extend, identified, outlook, take_unbegun, warned};
pub use self::ending::{End, close, close_all, duplicates, residue};
pub use self::lease::{begin_now, claim, keep_leases, ready, reopen, started, verifying, wait, worker};
pub use self::scope::{clear, identifiers, keep_mask_keys, known, put, put_all, resolved, resolved_in};
pub use self::steps::{StepRow, changed, holds_on, record_steps, steps, steps_done_in, steps_of};
use crate::erasure::{RequestId, RequestState, SubjectKey, SubjectToken};
use crate::postgres::sqlstate::DatabaseError;

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
    Ok(!insert_all(transaction, std::slice::from_ref(new)).await?.is_empty())
}

/// Keeps requests of one job and one source; answers with those whose row of the application has no open
/// one.
pub async fn insert_all(
    transaction: &mut PgConnection,
    new: &[NewRequest<'_>],
) -> Result<BTreeSet<Uuid>, DatabaseError> {
    let Some(first) = new.first() else {
        return Ok(BTreeSet::new());
    };
    let kept: Vec<Uuid> = sqlx::query_scalar(
        "INSERT INTO pgreeve.erasure_request
             (request_id, job, source, source_id, requested_by, subject_key, subject_token, token_key, state, received_at, due_at)
         SELECT n.id, $2, CASE WHEN n.source_id IS NULL THEN 'operator' ELSE 'table' END, n.source_id, $3, n.subject, n.token,
                n.token_key, n.state, n.received_at, n.due_at
         FROM ROWS FROM (pg_catalog.unnest($1::uuid[]), pg_catalog.unnest($4::text[]), pg_catalog.unnest($5::text[]),
                         pg_catalog.unnest($6::text[]), pg_catalog.unnest($7::text[]), pg_catalog.unnest($8::text[]),
                         pg_catalog.unnest($9::timestamptz[]), pg_catalog.unnest($10::timestamptz[]))
             AS n (id, source_id, subject, token, token_key, state, received_at, due_at)
         ON CONFLICT (job, source_id) WHERE finished_at IS NULL DO NOTHING RETURNING request_id",
    )
    .bind(new.iter().map(|new| new.id.0).collect::<Vec<_>>())
    .bind(first.job)
    .bind(first.requested_by)
    .bind(new.iter().map(|new| new.source_id).collect::<Vec<_>>())
    .bind(new.iter().map(|new| new.subject.expose()).collect::<Vec<_>>())
    .bind(new.iter().map(|new| new.token.token.as_str()).collect::<Vec<_>>())
    .bind(new.iter().map(|new| new.token.key_id.as_str()).collect::<Vec<_>>())
    .bind(new.iter().map(|new| new.state.as_str()).collect::<Vec<_>>())
    .bind(new.iter().map(|new| SqlTimestamp::from(new.received_at)).collect::<Vec<_>>())
    .bind(new.iter().map(|new| SqlTimestamp::from(new.due_at)).collect::<Vec<_>>())
    .fetch_all(transaction)
    .await?;
    Ok(kept.into_iter().collect())
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
    Ok(find_all(connection, &[id.0]).await?.pop())
}

/// Several requests, in no order.
pub async fn find_all(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Request>, DatabaseError> {
    let sql = format!("SELECT {COLUMNS} FROM pgreeve.erasure_request WHERE request_id = ANY ($1)");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(ids)
        .fetch_all(connection)
        .await?;
    Ok(rows.iter().map(from_row).collect::<Result<_, _>>()?)
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
