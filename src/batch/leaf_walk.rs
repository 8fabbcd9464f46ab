//! Walks the leaves of a table, one batch after another, and yields where it is in the way.

use std::time::{Duration, Instant};

use super::blocks;
use super::driver::Driver;
use super::held::Held;
use super::key_walk;
use super::outside::{Outside, Trouble};
use super::pace::Pace;
use super::statement::{Range, Statements};
use super::stride::{End, Stride};
use super::throttle::{Weight, Yielding};
use super::transaction::{self, Attempt, Failure, Part, Patience, Slice};
use crate::job::{Disposition, JobContext, JobError};
use crate::ledger::batches;
use crate::postgres::catalog::RelationKind;
use crate::postgres::catalog::leaves::Leaf;
use crate::store::StoreError;

/// Rows of the first batch, and the bounds of all.
const ROWS: (u64, u64, u64) = (1000, 100, 50_000);

/// The most blocks of a batch.
const MOST_BLOCKS: u64 = 16_384;

/// The most bytes that the rows of a batch should have.
const BYTES: u64 = 8 << 20;

/// How often a batch is tried anew, smaller, before rows that others hold are left out.
const TRIES: u32 = 3;

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

/// The state of the ladder of retries within one leaf.
struct Ladder {
    tries: u32,
    /// Once the ladder was climbed in vain, later batches climb one step only.
    patience: u32,
    lockable: bool,
    /// The last batch.
    last: Weight,
}

/// What to do after one attempt at a batch.
enum Next {
    /// The batch is done: go on after its range.
    After(Range),
    /// Try again, smaller.
    Again,
    /// Too many rows of one age.
    Crowded,
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

    async fn by_age(&mut self, leaf: &Leaf, ladder: &mut Ladder) -> Result<(), Halt> {
        let (first, least, most) = self.outside.rows(of_size(leaf));
        let mut pace = Pace::new(first, least, most);
        let mut stride = Stride::new(self.statements.age_type(), self.statements.last_age());
        let mut low: Option<String> = None;
        loop {
            let (size, so_far) = (pace.size(), self.tally.rows);
            // Of objects outside, and of what another server does, too little is known to guess.
            let end = if self.outside.is_busy() || leaf.relation.kind != RelationKind::Table {
                End::Searched { rows: size }
            } else {
                stride.next(size)
            };
            let slice = Slice::Ages {
                after: low.clone(),
                end: end.clone(),
            };
            match self.batch(leaf, &slice, &mut pace, ladder).await? {
                Next::After(Range::Ages {
                    after,
                    through: Some(through),
                }) => {
                    let (rows, elapsed) = (self.tally.rows - so_far, ladder.last.elapsed);
                    stride.took((after.as_deref(), &through), size, &end, rows, elapsed);
                    low = Some(through);
                }
                Next::After(_) => return Ok(()),
                Next::Again => stride.stumbled(),
                Next::Crowded => {
                    let connection = self.context.session.connection();
                    let (from, until) =
                        blocks::of_rows(connection, self.statements, &leaf.relation, low.as_deref()).await?;
                    tracing::debug!(
                        batch.relation = %leaf.relation.display(), batch.from = from, batch.until = until,
                        "too many rows share one age for a batch by age; going on block by block"
                    );
                    return self.by_block(leaf, from, until, ladder).await;
                }
            }
        }
    }

    async fn by_key(&mut self, leaf: &Leaf, ladder: &mut Ladder) -> Result<(), Halt> {
        let Some(column) = leaf.key.clone() else { return Ok(()) };
        let connection = self.context.session.connection();
        let Some((from, to)) = key_walk::bounds(connection, self.statements, &leaf.relation, &column).await? else {
            return Ok(());
        };
        let (first, least, most) = self.outside.rows(of_size(leaf));
        let mut pace = Pace::new(first, least, most);
        let mut after = from.saturating_sub(1);
        while after < to {
            let slice = Slice::Keys {
                column: column.clone(),
                after,
                last: to,
                rows: pace.size(),
            };
            if let Next::After(Range::Keys { through, .. }) = self.batch(leaf, &slice, &mut pace, ladder).await? {
                after = through;
            }
        }
        Ok(())
    }

