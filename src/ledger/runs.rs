//! `pgreeve.run`: one row per due slot and per manual run, opened before anything happens and
//! closed once.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff_sqlx::{Timestamp as SqlTimestamp, ToSqlx};
use serde::Serialize;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use crate::postgres::sqlstate::DatabaseError;
use crate::values::{JobName, RunId};
use crate::words::{Adjusted, Kind, Outcome, Trigger};

/// A run that is about to be admitted.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its identity.
    pub run: RunId,
    /// Its job.
    pub job: JobName,
    /// The job's kind.
    pub kind: Kind,
    /// Its slot; none for a manual run.
    pub scheduled_for: Option<Timestamp>,
    /// The zone the slot was computed in.
    pub timezone: String,
    /// What a clock change did to the slot.
    pub adjusted: Option<Adjusted>,
    /// What started it.
    pub trigger: Trigger,
    /// Who asked for it.
    pub actor: String,
    /// The daemon or host that runs it.
    pub instance: String,
    /// The epoch it is admitted under.
    pub epoch: i64,
    /// The fingerprint of the job's settings.
    pub policy: String,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct RunEnd {
    /// The one terminal state.
    pub outcome: Outcome,
    /// Why it is not green.
    pub reason: Option<String>,
    /// PostgreSQL's code, where PostgreSQL refused.
    pub sqlstate: Option<String>,
    /// The kind's report.
    pub report: Value,
}

impl RunEnd {
    /// An end without a report.
    pub fn without_report(outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            outcome,
            reason: Some(reason.into()),
            sqlstate: None,
            report: Value::Object(serde_json::Map::new()),
        }
    }
}

/// The published run record: `history --json` and the audit log show the same fields.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunRecord {
    /// Its identity.
    pub run_id: RunId,
    /// Its job.
    pub job: String,
    /// The job's kind.
    pub kind: String,
    /// The database's name in the configuration.
    pub database: String,
    /// Its slot; null for a manual run.
    pub scheduled_for: Option<Timestamp>,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
    /// When it came to its end.
    pub finished_at: Option<Timestamp>,
    /// How many attempts were begun.
    pub attempt: i32,
    /// What started it.
    pub trigger: String,
    /// How it ended; null while it runs.
    pub outcome: Option<String>,
    /// Why it is not green.
    pub reason: Option<String>,
    /// The kind's report.
    pub report: Value,
    /// Whether the same run may end better by itself. Known to the process that ran it only.
    #[serde(skip)]
    pub may_pass: bool,
}

const RECORD_COLUMNS: &str =
    "run_id, job, kind, scheduled_for, started_at, finished_at, attempt, trigger, outcome, reason, report";

impl RunRecord {
    fn from_row(row: &PgRow, database: &str) -> Result<Self, sqlx::Error> {
        let instant = |column: &str| {
            Ok::<_, sqlx::Error>(
                row.try_get::<Option<SqlTimestamp>, _>(column)?
                    .map(SqlTimestamp::to_jiff),
            )
        };
        Ok(Self {
            run_id: RunId(row.try_get("run_id")?),
            job: row.try_get("job")?,
            kind: row.try_get("kind")?,
            database: database.to_owned(),
            scheduled_for: instant("scheduled_for")?,
            started_at: instant("started_at")?,
            finished_at: instant("finished_at")?,
            attempt: row.try_get("attempt")?,
            trigger: row.try_get("trigger")?,
            outcome: row.try_get("outcome")?,
            reason: row.try_get("reason")?,
            report: row.try_get("report")?,
            may_pass: false,
        })
    }

    /// The outcome, once there is one.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome.as_deref().and_then(Outcome::from_word)
    }
}

