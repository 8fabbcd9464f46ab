//! `pgreeve.backup`: which backups are being written, so that what a crash leaves in a store can be
//! removed exactly, and which were made. Every writer here runs in a transaction that holds the
//! fence.

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::{PgConnection, Row};

use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// A backup about to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun<'a> {
    /// Its identity.
    pub backup_id: &'a str,
    /// The run that writes it.
    pub run: RunId,
    /// The run's job.
    pub job: &'a str,
    /// The store's name in the configuration.
    pub store: &'a str,
    /// The prefix of all its keys.
    pub prefix: &'a str,
}

/// A backup that was being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streaming {
    /// Its identity.
    pub backup_id: String,
    /// The run that wrote it.
    pub run: RunId,
    /// The run's job.
    pub job: String,
    /// The prefix of all its keys.
    pub prefix: String,
    /// When it was begun.
    pub started_at: Timestamp,
}

/// How a backup's writing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its manifest exists; it has so many bytes.
    Committed(u64),
    /// It failed, and nothing of it is left.
    Aborted,
    /// Its run died; a later one removed what it left.
    Swept,
}

/// Notes that a backup is about to be written.
pub async fn begin(transaction: &mut PgConnection, backup: &Begun<'_>) -> Result<(), DatabaseError> {
    sqlx::query("INSERT INTO pgreeve.backup (backup_id, run_id, job, store, prefix, state) VALUES ($1, $2, $3, $4, $5, 'streaming')")
        .bind(backup.backup_id)
        .bind(backup.run.0)
        .bind(backup.job)
        .bind(backup.store)
        .bind(backup.prefix)
        .execute(transaction)
        .await?;
    Ok(())
}

/// Locks a backup's row if it is still being written, and tells the server's time. `None` when
/// another process has swept it since.
pub async fn lock_streaming(
    transaction: &mut PgConnection,
    backup_id: &str,
) -> Result<Option<Timestamp>, DatabaseError> {
    let now: Option<SqlTimestamp> = sqlx::query_scalar(
        "SELECT pg_catalog.clock_timestamp() FROM pgreeve.backup WHERE backup_id = $1 AND state = 'streaming' FOR UPDATE",
    )
    .bind(backup_id)
    .fetch_optional(transaction)
    .await?;
    Ok(now.map(SqlTimestamp::to_jiff))
}

/// Notes how the writing of a backup ended. Answers whether it was still being written.
pub async fn finish(transaction: &mut PgConnection, backup_id: &str, ended: Ended) -> Result<bool, DatabaseError> {
    let (state, bytes) = match ended {
        Ended::Committed(bytes) => ("committed", Some(i64::try_from(bytes).unwrap_or(i64::MAX))),
        Ended::Aborted => ("aborted", None),
        Ended::Swept => ("swept", None),
    };
    let result = sqlx::query(
        "UPDATE pgreeve.backup SET state = $2, bytes = $3, finished_at = pg_catalog.clock_timestamp()
         WHERE backup_id = $1 AND state = 'streaming'",
    )
    .bind(backup_id)
    .bind(state)
    .bind(bytes)
    .execute(transaction)
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Which of the backups that were never finished are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftovers<'a> {
    /// All of a job. The caller holds the job's lock, so none of them is being written.
    OfJob(&'a str),
    /// Those of a job's runs that are closed. Another run of the job may be writing its own.
    OfClosedRuns(&'a str),
}

/// The backups of one store that were begun and neither finished nor swept.
pub async fn streaming(
    connection: &mut PgConnection,
    store: &str,
    which: Leftovers<'_>,
) -> Result<Vec<Streaming>, DatabaseError> {
    let (job, closed_only) = match which {
        Leftovers::OfJob(job) => (job, false),
        Leftovers::OfClosedRuns(job) => (job, true),
    };
    let rows = sqlx::query(
        "SELECT backup_id, run_id, job, prefix, started_at FROM pgreeve.backup b
         WHERE state = 'streaming' AND store = $1 AND job = $2
           AND NOT ($3 AND EXISTS (SELECT 1 FROM pgreeve.run r WHERE r.run_id = b.run_id AND r.outcome IS NULL))
         ORDER BY started_at",
    )
    .bind(store)
    .bind(job)
    .bind(closed_only)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Streaming {
                backup_id: row.try_get("backup_id")?,
                run: RunId(row.try_get("run_id")?),
                job: row.try_get("job")?,
                prefix: row.try_get("prefix")?,
                started_at: row.try_get::<SqlTimestamp, _>("started_at")?.to_jiff(),
            })
        })
        .collect::<Result<_, sqlx::Error>>()
        .map_err(DatabaseError::from)
}

/// The newest backup of a job that was committed, as far as the ledger knows.
pub async fn newest_committed(connection: &mut PgConnection, job: &str) -> Result<Option<String>, DatabaseError> {
    Ok(sqlx::query_scalar(
        "SELECT backup_id FROM pgreeve.backup WHERE job = $1 AND state = 'committed' ORDER BY started_at DESC LIMIT 1",
    )
    .bind(job)
    .fetch_optional(connection)
    .await?)
}
