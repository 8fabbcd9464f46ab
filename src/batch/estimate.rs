//! What the plan counts: how many rows are due, what part of the table that is, what hangs on them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::preflight::{Target, reading, refuse};
use super::report::COUNT_LIMIT;
use super::rule::{Change, Rule};
use super::statement::Statements;
use super::verify;
use crate::job::JobError;
use crate::postgres::catalog::effects::IncomingKey;
use crate::postgres::catalog::leaves::Leaf;
use crate::postgres::sqlstate::DatabaseError;

/// How long a count may take before an estimate of the planner has to do.
const COUNT_TIME: Duration = Duration::from_mins(1);

/// How long the counts of referencing rows may take together; they are a courtesy.
const FAN_OUT_TIME: Duration = Duration::from_secs(5);

/// How long a count may take that only warns; an index by age answers at once how many rows have none.
const WARNING_TIME: Duration = Duration::from_secs(5);

/// How many rows are due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Estimate {
    /// How many.
    pub(super) rows: u64,
    /// Whether that is the planner's estimate, because counting took too long.
    pub(super) estimated: bool,
    /// The leaves that hold them, where they were counted.
    pub(super) leaves: Option<Vec<Oid>>,
}

/// Has the condition planned, so that one that makes no sense is refused before anything runs.
pub(super) async fn probe(connection: &mut PgConnection, table: &str, statements: &Statements) -> Result<(), JobError> {
    let mut savepoint = connection.begin().await.map_err(|error| reading(table)(error.into()))?;
    let sql = format!("EXPLAIN (FORMAT JSON) {}", statements.probe());
    let result = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .execute(&mut *savepoint)
        .await;
    savepoint
        .rollback()
        .await
        .map_err(|error| reading(table)(error.into()))?;
    let Err(error) = result else { return Ok(()) };
    let sqlx::Error::Database(refusal) = &error else {
        return Err(reading(table)(error.into()));
    };
    let code = refusal.code().unwrap_or_default();
    if ["08", "53", "55", "57", "58", "XX"]
        .iter()
        .any(|class| code.starts_with(class))
    {
        return Err(reading(table)(error.into()));
    }
    // Planning reads no row: what the message quotes is the operator's own text.
    let cause = format!("the condition is refused: {} (SQLSTATE {code})", refusal.message());
    let code = code.into_owned();
    let error = DatabaseError::from(error);
    let correct =
        "correct `where`; it sees the columns of the table, and names outside of pg_catalog with their schema";
    let remedy = error.remedy().unwrap_or_else(|| correct.to_owned());
    Err(JobError {
        sqlstate: Some(code),
        ..refuse(table, cause, remedy)
    })
}

/// Counts the rows that are due, leaf by leaf, or asks the planner when that takes too long.
pub(super) async fn due(
    connection: &mut PgConnection,
    table: &str,
    leaves: &[Leaf],
    statements: &Statements,
    deadline: Instant,
) -> Result<Estimate, JobError> {
    let counted: Result<Vec<(Oid, i64)>, DatabaseError> =
        limited(connection, statements.count_by_leaf(leaves), time_for(deadline)).await;
    match counted {
        Ok(counts) => Ok(Estimate {
            rows: counts.iter().map(|(_, rows)| rows.unsigned_abs()).sum(),
            estimated: false,
            leaves: Some(counts.into_iter().map(|(leaf, _)| leaf).collect()),
        }),
        Err(error) if error.is("57014") => Ok(Estimate {
            rows: planned_rows(connection, table, &statements.probe()).await?,
            estimated: true,
            leaves: None,
        }),
        Err(error) => Err(unevaluable(table, &error)),
    }
}

/// Says so when nothing is due because no row of the table, old or young, meets `where`: a misspelt
/// value must not pass as "nothing to do".
pub(super) async fn fruitless(
    connection: &mut PgConnection,
    table: &str,
    statements: &Statements,
    due: &Estimate,
    deadline: Instant,
) -> Result<Option<String>, JobError> {
    let Some(sql) = statements.met().filter(|_| due.rows == 0) else {
        return Ok(None);
    };
    let time = time_for(deadline).min(WARNING_TIME);
    let found: Result<Vec<(bool, bool)>, DatabaseError> = limited(connection, sql, time).await;
    match found.as_deref() {
        Ok([(true, false)]) => Ok(Some(
            "`where` holds for no row of the table, old or young: are its values spelt as the application spells them?"
                .to_owned(),
        )),
        Ok(_) => Ok(None),
        // It took too long, or fails on a row that is not old: neither is known to be a mistake.
        Err(error)
            if error
                .sqlstate
                .as_deref()
                .is_some_and(|code| code == "57014" || code.starts_with("22")) =>
        {
            Ok(None)
        }
        Err(error) => Err(reading(table)(error.clone())),
    }
}