/// Opens a run's row. `false` when the slot has a row already: somebody else accounts for it. Only a
/// row that calls a slot missed before its time has come, as a clock that ran ahead writes it, is
/// taken over: such a slot never ran.
pub async fn admit(transaction: &mut PgConnection, run: &NewRun) -> Result<bool, DatabaseError> {
    let done = sqlx::query(
        "INSERT INTO pgreeve.run (run_id, job, kind, scheduled_for, timezone, adjusted, trigger, actor, instance, epoch, policy)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
         ON CONFLICT (job, scheduled_for) DO UPDATE
         SET run_id = excluded.run_id, kind = excluded.kind, timezone = excluded.timezone, adjusted = excluded.adjusted,
             trigger = excluded.trigger, actor = excluded.actor, instance = excluded.instance, epoch = excluded.epoch,
             policy = excluded.policy, created_at = excluded.created_at, outcome = NULL, reason = NULL, finished_at = NULL
         WHERE run.outcome = 'missed' AND run.attempt = 0
           AND (run.created_at < run.scheduled_for OR run.created_at > pg_catalog.clock_timestamp())",
    )
    .bind(run.run.0)
    .bind(run.job.as_str())
    .bind(run.kind.as_str())
    .bind(run.scheduled_for.map(ToSqlx::to_sqlx))
    .bind(&run.timezone)
    .bind(run.adjusted.map(Adjusted::as_str))
    .bind(run.trigger.as_str())
    .bind(&run.actor)
    .bind(&run.instance)
    .bind(run.epoch)
    .bind(&run.policy)
    .execute(transaction)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The run that this process admitted for the same slot in a transaction of which it never learnt
/// that it was committed. Nobody else starts it.
pub async fn admitted_before(transaction: &mut PgConnection, run: &NewRun) -> Result<Option<RunId>, DatabaseError> {
    let found = sqlx::query_scalar(
        "SELECT run_id FROM pgreeve.run
         WHERE job = $1 AND scheduled_for = $2 AND instance = $3 AND epoch = $4 AND outcome IS NULL AND attempt = 0",
    )
    .bind(run.job.as_str())
    .bind(run.scheduled_for.map(ToSqlx::to_sqlx))
    .bind(&run.instance)
    .bind(run.epoch)
    .fetch_optional(transaction)
    .await?;
    Ok(found.map(RunId))
}

/// A slot that is not run.
#[derive(Debug, Clone)]
pub struct Unrun {
    /// The slot.
    pub scheduled_for: Timestamp,
    /// What a clock change did to it.
    pub adjusted: Option<Adjusted>,
    /// What would have started it.
    pub trigger: Trigger,
    /// Why it is not run.
    pub reason: String,
}

/// Accounts for slots that are not run: one row each, opened and closed at once, all in one
/// statement. `like` says the rest about them. Answers with the slots that got their row now; for
/// the others somebody else accounts.
pub async fn account(
    transaction: &mut PgConnection,
    like: &NewRun,
    outcome: Outcome,
    slots: &[Unrun],
) -> Result<BTreeSet<Timestamp>, DatabaseError> {
    if slots.is_empty() {
        return Ok(BTreeSet::new());
    }
    let rows: Vec<SqlTimestamp> = sqlx::query_scalar(
        "INSERT INTO pgreeve.run (run_id, job, kind, scheduled_for, timezone, adjusted, trigger, actor, instance, epoch,
                                  policy, outcome, reason, finished_at)
         SELECT s.run_id, $5, $6, s.scheduled_for, $7, s.adjusted, s.trigger, $8, $9, $10, $11, $12, s.reason,
                pg_catalog.clock_timestamp()
         FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $13::text[])
              AS s (run_id, scheduled_for, adjusted, trigger, reason)
         ON CONFLICT (job, scheduled_for) DO NOTHING
         RETURNING scheduled_for",
    )
    .bind(slots.iter().map(|_| RunId::new().0).collect::<Vec<_>>())
    .bind(slots.iter().map(|slot| slot.scheduled_for.to_sqlx()).collect::<Vec<_>>())
    .bind(slots.iter().map(|slot| slot.adjusted.map(Adjusted::as_str)).collect::<Vec<_>>())
    .bind(slots.iter().map(|slot| slot.trigger.as_str()).collect::<Vec<_>>())
    .bind(like.job.as_str())
    .bind(like.kind.as_str())
    .bind(&like.timezone)
    .bind(&like.actor)
    .bind(&like.instance)
    .bind(like.epoch)
    .bind(&like.policy)
    .bind(outcome.as_str())
    .bind(slots.iter().map(|slot| slot.reason.as_str()).collect::<Vec<_>>())
    .fetch_all(transaction)
    .await?;
    Ok(rows.into_iter().map(SqlTimestamp::to_jiff).collect())
}

