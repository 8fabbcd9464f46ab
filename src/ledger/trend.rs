//! What a job usually does: how many rows, how often. Read from its green runs.

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::PgConnection;

use crate::postgres::sqlstate::DatabaseError;
use crate::values::JobName;

/// How many of its last green runs are looked at.
const RUNS: i64 = 10;

/// A job's usual run. Only runs of one policy, the last that was green, count.
#[derive(Debug, Clone, PartialEq)]
pub struct Trend {
    /// How many runs it is read from, at most ten.
    pub runs: u32,
    /// The median of their rows.
    pub rows: f64,
    /// The median of the seconds between two of them; none with fewer than two.
    pub gap: Option<f64>,
    /// When the last of them began, by the database's clock.
    pub last: Timestamp,
    /// The seconds since then, by the same clock.
    pub since: f64,
}

/// A job's trend; none before its first green run.
pub async fn of(connection: &mut PgConnection, job: &JobName) -> Result<Option<Trend>, DatabaseError> {
    let known: bool = sqlx::query_scalar("SELECT pg_catalog.to_regclass('pgreeve.run') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !known {
        return Ok(None);
    }
    let row: (i64, Option<f64>, Option<f64>, Option<SqlTimestamp>, Option<f64>) = sqlx::query_as(
        "WITH green AS (
             SELECT started_at, policy, (report->>'rows')::float8 AS rows
             FROM pgreeve.run
             WHERE job = $1 AND outcome = 'succeeded' AND started_at IS NOT NULL AND report->>'rows' IS NOT NULL),
         last AS (
             SELECT started_at, rows, started_at - lag(started_at) OVER (ORDER BY started_at) AS gap
             FROM (SELECT * FROM green WHERE policy = (SELECT policy FROM green ORDER BY started_at DESC LIMIT 1)
                   ORDER BY started_at DESC LIMIT $2) AS newest)
         SELECT count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY rows),
                percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM gap)::float8),
                max(started_at), extract(epoch FROM now() - max(started_at))::float8
         FROM last",
    )
    .bind(job.as_str())
    .bind(RUNS)
    .fetch_one(connection)
    .await?;
    let (runs, Some(rows), gap, Some(last), Some(since)) = row else {
        return Ok(None);
    };
    Ok(Some(Trend {
        runs: u32::try_from(runs).unwrap_or(u32::MAX),
        rows,
        gap,
        last: last.to_jiff(),
        since,
    }))
}
