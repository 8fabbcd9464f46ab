//! The run that executes a plan: pass by pass, verified, and what is told of it.

use std::time::{Duration, Instant};

use serde_json::Map;
use sqlx::postgres::types::Oid;

use super::RowPlan;
use crate::backup::sweep::store_error;
use crate::batch::cutoff::rfc3339;
use crate::batch::leaf_walk::{Halt, Limits, Tally, Walk, committed};
use crate::batch::outside::Outside;
use crate::batch::partitions::{self, Gone, Removal};
use crate::batch::report::Report;
use crate::batch::{brake, fenced, verify};
use crate::job::{JobContext, JobError, JobReport, Outcome};
use crate::ledger::{batches, purges};
use crate::postgres::catalog::Relation;
use crate::postgres::catalog::leaves::Leaf;

/// How often the table is walked: rows that came loose, or became due, meanwhile get a second chance.
const PASSES: u32 = 2;

/// What a run has done so far.
#[derive(Default)]
struct Done {
    tally: Tally,
    gone: Gone,
    remains: Option<verify::Remains>,
}

/// Whether nothing more is to be looked at.
fn ends(halt: &Halt) -> bool {
    matches!(halt, Halt::Cancelled | Halt::Failed(_))
}

impl RowPlan {
    pub(super) async fn run(&mut self, context: &mut JobContext) -> Result<JobReport, JobError> {
        let mut done = Done::default();
        self.started = Instant::now();
        let passing = brake::check(context, &self.target.relation.display(), &self.tripped, self.due.rows).await?;
        if self.deletes {
            self.gates.announce(context, &self.target, &self.cutoff).await?;
        }
        let mut outside = Outside::begin(&self.beside, context, &self.target.relation, &self.cutoff).await?;
        // What an earlier attempt did counts against the brake too.
        let before = committed(context, &done.tally).await;
        let allowed = self
            .most_rows
            .map(|most| most.max(passing.unwrap_or(0)).saturating_sub(before));
        let mut halt = self.whole(context, false, allowed, &mut done.gone).await.err();
        done.tally.rows += done.gone.rows;
        done.tally.batches += done.gone.partitions();
        if halt.as_ref().is_none_or(|halt| !ends(halt)) {
            halt = self.passes(context, &mut outside, allowed, &mut done, halt).await;
        }
        if halt.is_none() {
            halt = self.whole(context, true, allowed, &mut done.gone).await.err();
        }
        let mut report = self.report(context, done.tally, done.remains).await;
        // A run that fails leaves its archive to the next attempt, or to the job's next run.
        if halt.as_ref().is_none_or(|halt| !ends(halt)) {
            (report.beside, report.problems) = outside.finish(context, &self.statements).await;
        }
        if self.whole.is_some() {
            let from_default = self.default_rows(context).await;
            report
                .beside
                .insert("partitions".to_owned(), done.gone.body(from_default));
            report.problems.extend(done.gone.problem());
            report.finalized = done.gone.finalized;
        }
        self.conclude(context, &report, halt).await
    }

    /// Walks the table and verifies it, again where rows came loose or became due meanwhile.
    async fn passes(
        &mut self,
        context: &mut JobContext,
        outside: &mut Outside,
        allowed: Option<u64>,
        done: &mut Done,
        mut halt: Option<Halt>,
    ) -> Option<Halt> {
        for pass in 1.. {
            let so_far = done.tally.rows;
            if halt.is_none() {
                done.tally.locked = 0;
                let bounds = (allowed, done.gone.leaves.as_slice());
                halt = self.walk(context, outside, &mut done.tally, bounds, pass).await.err();
            }
            if halt.is_none() {
                halt = self.renew_holds(context).await.err().map(Halt::Failed);
            }
            if halt.as_ref().is_some_and(ends) {
                return halt;
            }
            match self.remains(context).await {
                Ok(remains) => done.remains = remains,
                Err(failed) => return Some(failed),
            }
            if halt.is_some() || done.remains.as_ref().is_none_or(|remains| remains.rows == 0) {
                return halt;
            }
            // Rows that reference each other come loose one after another.
            if pass >= PASSES && !(self.chained && done.tally.rows > so_far) {
                return halt;
            }
        }
        halt
    }

    /// What is left; nothing where that took too long to find out.
    async fn remains(&self, context: &mut JobContext) -> Result<Option<verify::Remains>, Halt> {
        let beside_others = self.yielding.beside_others();
        let deadline = context.deadline;
        let connection = context.session.connection();
        match verify::remains(connection, &self.statements, deadline, beside_others).await {
            Ok(remains) => Ok(Some(remains)),
            // The runner cancels what is under way when a stop takes too long.
            Err(error) if error.is("57014") && context.stop.is_cancelled() => Err(Halt::Cancelled),
            Err(error) if error.is("57014") => Ok(None),
            Err(error) => Err(Halt::Failed(JobError::database(
                self.doing("verify the work on"),
                &error,
            ))),
        }
    }

    async fn conclude(
        &self,
        context: &mut JobContext,
        report: &Report,
        halt: Option<Halt>,
    ) -> Result<JobReport, JobError> {
        let (mut outcome, mut reason) = report.outcome(halt.as_ref());
        match halt {
            Some(Halt::Cancelled) => {
                return Err(JobError::cancelled(self.doing("work on")).with_partial(report.body()));
            }
            Some(Halt::Failed(error)) => return Err(error.with_partial(report.body())),
            Some(Halt::Store(error)) if report.rows == 0 => {
                return Err(store_error(self.doing("work on"), error).with_partial(report.body()));
            }
            Some(Halt::Budget | Halt::Brake | Halt::Store(_)) | None => {}
        }
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
        let (fence, run, job) = (context.fence, context.run, context.job.clone());
        let mut transaction = fenced::begin(context.session.connection(), fence, &operation).await?;
        // The record that closes the run comes after it in the one WAL, and waits for the disk.
        sqlx::query("SELECT set_config('synchronous_commit', 'off', true)")
            .execute(&mut *transaction)
            .await
            .map_err(|error| JobError::database(operation.clone(), &error.into()))?;
        let relation = self.target.relation.display();
        purges::record(&mut transaction, &relation, &job, &self.cutoff.instant, run)
            .await
            .map_err(|error| JobError::database(operation.clone(), &error))?;
        fenced::commit(transaction, &operation).await
    }

    fn doing(&self, what: &str) -> String {
        format!("{what} {}", self.target.relation.display())
    }
}
