//! The steps of one request: each is one transaction that does its work and writes its row.

use std::time::Duration;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use super::execute::{Trouble, Worker};
use super::plan::{Step, Work};
use super::reach::{Link, LinkKind};
use super::statement::{Restraint, Statements};
use crate::ledger::erasures::{self, Request, StepRow};
use crate::ledger::holds::{self, Standing};
use crate::postgres::catalog::leaves;

/// How many rows one transaction deletes at most.
const BATCH: u64 = 5000;

/// How many rows are counted at most.
const COUNT_LIMIT: u64 = 1_000_000;

/// How long one statement of a step may take.
const STATEMENT_TIME: Duration = Duration::from_mins(10);

/// What became of a request's steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stepped {
    /// The holds that keep rows from them.
    pub(super) holds: Vec<Uuid>,
}

/// Does all steps that are not done.
pub(super) async fn all(worker: &mut Worker<'_>, request: &Request) -> Result<Stepped, Trouble> {
    let plan = worker.plan;
    let mut stepped = Stepped::default();
    for stage in &plan.stages {
        if worker.stop.is_cancelled() {
            return Err(Trouble::Stopped);
        }
        let rows = erasures::steps(worker.session.connection(), request.id)
            .await
            .map_err(|error| Trouble::of("read the steps", &error))?;
        let done = |step: &Step| rows.iter().any(|row| row.step == step.number && row.state == "done");
        if stage.iter().all(done) {
            continue;
        }
        let holds = match stage.as_slice() {
            [step] => one(worker, request, step).await?,
            steps => together(worker, request, steps).await?,
        };
        stepped.holds.extend(holds);
    }
    stepped.holds.sort_unstable();
    stepped.holds.dedup();
    Ok(stepped)
}

