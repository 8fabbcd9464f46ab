//! A rule looked up, checked, counted and ready; and the run that executes it.

use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use serde_json::{Map, Value, json};
use sqlx::postgres::types::Oid;
use sqlx::{Connection, PgConnection};

use super::brake::{self, Tripped};
use super::condition::Group;
use super::cutoff::{self, Cutoff, rfc3339};
use super::estimate::{self, Estimate};
use super::gate::Gates;
use super::held::Held;
use super::leaf_walk::{Halt, Limits, Tally, Walk, committed};
use super::outside::{Beside, Outside};
use super::partitions::{self, Gone, Removal, Whole};
use super::preflight::{self, Target};
use super::report::Report;
use super::rule::{Change, Rule};
use super::signals::{Sampler, Signal, State};
use super::statement::{Input, Statements};
use super::throttle::{Throttle, Yielding};
use super::{driver, exemption, states, verify};
use crate::backup::sweep::store_error;
use crate::job::{JobContext, JobError, JobReport, Outcome, Plan};
use crate::ledger::{batches, purges};
use crate::postgres::catalog::Relation;
use crate::postgres::catalog::leaves::Leaf;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::JobName;

/// How often the table is walked: rows that came loose, or became due, meanwhile get a second chance.
const PASSES: u32 = 2;

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

impl RowPlan {
    async fn run(&mut self, context: &mut JobContext) -> Result<JobReport, JobError> {
        let mut tally = Tally::default();
        self.started = Instant::now();
        let passing = brake::check(context, &self.target.relation.display(), &self.tripped, self.due.rows).await?;
        if self.deletes {
            self.gates.announce(context, &self.target, &self.cutoff).await?;
        }
        let mut outside = Outside::begin(&self.beside, context, &self.target.relation, &self.cutoff).await?;
        // What an earlier attempt did counts against the brake too.
        let before = committed(context, &tally).await;
        let allowed = self
            .most_rows
            .map(|most| most.max(passing.unwrap_or(0)).saturating_sub(before));
        let mut remains = None;
        let mut gone = Gone::default();
        let mut halt = self.whole(context, false, allowed, &mut gone).await.err();
        tally.rows += gone.rows;
        tally.batches += gone.partitions();
        for pass in 1.. {
            let so_far = tally.rows;
            if halt.is_none() {
                tally.locked = 0;
                let bounds = (allowed, gone.leaves.as_slice());
                halt = self.walk(context, &mut outside, &mut tally, bounds, pass).await.err();
            }
            if halt.is_none() {
                halt = self.renew_holds(context).await.err().map(Halt::Failed);
            }
            if matches!(halt, Some(Halt::Cancelled | Halt::Failed(_))) {
                break;
            }
            remains = match verify::remains(
                context.session.connection(),
                &self.statements,
                context.deadline,
                self.yielding.beside_others(),
            )
            .await
            {
                Ok(remains) => Some(remains),
                // The runner cancels what is under way when a stop takes too long.
                Err(error) if error.is("57014") && context.stop.is_cancelled() => {
                    halt = Some(Halt::Cancelled);
                    break;
                }
                Err(error) if error.is("57014") => None,
                Err(error) => {
                    halt = Some(Halt::Failed(JobError::database(
                        self.doing("verify the work on"),
                        &error,
                    )));
                    break;
                }
            };
            if halt.is_some() || remains.as_ref().is_none_or(|remains| remains.rows == 0) {
                break;
            }
            // Rows that reference each other come loose one after another.
            if pass >= PASSES && !(self.chained && tally.rows > so_far) {
                break;
            }
        }
        if halt.is_none() {
            halt = self.whole(context, true, allowed, &mut gone).await.err();
        }
        let ended = matches!(halt, Some(Halt::Cancelled | Halt::Failed(_)));
        let mut report = self.report(context, tally, remains).await;
        // A run that fails leaves its archive to the next attempt, or to the job's next run.
        if !ended {
            (report.beside, report.problems) = outside.finish(context, &self.statements).await;
        }
        if self.whole.is_some() {
            let from_default = self.default_rows(context).await;
            report.beside.insert("partitions".to_owned(), gone.body(from_default));
            report.problems.extend(gone.problem());
            report.finalized = gone.finalized;
        }
        match halt.clone() {
            Some(Halt::Cancelled) => {
                return Err(JobError::cancelled(self.doing("work on")).with_partial(report.body()));
            }
            Some(Halt::Failed(error)) => return Err(error.with_partial(report.body())),
            Some(Halt::Store(error)) if report.rows == 0 => {
                return Err(store_error(self.doing("work on"), error).with_partial(report.body()));
            }
            Some(Halt::Budget | Halt::Brake | Halt::Store(_)) | None => {}
        }
        let (mut outcome, mut reason) = report.outcome(halt.as_ref());
        let body = report.body();
        if outcome == Outcome::Succeeded && self.deletes {
            self.record_purge(context)
                .await
                .map_err(|error| error.with_partial(body.clone()))?;
        }
        if let Some(gated) = self.gates.reason() {
            if outcome == Outcome::Succeeded {
                outcome = Outcome::Gated;
            }
            reason = Some(reason.map_or(gated.clone(), |reason| format!("{reason}; {gated}")));
        }
        Ok(JobReport { outcome, reason, body })
    }

