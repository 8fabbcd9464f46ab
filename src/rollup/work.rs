//! One transaction after another: each computes some buckets, and what it says about them in the
//! ledger commits with them.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::check::{Checked, Subject};
use super::compare;
use super::{metric, target};
use crate::job::{JobContext, JobError};
use crate::ledger::batches::{self, Batch};
use crate::ledger::leader::{Fence, FenceError};
use crate::ledger::locks;
use crate::ledger::rollups::{self, State};
use crate::postgres::catalog::Relation;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::{JobName, RunId};

/// How long a transaction should take.
const GOAL: Duration = Duration::from_secs(2);
/// The most buckets of one transaction that reads by an index, and of one that reads the table.
const MOST: usize = 5000;
const MOST_WHOLE: usize = 100_000;
/// The most notes of writers that one transaction takes.
pub(super) const MOST_NOTES: i64 = 20_000;

/// What a run has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) buckets: u64,
    pub(super) rows: u64,
    pub(super) transactions: u64,
    pub(super) longest: Duration,
    /// Notes of writers that were taken.
    pub(super) noted: u64,
    /// Noted buckets that the source no longer has whole.
    pub(super) purged: u64,
    /// Sealed buckets that differed from the source.
    pub(super) drift: Vec<Timestamp>,
}

/// What one transaction is to do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action<'a> {
    /// Only the mark.
    Nothing,
    /// Compute the buckets between the bounds, and remove all others since `from`.
    Replace {
        /// Not after the first bound.
        from: Timestamp,
        /// Where buckets begin, and where the last ends.
        bounds: &'a [Timestamp],
    },
    /// Compute the buckets that writers noted.
    Noted,
    /// Compare the buckets between the bounds with the source, and compute those that differ.
    Compare(&'a [Timestamp]),
}

/// What a transaction says in the ledger besides.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mark {
    pub(super) sealed_until: Option<Timestamp>,
    pub(super) filled: bool,
}

/// What a committed transaction did.
#[derive(Debug, Clone, Default)]
pub(super) struct Effect {
    pub(super) rows: u64,
    pub(super) buckets: u64,
    pub(super) noted: u64,
    pub(super) purged: u64,
    pub(super) drift: Vec<Timestamp>,
    place: Option<(Timestamp, Timestamp)>,
}

/// A run at work.
pub(super) struct Work<'a> {
    pub(super) context: &'a mut JobContext,
    pub(super) checked: &'a Checked,
    pub(super) definition: &'a str,
    pub(super) tally: Tally,
    /// How many buckets the next transaction computes.
    size: usize,
}

impl<'a> Work<'a> {
    pub(super) fn new(context: &'a mut JobContext, checked: &'a Checked, definition: &'a str) -> Self {
        Self {
            context,
            checked,
            definition,
            tally: Tally::default(),
            size: match &checked.subject {
                Subject::Source { indexed: true, .. } => MOST / 50,
                Subject::Source { .. } => MOST_WHOLE,
                Subject::Query(_) => 1,
            },
        }
    }

    /// How many buckets the next transaction should compute.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// What is done, for messages.
    pub(super) fn doing(&self) -> String {
        let target = self.checked.target.as_ref().map(Relation::display);
        format!("compute {}", target.unwrap_or_default())
    }

    /// Whether the run's time is up.
    ///
    /// # Errors
    /// When it was stopped.
    pub(super) fn out_of_time(&self) -> Result<bool, JobError> {
        if self.context.stop.is_cancelled() {
            return Err(JobError::cancelled(self.doing()));
        }
        Ok(self.context.deadline.saturating_duration_since(Instant::now()) < GOAL)
    }

    /// The rollup's state now.
    pub(super) async fn state(&mut self) -> Result<State, JobError> {
        let operation = self.doing();
        rollups::load(self.context.session.connection(), &self.context.job)
            .await
            .map_err(|error| JobError::database(operation.clone(), &error))?
            .filter(|state| state.definition == self.definition)
            .ok_or_else(|| gone(&operation))
    }

    /// One transaction; none when a purge of the source has reached its buckets meanwhile.
    pub(super) async fn transact(&mut self, action: Action<'_>, mark: Mark) -> Result<Option<Effect>, JobError> {
        let started = Instant::now();
        let operation = self.doing();
        let failed = |error: sqlx::Error| JobError::database(operation.clone(), &error.into());
        let step = Step {
            fence: self.context.fence,
            run: self.context.run,
            job: self.context.job.clone(),
            checked: self.checked,
            definition: self.definition,
            operation: operation.clone(),
        };
        let mut transaction = self
            .context
            .session
            .connection()
            .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            .await
            .map_err(failed)?;
        let result = step.within(&mut transaction, action, mark, started).await;
        let effect = match result {
            Ok(Some(effect)) => {
                transaction.commit().await.map_err(failed)?;
                effect
            }
            other => {
                // The step's own error says more; a connection that is gone has rolled back.
                let _ = transaction.rollback().await;
                return other;
            }
        };
        self.count(&effect, started.elapsed(), action);
        Ok(Some(effect))
    }

