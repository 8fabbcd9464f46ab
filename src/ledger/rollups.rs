//! `pgreeve.rollup` and `pgreeve.rollup_dirty`: how far each rollup is final, how far its source is
//! purged, and what writers changed since.
//!
//! The row of a rollup is what a run that computes buckets and a purge of the source meet at: the one
//! locks it while it computes, the other raises `purged_until` before it deletes. So no bucket is
//! computed from rows that are on their way out.

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx};
use sqlx::postgres::PgRow;
use sqlx::postgres::types::Oid;
use sqlx::{PgConnection, Row};

use crate::postgres::sqlstate::DatabaseError;
use crate::values::{JobName, RunId};

/// What the ledger knows of a rollup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The digest of what is computed.
    pub definition: String,
    /// `recompute`, `exact` or `query`.
    pub mode: String,
    /// Where the result is.
    pub target: String,
    /// The width of its buckets.
    pub bucket: String,
    /// Whether what the source held at first is in the target.
    pub filled: bool,
    /// Buckets before are final.
    pub sealed_until: Option<Timestamp>,
    /// Rows before may be gone from the source.
    pub purged_until: Option<Timestamp>,
    /// When it was last brought up to date.
    pub refreshed_at: Option<Timestamp>,
}

/// A rollup to keep.
#[derive(Debug, Clone)]
pub struct NewRollup<'a> {
    /// Its job.
    pub job: &'a JobName,
    /// The digest of what is computed.
    pub definition: &'a str,
    /// `recompute`, `exact` or `query`.
    pub mode: &'a str,
    /// What it reads.
    pub sources: &'a [Oid],
    /// The same as `schema.table`.
    pub source_names: &'a [String],
    /// The source's column that tells a row's bucket.
    pub time_column: Option<&'a str>,
    /// Where the result goes, `schema.table`.
    pub target: &'a str,
    /// The width of its buckets.
    pub bucket: &'a str,
    /// The zone of its buckets.
    pub timezone: &'a str,
    /// Who asked.
    pub actor: &'a str,
}

const COLUMNS: &str = "definition, mode, target, bucket, filled, sealed_until, purged_until, refreshed_at";

fn from_row(row: &PgRow) -> Result<State, sqlx::Error> {
    let instant = |column: &str| -> Result<Option<Timestamp>, sqlx::Error> {
        Ok(row
            .try_get::<Option<SqlTimestamp>, _>(column)?
            .map(SqlTimestamp::to_jiff))
    };
    Ok(State {
        definition: row.try_get("definition")?,
        mode: row.try_get("mode")?,
        target: row.try_get("target")?,
        bucket: row.try_get("bucket")?,
        filled: row.try_get("filled")?,
        sealed_until: instant("sealed_until")?,
        purged_until: instant("purged_until")?,
        refreshed_at: instant("refreshed_at")?,
    })
}

/// Whether the database has a place for rollups yet.
pub async fn exists(connection: &mut PgConnection) -> Result<bool, DatabaseError> {
    Ok(
        sqlx::query_scalar("SELECT pg_catalog.to_regclass('pgreeve.rollup') IS NOT NULL")
            .fetch_one(connection)
            .await?,
    )
}

/// A rollup's state; none before `rollup init`.
pub async fn load(connection: &mut PgConnection, job: &JobName) -> Result<Option<State>, DatabaseError> {
    if !exists(connection).await? {
        return Ok(None);
    }
    let sql = format!("SELECT {COLUMNS} FROM pgreeve.rollup WHERE job = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(job.as_str())
        .fetch_optional(connection)
        .await?;
    Ok(row.as_ref().map(from_row).transpose()?)
}

/// Locks a rollup's row until the transaction ends, and answers with it.
pub async fn lock(transaction: &mut PgConnection, job: &JobName) -> Result<Option<State>, DatabaseError> {
    let sql = format!("SELECT {COLUMNS} FROM pgreeve.rollup WHERE job = $1 FOR UPDATE");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(job.as_str())
        .fetch_optional(transaction)
        .await?;
    Ok(row.as_ref().map(from_row).transpose()?)
}

/// The tables that a table's rows can be reached through, or that are parts of it: itself, what it is a
/// part of, and its parts at every level.
const FAMILY: &str = "WITH RECURSIVE above AS (
        SELECT oid FROM unnest($1::oid[]) AS own (oid)
        UNION SELECT i.inhparent FROM above a JOIN pg_catalog.pg_inherits i ON i.inhrelid = a.oid),
    below AS (
        SELECT oid FROM unnest($1::oid[]) AS own (oid)
        UNION SELECT i.inhrelid FROM below b JOIN pg_catalog.pg_inherits i ON i.inhparent = b.oid),
    family AS (
        SELECT c.oid, n.nspname || '.' || c.relname AS name
        FROM (SELECT oid FROM above UNION SELECT oid FROM below) AS all_of_it
        JOIN pg_catalog.pg_class c USING (oid) JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace)";

