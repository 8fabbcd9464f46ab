//! The steps of one request: each is one transaction that does its work and writes its row.

use std::time::Duration;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::execute::{Trouble, Worker};
use super::objects;
use super::plan::{Step, Work};
use super::reach::{Link, LinkKind};
use super::statement::{Restraint, Statements};
use crate::ledger::erasures::{self, Request, StepRow};
use crate::ledger::holds::{self, Standing};
use crate::postgres::catalog::leaves;

/// How many rows of a table one transaction deletes or changes at most.
const BATCH: u64 = 5000;

/// How many rows all the steps of one or several requests may be about to share one transaction.
pub(super) const AT_ONCE: u64 = 5000;

/// How many rows are counted at most.
const COUNT_LIMIT: u64 = 1_000_000;

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
    let (statements, view) = (Statements::new(plan), WorkerView { plan });
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
        .map(|(step, rows)| row(&view, step, "done", *rows, 0))
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

async fn one_by_one(worker: &mut Worker<'_>, request: &Request) -> Result<Stepped, Trouble> {
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
async fn verified(worker: &mut Worker<'_>, request: &Request, rows: &[StepRow]) -> Result<bool, Trouble> {
    let plan = worker.plan;
    let held = |step: &Step| rows.iter().any(|row| row.step == step.number && row.state == "held");
    let steps = plan.steps().filter(|step| !held(step));
    let left = counts(worker.session.connection(), &Statements::new(plan), steps, request, 1).await?;
    Ok(left.iter().all(|left| *left == 0))
}

/// How many rows each of some steps is about, but for those that keep.
async fn counts<'s>(
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
        .bind(request.id.0)
        .fetch_one(connection)
        .await
        .map_err(Trouble::sql("do a step"))?;
    Ok(number.unsigned_abs())
}

async fn numbers(connection: &mut PgConnection, sql: String, request: &Request) -> Result<Vec<u64>, Trouble> {
    let numbers: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(request.id.0)
        .fetch_one(connection)
        .await
        .map_err(Trouble::sql("do steps together"))?;
    Ok(numbers.into_iter().map(i64::unsigned_abs).collect())
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
    let holds = erasures::holds_on(transaction, &[request.id.0])
        .await
        .map_err(|error| Trouble::of("read the steps", &error))?;
    Ok((links, holds.into_values().flatten().collect()))
}

/// One step; where it is about many rows, most of them go in batches before. Answers with the holds
/// that keep rows from it.
async fn one(worker: &mut Worker<'_>, request: &Request, step: &Step) -> Result<Vec<Uuid>, Trouble> {
    let (plan, run, proof) = (worker.plan, worker.run, worker.proof);
    let (statements, view) = (Statements::new(plan), WorkerView { plan });
    if step.work != Work::Keep {
        in_batches(worker, request, step).await?;
    }
    let mut transaction = prepared(worker, request).await?;
    let kept = kept(&mut transaction, &view, request, step).await?;
    let Some(sql) = statements.apply(step, &kept.restraint) else {
        return Err(Trouble::Permanent("a step of the plan makes no statement".to_owned()));
    };
    let rows = number(&mut transaction, sql, request).await?;
    let removed = objects::remove(&mut transaction, proof, plan, step, request).await?;
    let held = if kept.restraint.is_empty() {
        0
    } else {
        count(&mut transaction, &statements, step, request, COUNT_LIMIT).await?
    };
    let holds = if held > 0 { kept.holds } else { Vec::new() };
    let row = StepRow {
        objects: removed.gone,
        object_versions: removed.versions,
        ..row(&view, step, if held > 0 { "held" } else { "done" }, rows, held)
    };
    record(&mut transaction, request, run, &[row], &holds).await?;
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
    let mut rows = Vec::with_capacity(steps.len());
    if holds.is_empty() {
        let done = work(&mut transaction, &statements, steps, request).await?;
        rows.extend(done.iter().map(|(step, rows)| row(&view, step, "done", *rows, 0)));
    } else {
        for step in steps {
            let held = count(&mut transaction, &statements, step, request, COUNT_LIMIT).await?;
            rows.push(row(&view, step, "held", 0, held));
        }
    }
    record(&mut transaction, request, run, &rows, &holds).await?;
    transaction.commit().await.map_err(Trouble::sql("commit steps"))?;
    Ok(holds)
}

/// Deletes or changes until few rows are left, a batch a transaction.
async fn in_batches(worker: &mut Worker<'_>, request: &Request, step: &Step) -> Result<(), Trouble> {
    let (plan, run, proof) = (worker.plan, worker.run, worker.proof);
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
            let Some(sql) = statements.apply_some(step, &kept.restraint, leaf, BATCH) else {
                return Ok(());
            };
            let rows = number(&mut transaction, sql, request).await?;
            let removed = objects::remove(&mut transaction, proof, plan, step, request).await?;
            let row = StepRow {
                objects: removed.gone,
                object_versions: removed.versions,
                ..row(&view, step, "open", rows, 0)
            };
            record(&mut transaction, request, run, &[row], &[]).await?;
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

fn row(view: &WorkerView<'_>, step: &Step, state: &str, rows: u64, held: u64) -> StepRow {
    let node = view.plan.reach.nodes.get(step.node);
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