    fn count(&mut self, effect: &Effect, took: Duration, action: Action<'_>) {
        let tally = &mut self.tally;
        tally.transactions += 1;
        tally.rows += effect.rows;
        tally.buckets += effect.buckets;
        tally.noted += effect.noted;
        tally.purged += effect.purged;
        tally.drift.extend(&effect.drift);
        tally.longest = tally.longest.max(took);
        let adapts = matches!(&self.checked.subject, Subject::Source { indexed: true, .. });
        if let (true, Action::Replace { .. }) = (adapts, action) {
            if took < GOAL / 2 {
                self.size = (self.size * 2).min(MOST);
            } else if took > GOAL {
                self.size = (self.size / 2).max(1);
            }
        }
    }

    /// The source's oldest row from an instant on; none for a query.
    pub(super) async fn first_row(&mut self, from: Option<Timestamp>) -> Result<Option<Timestamp>, JobError> {
        let Subject::Source { fresh, .. } = &self.checked.subject else {
            return Ok(None);
        };
        self.ask(fresh.first_row(from)).await
    }

    /// The source's newest row; none for a query.
    pub(super) async fn last_row(&mut self) -> Result<Option<Timestamp>, JobError> {
        let Subject::Source { fresh, .. } = &self.checked.subject else {
            return Ok(None);
        };
        self.ask(fresh.last_row()).await
    }

    async fn ask(&mut self, sql: String) -> Result<Option<Timestamp>, JobError> {
        let operation = self.doing();
        let found: Result<Option<SqlTimestamp>, sqlx::Error> = sqlx::query_scalar(AssertSqlSafe(sql))
            .persistent(false)
            .fetch_one(self.context.session.connection())
            .await;
        found
            .map(|at| at.map(SqlTimestamp::to_jiff))
            .map_err(|error| JobError::database(operation, &error.into()))
    }
}

fn gone(operation: &str) -> JobError {
    JobError::permanent(operation, "the rollup was removed, or changed, meanwhile")
}

/// The first bucket that the source still has whole.
pub(super) fn floor(checked: &Checked, state: &State) -> Timestamp {
    let whole = |until| checked.width.ceil(until, checked.rules());
    state.purged_until.map_or(Timestamp::MIN, whole)
}

/// What a transaction needs to know.
struct Step<'a> {
    fence: Fence,
    run: RunId,
    job: JobName,
    checked: &'a Checked,
    definition: &'a str,
    operation: String,
}

