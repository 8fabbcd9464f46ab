//! `pgreeve.pause`: jobs that an operator has taken off their schedule for a while.

use std::time::Duration;

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};

use crate::postgres::sqlstate::DatabaseError;
use crate::values::JobName;

/// One pause of one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The job's name.
    pub job: String,
    /// Slots before this instant are not affected.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Timestamp,
    /// Why, in the operator's words.
    pub reason: String,
    /// Who asked for it.
    pub placed_by: String,
    /// When it was lifted, if it was.
    pub lifted_at: Option<Timestamp>,
}

const COLUMNS: &str = "job, since, until, reason, placed_by, lifted_at";

impl Pause {
    /// Whether a slot at this instant is not to run.
    #[must_use]
    pub fn covers(&self, at: Timestamp) -> bool {
        let end = self.lifted_at.map_or(self.until, |lifted| lifted.min(self.until));
        self.since <= at && at < end
    }

    /// What the row of a slot that it keeps from running says.
    #[must_use]
    pub fn explain(&self) -> String {
        format!("paused: {} ({} until {})", self.reason, self.placed_by, self.until)
    }

    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let instant = |column: &str| Ok::<_, sqlx::Error>(row.try_get::<SqlTimestamp, _>(column)?.to_jiff());
        Ok(Self {
            job: row.try_get("job")?,
            since: instant("since")?,
            until: instant("until")?,
            reason: row.try_get("reason")?,
            placed_by: row.try_get("placed_by")?,
            lifted_at: row
                .try_get::<Option<SqlTimestamp>, _>("lifted_at")?
                .map(SqlTimestamp::to_jiff),
        })
    }
}

/// Pauses a job for so long, as of the database's clock. A pause that is in force already is
/// replaced. Pauses that ended more than a year ago are forgotten.
pub async fn place(
    connection: &mut PgConnection,
    job: &JobName,
    length: Duration,
    reason: &str,
    actor: &str,
) -> Result<Pause, DatabaseError> {
    let mut transaction = connection.begin().await?;
    // Two operators at the same time: one after the other, so that one pause is in force.
    sqlx::query("LOCK TABLE pgreeve.pause IN SHARE ROW EXCLUSIVE MODE")
        .execute(&mut *transaction)
        .await?;
    end(&mut transaction, job, actor).await?;
    sqlx::query("DELETE FROM pgreeve.pause WHERE until < pg_catalog.clock_timestamp() - interval '1 year'")
        .execute(&mut *transaction)
        .await?;
    let sql = format!(
        "INSERT INTO pgreeve.pause (job, since, until, reason, placed_by)
         SELECT $1, now, now + $2::double precision * interval '1 second', $3, $4 FROM pg_catalog.clock_timestamp() AS now
         RETURNING {COLUMNS}"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(job.as_str())
        .bind(length.as_secs_f64())
        .bind(reason)
        .bind(actor)
        .fetch_one(&mut *transaction)
        .await?;
    let pause = Pause::from_row(&row)?;
    transaction.commit().await?;
    Ok(pause)
}

/// Ends a job's pause. `false` when none is in force.
pub async fn lift(connection: &mut PgConnection, job: &JobName, actor: &str) -> Result<bool, DatabaseError> {
    end(connection, job, actor).await
}

async fn end(connection: &mut PgConnection, job: &JobName, actor: &str) -> Result<bool, DatabaseError> {
    let done = sqlx::query(
        "UPDATE pgreeve.pause SET lifted_at = pg_catalog.clock_timestamp(), lifted_by = $2
         WHERE job = $1 AND lifted_at IS NULL AND until > pg_catalog.clock_timestamp()",
    )
    .bind(job.as_str())
    .bind(actor)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// All pauses that are known, the oldest first.
pub async fn load(connection: &mut PgConnection) -> Result<Vec<Pause>, DatabaseError> {
    let sql = format!("SELECT {COLUMNS} FROM pgreeve.pause ORDER BY since");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(connection).await?;
    Ok(rows.iter().map(Pause::from_row).collect::<Result<_, _>>()?)
}

/// The pause that keeps a job's slot at this instant from running.
#[must_use]
pub fn covering<'a>(pauses: &'a [Pause], job: &JobName, at: Timestamp) -> Option<&'a Pause> {
    pauses
        .iter()
        .rev()
        .find(|pause| pause.job == job.as_str() && pause.covers(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_pause_covers_its_first_instant_and_not_its_last() {
        let mut pause = Pause {
            job: "purge".to_owned(),
            since: at("2026-06-01T02:00:00Z"),
            until: at("2026-06-01T04:00:00Z"),
            reason: "migration".to_owned(),
            placed_by: "uid:0".to_owned(),
            lifted_at: None,
        };
        let covered = |pause: &Pause| {
            [
                "2026-06-01T01:59:59.999999Z",
                "2026-06-01T02:00:00Z",
                "2026-06-01T03:00:00Z",
                "2026-06-01T03:59:59.999999Z",
                "2026-06-01T04:00:00Z",
            ]
            .map(|instant| pause.covers(at(instant)))
        };
        assert_eq!(covered(&pause), [false, true, true, true, false]);
        pause.lifted_at = Some(at("2026-06-01T03:00:00Z"));
        assert_eq!(covered(&pause), [false, true, false, false, false]);
        let job = "purge".parse().unwrap();
        let pauses = [pause];
        assert!(covering(&pauses, &job, at("2026-06-01T02:30:00Z")).is_some());
        assert!(covering(&pauses, &"other".parse().unwrap(), at("2026-06-01T02:30:00Z")).is_none());
    }
}
