//! Runs that nobody runs any more: what a dead process left open in the ledger.

use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::{PgConnection, Row};

use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// A run without an outcome.
#[derive(Debug, Clone)]
pub struct OpenRun {
    /// Its identity.
    pub run: RunId,
    /// Its job.
    pub job: String,
    /// The instance that admitted it.
    pub instance: String,
    /// Whether an attempt was begun.
    pub started: bool,
    /// Its slot.
    pub scheduled_for: Option<jiff::Timestamp>,
    /// Rows of its committed batches.
    pub rows: i64,
    /// How many batches it committed.
    pub batches: i64,
}

/// The open runs of epochs before `epoch`. With the lead of `epoch` in hand, none of them can
/// still write.
pub async fn open_before(connection: &mut PgConnection, epoch: i64) -> Result<Vec<OpenRun>, DatabaseError> {
    let rows = sqlx::query(
        "SELECT r.run_id, r.job, r.instance, r.attempt > 0 AS started, r.scheduled_for,
                coalesce(b.rows, 0)::bigint AS rows, coalesce(b.batches, 0) AS batches
         FROM pgreeve.run r
         LEFT JOIN LATERAL (SELECT sum(rows) AS rows, count(*) AS batches FROM pgreeve.run_batch b WHERE b.run_id = r.run_id) b ON true
         WHERE r.outcome IS NULL AND r.epoch < $1 ORDER BY r.created_at",
    )
    .bind(epoch)
    .fetch_all(connection)
    .await?;
    Ok(rows
        .iter()
        .map(|row| OpenRun {
            run: RunId(row.get("run_id")),
            job: row.get("job"),
            instance: row.get("instance"),
            started: row.get("started"),
            scheduled_for: row
                .get::<Option<SqlTimestamp>, _>("scheduled_for")
                .map(SqlTimestamp::to_jiff),
            rows: row.get("rows"),
            batches: row.get("batches"),
        })
        .collect())
}
