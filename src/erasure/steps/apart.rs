//! Steps with a transaction each: of a person with many rows, and while legal holds stand.

use sqlx::postgres::types::Oid;
use uuid::Uuid;

use super::counted::{count, number};
use super::kept::kept;
use super::{BATCH, prepared, record, row, work};
use crate::erasure::execute::{Trouble, Worker};
use crate::erasure::objects;
use crate::erasure::plan::{Step, Work};
use crate::erasure::statement::Statements;
use crate::ledger::erasures::{self, Request, StepRow};
use crate::postgres::catalog::leaves;

/// How many rows are counted at most.
const COUNT_LIMIT: u64 = 1_000_000;

pub(super) async fn one_by_one(worker: &mut Worker<'_>, request: &Request) -> Result<super::Stepped, Trouble> {
    let plan = worker.plan;
    let mut stepped = super::Stepped::default();
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

/// One step; where it is about many rows, most of them go in batches before. Answers with the holds
/// that keep rows from it.
async fn one(worker: &mut Worker<'_>, request: &Request, step: &Step) -> Result<Vec<Uuid>, Trouble> {
    let (plan, run, proof) = (worker.plan, worker.run, worker.proof);
    let statements = Statements::new(plan);
    if step.work != Work::Keep {
        in_batches(worker, request, step).await?;
    }
    let mut transaction = prepared(worker, request).await?;
    let kept = kept(&mut transaction, plan, request, step).await?;
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
        ..row(plan, step, if held > 0 { "held" } else { "done" }, rows, held)
    };
    record(&mut transaction, request, run, &[row], &holds).await?;
    transaction.commit().await.map_err(Trouble::sql("commit a step"))?;
    Ok(holds)
}

/// The steps of tables that refer to each other in a circle, in one statement. A hold on some of
/// their rows keeps them all.
async fn together(worker: &mut Worker<'_>, request: &Request, steps: &[Step]) -> Result<Vec<Uuid>, Trouble> {
    let (plan, run) = (worker.plan, worker.run);
    let statements = Statements::new(plan);
    let mut transaction = prepared(worker, request).await?;
    let mut holds = Vec::new();
    for step in steps {
        let kept = kept(&mut transaction, plan, request, step).await?;
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
        rows.extend(done.iter().map(|(step, rows)| row(plan, step, "done", *rows, 0)));
    } else {
        for step in steps {
            let held = count(&mut transaction, &statements, step, request, COUNT_LIMIT).await?;
            rows.push(row(plan, step, "held", 0, held));
        }
    }
    record(&mut transaction, request, run, &rows, &holds).await?;
    transaction.commit().await.map_err(Trouble::sql("commit steps"))?;
    Ok(holds)
}

/// Deletes or changes until few rows are left, a batch a transaction.
async fn in_batches(worker: &mut Worker<'_>, request: &Request, step: &Step) -> Result<(), Trouble> {
    let (plan, run, proof) = (worker.plan, worker.run, worker.proof);
    let statements = Statements::new(plan);
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
            let kept = kept(&mut transaction, plan, request, step).await?;
            let Some(sql) = statements.apply_some(step, &kept.restraint, leaf, BATCH) else {
                return Ok(());
            };
            let rows = number(&mut transaction, sql, request).await?;
            let removed = objects::remove(&mut transaction, proof, plan, step, request).await?;
            let row = StepRow {
                objects: removed.gone,
                object_versions: removed.versions,
                ..row(plan, step, "open", rows, 0)
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
