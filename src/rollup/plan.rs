//! A rollup looked up, checked and ready; and the run that executes it.

use std::time::Instant;

use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use super::check::{self, Checked, Subject};
use super::refresh::{self, Ended, Limits};
use super::spec::{Rollup, Task};
use super::work::{Tally, Work, floor};
use super::{rights, triggers};
use crate::job::{JobContext, JobError, JobReport, Outcome, Plan};
use crate::ledger::rollups::{self, State};
use crate::postgres::catalog::Relation;
use crate::postgres::grant::Grant;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::JobName;

/// The most buckets that a report names as drifted.
const NAMED: usize = 20;

/// Looks a rollup up and decides what a run would do, within one read-only transaction.
///
/// # Errors
/// Refused, with cause and remedy, when a precondition does not hold.
pub async fn plan(rollup: Rollup, task: Task, context: &mut JobContext) -> Result<Box<dyn Plan>, JobError> {
    let operation = format!("plan the rollup into {}", rollup.target);
    let mut reading = context
        .session
        .connection()
        .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
        .await
        .map_err(|error| JobError::database(operation, &error.into()))?;
    let result = draw_up(&mut reading, rollup, task, &context.job).await;
    if let Err(error) = reading.rollback().await {
        tracing::debug!(error = %DatabaseError::from(error), "the plan's transaction did not end in good order");
    }
    Ok(Box::new(result?))
}

/// The rights that a rollup needs, each with whether the session's role has it.
///
/// # Errors
/// Refused when a table or a column is not there.
pub async fn grants(connection: &mut PgConnection, rollup: &Rollup) -> Result<Vec<Grant>, JobError> {
    rights::of(connection, rollup).await
}

async fn draw_up(
    connection: &mut PgConnection,
    rollup: Rollup,
    task: Task,
    job: &JobName,
) -> Result<RollupPlan, JobError> {
    let mut checked = check::check(connection, &rollup).await?;
    let definition = rollup.definition();
    let state = rollups::load(connection, job)
        .await
        .map_err(|error| JobError::database("read the rollup's state", &error))?;
    let state = initialised(&rollup, job, &definition, &checked, state)?;
    if rollup.mode() == "exact" {
        let found = triggers::check(connection, job, &checked).await?;
        checked.warnings.extend(found);
    }
    let limits = refresh::limits(connection, &rollup, &checked).await?;
    let floor = floor(&checked, &state);
    if let Task::Backfill { from, to } = task
        && (to <= from || to <= floor)
    {
        let (cause, remedy) = if to <= from {
            ("the range ends before it begins".to_owned(), "write an earlier --from")
        } else {
            let cause = format!("the source is purged until {floor}, so the range has nothing to be computed from");
            (cause, "what is sealed stays; choose a later range")
        };
        return Err(check::refuse("target", &rollup.target.to_string(), cause, remedy));
    }
    if let (Task::Reconcile { .. }, Subject::Query(_)) = (task, &checked.subject) {
        let remedy = "`pgreeve rollup backfill` computes a range again";
        let cause = "a query has no source to compare with";
        return Err(check::refuse("query", &rollup.target.to_string(), cause, remedy));
    }
    Ok(RollupPlan {
        rollup,
        task,
        definition,
        checked,
        state,
        limits,
    })
}

fn initialised(
    rollup: &Rollup,
    job: &JobName,
    definition: &str,
    checked: &Checked,
    state: Option<State>,
) -> Result<State, JobError> {
    let target = rollup.target.to_string();
    let (cause, remedy) = match state {
        Some(state) if state.definition == definition && state.mode == rollup.mode() && checked.target.is_some() => {
            return Ok(state);
        }
        Some(_) if checked.target.is_none() => (
            "the table is gone",
            format!("restore it, or `pgreeve rollup remove {job}` and then `pgreeve rollup init {job}`"),
        ),
        Some(_) => (
            "the rollup is defined in another way than it was initialised with",
            format!("`pgreeve rollup init {job}` adopts the new definition"),
        ),
        None => (
            "the rollup is not initialised",
            format!("`pgreeve rollup init {job}` makes its table, or adopts one"),
        ),
    };
    Err(check::refuse("target", &target, cause, remedy))
}

/// What a run is about to do to a rollup.
struct RollupPlan {
    rollup: Rollup,
    task: Task,
    definition: String,
    checked: Checked,
    state: State,
    limits: Limits,
}

