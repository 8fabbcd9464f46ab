//! `pgreeve.run_batch`: what each batch did, written in the batch's own transaction.

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row};

use super::holds::{Holds, STANDING};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// One committed transaction of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The leaf table, qualified.
    pub relation: String,
    /// How many rows it deleted or changed.
    pub rows: u64,
    /// Where it began: an instant or a block number.
    pub low: String,
    /// Where it ended.
    pub high: String,
    /// How long it took until here.
    pub milliseconds: u64,
}

impl Batch {
    fn bound<'q>(&'q self, query: Query<'q, Postgres, PgArguments>, run: RunId) -> Query<'q, Postgres, PgArguments> {
        query
            .bind(run.0)
            .bind(&self.relation)
            .bind(i64::try_from(self.rows).unwrap_or(i64::MAX))
            .bind(&self.low)
            .bind(&self.high)
            .bind(i32::try_from(self.milliseconds).unwrap_or(i32::MAX))
    }
}

/// What a transaction has been to others so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// How many sessions wait for it.
    pub waiters: u64,
    /// How many bytes of WAL were written, by whomever, since it began.
    pub wal: u64,
}

impl From<(i64, i64)> for Footprint {
    fn from((waiters, wal): (i64, i64)) -> Self {
        Self {
            waiters: waiters.unsigned_abs(),
            wal: wal.unsigned_abs(),
        }
    }
}

/// The [`Footprint`] since the WAL stood where a parameter says, in two columns.
fn footprint_since(parameter: &str) -> String {
    format!(
        "(SELECT count(*) FROM pg_catalog.pg_locks AS l
          WHERE NOT l.granted AND pg_backend_pid() = ANY (pg_blocking_pids(l.pid))),
         pg_wal_lsn_diff(pg_current_wal_insert_lsn(), {parameter}::text::pg_lsn)::int8"
    )
}

/// What a transaction has been to others since the WAL stood there.
pub async fn footprint(transaction: &mut PgConnection, wal: &str) -> Result<Footprint, DatabaseError> {
    let found: (i64, i64) = sqlx::query_as(AssertSqlSafe(format!("SELECT {}", footprint_since("$1"))))
        .bind(wal)
        .fetch_one(transaction)
        .await?;
    Ok(found.into())
}

const RECORD: &str = "
    INSERT INTO pgreeve.run_batch (run_id, seq, relation, rows, low, high, milliseconds)
    SELECT $1, coalesce(max(seq), 0) + 1, $2, $3, $4, $5, $6 FROM pgreeve.run_batch WHERE run_id = $1";

/// Adds a batch to the run, within the transaction that did its work. The sequence goes on across
/// attempts.
pub async fn record(transaction: &mut PgConnection, run: RunId, batch: &Batch) -> Result<(), DatabaseError> {
    batch.bound(sqlx::query(RECORD), run).execute(transaction).await?;
    Ok(())
}

/// As [`record`], and tells in the same exchange what the transaction has been to others since the
/// WAL stood there. `None` when the holds that stand are not those the transaction knows of: roll
/// back.
pub async fn record_and_weigh(
    transaction: &mut PgConnection,
    run: RunId,
    batch: &Batch,
    (wal, known): (&str, &Holds),
) -> Result<Option<Footprint>, DatabaseError> {
    let sql = format!("{RECORD} RETURNING {}, ARRAY({STANDING}) = $8", footprint_since("$7"));
    let row = batch
        .bound(sqlx::query(AssertSqlSafe(sql)), run)
        .bind(wal)
        .bind(&known.all)
        .fetch_one(transaction)
        .await?;
    let unchanged: bool = row.try_get(2)?;
    Ok(unchanged.then_some((row.try_get(0)?, row.try_get(1)?).into()))
}

/// How many rows a run's committed batches hold of some relations, qualified.
pub async fn total_of(connection: &mut PgConnection, run: RunId, relations: &[String]) -> Result<u64, DatabaseError> {
    let rows: i64 = sqlx::query_scalar(
        "SELECT coalesce(sum(rows), 0)::bigint FROM pgreeve.run_batch WHERE run_id = $1 AND relation = ANY($2)",
    )
    .bind(run.0)
    .bind(relations)
    .fetch_one(connection)
    .await?;
    Ok(rows.unsigned_abs())
}

/// How many rows a run's committed batches hold in all, over all attempts, and how many batches
/// there are.
pub async fn total(connection: &mut PgConnection, run: RunId) -> Result<(u64, u64), DatabaseError> {
    let (rows, batches): (i64, i64) =
        sqlx::query_as("SELECT coalesce(sum(rows), 0)::bigint, count(*) FROM pgreeve.run_batch WHERE run_id = $1")
            .bind(run.0)
            .fetch_one(connection)
            .await?;
    Ok((rows.unsigned_abs(), batches.unsigned_abs()))
}
