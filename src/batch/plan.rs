//! A rule looked up, checked, counted and ready; and the run that executes it.

mod run;

use std::time::Instant;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use sqlx::postgres::types::Oid;
use sqlx::{Connection, PgConnection};

use super::brake::{self, Tripped};
use super::condition::Group;
use super::cutoff::{self, Cutoff, rfc3339};
use super::estimate::{self, Estimate};
use super::gate::Gates;
use super::held::Held;
use super::outside::Beside;
use super::partitions::{self, Whole};
use super::preflight::{self, Target};
use super::rule::{Change, Rule};
use super::signals::{Sampler, Signal, State};
use super::statement::{Input, Statements};
use super::throttle::{Throttle, Yielding};
use super::{driver, exemption, states, verify};
use crate::job::{JobContext, JobError, JobReport, Plan};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::JobName;

/// Looks a rule up and decides what a run would do, within one read-only transaction.
///
/// # Errors
/// Refused, with cause and remedy, when a precondition does not hold.
pub async fn plan(rule: Rule, context: &mut JobContext) -> Result<Box<dyn Plan>, JobError> {
    plan_beside(rule, Beside::default(), context).await
}

/// As [`plan`], for rows with which something is done outside the database before they go.
///
/// # Errors
/// As [`plan`], and when a store cannot be used.
pub async fn plan_beside(rule: Rule, beside: Beside, context: &mut JobContext) -> Result<Box<dyn Plan>, JobError> {
    let deadline = context.deadline;
    let operation = || format!("plan the work on {}", rule.table);
    let mut reading = context
        .session
        .connection()
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await
        .map_err(|error| JobError::database(operation(), &error.into()))?;
    let result = match leave_room(&mut reading, &rule.throttle).await {
        Ok(()) => draw_up(&mut reading, &rule, beside, &context.job, deadline).await,
        Err(error) => Err(JobError::database(operation(), &error)),
    };
    if let Err(error) = reading.rollback().await {
        tracing::debug!(error = %DatabaseError::from(error), "the plan's transaction did not end in good order");
    }
    Ok(Box::new(result?))
}

/// Counts with one process while other sessions work.
async fn leave_room(reading: &mut PgConnection, throttle: &Throttle) -> Result<(), DatabaseError> {
    // Of no table: what works on it is looked at before each batch.
    let signals = Sampler::default().read(reading, throttle, Oid(0)).await?;
    if signals.get(&Signal::Activity) == Some(&State::Hold) {
        verify::alone(reading).await?;
    }
    Ok(())
}

async fn draw_up(
    connection: &mut PgConnection,
    rule: &Rule,
    beside: Beside,
    job: &JobName,
    deadline: Instant,
) -> Result<RowPlan, JobError> {
    let mut target = preflight::check(connection, rule).await?;
    target.warnings.extend(beside.check(connection, &target).await?);
    let table = target.relation.display();
    let cutoff = cutoff::fix(connection, &rule.period, &rule.zone(), target.age_type).await?;
    let mut gates = Gates::read(connection, rule, &target).await?;
    let cutoff = gates.lower(connection, cutoff, &rule.zone(), target.age_type).await?;
    let group = exemption::group(connection, rule, &mut target).await?;
    exemption::references(rule, &target)?;
    let held = Held::read(connection, rule, &target).await?;
    let mut statements = compile(rule, &target, &cutoff, group)?;
    beside.narrow(&mut statements);
    for condition in gates.conditions(&target) {
        statements.require(condition);
    }
    estimate::probe(connection, &table, &statements).await?;
    held.probe(connection, &statements).await?;
    statements.hold(&held.holds().standing);
    let due = estimate::due(connection, &table, &target.leaves, &statements, deadline).await?;
    target
        .warnings
        .extend(estimate::fruitless(connection, &table, &statements, &due, deadline).await?);
    target
        .warnings
        .extend(estimate::ageless(connection, rule, &target, &statements, deadline).await?);
    let tripped = brake::tripped(connection, job, &target, &statements, &rule.brakes, &due, deadline).await?;
    let foreign_keys = estimate::fan_out(connection, &target.keys, &statements).await;
    let whole = if rule.change == Change::Delete {
        let request = partitions::Request {
            target: &target,
            age_column: &rule.age_column,
            cutoff: &cutoff,
            mode: beside.partitions,
            outside: beside.needs_rows(),
        };
        let (whole, warnings) = partitions::plan(connection, request).await?;
        target.warnings.extend(warnings);
        whole
    } else {
        None
    };
    let (driver, why) = driver::explain(&target, &rule.age());
    Ok(RowPlan {
        deletes: rule.change == Change::Delete,
        chained: rule.skip_if_referenced && target.keys.iter().any(|key| key.own),
        most_rows: rule.brakes.max_rows,
        target,
        cutoff,
        statements,
        held,
        tripped,
        yielding: Yielding::new(rule.throttle.clone()),
        started: Instant::now(),
        due,
        foreign_keys,
        driver,
        why,
        beside,
        whole,
        gates,
    })
}

fn compile(rule: &Rule, target: &Target, cutoff: &Cutoff, keep_latest: Option<Group>) -> Result<Statements, JobError> {
    let zone = rule.zone();
    let (from, assignments) = match &rule.change {
        Change::Delete => (None, Vec::new()),
        Change::Update(change) => {
            let state = target.column(&change.from_column)?;
            let from = (
                state.name.as_str(),
                state.type_name.as_str(),
                change.from_values.as_slice(),
            );
            (Some(from), states::assignments(target, change, zone.name())?)
        }
    };
    Ok(Statements::compile(&Input {
        root: &target.relation,
        age_column: &rule.age_column,
        age_fallback: rule.age_fallback.as_deref(),
        age_type: target.age_type,
        cutoff,
        zone: zone.name(),
        predicate: rule.predicate.as_deref(),
        from,
        assignments,
        keep_latest,
        keep_referenced: if rule.skip_if_referenced { &target.keys } else { &[] },
        holds: &[],
    }))
}

/// What a run is about to do to a table's rows.
struct RowPlan {
    deletes: bool,
    /// Whether a row that goes can set free another one of the table.
    chained: bool,
    most_rows: Option<u64>,
    target: Target,
    cutoff: Cutoff,
    statements: Statements,
    held: Held,
    tripped: Vec<Tripped>,
    yielding: Yielding,
    started: Instant,
    due: Estimate,
    foreign_keys: Vec<Value>,
    driver: String,
    why: String,
    beside: Beside,
    whole: Option<Whole>,
    gates: Gates,
}

impl Plan for RowPlan {
    fn intent(&self) -> Value {
        let mut intent = json!({
            "table": self.target.relation.display(),
            "tables": self.target.leaves.len(),
            "cutoff": rfc3339(&self.cutoff.instant),
            "eligible": self.due.rows,
            "estimated": self.due.estimated,
            "driver": self.driver,
            "why": self.why,
            "where": self.statements.shown(),
            "holds": self.held.ids(),
            "gates": self.gates.shown(),
            "brakes": self.tripped.iter().map(Tripped::shown).collect::<Vec<_>>(),
            "triggers": self.target.triggers,
            "foreign_keys": self.foreign_keys,
            "warnings": self.target.warnings,
        });
        if let Value::Object(intent) = &mut intent {
            intent.extend(self.beside.intent());
            if let Some(whole) = &self.whole {
                intent.insert("partitions".to_owned(), whole.intent());
            }
        }
        intent
    }

    fn execute<'a>(mut self: Box<Self>, context: &'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>>
    where
        Self: 'a,
    {
        Box::pin(async move { self.run(context).await })
    }
}
