//! `pgreeve.schedule`: how far each job's schedule has been evaluated.

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx};
use sqlx::{PgConnection, Row};

use crate::postgres::sqlstate::DatabaseError;
use crate::values::JobName;

/// What the ledger knows of a job's schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evaluated {
    /// The five fields as they were read.
    pub schedule: String,
    /// The zone they were read in.
    pub timezone: String,
    /// Slots up to and including this instant have rows.
    pub until: Timestamp,
}

/// How far a job's schedule was evaluated; `None` for a job that was never seen.
pub async fn load(connection: &mut PgConnection, job: &JobName) -> Result<Option<Evaluated>, DatabaseError> {
    let row = sqlx::query("SELECT schedule, timezone, evaluated_until FROM pgreeve.schedule WHERE job = $1")
        .bind(job.as_str())
        .fetch_optional(connection)
        .await?;
    Ok(row.map(|row| Evaluated {
        schedule: row.get("schedule"),
        timezone: row.get("timezone"),
        until: row.get::<SqlTimestamp, _>("evaluated_until").to_jiff(),
    }))
}

/// Sets a job's mark, also back: where its evaluation begins.
pub async fn set(connection: &mut PgConnection, job: &JobName, evaluated: &Evaluated) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT INTO pgreeve.schedule (job, schedule, timezone, evaluated_until) VALUES ($1, $2, $3, $4)
         ON CONFLICT (job) DO UPDATE SET schedule = $2, timezone = $3, evaluated_until = $4",
    )
    .bind(job.as_str())
    .bind(&evaluated.schedule)
    .bind(&evaluated.timezone)
    .bind(evaluated.until.to_sqlx())
    .execute(connection)
    .await?;
    Ok(())
}

/// Moves a job's mark, in the transaction that wrote the rows of the slots before it. The mark
/// never moves back.
pub async fn save(transaction: &mut PgConnection, job: &JobName, evaluated: &Evaluated) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT INTO pgreeve.schedule AS s (job, schedule, timezone, evaluated_until) VALUES ($1, $2, $3, $4)
         ON CONFLICT (job) DO UPDATE SET schedule = $2, timezone = $3,
             evaluated_until = greatest(s.evaluated_until, excluded.evaluated_until)",
    )
    .bind(job.as_str())
    .bind(&evaluated.schedule)
    .bind(&evaluated.timezone)
    .bind(evaluated.until.to_sqlx())
    .execute(transaction)
    .await?;
    Ok(())
}

/// Moves the marks of many jobs in one statement. None moves back.
pub async fn save_all(transaction: &mut PgConnection, marks: &[(JobName, Evaluated)]) -> Result<(), DatabaseError> {
    let each = || marks.iter();
    sqlx::query(
        "INSERT INTO pgreeve.schedule AS s (job, schedule, timezone, evaluated_until)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[])
         ON CONFLICT (job) DO UPDATE SET schedule = excluded.schedule, timezone = excluded.timezone,
             evaluated_until = excluded.evaluated_until
         WHERE s.evaluated_until < excluded.evaluated_until",
    )
    .bind(each().map(|(job, _)| job.as_str()).collect::<Vec<_>>())
    .bind(each().map(|(_, mark)| mark.schedule.as_str()).collect::<Vec<_>>())
    .bind(each().map(|(_, mark)| mark.timezone.as_str()).collect::<Vec<_>>())
    .bind(each().map(|(_, mark)| mark.until.to_sqlx()).collect::<Vec<_>>())
    .execute(transaction)
    .await?;
    Ok(())
}

/// Forgets a job that is not in the configuration any more.
pub async fn forget(connection: &mut PgConnection, job: &JobName) -> Result<(), DatabaseError> {
    sqlx::query("DELETE FROM pgreeve.schedule WHERE job = $1")
        .bind(job.as_str())
        .execute(connection)
        .await?;
    Ok(())
}
