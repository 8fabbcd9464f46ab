//! What follows an erasure: `pgreeve.erasure_outbox`, and the second scans that are due.

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::postgres::sqlstate::DatabaseError;

/// A recipient that is to be told of an erasure.
#[derive(Debug, Clone)]
pub struct Notice {
    /// The request.
    pub request: Uuid,
    /// Its place among the request's messages.
    pub seq: i32,
    /// The recipient's name in the configuration.
    pub recipient: String,
    /// The same for each try, so that a recipient can tell a second one from a second erasure.
    pub idempotency_key: String,
    /// How often it was tried.
    pub attempts: i32,
    /// The key of the application's own row of the request.
    pub source_id: Option<String>,
    /// The subject.
    pub token: String,
    /// The key that the token was made with.
    pub token_key: String,
    /// How the request ended.
    pub state: String,
    /// When.
    pub finished_at: Timestamp,
}

/// Writes a message for each recipient of each request that was completed and whose second scan is
/// still to come, once.
pub async fn queue(transaction: &mut PgConnection, job: &str, recipients: &[String]) -> Result<u64, DatabaseError> {
    let done = sqlx::query(
        "INSERT INTO pgreeve.erasure_outbox (request_id, seq, kind, target, idempotency_key)
         SELECT r.request_id,
                (coalesce((SELECT max(o.seq) FROM pgreeve.erasure_outbox o WHERE o.request_id = r.request_id), 0)
                    + row_number() OVER (PARTITION BY r.request_id ORDER BY name))::integer,
                'notify', name, r.request_id || '/notify/' || name
         FROM pgreeve.erasure_request r CROSS JOIN pg_catalog.unnest($2::text[]) AS name
         WHERE r.job = $1 AND r.state IN ('completed', 'completed_with_exceptions') AND r.rescanned_at IS NULL
           AND NOT EXISTS (SELECT FROM pgreeve.erasure_outbox o
                           WHERE o.request_id = r.request_id AND o.kind = 'notify' AND o.target = name)
         ON CONFLICT DO NOTHING",
    )
    .bind(job)
    .bind(recipients)
    .execute(transaction)
    .await?;
    Ok(done.rows_affected())
}

/// The messages that can be sent now, oldest first.
pub async fn pending(connection: &mut PgConnection, job: &str) -> Result<Vec<Notice>, DatabaseError> {
    type Row = (
        Uuid,
        i32,
        String,
        String,
        i32,
        Option<String>,
        String,
        String,
        String,
        SqlTimestamp,
    );
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT o.request_id, o.seq, o.target, o.idempotency_key, o.attempts, r.source_id, r.subject_token, r.token_key,
                r.state, r.finished_at
         FROM pgreeve.erasure_outbox o JOIN pgreeve.erasure_request r USING (request_id)
         WHERE r.job = $1 AND o.kind = 'notify' AND o.state = 'pending' AND o.not_before <= pg_catalog.clock_timestamp()
         ORDER BY r.finished_at, o.request_id, o.seq",
    )
    .bind(job)
    .fetch_all(connection)
    .await?;
    let notices = rows.into_iter().map(
        |(request, seq, recipient, idempotency_key, attempts, source_id, token, token_key, state, finished_at)| {
            Notice {
                request,
                seq,
                recipient,
                idempotency_key,
                attempts,
                source_id,
                token,
                token_key,
                state,
                finished_at: finished_at.to_jiff(),
            }
        },
    );
    Ok(notices.collect())
}

/// A recipient has acknowledged after so many tries.
pub async fn acknowledged(transaction: &mut PgConnection, notice: &Notice, tries: i32) -> Result<(), DatabaseError> {
    sqlx::query(
        "UPDATE pgreeve.erasure_outbox
         SET state = 'acknowledged', attempts = attempts + $3, sent_at = pg_catalog.clock_timestamp(),
             acknowledged_at = pg_catalog.clock_timestamp(), reason = NULL
         WHERE request_id = $1 AND seq = $2",
    )
    .bind(notice.request)
    .bind(notice.seq)
    .bind(tries)
    .execute(transaction)
    .await?;
    Ok(())
}

