//! `pgreeve.purge`: up to where a table's rows are verified to be purged.

use sqlx::PgConnection;

use crate::postgres::sqlstate::DatabaseError;
use crate::values::{JobName, RunId};

/// Notes that a job is about to delete rows from before an instant.
pub async fn begin(
    transaction: &mut PgConnection,
    relation: &str,
    job: &JobName,
    until: &str,
    run: RunId,
) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT INTO pgreeve.purge AS p (relation, job, purged_until, begun_until, run_id)
         VALUES ($1, $2, '-infinity', $3::text::timestamptz, $4)
         ON CONFLICT (relation, job) DO UPDATE
         SET begun_until = greatest(p.begun_until, excluded.begun_until), run_id = excluded.run_id",
    )
    .bind(relation)
    .bind(job.as_str())
    .bind(until)
    .bind(run.0)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Notes that a job found no row left in a relation that was due before an instant (as PostgreSQL
/// writes a `timestamptz`). The mark never goes back: what was purged under a shorter period stays
/// purged.
pub async fn record(
    transaction: &mut PgConnection,
    relation: &str,
    job: &JobName,
    purged_until: &str,
    run: RunId,
) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT INTO pgreeve.purge AS p (relation, job, purged_until, run_id)
         VALUES ($1, $2, $3::text::timestamptz, $4)
         ON CONFLICT (relation, job) DO UPDATE
         SET purged_until = greatest(p.purged_until, excluded.purged_until), run_id = excluded.run_id",
    )
    .bind(relation)
    .bind(job.as_str())
    .bind(purged_until)
    .bind(run.0)
    .execute(transaction)
    .await?;
    Ok(())
}