/// Says how many rows stay for ever because nothing tells their age. Where that takes too long to
/// count, that they may.
pub(super) async fn ageless(
    connection: &mut PgConnection,
    rule: &Rule,
    target: &Target,
    statements: &Statements,
    deadline: Instant,
) -> Result<Option<String>, JobError> {
    if target.column(&rule.age_column)?.not_null {
        return Ok(None);
    }
    let time = time_for(deadline).min(WARNING_TIME);
    let counted: Result<Vec<(i64,)>, DatabaseError> = limited(connection, statements.ageless(), time).await;
    let rows = match counted {
        Ok(counts) => counts.first().map_or(0, |(rows,)| rows.unsigned_abs()),
        Err(error) if error.is("57014") => {
            let age = rule.age();
            return Ok(Some(format!(
                "rows without {age} are never due; whether there are any took too long to find out"
            )));
        }
        Err(error) => return Err(reading(&target.relation.display())(error)),
    };
    let count = match rows {
        0 => return Ok(None),
        1 => "1 row".to_owned(),
        COUNT_LIMIT.. => format!("more than {} rows", COUNT_LIMIT - 1),
        _ => format!("{rows} rows"),
    };
    let remedy = match (&rule.change, &rule.age_fallback) {
        (Change::Update(_), None) => "; `age_fallback` names a column to go by instead",
        _ => "",
    };
    Ok(Some(format!("never due, having no {}: {count}{remedy}", rule.age())))
}

/// Says so when the rows that are due are more than a part of the table.
pub(super) async fn fraction(
    connection: &mut PgConnection,
    target: &Target,
    statements: &Statements,
    rows: u64,
    most: f64,
    deadline: Instant,
) -> Result<Option<String>, JobError> {
    let table = target.relation.display();
    #[expect(clippy::cast_precision_loss, reason = "a fraction of a table needs no exact count")]
    let part_of = |all: u64| rows as f64 / all.max(rows) as f64;
    // Statistics are good enough to see that a run is far from the limit.
    let statistics: f64 = target.leaves.iter().map(|leaf| f64::from(leaf.relation.rows)).sum();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and rough"
    )]
    let known = target
        .leaves
        .iter()
        .all(|leaf| leaf.relation.rows >= 0.0)
        .then_some(statistics as u64);
    if known.is_some_and(|all| part_of(all) < most / 2.0) {
        return Ok(None);
    }
    let counted: Result<Vec<(i64,)>, DatabaseError> =
        limited(connection, statements.count_all(), time_for(deadline)).await;
    let all = match counted {
        Ok(counts) => counts.first().map_or(0, |(rows,)| rows.unsigned_abs()),
        Err(error) if error.is("57014") => planned_rows(connection, &table, &statements.count_all()).await?,
        Err(error) => return Err(reading(&table)(error)),
    };
    let part = part_of(all);
    Ok((part > most)
        .then(|| format!("{rows} of {all} rows are due, {part:.3} of the table and more than `max_fraction` = {most}")))
}

/// Whether the table has a row of the time since an instant; no when that cannot be found in time.
pub(super) async fn written_since(
    connection: &mut PgConnection,
    table: &str,
    statements: &Statements,
    since: jiff::Timestamp,
    deadline: Instant,
) -> Result<bool, JobError> {
    let sql = statements.written_since(&since.to_string());
    let found: Result<Vec<(bool,)>, DatabaseError> = limited(connection, sql, time_for(deadline)).await;
    match found {
        Ok(found) => Ok(found.first().is_some_and(|(written,)| *written)),
        Err(error) if error.is("57014") => Ok(false),
        Err(error) => Err(reading(table)(error)),
    }
}