impl Plan for RollupPlan {
    fn intent(&self) -> Value {
        let (width, rules) = (self.checked.width, self.checked.rules());
        let statement = match (&self.checked.subject, &self.checked.target) {
            (Subject::Source { fresh, .. }, _) => {
                fresh.select(&width.bounds(self.limits.current, width.next(self.limits.current, rules), 1, rules))
            }
            (Subject::Query(metric), Some(target)) => {
                let before = width.bounds(self.limits.current, width.next(self.limits.current, rules), 1, rules);
                metric.replace(target, &before, &self.checked.zone)
            }
            (Subject::Query(_), None) => String::new(),
        };
        json!({
            "task": self.task_word(),
            "target": self.rollup.target.to_string(),
            "sources": self.sources(),
            "mode": self.rollup.mode(),
            "bucket": self.checked.width.to_string(),
            "timezone": self.checked.zone.name(),
            "sealed_until": self.state.sealed_until,
            "seals_until": self.limits.seal_to,
            "held_by": self.limits.held_by,
            "purged_until": self.state.purged_until,
            "range": match self.task {
                Task::Backfill { from, to } => json!([from, to]),
                _ => Value::Null,
            },
            "statement": statement,
            "warnings": self.checked.warnings,
        })
    }

    fn execute<'a>(self: Box<Self>, context: &'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>>
    where
        Self: 'a,
    {
        Box::pin(async move { self.run(context).await })
    }
}

impl RollupPlan {
    async fn run(self, context: &mut JobContext) -> Result<JobReport, JobError> {
        // Afresh: the plan may be older than the transactions under way now.
        let limits = refresh::limits(context.session.connection(), &self.rollup, &self.checked).await?;
        let started = Instant::now();
        let mut work = Work::new(context, &self.checked, &self.definition);
        let result = match self.task {
            Task::Refresh => work.refresh(&self.rollup, &limits).await,
            Task::Backfill { from, to } => work.backfill(&limits, from, to).await,
            Task::Reconcile { buckets } => work.reconcile(buckets).await,
        };
        let state = work.state().await;
        let tally = work.tally;
        let body = self.report(&tally, &limits, state.as_ref().ok(), started);
        match result {
            Err(error) => Err(error.with_partial(body)),
            Ok(ended) => {
                let reason = reason(&tally, ended);
                let outcome = if reason.is_some() {
                    Outcome::Partial
                } else {
                    Outcome::Succeeded
                };
                Ok(JobReport { outcome, reason, body })
            }
        }
    }

    fn report(&self, tally: &Tally, limits: &Limits, state: Option<&State>, started: Instant) -> Value {
        let sealed = state.and_then(|state| state.sealed_until);
        let milliseconds = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        json!({
            "task": self.task_word(),
            "target": self.checked.target.as_ref().map(Relation::display),
            "sources": self.sources(),
            "mode": self.rollup.mode(),
            "buckets": tally.buckets,
            "rows_written": tally.rows,
            "transactions": tally.transactions,
            "longest_transaction_ms": milliseconds(tally.longest),
            "duration_ms": milliseconds(started.elapsed()),
            "noted": tally.noted,
            "noted_and_purged": tally.purged,
            "drift": tally.drift.len(),
            "drifted": tally.drift.iter().take(NAMED).collect::<Vec<&Timestamp>>(),
            "sealed_until": sealed,
            "held_by": limits.held_by,
            "purged_until": state.and_then(|state| state.purged_until),
            "warnings": self.checked.warnings,
        })
    }

    fn task_word(&self) -> &'static str {
        match self.task {
            Task::Refresh => "refresh",
            Task::Backfill { .. } => "backfill",
            Task::Reconcile { .. } => "reconcile",
        }
    }

    fn sources(&self) -> Vec<String> {
        match &self.checked.subject {
            Subject::Source { relation, .. } => vec![relation.display()],
            Subject::Query(metric) => metric.source_names.clone(),
        }
    }
}

/// Why a run is not green.
fn reason(tally: &Tally, ended: Ended) -> Option<String> {
    let mut reasons = Vec::new();
    if ended == Ended::OutOfTime {
        reasons.push("budget: the time limit came before the end; the next run goes on from there".to_owned());
    }
    if !tally.drift.is_empty() {
        reasons.push(format!(
            "drift: {} sealed buckets differed from the source and were computed again",
            tally.drift.len()
        ));
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}
