//! `pgreeve.run_batch`: what each batch did, written in the batch's own transaction.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::holds::Holds;
use crate::postgres::quote::{array, literal};
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

/// What a transaction has been to others so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// How many sessions wait for it.
    pub waiters: u64,
    /// How many bytes of WAL were written, by whomever, since it began.
    pub wal: u64,
}

impl Footprint {
    /// From the row that [`closing`] answers with.
    ///
    /// # Errors
    /// When it is another row.
    pub fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let (waiters, wal): (i64, i64) = (row.try_get("waiters")?, row.try_get("wal")?);
        Ok(Self {
            waiters: waiters.unsigned_abs(),
            wal: wal.unsigned_abs(),
        })
    }
}

const RECORD: &str = "
    INSERT INTO pgreeve.run_batch (run_id, seq, relation, rows, low, high, milliseconds)
    SELECT $1, coalesce(max(seq), 0) + 1, $2, $3, $4, $5, $6 FROM pgreeve.run_batch WHERE run_id = $1";

/// Adds a batch to the run, within the transaction that did its work. The sequence goes on across
/// attempts.
pub async fn record(transaction: &mut PgConnection, run: RunId, batch: &Batch) -> Result<(), DatabaseError> {
    sqlx::query(RECORD)
        .bind(run.0)
        .bind(&batch.relation)
        .bind(i64::try_from(batch.rows).unwrap_or(i64::MAX))
        .bind(&batch.low)
        .bind(&batch.high)
        .bind(i32::try_from(batch.milliseconds).unwrap_or(i32::MAX))
        .execute(transaction)
        .await?;
    Ok(())
}

/// The statement, without values to bind, that does as [`record`] if the batch has rows, and tells what
/// the transaction has been to others since the WAL stood there. Answers with one row, for
/// [`Footprint::read`]; fails with a code that [`holds_changed`] knows when the batch has rows and the
/// holds that stand are not those the transaction knows of.
#[must_use]
pub fn closing(run: RunId, batch: &Batch, (wal, known): (&str, &Holds)) -> String {
    let known: Vec<String> = known.all.iter().map(ToString::to_string).collect();
    format!(
        "SELECT waiters, wal FROM pgreeve.record_batch('{}', {}, '{}', {}, {}, {}, {}, '{}')",
        run.0,
        literal(&batch.relation),
        batch.rows,
        literal(&batch.low),
        literal(&batch.high),
        batch.milliseconds.min(i32::MAX.unsigned_abs().into()),
        literal(wal),
        array(&known),
    )
}

/// Whether an error says that legal holds were placed or released.
#[must_use]
pub fn holds_changed(error: &DatabaseError) -> bool {
    error.is("PGR02")
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