/// Keeps a rollup, or its new definition. How far the sources are purged comes from the ledger of
/// purges; how far the rollup is final stays.
pub async fn keep(transaction: &mut PgConnection, rollup: &NewRollup<'_>) -> Result<(), DatabaseError> {
    let sql = format!(
        "{FAMILY}
         INSERT INTO pgreeve.rollup AS r
             (job, definition, mode, sources, source_names, time_column, target, bucket, timezone, created_by, purged_until)
         SELECT $2, $3, $4, $1, $5, $6, $7, $8, $9, $10,
                (SELECT max(greatest(p.purged_until, p.begun_until)) FROM pgreeve.purge p JOIN family f ON f.name = p.relation
                 WHERE isfinite(greatest(p.purged_until, p.begun_until)))
         ON CONFLICT (job) DO UPDATE
         SET definition = excluded.definition, sources = excluded.sources, source_names = excluded.source_names,
             time_column = excluded.time_column, target = excluded.target, timezone = excluded.timezone,
             filled = r.filled AND r.mode = excluded.mode, mode = excluded.mode,
             purged_until = greatest(r.purged_until, excluded.purged_until)"
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(rollup.sources)
        .bind(rollup.job.as_str())
        .bind(rollup.definition)
        .bind(rollup.mode)
        .bind(rollup.source_names)
        .bind(rollup.time_column)
        .bind(rollup.target)
        .bind(rollup.bucket)
        .bind(rollup.timezone)
        .bind(rollup.actor)
        .execute(transaction)
        .await?;
    Ok(())
}

/// Forgets a rollup and what was noted for it. `false` when there is none.
pub async fn forget(transaction: &mut PgConnection, job: &JobName) -> Result<bool, DatabaseError> {
    sqlx::query("DELETE FROM pgreeve.rollup_dirty WHERE job = $1")
        .bind(job.as_str())
        .execute(&mut *transaction)
        .await?;
    let done = sqlx::query("DELETE FROM pgreeve.rollup WHERE job = $1")
        .bind(job.as_str())
        .execute(transaction)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Notes that a run computed buckets, and up to where they are final; that never goes back.
pub async fn refreshed(
    transaction: &mut PgConnection,
    job: &JobName,
    run: RunId,
    sealed_until: Option<Timestamp>,
    filled: bool,
) -> Result<(), DatabaseError> {
    sqlx::query(
        "UPDATE pgreeve.rollup
         SET sealed_until = greatest(sealed_until, $2), filled = filled OR $4, run_id = $3,
             refreshed_at = pg_catalog.clock_timestamp()
         WHERE job = $1",
    )
    .bind(job.as_str())
    .bind(sealed_until.map(ToSqlx::to_sqlx))
    .bind(run.0)
    .bind(filled)
    .execute(transaction)
    .await?;
    Ok(())
}

/// A rollup that reads a table, as a purge of the table sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// Its job.
    pub job: String,
    /// The column that tells a row's bucket; none for a query.
    pub time_column: Option<String>,
    /// Buckets before are final and nothing noted is before; none while nothing is final.
    pub sealed_until: Option<Timestamp>,
}

/// The rollups that read a table, what it is a part of, or a part of it.
pub async fn readers(connection: &mut PgConnection, table: Oid) -> Result<Vec<Reader>, DatabaseError> {
    if !exists(connection).await? {
        return Ok(Vec::new());
    }
    let sql = format!(
        "{FAMILY}
         SELECT r.job, r.time_column,
                least(r.sealed_until, (SELECT min(d.cell) FROM pgreeve.rollup_dirty d WHERE d.job = r.job))
                    AS sealed_until, r.sealed_until IS NOT NULL AND (r.filled OR r.mode <> 'exact') AS any
         FROM pgreeve.rollup r
         WHERE EXISTS (SELECT FROM family f WHERE f.oid = ANY (r.sources) OR f.name = ANY (r.source_names))
         ORDER BY r.job"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(vec![table])
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            let sealed: Option<SqlTimestamp> = row.try_get("sealed_until")?;
            let any: bool = row.try_get("any")?;
            Ok(Reader {
                job: row.try_get("job")?,
                time_column: row.try_get("time_column")?,
                sealed_until: sealed.filter(|_| any).map(SqlTimestamp::to_jiff),
            })
        })
        .collect::<Result<_, sqlx::Error>>()
        .map_err(DatabaseError::from)
}