    async fn by_block(&mut self, leaf: &Leaf, from: u32, until: u32, ladder: &mut Ladder) -> Result<(), Halt> {
        let (first, _, most) = self.outside.rows(of_size(leaf));
        let most = if self.outside.is_busy() {
            blocks::holding(&leaf.relation, most)
        } else {
            MOST_BLOCKS
        };
        let mut pace = Pace::new(blocks::holding(&leaf.relation, first), 1, most);
        let mut block = from;
        while block < until {
            let end = u32::try_from(pace.size()).map_or(until, |blocks| block.saturating_add(blocks).min(until));
            let slice = Slice::Blocks {
                from: block,
                until: end,
            };
            if let Next::After(_) = self.batch(leaf, &slice, &mut pace, ladder).await? {
                block = end;
            }
        }
        Ok(())
    }

    /// One attempt at a batch, and what it means for the next.
    async fn batch(&mut self, leaf: &Leaf, slice: &Slice, pace: &mut Pace, ladder: &mut Ladder) -> Result<Next, Halt> {
        self.may_go_on()?;
        let last = std::mem::take(&mut ladder.last);
        let (until, hurry) = (self.limits.until, self.must_hurry());
        self.yielding
            .before_batch(self.context, leaf.relation.oid, last, until, hurry)
            .await;
        self.may_go_on()?;
        let patience = match (ladder.tries < ladder.patience, ladder.lockable) {
            (true, _) => Patience::Wait,
            (false, true) => Patience::Leave,
            (false, false) => Patience::Count,
        };
        let allowed = self.limits.rows.map(|most| most.saturating_sub(self.tally.rows));
        let (relation, holds) = (&leaf.relation, self.held.holds());
        let part = Part {
            statements: self.statements,
            holds,
            leaf: relation,
            slice,
            patience,
            allowed,
        };
        match transaction::run(self.context, &part, self.outside).await {
            Ok(Attempt::Crowded) => Ok(Next::Crowded),
            Ok(Attempt::Done {
                rows,
                locked,
                range,
                weight,
            }) => {
                if patience != Patience::Wait {
                    ladder.patience = 1;
                }
                ladder.tries = 0;
                self.count(rows, locked, weight.elapsed);
                if weight.footprint.waiters > 0 {
                    pace.halve();
                } else {
                    let (elapsed, aim) = self.outside.paced(weight.elapsed, self.yielding.aim());
                    pace.took(elapsed, weight.footprint.wal, aim);
                }
                ladder.last = weight;
                Ok(Next::After(range))
            }
            Err(Failure::HoldsChanged) => {
                self.held.refresh(self.context.session.connection()).await?;
                self.statements.hold(&self.held.holds().standing);
                tracing::info!(
                    batch.relation = %leaf.relation.display(), holds = self.held.ids().len(),
                    "legal holds have changed; going on under those that stand now"
                );
                Ok(Next::Again)
            }
            Err(Failure::TimedOut(_)) if slice.is_guessed() => {
                pace.halve();
                Ok(Next::Again)
            }
            Err(failure) => self.yield_to(failure, leaf, patience, pace, ladder),
        }
    }

