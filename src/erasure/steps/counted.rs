//! How many rows steps are about.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::erasure::execute::{Trouble, Worker};
use crate::erasure::plan::{Step, Work};
use crate::erasure::statement::Statements;
use crate::ledger::erasures::{Request, StepRow};

/// Whether no step has anything left to do but what holds keep; false when rows have come since.
pub(super) async fn verified(worker: &mut Worker<'_>, request: &Request, rows: &[StepRow]) -> Result<bool, Trouble> {
    let plan = worker.plan;
    let held = |step: &Step| rows.iter().any(|row| row.step == step.number && row.state == "held");
    let steps = plan.steps().filter(|step| !held(step));
    let left = counts(worker.session.connection(), &Statements::new(plan), steps, request, 1).await?;
    Ok(left.iter().all(|left| *left == 0))
}

/// How many rows each of some steps is about, but for those that keep.
pub(super) async fn counts<'s>(
    connection: &mut PgConnection,
    statements: &Statements<'_>,
    steps: impl Iterator<Item = &'s Step>,
    request: &Request,
    limit: u64,
) -> Result<Vec<u64>, Trouble> {
    let changing = steps.filter(|step| step.work != Work::Keep);
    match statements.counts(changing, limit) {
        Some(sql) => numbers(connection, sql, request).await,
        None => Ok(Vec::new()),
    }
}

pub(super) async fn count(
    connection: &mut PgConnection,
    statements: &Statements<'_>,
    step: &Step,
    request: &Request,
    limit: u64,
) -> Result<u64, Trouble> {
    let Some(sql) = statements.count(step, limit) else {
        return Ok(0);
    };
    number(connection, sql, request).await
}

pub(super) async fn number(connection: &mut PgConnection, sql: String, request: &Request) -> Result<u64, Trouble> {
    let number: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(request.id.0)
        .fetch_one(connection)
        .await
        .map_err(Trouble::sql("do a step"))?;
    Ok(number.unsigned_abs())
}

pub(super) async fn numbers(
    connection: &mut PgConnection,
    sql: String,
    request: &Request,
) -> Result<Vec<u64>, Trouble> {
    let numbers: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(request.id.0)
        .fetch_one(connection)
        .await
        .map_err(Trouble::sql("do steps together"))?;
    Ok(numbers.into_iter().map(i64::unsigned_abs).collect())
}
