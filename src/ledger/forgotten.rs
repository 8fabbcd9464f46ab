//! The ledger's own retention: what ended long ago goes, the newest run of each job stays.

use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx};
use sqlx::{Connection, PgConnection, Row};

use super::leader::Term;
use crate::postgres::sqlstate::DatabaseError;

/// The most runs that one transaction forgets.
pub const CHUNK: i64 = 2000;

/// Which runs may go: they ended, and the job has a newer one.
const OLD: &str = "r.created_at < $1 AND r.outcome IS NOT NULL
    AND EXISTS (SELECT 1 FROM pgreeve.run n WHERE n.job = r.job AND (n.created_at, n.run_id) > (r.created_at, r.run_id))";

/// What is to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Runs made before this instant, by the database's clock.
    pub cutoff: Timestamp,
    /// How many they are.
    pub runs: i64,
}

/// What is to be forgotten today; `None` when that was done less than a day ago.
pub async fn due(connection: &mut PgConnection, keep: Duration) -> Result<Option<Due>, DatabaseError> {
    let cutoff: Option<SqlTimestamp> = sqlx::query_scalar(
        "SELECT pg_catalog.clock_timestamp() - $1::double precision * interval '1 second'
         WHERE NOT EXISTS (SELECT 1 FROM pgreeve.forgotten
                           WHERE forgotten_at BETWEEN pg_catalog.clock_timestamp() - interval '1 day' AND pg_catalog.clock_timestamp())",
    )
    .bind(keep.as_secs_f64())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(cutoff) = cutoff else { return Ok(None) };
    let sql = format!("SELECT count(*) AS runs FROM pgreeve.run r WHERE {OLD}");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(cutoff)
        .fetch_one(connection)
        .await?;
    Ok(Some(Due {
        cutoff: cutoff.to_jiff(),
        runs: row.get("runs"),
    }))
}

/// Forgets the oldest runs made before `cutoff`, with their attempts and batches, at most [`CHUNK`];
/// answers how many.
///
/// # Errors
/// Also when the term is over.
pub async fn forget(connection: &mut PgConnection, term: &Term, cutoff: Timestamp) -> Result<i64, DatabaseError> {
    let mut transaction = connection.begin().await?;
    term.fence.hold(&mut transaction).await?;
    let sql = format!(
        "DELETE FROM pgreeve.run WHERE run_id IN (SELECT r.run_id FROM pgreeve.run r WHERE {OLD} ORDER BY r.created_at LIMIT $2)"
    );
    let done = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(cutoff.to_sqlx())
        .bind(CHUNK)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(i64::try_from(done.rows_affected()).unwrap_or(i64::MAX))
}

/// Notes that all of a day's runs are forgotten.
///
/// # Errors
/// Also when the term is over.
pub async fn note(connection: &mut PgConnection, term: &Term, instance: &str, done: &Due) -> Result<(), DatabaseError> {
    let mut transaction = connection.begin().await?;
    term.fence.hold(&mut transaction).await?;
    sqlx::query("DELETE FROM pgreeve.forgotten WHERE forgotten_at < $1")
        .bind(done.cutoff.to_sqlx())
        .execute(&mut *transaction)
        .await?;
    sqlx::query("INSERT INTO pgreeve.forgotten (cutoff, runs, instance, epoch) VALUES ($1, $2, $3, $4)")
        .bind(done.cutoff.to_sqlx())
        .bind(done.runs)
        .bind(instance)
        .bind(term.fence.epoch)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(())
}