/// Whether no step has anything left to do but what holds keep; false when rows have come since.
pub(super) async fn verified(worker: &mut Worker<'_>, request: &Request) -> Result<bool, Trouble> {
    let plan = worker.plan;
    let connection = worker.session.connection();
    let rows = erasures::steps(connection, request.id)
        .await
        .map_err(|error| Trouble::of("read the steps", &error))?;
    let statements = Statements::new(plan);
    for step in plan.steps().filter(|step| step.work != Work::Keep) {
        let held = rows.iter().any(|row| row.step == step.number && row.state == "held");
        if !held && count(connection, &statements, step, request, 1).await? > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn count(
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

async fn number(connection: &mut PgConnection, sql: String, request: &Request) -> Result<u64, Trouble> {
    let number: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
        .persistent(false)
        .bind(request.id.0)
        .fetch_one(connection)
        .await
        .map_err(Trouble::sql("do a step"))?;
    Ok(number.unsigned_abs())
}

/// What keeps rows from a step now.
struct Kept {
    restraint: Restraint,
    holds: Vec<Uuid>,
}

/// Reads the holds in the step's own transaction; no other can be placed before it ends.
async fn kept(
    transaction: &mut PgConnection,
    worker: &WorkerView<'_>,
    request: &Request,
    step: &Step,
) -> Result<Kept, Trouble> {
    let failed = |error| Trouble::of("read the legal holds", &error);
    holds::share(transaction).await.map_err(failed)?;
    let Some(node) = worker.plan.reach.nodes.get(step.node) else {
        return Ok(Kept {
            restraint: Restraint::default(),
            holds: Vec::new(),
        });
    };
    let standing: Vec<Standing> = if step.work == Work::Keep {
        Vec::new()
    } else {
        holds::read(transaction, node.relation.oid)
            .await
            .map_err(failed)?
            .standing
    };
    let rows = erasures::steps(transaction, request.id).await.map_err(failed)?;
    let (children, mut ids) = if step.work == Work::Delete {
        kept_children(transaction, worker, request, step, &rows).await?
    } else {
        (Vec::new(), Vec::new())
    };
    ids.extend(standing.iter().map(|hold| hold.hold_id));
    ids.sort_unstable();
    ids.dedup();
    Ok(Kept {
        restraint: Statements::new(worker.plan).restraint(step.node, &standing, &children),
        holds: ids,
    })
}

/// The parts of a worker that do not borrow its session.
struct WorkerView<'a> {
    plan: &'a super::plan::ErasurePlan,
}

/// The links whose child still has rows that a hold keeps, and those holds. A row that they refer to
/// cannot go either.
async fn kept_children<'a>(
    transaction: &mut PgConnection,
    worker: &WorkerView<'a>,
    request: &Request,
    step: &Step,
    rows: &[StepRow],
) -> Result<(Vec<&'a Link>, Vec<Uuid>), Trouble> {
    let held_nodes: Vec<usize> = (worker.plan.steps())
        .filter(|other| other.number != step.number)
        .filter(|other| rows.iter().any(|row| row.step == other.number && row.state == "held"))
        .map(|other| other.node)
        .collect();
    let is_kept = |link: &&Link| {
        link.parent == step.node && matches!(link.kind, LinkKind::Key(_)) && held_nodes.contains(&link.child)
    };
    let links: Vec<&Link> = worker.plan.reach.links.iter().filter(is_kept).collect();
    if links.is_empty() {
        return Ok((links, Vec::new()));
    }
    let holds = erasures::holds_on(transaction, request.id)
        .await
        .map_err(|error| Trouble::of("read the steps", &error))?;
    Ok((links, holds))
}

/// One step; large deletions go in batches before. Answers with the holds that keep rows from it.
async fn one(worker: &mut Worker<'_>, request: &Request, step: &Step) -> Result<Vec<Uuid>, Trouble> {
    let (plan, run) = (worker.plan, worker.run);
    let (statements, view) = (Statements::new(plan), WorkerView { plan });
    if step.work == Work::Delete {
        in_batches(worker, request, step).await?;
    }
    let mut transaction = prepared(worker, request).await?;
    let kept = kept(&mut transaction, &view, request, step).await?;
    let Some(sql) = statements.apply(step, &kept.restraint) else {
        return Err(Trouble::Permanent("a step of the plan makes no statement".to_owned()));
    };
    let rows = number(&mut transaction, sql, request).await?;
    let held = if kept.restraint.is_empty() {
        0
    } else {
        count(&mut transaction, &statements, step, request, COUNT_LIMIT).await?
    };
    let holds = if held > 0 { kept.holds } else { Vec::new() };
    let row = row(&view, step, if held > 0 { "held" } else { "done" }, rows, held);
    record(&mut transaction, request, run, &row, &holds).await?;
    transaction.commit().await.map_err(Trouble::sql("commit a step"))?;
    Ok(holds)
}

/// The steps of tables that refer to each other in a circle, in one statement. A hold on some of
/// their rows keeps them all.
async fn together(worker: &mut Worker<'_>, request: &Request, steps: &[Step]) -> Result<Vec<Uuid>, Trouble> {
    let (plan, run) = (worker.plan, worker.run);
    let (statements, view) = (Statements::new(plan), WorkerView { plan });
    let mut transaction = prepared(worker, request).await?;
    let mut holds = Vec::new();
    for step in steps {
        let kept = kept(&mut transaction, &view, request, step).await?;
        if kept.restraint.is_empty() {
            continue;
        }
        let due = count(&mut transaction, &statements, step, request, COUNT_LIMIT).await?;
        let free = statements.count_free(step, &kept.restraint, COUNT_LIMIT);
        let free = match free {
            Some(sql) => number(&mut transaction, sql, request).await?,
            None => due,
        };
        if free < due {
            holds.extend(kept.holds);
        }
    }
    if holds.is_empty() {
        let parts: Vec<(&Step, Restraint)> = steps.iter().map(|step| (step, Restraint::default())).collect();
        let Some(sql) = statements.apply_together(&parts) else {
            return Err(Trouble::Permanent("a step of the plan makes no statement".to_owned()));
        };
        let counts = sqlx::query(AssertSqlSafe(sql))
            .persistent(false)
            .bind(request.id.0)
            .fetch_one(&mut *transaction)
            .await
            .map_err(Trouble::sql("do steps together"))?;
        let counts: Vec<i64> = counts.try_get(0).map_err(Trouble::sql("read what steps did"))?;
        for (step, rows) in steps.iter().zip(counts) {
            record(
                &mut transaction,
                request,
                run,
                &row(&view, step, "done", rows.unsigned_abs(), 0),
                &[],
            )
            .await?;
        }
    } else {
        for step in steps {
            let held = count(&mut transaction, &statements, step, request, COUNT_LIMIT).await?;
            record(
                &mut transaction,
                request,
                run,
                &row(&view, step, "held", 0, held),
                &holds,
            )
            .await?;
        }
    }
    transaction.commit().await.map_err(Trouble::sql("commit steps"))?;
    Ok(holds)
}

/// Deletes until few rows are left, a batch a transaction.
async fn in_batches(worker: &mut Worker<'_>, request: &Request, step: &Step) -> Result<(), Trouble> {
    let (plan, run) = (worker.plan, worker.run);
    let (statements, view) = (Statements::new(plan), WorkerView { plan });
    if count(worker.session.connection(), &statements, step, request, BATCH + 1).await? <= BATCH {
        return Ok(());
    }
    let Some(node) = plan.reach.nodes.get(step.node) else {
        return Ok(());
    };
    let leaves: Vec<Oid> = leaves::of(worker.session.connection(), node.relation.oid, "")
        .await
        .map_err(|error| Trouble::of("read the partitions", &error))?
        .into_iter()
        .map(|leaf| leaf.relation.oid)
        .collect();
    for leaf in leaves {
        loop {
            if worker.stop.is_cancelled() {
                return Err(Trouble::Stopped);
            }
            let mut transaction = prepared(worker, request).await?;
            let kept = kept(&mut transaction, &view, request, step).await?;
            let Some(sql) = statements.delete_some(step, &kept.restraint, leaf, BATCH) else {
                return Ok(());
            };
            let rows = number(&mut transaction, sql, request).await?;
            record(&mut transaction, request, run, &row(&view, step, "open", rows, 0), &[]).await?;
            transaction.commit().await.map_err(Trouble::sql("commit a batch"))?;
            if rows < BATCH {
                break;
            }
        }
    }
    Ok(())
}

/// A transaction with its settings, in which the subject's row is locked.
async fn prepared<'t>(
    worker: &'t mut Worker<'_>,
    request: &Request,
) -> Result<sqlx::Transaction<'t, sqlx::Postgres>, Trouble> {
    let (plan, may_lock) = (worker.plan, worker.may_lock);
    let mut transaction = worker.begin_on(request).await?;
    // The step's row commits with it, and what closes the request waits for the disk after all of
    // them. Stale statistics must not turn a step into a read of the whole table.
    sqlx::query(
        "SELECT set_config('synchronous_commit', 'off', true), set_config('jit', 'off', true),
                set_config('enable_seqscan', 'off', true), set_config('statement_timeout', $1, true)",
    )
    .bind(format!("{}ms", STATEMENT_TIME.as_millis()))
    .execute(&mut *transaction)
    .await
    .map_err(Trouble::sql("set up a step"))?;
    if may_lock && let Some(sql) = Statements::new(plan).lock_root() {
        sqlx::query(AssertSqlSafe(sql))
            .persistent(false)
            .bind(request.id.0)
            .execute(&mut *transaction)
            .await
            .map_err(Trouble::sql("lock the subject's row"))?;
    }
    Ok(transaction)
}

fn row(view: &WorkerView<'_>, step: &Step, state: &str, rows: u64, held: u64) -> StepRow {
    let node = view.plan.reach.nodes.get(step.node);
    StepRow {
        step: step.number,
        relation: node.map(|node| node.relation.display()).unwrap_or_default(),
        action: step.work.as_str().to_owned(),
        state: state.to_owned(),
        rows,
        held,
    }
}

async fn record(
    transaction: &mut PgConnection,
    request: &Request,
    run: crate::values::RunId,
    row: &StepRow,
    holds: &[Uuid],
) -> Result<(), Trouble> {
    erasures::record_step(transaction, request.id, run, row, holds)
        .await
        .map_err(|error| Trouble::of("write a step's row", &error))
}
