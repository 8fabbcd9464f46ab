//! The steps of one request: each is one transaction that does its work and writes its row.

mod apart;
mod counted;
mod kept;

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use self::apart::one_by_one;
use self::counted::{counts, number, numbers, verified};
use super::execute::{Trouble, Worker};
use super::plan::{ErasurePlan, Step};
use super::statement::{Restraint, Statements};
use crate::ledger::erasures::{self, Request, StepRow};
use crate::ledger::holds;

/// How many rows of a table one transaction deletes or changes at most.
const BATCH: u64 = 5000;

/// How many rows all the steps of one or several requests may be about to share one transaction.
pub(super) const AT_ONCE: u64 = 5000;

/// How long one statement of a step may take.
pub(super) const STATEMENT_TIME: Duration = Duration::from_mins(10);

/// What became of a request's steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stepped {
    /// The holds that keep rows from them.
    pub(super) holds: Vec<Uuid>,
    /// How many rows they deleted or changed, this time.
    pub(super) rows: u64,
    /// Whether nothing is left to do but what holds keep; false when rows have come since.
    pub(super) verified: bool,
}

/// Does all steps that are not done: together where they may be, else one by one. Rows that come late
/// are met between two transactions, so whoever has seen some asks for the steps one by one.
pub(super) async fn all(worker: &mut Worker<'_>, request: &Request, may_share: bool) -> Result<Stepped, Trouble> {
    let rows = erasures::steps(worker.session.connection(), request.id)
        .await
        .map_err(|error| Trouble::of("read the steps", &error))?;
    if may_share
        && rows.is_empty()
        && let Some(stepped) = at_once(worker, request).await?
    {
        return Ok(stepped);
    }
    let before = changed(&rows);
    let mut stepped = one_by_one(worker, request).await?;
    let rows = erasures::steps(worker.session.connection(), request.id)
        .await
        .map_err(|error| Trouble::of("read the steps", &error))?;
    stepped.rows = changed(&rows).saturating_sub(before);
    stepped.verified = verified(worker, request, &rows).await?;
    Ok(stepped)
}

/// How many rows steps have deleted or changed so far.
fn changed(rows: &[StepRow]) -> u64 {
    let changing = rows.iter().filter(|row| row.action != "keep");
    changing.fold(0, |sum, row| sum.saturating_add(row.rows))
}

/// All steps of a request that has few rows, in one transaction, each with its row in the ledger. None
/// when it has many, or when a legal hold stands, or is about to be placed, that may keep some of them:
/// then each step has a transaction of its own.
async fn at_once(worker: &mut Worker<'_>, request: &Request) -> Result<Option<Stepped>, Trouble> {
    let (plan, run) = (worker.plan, worker.run);
    let statements = Statements::new(plan);
    // What a store has deleted does not come back when the transaction gives way to a hold.
    if !plan.objects.is_empty() {
        return Ok(None);
    }
    let mut transaction = prepared(worker, request).await?;
    let failed = |error| Trouble::of("read the legal holds", &error);
    holds::share(&mut transaction).await.map_err(failed)?;
    if holds::any_stands(&mut transaction).await.map_err(failed)? {
        return Ok(None);
    }
    let due = counts(
        &mut transaction,
        &statements,
        plan.steps(),
        request,
        AT_ONCE.saturating_add(1),
    )
    .await?;
    if due.iter().fold(0_u64, |sum, due| sum.saturating_add(*due)) > AT_ONCE {
        return Ok(None);
    }
    let mut done = Vec::new();
    for stage in &plan.stages {
        done.extend(work(&mut transaction, &statements, stage, request).await?);
    }
    let rows: Vec<StepRow> = (done.iter())
        .map(|(step, rows)| row(plan, step, "done", *rows, 0))
        .collect();
    record(&mut transaction, request, run, &rows, &[]).await?;
    let left = counts(&mut transaction, &statements, plan.steps(), request, 1).await?;
    // Whoever waits to place a hold came before these rows are gone: they come back, and the hold is
    // placed before the next transaction looks for holds.
    if holds::is_awaited(&mut transaction).await.map_err(failed)? {
        return Ok(None);
    }
    transaction.commit().await.map_err(Trouble::sql("commit the steps"))?;
    Ok(Some(Stepped {
        holds: Vec::new(),
        rows: changed(&rows),
        verified: left.iter().all(|left| *left == 0),
    }))
}

/// One stage on all its rows; answers with how many each of its steps was about.
async fn work<'s>(
    transaction: &mut PgConnection,
    statements: &Statements<'_>,
    stage: &'s [Step],
    request: &Request,
) -> Result<Vec<(&'s Step, u64)>, Trouble> {
    let no_statement = || Trouble::Permanent("a step of the plan makes no statement".to_owned());
    if let [step] = stage {
        let sql = statements.apply(step, &Restraint::default()).ok_or_else(no_statement)?;
        return Ok(vec![(step, number(transaction, sql, request).await?)]);
    }
    let parts: Vec<(&Step, Restraint)> = stage.iter().map(|step| (step, Restraint::default())).collect();
    let sql = statements.apply_together(&parts).ok_or_else(no_statement)?;
    let rows = numbers(transaction, sql, request).await?;
    Ok(stage.iter().zip(rows).collect())
}

/// A transaction with its settings, in which the subject's row is locked.
async fn prepared<'t>(
    worker: &'t mut Worker<'_>,
    request: &Request,
) -> Result<sqlx::Transaction<'t, sqlx::Postgres>, Trouble> {
    let (plan, may_lock) = (worker.plan, worker.may_lock);
    let mut transaction = worker.begin_on(request).await?;
    // The step's row commits with it, and what closes the request waits for the disk after all of
    // them.
    sqlx::query(
        "SELECT pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.set_config('statement_timeout', $1, true)",
    )
    .bind(format!("{}ms", STATEMENT_TIME.as_millis()))
    .execute(&mut *transaction)
    .await
    .map_err(Trouble::sql("set up a step"))?;
    if may_lock && let Some(sql) = Statements::new(plan).lock_root() {
        sqlx::query(AssertSqlSafe(sql))
            .bind(request.id.0)
            .execute(&mut *transaction)
            .await
            .map_err(Trouble::sql("lock the subject's row"))?;
    }
    Ok(transaction)
}

fn row(plan: &ErasurePlan, step: &Step, state: &str, rows: u64, held: u64) -> StepRow {
    let node = plan.reach.nodes.get(step.node);
    StepRow {
        step: step.number,
        relation: node.map(|node| node.relation.display()).unwrap_or_default(),
        action: step.work.as_str().to_owned(),
        state: state.to_owned(),
        rows,
        held,
        objects: 0,
        object_versions: 0,
    }
}

async fn record(
    transaction: &mut PgConnection,
    request: &Request,
    run: crate::values::RunId,
    rows: &[StepRow],
    holds: &[Uuid],
) -> Result<(), Trouble> {
    erasures::record_steps(transaction, request.id, run, rows, holds)
        .await
        .map_err(|error| Trouble::of("write a step's row", &error))
}
