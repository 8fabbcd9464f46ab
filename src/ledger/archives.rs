//! `pgreeve.archive` and `pgreeve.archive_object`: which deleted rows lie in which objects. Every
//! writer here runs in a transaction that holds the fence.

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::postgres::PgRow;
use sqlx::postgres::types::Oid;
use sqlx::{PgConnection, Row};

use crate::postgres::catalog::Relation;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// A run's archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// The run.
    pub run: RunId,
    /// The run's job.
    pub job: String,
    /// The store's name in the configuration.
    pub store: String,
    /// The prefix of all its keys.
    pub prefix: String,
    /// The table of the rule, `schema.table`.
    pub relation: String,
    /// The same, should it be renamed.
    pub table: Oid,
    /// The run's cutoff, as PostgreSQL writes a `timestamptz`.
    pub cutoff: String,
    /// `jsonl` or `csv`.
    pub format: String,
    /// How its objects are packed.
    pub compress: String,
}

/// An object whose rows are gone from their table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedObject {
    /// Its number within the run, from 1.
    pub seq: i32,
    /// Its key.
    pub key: String,
    /// The leaf table, `schema.table`.
    pub relation: String,
    /// The columns it holds.
    pub columns: Vec<String>,
    /// The time of its oldest row, as PostgreSQL writes a `timestamptz`.
    pub oldest: String,
    /// The time of its youngest row.
    pub youngest: String,
    /// Its rows.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: String,
    /// Its size before it was packed.
    pub bytes_raw: u64,
    /// The SHA-256 before it was packed.
    pub sha256_raw: String,
}

/// Notes that a run is about to write an archive, or goes on with it in another attempt.
pub async fn begin(transaction: &mut PgConnection, archive: &Archive) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT INTO pgreeve.archive (run_id, job, store, prefix, relation, cutoff, format, compress, table_oid, state)
         VALUES ($1, $2, $3, $4, $5, $6::text::timestamptz, $7, $8, $9, 'open')
         ON CONFLICT (run_id) DO UPDATE SET state = 'open', finished_at = NULL",
    )
    .bind(archive.run.0)
    .bind(&archive.job)
    .bind(&archive.store)
    .bind(&archive.prefix)
    .bind(&archive.relation)
    .bind(&archive.cutoff)
    .bind(&archive.format)
    .bind(&archive.compress)
    .bind(archive.table)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Notes an object, within the transaction that deletes its rows.
pub async fn record(transaction: &mut PgConnection, run: RunId, object: &ArchivedObject) -> Result<(), DatabaseError> {
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    sqlx::query(
        "INSERT INTO pgreeve.archive_object
             (run_id, seq, key, relation, columns, oldest, youngest, rows, bytes, sha256, bytes_raw, sha256_raw)
         VALUES ($1, $2, $3, $4, $5, $6::text::timestamptz, $7::text::timestamptz, $8, $9, $10, $11, $12)",
    )
    .bind(run.0)
    .bind(object.seq)
    .bind(&object.key)
    .bind(&object.relation)
    .bind(&object.columns)
    .bind(&object.oldest)
    .bind(&object.youngest)
    .bind(whole(object.rows))
    .bind(whole(object.bytes))
    .bind(&object.sha256)
    .bind(whole(object.bytes_raw))
    .bind(&object.sha256_raw)
    .execute(transaction)
    .await?;
    Ok(())
}

/// A job's archives that were begun and not closed. The caller holds the job's lock, so that none
/// of them is being written.
pub async fn open(connection: &mut PgConnection, job: &str, store: &str) -> Result<Vec<Archive>, DatabaseError> {
    let rows = sqlx::query(
        "SELECT run_id, job, store, prefix, relation, table_oid, cutoff::text AS cutoff, format, compress
         FROM pgreeve.archive WHERE state = 'open' AND job = $1 AND store = $2 ORDER BY started_at",
    )
    .bind(job)
    .bind(store)
    .fetch_all(connection)
    .await?;
    Ok(rows.iter().map(archive_from).collect::<Result<_, sqlx::Error>>()?)
}