    /// What is left is counted under the holds that stand then.
    async fn renew_holds(&mut self, context: &mut JobContext) -> Result<(), JobError> {
        self.held.refresh(context.session.connection()).await?;
        self.statements.hold(&self.held.holds().standing);
        Ok(())
    }

    async fn walk(
        &mut self,
        context: &mut JobContext,
        outside: &mut Outside,
        tally: &mut Tally,
        (allowed, gone): (Option<u64>, &[Oid]),
        pass: u32,
    ) -> Result<(), Halt> {
        let left = context.deadline.saturating_duration_since(Instant::now());
        // The verification needs time too.
        let reserve = (left / 10).min(Duration::from_secs(30));
        let limits = Limits {
            started: self.started,
            until: context.deadline.checked_sub(reserve).unwrap_or(context.deadline),
            rows: allowed,
            expected: self.due.rows,
        };
        // What the plan counted as empty is visited only if the verification finds rows all the same.
        let worth = |leaf: &&Leaf| {
            let counted = self.due.leaves.as_ref().filter(|_| pass == 1);
            let gone = gone.contains(&leaf.relation.oid);
            !gone && counted.is_none_or(|leaves| leaves.contains(&leaf.relation.oid))
        };
        for leaf in self.target.leaves.iter().filter(worth) {
            let mut walk = Walk {
                context: &mut *context,
                statements: &mut self.statements,
                held: &mut self.held,
                yielding: &mut self.yielding,
                limits,
                tally: &mut *tally,
                outside: &mut *outside,
            };
            walk.leaf(leaf, self.target.lockable.contains(&leaf.relation.oid))
                .await?;
        }
        Ok(())
    }

    /// Removes whole partitions: before the rows, or after them where the rows are needed one by one.
    async fn whole(
        &mut self,
        context: &mut JobContext,
        after_rows: bool,
        allowed: Option<u64>,
        gone: &mut Gone,
    ) -> Result<(), Halt> {
        let Some(whole) = &self.whole else { return Ok(()) };
        if !after_rows {
            partitions::finalize(context, &self.target.pending, gone).await;
        }
        if whole.after_rows != after_rows {
            return Ok(());
        }
        let mut removal = Removal {
            context,
            statements: &mut self.statements,
            held: &mut self.held,
            allowed,
            gone,
        };
        whole.remove(&mut removal).await
    }

    /// How many rows the run's batches deleted from default partitions; nothing without one.
    async fn default_rows(&self, context: &mut JobContext) -> Option<u64> {
        let defaults = &self.whole.as_ref()?.defaults;
        let leaves = self.target.leaves.iter().map(|leaf| &leaf.relation);
        let names: Vec<String> = leaves
            .filter(|leaf| defaults.contains(&leaf.oid))
            .map(Relation::display)
            .collect();
        if names.is_empty() {
            return None;
        }
        let run = context.run;
        match batches::total_of(context.session.connection(), run, &names).await {
            Ok(rows) => Some(rows),
            Err(error) => {
                tracing::warn!(%error, "the ledger could not be asked for the rows of the default partition");
                None
            }
        }
    }

    async fn report(&self, context: &mut JobContext, tally: Tally, remains: Option<verify::Remains>) -> Report {
        Report {
            table: self.target.relation.display(),
            cutoff: rfc3339(&self.cutoff.instant),
            driver: self.driver.clone(),
            why: self.why.clone(),
            rows: committed(context, &tally).await,
            tally,
            gates: self.gates.shown(),
            throttle_ms: self.yielding.milliseconds(),
            signals: self.yielding.shown(),
            throttled: self.yielding.longest(),
            remains,
            hidden_not_erased: self
                .target
                .pending
                .iter()
                .map(|detach| detach.partition.clone())
                .collect(),
            finalized: Vec::new(),
            warnings: self.target.warnings.clone(),
            beside: Map::new(),
            problems: Vec::new(),
        }
    }

    /// Keeps up to where the table is verified to be purged.
    async fn record_purge(&self, context: &mut JobContext) -> Result<(), JobError> {
        let operation = self.doing("record the purge of");
        let database = |error: DatabaseError| JobError::database(operation.clone(), &error);
        let (fence, run, job) = (context.fence, context.run, context.job.clone());
        let mut transaction = context
            .session
            .connection()
            .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            .await
            .map_err(|error| database(error.into()))?;
        let result = async {
            fence
                .hold(&mut transaction)
                .await
                .map_err(|error| database(error.into()))?;
            let relation = self.target.relation.display();
            purges::record(&mut transaction, &relation, &job, &self.cutoff.instant, run)
                .await
                .map_err(database)
        }
        .await;
        match result {
            Ok(()) => transaction.commit().await.map_err(|error| database(error.into())),
            Err(error) => {
                // The error itself says more than that the connection is gone.
                let _ = transaction.rollback().await;
                Err(error)
            }
        }
    }

    fn doing(&self, what: &str) -> String {
        format!("{what} {}", self.target.relation.display())
    }
}
