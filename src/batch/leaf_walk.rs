//! Walks the leaves of a table, one batch after another, and yields where it is in the way.

mod drivers;
mod ladder;

use std::time::{Duration, Instant};

use self::ladder::{Ladder, TRIES};
use super::blocks;
use super::driver::Driver;
use super::held::Held;
use super::outside::Outside;
use super::statement::Statements;
use super::throttle::{Weight, Yielding};
use crate::job::{JobContext, JobError};
use crate::ledger::batches;
use crate::postgres::catalog::leaves::Leaf;
use crate::store::StoreError;

/// What the batches of this attempt did.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// Rows deleted or changed.
    pub(super) rows: u64,
    /// Transactions that did so.
    pub(super) batches: u64,
    /// The longest of them.
    pub(super) longest: Duration,
    /// Rows that were due and held by other sessions.
    pub(super) locked: u64,
}

/// Why a walk ended before its end.
#[derive(Debug, Clone)]
pub(super) enum Halt {
    /// The run is to stop.
    Cancelled,
    /// The time is up.
    Budget,
    /// As many rows as `max_rows` allows are done.
    Brake,
    /// A store refused; the rows of the batch stay.
    Store(StoreError),
    /// It failed.
    Failed(JobError),
}

impl From<JobError> for Halt {
    fn from(error: JobError) -> Self {
        Self::Failed(error)
    }
}

/// Limits of a walk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// When the run began to work.
    pub(super) started: Instant,
    /// When it must end.
    pub(super) until: Instant,
    /// The most rows.
    pub(super) rows: Option<u64>,
    /// How many rows are expected, for the progress shown.
    pub(super) expected: u64,
}

/// A walk under way.
pub(super) struct Walk<'a> {
    /// The run.
    pub(super) context: &'a mut JobContext,
    /// The rule.
    pub(super) statements: &'a mut Statements,
    /// The legal holds that are part of it.
    pub(super) held: &'a mut Held,
    /// When it yields.
    pub(super) yielding: &'a mut Yielding,
    /// Its limits.
    pub(super) limits: Limits,
    /// What is done.
    pub(super) tally: &'a mut Tally,
    /// What is done outside the database.
    pub(super) outside: &'a mut Outside,
}

impl Walk<'_> {
    /// Walks one leaf from end to end.
    pub(super) async fn leaf(&mut self, leaf: &Leaf, lockable: bool) -> Result<(), Halt> {
        let mut ladder = Ladder {
            tries: 0,
            patience: TRIES,
            lockable,
            last: Weight::default(),
        };
        match Driver::of(leaf) {
            Driver::Age => self.by_age(leaf, &mut ladder).await,
            Driver::Key => self.by_key(leaf, &mut ladder).await,
            Driver::Block => {
                let blocks = blocks::of(self.context.session.connection(), &leaf.relation).await?;
                self.by_block(leaf, 0, blocks, &mut ladder).await
            }
        }
    }

    /// Whether the time left is too short for the rows left, at the speed so far.
    fn must_hurry(&self) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a rough speed")]
        let (done, expected) = (self.tally.rows as f64, self.limits.expected.max(self.tally.rows) as f64);
        let left = self.limits.until.saturating_duration_since(Instant::now());
        done > 0.0 && self.limits.started.elapsed().as_secs_f64() * (expected - done) / done > left.as_secs_f64()
    }

    fn may_go_on(&self) -> Result<(), Halt> {
        if self.context.stop.is_cancelled() {
            return Err(Halt::Cancelled);
        }
        if self.limits.rows.is_some_and(|most| self.tally.rows >= most) {
            return Err(Halt::Brake);
        }
        // A batch like the longest so far must still fit.
        if Instant::now() + self.tally.longest >= self.limits.until {
            return Err(Halt::Budget);
        }
        Ok(())
    }

    fn count(&mut self, rows: u64, locked: u64, elapsed: Duration) {
        self.tally.rows += rows;
        self.tally.locked += locked;
        self.tally.longest = self.tally.longest.max(elapsed);
        if rows > 0 {
            self.tally.batches += 1;
        }
        let expected = self.limits.expected.max(self.tally.rows);
        self.context.progress.set("rows", self.tally.rows, Some(expected));
    }
}

/// All rows that a run's batches have committed, over all attempts.
pub(super) async fn committed(context: &mut JobContext, tally: &Tally) -> u64 {
    let run = context.run;
    match batches::total(context.session.connection(), run).await {
        Ok((rows, _)) => rows,
        Err(error) => {
            tracing::warn!(%error, run.id = %run, "the ledger could not be asked for the run's rows; this attempt's are reported");
            tally.rows
        }
    }
}