/// The archives of a table that are not expired, oldest first, each with its objects: all places in
/// stores where rows lie that were deleted from it. `table` is the table of the rule, or a partition
/// of it that still exists; a partition that was dropped is found through its table. Who rewrites or
/// removes an object keeps its row here, and the manifest, in step.
///
/// Rows that a run under way deletes are found once it has committed them.
pub async fn of_table(
    connection: &mut PgConnection,
    table: &Relation,
) -> Result<Vec<(Archive, Vec<ArchivedObject>)>, DatabaseError> {
    let rows = sqlx::query(
        "SELECT a.run_id, a.job, a.store, a.prefix, a.relation, a.table_oid, a.cutoff::text AS cutoff, a.format, a.compress
         FROM pgreeve.archive a
         WHERE a.state <> 'expired' AND (a.table_oid = $1 OR a.relation = $2
             OR a.table_oid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors($1::oid::regclass))
             OR EXISTS (SELECT 1 FROM pgreeve.archive_object o WHERE o.run_id = a.run_id AND o.relation = $2))
         ORDER BY a.started_at, a.run_id",
    )
    .bind(table.oid)
    .bind(table.plain())
    .fetch_all(&mut *connection)
    .await?;
    let mut archives = Vec::new();
    for row in &rows {
        let archive = archive_from(row)?;
        let objects = objects(&mut *connection, archive.run).await?;
        archives.push((archive, objects));
    }
    Ok(archives)
}

fn archive_from(row: &PgRow) -> Result<Archive, sqlx::Error> {
    Ok(Archive {
        run: RunId(row.try_get("run_id")?),
        job: row.try_get("job")?,
        store: row.try_get("store")?,
        prefix: row.try_get("prefix")?,
        relation: row.try_get("relation")?,
        table: row.try_get("table_oid")?,
        cutoff: row.try_get("cutoff")?,
        format: row.try_get("format")?,
        compress: row.try_get("compress")?,
    })
}

/// The objects of a run's archive whose rows are gone, in order.
pub async fn objects(connection: &mut PgConnection, run: RunId) -> Result<Vec<ArchivedObject>, DatabaseError> {
    let rows = sqlx::query(
        "SELECT seq, key, relation, columns, oldest::text AS oldest, youngest::text AS youngest, rows, bytes, sha256,
                bytes_raw, sha256_raw
         FROM pgreeve.archive_object WHERE run_id = $1 ORDER BY seq",
    )
    .bind(run.0)
    .fetch_all(connection)
    .await?;
    let objects = rows.iter().map(|row| {
        let whole = |column: &str| row.try_get::<i64, _>(column).map(i64::unsigned_abs);
        Ok(ArchivedObject {
            seq: row.try_get("seq")?,
            key: row.try_get("key")?,
            relation: row.try_get("relation")?,
            columns: row.try_get("columns")?,
            oldest: row.try_get("oldest")?,
            youngest: row.try_get("youngest")?,
            rows: whole("rows")?,
            bytes: whole("bytes")?,
            sha256: row.try_get("sha256")?,
            bytes_raw: whole("bytes_raw")?,
            sha256_raw: row.try_get("sha256_raw")?,
        })
    });
    Ok(objects.collect::<Result<_, sqlx::Error>>()?)
}

/// Notes that a run's archive has its manifest; one without objects is forgotten. Answers with the
/// time on the database's clock.
pub async fn close(transaction: &mut PgConnection, run: RunId) -> Result<(), DatabaseError> {
    sqlx::query(
        "DELETE FROM pgreeve.archive a
         WHERE run_id = $1 AND NOT EXISTS (SELECT 1 FROM pgreeve.archive_object o WHERE o.run_id = a.run_id)",
    )
    .bind(run.0)
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "UPDATE pgreeve.archive SET state = 'closed', finished_at = pg_catalog.clock_timestamp() WHERE run_id = $1",
    )
    .bind(run.0)
    .execute(transaction)
    .await?;
    Ok(())
}

/// When the known archives of a job in a store were begun, whatever became of them.
pub async fn begun(
    connection: &mut PgConnection,
    job: &str,
    store: &str,
) -> Result<Vec<(RunId, Timestamp)>, DatabaseError> {
    let rows: Vec<(uuid::Uuid, SqlTimestamp)> =
        sqlx::query_as("SELECT run_id, started_at FROM pgreeve.archive WHERE job = $1 AND store = $2")
            .bind(job)
            .bind(store)
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().map(|(run, at)| (RunId(run), at.to_jiff())).collect())
}

/// Notes that the objects of some runs' archives were removed at the end of their time.
pub async fn expire(transaction: &mut PgConnection, runs: &[RunId]) -> Result<(), DatabaseError> {
    let runs: Vec<uuid::Uuid> = runs.iter().map(|run| run.0).collect();
    sqlx::query(
        "UPDATE pgreeve.archive SET state = 'expired', finished_at = pg_catalog.clock_timestamp() WHERE run_id = ANY($1)",
    )
    .bind(&runs)
    .execute(transaction)
    .await?;
    Ok(())
}