/// A recipient has not: it is tried again after so many seconds, or not any more.
pub async fn not_acknowledged(
    transaction: &mut PgConnection,
    notice: &Notice,
    tries: i32,
    reason: &str,
    again_after: Option<f64>,
) -> Result<(), DatabaseError> {
    sqlx::query(
        "UPDATE pgreeve.erasure_outbox
         SET state = CASE WHEN $5::float8 IS NULL THEN 'failed' ELSE 'pending' END, attempts = attempts + $3,
             sent_at = pg_catalog.clock_timestamp(), reason = $4,
             not_before = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => coalesce($5, 0))
         WHERE request_id = $1 AND seq = $2",
    )
    .bind(notice.request)
    .bind(notice.seq)
    .bind(tries)
    .bind(reason)
    .bind(again_after)
    .execute(transaction)
    .await?;
    Ok(())
}

/// How the messages of a request stand: kind, name, state, and when they were acknowledged.
pub async fn answers(
    connection: &mut PgConnection,
    request: Uuid,
) -> Result<Vec<(String, String, String, Option<Timestamp>)>, DatabaseError> {
    let rows: Vec<(String, String, String, Option<SqlTimestamp>)> = sqlx::query_as(
        "SELECT kind, target, state, acknowledged_at FROM pgreeve.erasure_outbox WHERE request_id = $1 ORDER BY seq",
    )
    .bind(request)
    .fetch_all(connection)
    .await?;
    let answers = rows
        .into_iter()
        .map(|(kind, name, state, at)| (kind, name, state, at.map(SqlTimestamp::to_jiff)));
    Ok(answers.collect())
}

/// How many messages of a job wait, and how many are given up.
pub async fn outstanding(connection: &mut PgConnection, job: &str) -> Result<(i64, i64), DatabaseError> {
    Ok(sqlx::query_as(
        "SELECT count(*) FILTER (WHERE o.state = 'pending'), count(*) FILTER (WHERE o.state = 'failed')
         FROM pgreeve.erasure_outbox o JOIN pgreeve.erasure_request r USING (request_id) WHERE r.job = $1",
    )
    .bind(job)
    .fetch_one(connection)
    .await?)
}

/// A request whose second scan is due.
#[derive(Debug, Clone)]
pub struct DueScan {
    /// The request.
    pub request: Uuid,
    /// The database's half of what it looks for.
    pub share: Option<Vec<u8>>,
    /// The digest of the request's certificate.
    pub certificate: Option<String>,
}

/// Those of a job, oldest first.
pub async fn due_scans(connection: &mut PgConnection, job: &str) -> Result<Vec<DueScan>, DatabaseError> {
    let rows: Vec<(Uuid, Option<Vec<u8>>, Option<String>)> = sqlx::query_as(
        "SELECT request_id, rescan_share, coalesce(certificate_sha256, certificate ->> 'sha256')
         FROM pgreeve.erasure_request
         WHERE job = $1 AND rescanned_at IS NULL AND rescan_due_at <= pg_catalog.clock_timestamp()
         ORDER BY rescan_due_at, request_id",
    )
    .bind(job)
    .fetch_all(connection)
    .await?;
    let due = rows.into_iter().map(|(request, share, certificate)| DueScan {
        request,
        share,
        certificate,
    });
    Ok(due.collect())
}

/// A second scan is done; our half of what it looked for goes.
pub async fn scanned(transaction: &mut PgConnection, request: Uuid, result: &Value) -> Result<(), DatabaseError> {
    sqlx::query(
        "UPDATE pgreeve.erasure_request
         SET rescan = $2, rescanned_at = pg_catalog.clock_timestamp(), rescan_share = NULL WHERE request_id = $1",
    )
    .bind(request)
    .bind(result)
    .execute(transaction)
    .await?;
    Ok(())
}

/// The certificate of a request, as it was stored.
pub async fn certificate(connection: &mut PgConnection, request: Uuid) -> Result<Option<Value>, DatabaseError> {
    let found: Option<Option<Value>> =
        sqlx::query_scalar("SELECT certificate FROM pgreeve.erasure_request WHERE request_id = $1")
            .bind(request)
            .fetch_optional(connection)
            .await?;
    Ok(found.flatten())
}