/// Tells the rollups that read a table that rows before an instant may be gone from now on, and waits
/// for those that compute. `others` go by another column than the purge, each with an instant of its
/// own.
pub async fn purging(
    transaction: &mut PgConnection,
    table: Oid,
    until: Timestamp,
    others: &[(String, Timestamp)],
) -> Result<(), DatabaseError> {
    let (jobs, instants): (Vec<&str>, Vec<SqlTimestamp>) = others
        .iter()
        .map(|(job, until)| (job.as_str(), until.to_sqlx()))
        .unzip();
    let sql = format!(
        "{FAMILY}
         UPDATE pgreeve.rollup r
         SET purged_until = greatest(r.purged_until, coalesce(($4::timestamptz[])[array_position($3::text[], r.job)], $2))
         WHERE EXISTS (SELECT FROM family f WHERE f.oid = ANY (r.sources) OR f.name = ANY (r.source_names))"
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(vec![table])
        .bind(until.to_sqlx())
        .bind(jobs)
        .bind(instants)
        .execute(transaction)
        .await?;
    Ok(())
}

/// Takes what writers noted, the oldest first, at most so many notes. What is noted later stays.
pub async fn take_dirty(
    transaction: &mut PgConnection,
    job: &JobName,
    most: i64,
) -> Result<Vec<Timestamp>, DatabaseError> {
    let cells: Vec<SqlTimestamp> = sqlx::query_scalar(
        "WITH taken AS (
             DELETE FROM pgreeve.rollup_dirty WHERE ctid = ANY (ARRAY(
                 SELECT ctid FROM pgreeve.rollup_dirty WHERE job = $1 ORDER BY cell LIMIT $2))
             RETURNING cell)
         SELECT cell FROM taken",
    )
    .bind(job.as_str())
    .bind(most)
    .fetch_all(transaction)
    .await?;
    Ok(cells.into_iter().map(SqlTimestamp::to_jiff).collect())
}

/// For how many seconds a rollup is not final; none before its first run.
pub async fn lag(connection: &mut PgConnection, job: &JobName) -> Result<Option<u64>, DatabaseError> {
    if !exists(connection).await? {
        return Ok(None);
    }
    let seconds: Option<Option<f64>> = sqlx::query_scalar(
        "SELECT extract(epoch FROM pg_catalog.clock_timestamp() - sealed_until)::float8 FROM pgreeve.rollup WHERE job = $1",
    )
    .bind(job.as_str())
    .fetch_optional(connection)
    .await?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, whole seconds"
    )]
    let whole = |seconds: f64| seconds.max(0.0) as u64;
    Ok(seconds.flatten().map(whole))
}

/// Has the next run compute every bucket that is not final.
pub async fn unfill(transaction: &mut PgConnection, job: &JobName) -> Result<(), DatabaseError> {
    sqlx::query("UPDATE pgreeve.rollup SET filled = false WHERE job = $1")
        .bind(job.as_str())
        .execute(transaction)
        .await?;
    Ok(())
}
