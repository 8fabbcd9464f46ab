//! Runs that nobody runs any more: what a dead process left open in the ledger.

use std::time::Duration;

use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

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

const OPEN_RUNS: &str =
    "SELECT r.run_id, r.job, r.instance, r.attempt > 0 AS started, r.scheduled_for,
            coalesce(b.rows, 0)::bigint AS rows, coalesce(b.batches, 0) AS batches
     FROM pgreeve.run r
     LEFT JOIN LATERAL (SELECT sum(rows) AS rows, count(*) AS batches FROM pgreeve.run_batch b WHERE b.run_id = r.run_id) b ON true
     WHERE r.outcome IS NULL";

/// The open runs of epochs before `epoch`. With the lead of `epoch` in hand, none of them can
/// still write.
pub async fn open_before(connection: &mut PgConnection, epoch: i64) -> Result<Vec<OpenRun>, DatabaseError> {
    let sql = format!("{OPEN_RUNS} AND r.epoch < $1 ORDER BY r.created_at");
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(epoch)
        .fetch_all(connection)
        .await?;
    Ok(rows.iter().map(open_run).collect())
}

/// The open runs of `epoch` that nothing was heard of for `quiet_for`, without those in `known`.
/// Whether somebody still works on one of them is told by its job's lock.
pub async fn quiet(
    connection: &mut PgConnection,
    epoch: i64,
    known: &[RunId],
    quiet_for: Duration,
) -> Result<Vec<OpenRun>, DatabaseError> {
    let sql = format!(
        "{OPEN_RUNS} AND r.epoch = $1 AND r.run_id <> ALL($2)
           AND pg_catalog.clock_timestamp() - greatest(r.created_at,
                 (SELECT max(coalesce(a.finished_at, a.started_at)) FROM pgreeve.run_attempt a WHERE a.run_id = r.run_id))
               >= pg_catalog.make_interval(secs => $3)
         ORDER BY r.created_at"
    );
    let known: Vec<uuid::Uuid> = known.iter().map(|run| run.0).collect();
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(epoch)
        .bind(known)
        .bind(quiet_for.as_secs_f64())
        .fetch_all(connection)
        .await?;
    Ok(rows.iter().map(open_run).collect())
}

fn open_run(row: &PgRow) -> OpenRun {
    OpenRun {
        run: RunId(row.get("run_id")),
        job: row.get("job"),
        instance: row.get("instance"),
        started: row.get("started"),
        scheduled_for: row
            .get::<Option<SqlTimestamp>, _>("scheduled_for")
            .map(SqlTimestamp::to_jiff),
        rows: row.get("rows"),
        batches: row.get("batches"),
    }
}