impl Step<'_> {
    fn failed(&self) -> impl Fn(DatabaseError) -> JobError + use<'_> {
        |error| JobError::database(self.operation.clone(), &error)
    }

    async fn within(
        &self,
        transaction: &mut PgConnection,
        action: Action<'_>,
        mark: Mark,
        started: Instant,
    ) -> Result<Option<Effect>, JobError> {
        self.fence.hold(transaction).await.map_err(|error| match error {
            FenceError::Database(error) => JobError::database(self.operation.clone(), &error),
            FenceError::Superseded(_) => JobError::permanent(self.operation.clone(), error.to_string()),
        })?;
        let state = rollups::lock(transaction, &self.job).await.map_err(self.failed())?;
        let state = state
            .filter(|state| state.definition == self.definition)
            .ok_or_else(|| gone(&self.operation))?;
        // Rows of several jobs may share a target; removal and insertion of two must not mix.
        sqlx::query("SELECT pg_catalog.pg_advisory_xact_lock($1, $2), pg_catalog.set_config('jit', 'off', true)")
            .bind(locks::ROLLUP_CLASS)
            .bind(target::lock_key(self.checked.target()?))
            .execute(&mut *transaction)
            .await
            .map_err(|error| self.failed()(error.into()))?;
        let floor = floor(self.checked, &state);
        let effect = match action {
            Action::Nothing => Effect::default(),
            Action::Replace { from, bounds } => {
                if from < floor {
                    return Ok(None);
                }
                self.replace(transaction, from, bounds).await?
            }
            Action::Noted => self.noted(transaction, floor).await?,
            Action::Compare(bounds) => {
                if bounds.first().is_some_and(|first| *first < floor) {
                    return Ok(None);
                }
                self.compare(transaction, bounds).await?
            }
        };
        rollups::refreshed(transaction, &self.job, self.run, mark.sealed_until, mark.filled)
            .await
            .map_err(self.failed())?;
        if let (Some((low, high)), true) = (effect.place, effect.rows > 0) {
            let batch = Batch {
                relation: self.checked.target()?.display(),
                rows: effect.rows,
                low: low.to_string(),
                high: high.to_string(),
                milliseconds: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            };
            batches::record(transaction, self.run, &batch)
                .await
                .map_err(self.failed())?;
        }
        Ok(Some(effect))
    }

    /// Computes buckets that follow each other.
    async fn replace(
        &self,
        transaction: &mut PgConnection,
        from: Timestamp,
        bounds: &[Timestamp],
    ) -> Result<Effect, JobError> {
        let Some(high) = bounds.last().copied() else {
            return Ok(Effect::default());
        };
        let target = self.checked.target()?;
        let rows = match &self.checked.subject {
            Subject::Source { fresh, .. } => {
                self.send(transaction, fresh.delete(target, from, high)).await?;
                if bounds.len() > 1 {
                    self.send(transaction, fresh.insert(target, bounds)).await?
                } else {
                    0
                }
            }
            Subject::Query(metric) => {
                let mut rows = 0;
                for pair in bounds.windows(2) {
                    let sql = metric.replace(target, pair, &self.checked.zone);
                    rows += metric::replace(transaction, sql).await.map_err(self.failed())?;
                }
                rows
            }
        };
        Ok(Effect {
            rows,
            buckets: u64::try_from(bounds.len().saturating_sub(1)).unwrap_or(u64::MAX),
            place: Some((from, high)),
            ..Effect::default()
        })
    }

    async fn send(&self, transaction: &mut PgConnection, sql: String) -> Result<u64, JobError> {
        let done = sqlx::query(AssertSqlSafe(sql))
            .persistent(false)
            .execute(transaction)
            .await
            .map_err(|error| self.failed()(error.into()))?;
        Ok(done.rows_affected())
    }

    /// Takes notes in one statement and reads the rows in later ones: what is committed in between is
    /// in the rows, and its note is there for the next run.
    async fn noted(&self, transaction: &mut PgConnection, floor: Timestamp) -> Result<Effect, JobError> {
        let cells = rollups::take_dirty(transaction, &self.job, MOST_NOTES)
            .await
            .map_err(self.failed())?;
        let mut effect = Effect {
            noted: u64::try_from(cells.len()).unwrap_or(u64::MAX),
            ..Effect::default()
        };
        let buckets = self.buckets_of(&cells);
        let (whole, gone): (Vec<Timestamp>, Vec<Timestamp>) = buckets.into_iter().partition(|start| *start >= floor);
        effect.purged = u64::try_from(gone.len()).unwrap_or(u64::MAX);
        self.replace_each(transaction, &whole, &mut effect).await?;
        Ok(effect)
    }

    /// The buckets that cells of changed rows touch, in order.
    fn buckets_of(&self, cells: &[Timestamp]) -> Vec<Timestamp> {
        let (width, rules) = (self.checked.width, self.checked.rules());
        let length = SignedDuration::from_secs(i64::from(width.cell_seconds()));
        let mut cells = cells.to_vec();
        cells.sort();
        cells.dedup();
        let mut buckets: Vec<Timestamp> = Vec::new();
        for cell in cells {
            let end = cell.checked_add(length).unwrap_or(cell);
            let mut at = width.floor(cell, rules);
            while at < end {
                if buckets.last().is_none_or(|last| *last < at) {
                    buckets.push(at);
                }
                at = width.next(at, rules);
            }
        }
        buckets
    }

    /// Computes some buckets, those that follow each other together.
    async fn replace_each(
        &self,
        transaction: &mut PgConnection,
        starts: &[Timestamp],
        effect: &mut Effect,
    ) -> Result<(), JobError> {
        let (width, rules) = (self.checked.width, self.checked.rules());
        let mut bounds: Vec<Timestamp> = Vec::new();
        for start in starts {
            if bounds.last() != Some(start) {
                self.replace_run(transaction, &bounds, effect).await?;
                bounds = vec![*start];
            }
            bounds.push(width.next(*start, rules));
        }
        self.replace_run(transaction, &bounds, effect).await
    }

    async fn replace_run(
        &self,
        transaction: &mut PgConnection,
        bounds: &[Timestamp],
        effect: &mut Effect,
    ) -> Result<(), JobError> {
        let Some(first) = bounds.first() else { return Ok(()) };
        let done = self.replace(transaction, *first, bounds).await?;
        effect.rows += done.rows;
        effect.buckets += done.buckets;
        effect.place = match (effect.place, done.place) {
            (Some((low, _)), Some((_, high))) => Some((low, high)),
            (before, now) => before.or(now),
        };
        Ok(())
    }

    async fn compare(&self, transaction: &mut PgConnection, bounds: &[Timestamp]) -> Result<Effect, JobError> {
        let Subject::Source { fresh, .. } = &self.checked.subject else {
            return Ok(Effect::default());
        };
        let drift = compare::differing(transaction, fresh, self.checked.target()?, bounds)
            .await
            .map_err(self.failed())?;
        let mut effect = Effect {
            drift: drift.clone(),
            ..Effect::default()
        };
        self.replace_each(transaction, &drift, &mut effect).await?;
        // What was compared counts, not only what was mended.
        effect.buckets = u64::try_from(bounds.len().saturating_sub(1)).unwrap_or(u64::MAX);
        Ok(effect)
    }
}