/// The foreign keys that point at the table, with how many rows hang on those that are due (bounded;
/// null where that cannot be counted in time or may not be read).
pub(super) async fn fan_out(
    connection: &mut PgConnection,
    keys: &[IncomingKey],
    statements: &Statements,
) -> Vec<Value> {
    let mut shown = Vec::new();
    let until = Instant::now() + FAN_OUT_TIME;
    for key in keys {
        let left = until.saturating_duration_since(Instant::now());
        let rows = if key.readable && !left.is_zero() {
            let sql = statements.count_referencing(&key.quoted, &key.columns);
            let counted: Result<Vec<(i64,)>, DatabaseError> =
                limited(connection, sql, left.max(Duration::from_millis(1))).await;
            match counted {
                Ok(counts) => counts.first().map(|(rows,)| *rows),
                Err(error) => {
                    tracing::debug!(%error, table = %key.table, "referencing rows could not be counted");
                    None
                }
            }
        } else {
            None
        };
        shown.push(json!({
            "constraint": key.constraint,
            "table": key.table,
            "on_delete": key.on_delete,
            "indexed": key.indexed,
            "rows": rows,
        }));
    }
    shown
}

/// A condition that plans but fails on a row, or writes.
fn unevaluable(table: &str, error: &DatabaseError) -> JobError {
    let code = error.sqlstate.as_deref().unwrap_or_default();
    if code.starts_with("22") || code.starts_with("42") || code.starts_with("P0") || code == "25006" {
        return JobError {
            sqlstate: error.sqlstate.clone(),
            ..refuse(
                table,
                format!("the condition fails when it is evaluated: {error}"),
                "correct `where` so that it holds or does not hold for every row, and changes nothing",
            )
        };
    }
    JobError::database(format!("count the due rows of {table}"), error)
}

/// A quarter of what is left of the run, at most a minute.
fn time_for(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    (left / 4).clamp(Duration::from_millis(100), COUNT_TIME)
}

/// Runs a query with a time limit of its own, or the session's if that is shorter, in a savepoint
/// that is rolled back whatever happens.
async fn limited<T>(connection: &mut PgConnection, sql: String, limit: Duration) -> Result<Vec<T>, DatabaseError>
where
    T: Send + Unpin + for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
{
    let mut savepoint = connection.begin().await?;
    sqlx::query(LIMIT_STATEMENT)
        .bind(i64::try_from(limit.as_millis()).unwrap_or(i64::MAX))
        .execute(&mut *savepoint)
        .await?;
    let rows = sqlx::query_as(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_all(&mut *savepoint)
        .await;
    savepoint.rollback().await?;
    Ok(rows?)
}

/// Lowers `statement_timeout` for the rest of the transaction to `$1` ms, never raises it, and
/// answers with the limit in ms.
pub(super) const LIMIT_STATEMENT: &str = "
    SELECT asked.ms, set_config('statement_timeout', asked.ms::text, true)
    FROM (SELECT least($1, nullif((extract(epoch FROM current_setting('statement_timeout')::interval) * 1000)::int8, 0)) AS ms) AS asked";

/// How many rows the planner expects of a query's main node; of an aggregate, of what it reads.
async fn planned_rows(connection: &mut PgConnection, table: &str, sql: &str) -> Result<u64, JobError> {
    let mut savepoint = connection.begin().await.map_err(|error| reading(table)(error.into()))?;
    let plan = explained(&mut savepoint, sql).await;
    savepoint
        .rollback()
        .await
        .map_err(|error| reading(table)(error.into()))?;
    let plan = plan.map_err(reading(table))?;
    let mut node = plan.pointer("/0/Plan").unwrap_or(&Value::Null);
    while let Some("Aggregate") = node.get("Node Type").and_then(Value::as_str) {
        let Some(below) = node.pointer("/Plans/0") else { break };
        node = below;
    }
    Ok(node.get("Plan Rows").and_then(Value::as_u64).unwrap_or_default())
}

/// A query's plan for one process: below a Gather rows are told for one of several.
async fn explained(savepoint: &mut PgConnection, sql: &str) -> Result<Value, DatabaseError> {
    verify::alone(savepoint).await?;
    let plan = sqlx::query_scalar(AssertSqlSafe(format!("EXPLAIN (FORMAT JSON) {sql}")))
        .persistent(false)
        .fetch_one(savepoint)
        .await?;
    Ok(plan)
}