/// Closes a run. Does nothing to one that is closed already: a run ends once.
pub async fn finish(connection: &mut PgConnection, run: RunId, end: &RunEnd) -> Result<bool, DatabaseError> {
    let done = sqlx::query(
        "UPDATE pgreeve.run SET outcome = $2, reason = $3, sqlstate = $4, report = $5, backend_pid = NULL,
                finished_at = pg_catalog.clock_timestamp()
         WHERE run_id = $1 AND outcome IS NULL",
    )
    .bind(run.0)
    .bind(end.outcome.as_str())
    .bind(&end.reason)
    .bind(&end.sqlstate)
    .bind(&end.report)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The server process of a run's newest attempt, while the run is open.
pub async fn backend_pid(connection: &mut PgConnection, run: RunId) -> Result<Option<i32>, DatabaseError> {
    let found = sqlx::query_scalar("SELECT backend_pid FROM pgreeve.run WHERE run_id = $1 AND outcome IS NULL")
        .bind(run.0)
        .fetch_optional(connection)
        .await?;
    Ok(found.flatten())
}

/// One run's record.
pub async fn find(
    connection: &mut PgConnection,
    database: &str,
    run: RunId,
) -> Result<Option<RunRecord>, DatabaseError> {
    let sql = format!("SELECT {RECORD_COLUMNS} FROM pgreeve.run WHERE run_id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(run.0)
        .fetch_optional(connection)
        .await?;
    Ok(row.map(|row| RunRecord::from_row(&row, database)).transpose()?)
}

/// The record of one slot.
pub async fn of_slot(
    connection: &mut PgConnection,
    database: &str,
    job: &JobName,
    slot: Timestamp,
) -> Result<Option<RunRecord>, DatabaseError> {
    let sql = format!("SELECT {RECORD_COLUMNS} FROM pgreeve.run WHERE job = $1 AND scheduled_for = $2");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(job.as_str())
        .bind(slot.to_sqlx())
        .fetch_optional(connection)
        .await?;
    Ok(row.map(|row| RunRecord::from_row(&row, database)).transpose()?)
}

/// What `history` may be narrowed to.
#[derive(Debug, Clone, Default)]
pub struct HistoryFilter {
    /// One job.
    pub job: Option<JobName>,
    /// Slots, and manual runs made, since.
    pub since: Option<Timestamp>,
    /// Slots, and manual runs made, before.
    pub until: Option<Timestamp>,
    /// One trigger.
    pub trigger: Option<Trigger>,
    /// Only what is at its end and not green.
    pub not_green: bool,
    /// One outcome.
    pub outcome: Option<Outcome>,
    /// At most so many, the newest.
    pub limit: i64,
}

/// The newest runs that a filter lets through, newest first; a slot counts as of its time.
pub async fn history(
    connection: &mut PgConnection,
    database: &str,
    filter: &HistoryFilter,
) -> Result<Vec<RunRecord>, DatabaseError> {
    let sql = format!(
        "SELECT {RECORD_COLUMNS} FROM pgreeve.run
         WHERE ($1::text IS NULL OR job = $1) AND ($2::timestamptz IS NULL OR coalesce(scheduled_for, created_at) >= $2)
           AND ($3::text IS NULL OR outcome = $3)
           AND ($5::timestamptz IS NULL OR coalesce(scheduled_for, created_at) < $5)
           AND ($6::text IS NULL OR trigger = $6) AND (NOT $7 OR outcome <> 'succeeded')
         ORDER BY coalesce(scheduled_for, created_at) DESC, created_at DESC LIMIT $4"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(filter.job.as_ref().map(JobName::as_str))
        .bind(filter.since.map(ToSqlx::to_sqlx))
        .bind(filter.outcome.map(Outcome::as_str))
        .bind(filter.limit)
        .bind(filter.until.map(ToSqlx::to_sqlx))
        .bind(filter.trigger.map(Trigger::as_str))
        .bind(filter.not_green)
        .fetch_all(connection)
        .await?;
    Ok(rows
        .iter()
        .map(|row| RunRecord::from_row(row, database))
        .collect::<Result<_, _>>()?)
}