    /// Decides whether a failed batch is tried again.
    fn yield_to(
        &self,
        failure: Failure,
        leaf: &Leaf,
        patience: Patience,
        pace: &mut Pace,
        ladder: &mut Ladder,
    ) -> Result<Next, Halt> {
        let operation = format!("run a batch on {}", leaf.relation.display());
        match failure {
            Failure::TimedOut(error) => {
                if pace.halve() {
                    tracing::info!(
                        batch.relation = %leaf.relation.display(), batch.size = pace.size(),
                        "a batch ran into its time limit; trying again with a smaller one"
                    );
                    return Ok(Next::Again);
                }
                // A lock on another server is waited for until the statement ends.
                if leaf.relation.kind == RelationKind::Foreign && patience == Patience::Wait {
                    ladder.tries = ladder.patience;
                    return Ok(Next::Again);
                }
                Err(Halt::Failed(JobError::database(operation, &error).with_remedy(
                    "even the smallest batch takes too long: look for a foreign key without an index or a slow trigger \
                     in `pgreeve plan`, or raise `statement_timeout`",
                )))
            }
            // The last step of the ladder waits for no row: what it meets is a lock of the table.
            Failure::Contended(error) if patience != Patience::Wait && ladder.tries > ladder.patience + TRIES => {
                Err(Halt::Failed(JobError::database(operation, &error)))
            }
            Failure::Contended(error) => {
                ladder.tries += 1;
                pace.halve();
                tracing::info!(
                    batch.relation = %leaf.relation.display(), batch.tries = ladder.tries, %error,
                    "a batch met another session's lock; trying again with a smaller one"
                );
                Ok(Next::Again)
            }
            Failure::TooMany => {
                if pace.halve() {
                    Ok(Next::Again)
                } else {
                    Err(Halt::Brake)
                }
            }
            Failure::Outside(trouble) => self.outside_trouble(trouble, operation, pace),
            // Only the caller can read them anew.
            Failure::HoldsChanged => Ok(Next::Again),
            Failure::Superseded(error) => Err(Halt::Failed(JobError::database(operation, &error.into()))),
            Failure::Unanswered(error) => Err(Halt::Failed(JobError::at_commit(operation, &error))),
            Failure::Other(error) if error.is("57014") && self.context.stop.is_cancelled() => Err(Halt::Cancelled),
            Failure::Other(error) => {
                let remedy = error.is("23503").then_some(
                    "rows of another table still reference these: delete those first, or leave referenced rows out by `where`",
                );
                let error = JobError::database(operation, &error);
                Err(Halt::Failed(match remedy {
                    Some(remedy) => error.with_remedy(remedy),
                    None => error,
                }))
            }
        }
    }

    /// Decides about a batch whose work outside the database failed.
    fn outside_trouble(&self, trouble: Trouble, operation: String, pace: &mut Pace) -> Result<Next, Halt> {
        let error = match trouble {
            Trouble::TooLarge | Trouble::TooMany | Trouble::Slow(_) if pace.halve() => return Ok(Next::Again),
            Trouble::TooMany => return Err(Halt::Brake),
            Trouble::Slow(error) | Trouble::Store(error) => return Err(Halt::Store(error)),
            Trouble::TooLarge => JobError::permanent(
                operation,
                "the rows of the smallest batch are larger than an object of an archive may be",
            )
            .with_remedy("leave `archive` out for this table, or move its large values elsewhere"),
            Trouble::Lost(error) if error.is("57014") && self.context.stop.is_cancelled() => {
                return Err(Halt::Cancelled);
            }
            Trouble::Lost(error) | Trouble::Database(error) => JobError {
                // The session is out of step; another attempt has another one.
                disposition: Disposition::Transient,
                ..JobError::database(operation, &error)
            },
            Trouble::Unequal(cause) => JobError::permanent(operation, cause)
                .with_remedy("nothing of this batch was deleted; correct the trigger or `where`"),
        };
        Err(Halt::Failed(error))
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

/// The bounds of batches where rows may be large.
fn of_size(leaf: &Leaf) -> (u64, u64, u64) {
    let (first, least, most) = ROWS;
    let fitting = leaf.row_bytes.map_or(most, |bytes| BYTES / bytes.max(1));
    let most = fitting.clamp(least, most);
    (first.min(most), least, most)
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
