//! What a run does, transaction by transaction.

use jiff::{SignedDuration, Timestamp};
use sqlx::PgConnection;

use super::check::{self, Checked, Subject};
use super::horizon;
use super::spec::{Mode, Rollup};
use super::work::{Action, MOST_NOTES, Mark, Work, floor};
use crate::job::JobError;

/// How far a run may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limits {
    /// Where the bucket that is under way began.
    pub(super) current: Timestamp,
    /// Buckets before may be sealed.
    pub(super) seal_to: Option<Timestamp>,
    /// What holds the seal back.
    pub(super) held_by: Option<String>,
}

/// Reads clock and horizon. Rows are to be read in later statements.
pub(super) async fn limits(
    connection: &mut PgConnection,
    rollup: &Rollup,
    checked: &Checked,
) -> Result<Limits, JobError> {
    let exact = rollup.source().is_some_and(|source| source.mode == Mode::Exact);
    let (mut until, mut held_by) = (None, None);
    if !exact {
        let horizon = horizon::read(connection, checked.tree()).await?;
        (until, held_by) = (horizon.until, horizon.held_by);
    }
    let now = check::now(connection).await?;
    let lateness = SignedDuration::try_from(rollup.lateness()).unwrap_or(SignedDuration::MAX);
    let late = now.checked_sub(lateness).unwrap_or(Timestamp::MIN);
    let (width, rules) = (checked.width, checked.rules());
    let seal = |until: Timestamp| width.floor(until.min(late), rules);
    Ok(Limits {
        current: width.floor(now, rules),
        // In the exact mode a bucket that changes after its seal is noted, and computed again.
        seal_to: if exact { Some(seal(now)) } else { until.map(seal) },
        held_by: held_by.filter(|_| until.is_none_or(|until| seal(until) < seal(now))),
    })
}

/// Whether a run came to its end, or its time was up before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Complete,
    OutOfTime,
}

impl Work<'_> {
    /// Brings the rollup up to date.
    pub(super) async fn refresh(&mut self, rollup: &Rollup, limits: &Limits) -> Result<Ended, JobError> {
        let exact = rollup.source().is_some_and(|source| source.mode == Mode::Exact);
        if !(exact && self.state().await?.filled) {
            let ended = self.fill(limits, exact).await?;
            if ended == Ended::OutOfTime || !exact {
                return Ok(ended);
            }
        }
        loop {
            if self.out_of_time()? {
                return Ok(Ended::OutOfTime);
            }
            let mark = Mark {
                sealed_until: limits.seal_to,
                filled: true,
            };
            let effect = self.transact(Action::Noted, mark).await?.unwrap_or_default();
            self.context.progress.set("buckets", self.tally.buckets, None);
            if effect.noted < MOST_NOTES.unsigned_abs() {
                return Ok(Ended::Complete);
            }
        }
    }

    /// Computes every bucket that is not sealed.
    async fn fill(&mut self, limits: &Limits, exact: bool) -> Result<Ended, JobError> {
        let (width, rules) = (self.checked.width, self.checked.rules());
        let mut end = self.end(limits);
        if exact && let Some(last) = self.last_row().await? {
            // Nobody will note the rows of the future that are there already.
            end = end.max(width.next(width.floor(last, rules), rules));
        }
        let state = self.state().await?;
        let begin = match (state.sealed_until, &self.checked.subject) {
            (Some(sealed), _) => sealed,
            (None, Subject::Source { .. }) => {
                let first = self.first_row(None).await?.unwrap_or(limits.current);
                width.floor(first, rules).min(limits.seal_to.unwrap_or(limits.current))
            }
            // What was before the first run is computed by a backfill.
            (None, Subject::Query(_)) => {
                let before = limits.current.checked_sub(SignedDuration::from_micros(1));
                width.floor(before.unwrap_or(limits.current), rules)
            }
        };
        self.range(begin, end, limits.seal_to).await
    }

    /// Where the last bucket ends that is computed: a query answers for whole buckets only.
    fn end(&self, limits: &Limits) -> Timestamp {
        match &self.checked.subject {
            Subject::Source { .. } => self.checked.width.next(limits.current, self.checked.rules()),
            Subject::Query(_) => limits.current,
        }
    }

    /// Computes a range of buckets again.
    pub(super) async fn backfill(
        &mut self,
        limits: &Limits,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Ended, JobError> {
        let (width, rules) = (self.checked.width, self.checked.rules());
        let begin = width.floor(from, rules);
        let end = width.ceil(to, rules).min(self.end(limits));
        self.range(begin, end, None).await
    }

    async fn range(&mut self, begin: Timestamp, end: Timestamp, seal: Option<Timestamp>) -> Result<Ended, JobError> {
        let (width, rules) = (self.checked.width, self.checked.rules());
        let mark = |until: Timestamp| Mark {
            sealed_until: seal.map(|seal| seal.min(until)),
            filled: false,
        };
        let mut cursor = begin.max(floor(self.checked, &self.state().await?));
        let (whole, mut empty) = (seconds(cursor, end), false);
        while cursor < end {
            if self.out_of_time()? {
                return Ok(Ended::OutOfTime);
            }
            // A long time without rows is passed over, where an index tells its end.
            let first = if empty {
                self.first_row(Some(cursor)).await?
            } else {
                Some(cursor)
            };
            let first = first.map_or(end, |first| width.floor(first, rules)).clamp(cursor, end);
            let bounds = width.bounds(first, end, self.size(), rules);
            let last = bounds.last().copied().unwrap_or(end);
            let action = Action::Replace {
                from: cursor,
                bounds: &bounds,
            };
            match self.transact(action, mark(last)).await? {
                Some(effect) => {
                    empty = effect.rows == 0 && matches!(self.checked.subject, Subject::Source { indexed: true, .. });
                    cursor = last;
                }
                None => cursor = floor(self.checked, &self.state().await?).max(cursor),
            }
            self.context
                .progress
                .set("seconds of history", seconds(begin, cursor), Some(whole));
        }
        if self.tally.transactions == 0 {
            self.transact(Action::Nothing, mark(cursor)).await?;
        }
        Ok(Ended::Complete)
    }

    /// Compares the last sealed buckets with the source, as far as it still has them.
    pub(super) async fn reconcile(&mut self, buckets: u32) -> Result<Ended, JobError> {
        const AT_ONCE: usize = 500;
        let (width, rules) = (self.checked.width, self.checked.rules());
        let state = self.state().await?;
        let Some(sealed) = state.sealed_until else {
            return Ok(Ended::Complete);
        };
        let floor = floor(self.checked, &state);
        let first = self
            .first_row(None)
            .await?
            .map_or(sealed, |first| width.floor(first, rules));
        let mut low = sealed;
        for _ in 0..buckets {
            let before = low.checked_sub(SignedDuration::from_micros(1)).unwrap_or(low);
            let earlier = width.floor(before, rules);
            if earlier < floor.max(first) {
                break;
            }
            low = earlier;
        }
        while low < sealed {
            if self.out_of_time()? {
                return Ok(Ended::OutOfTime);
            }
            let bounds = width.bounds(low, sealed, AT_ONCE, rules);
            if self
                .transact(Action::Compare(&bounds), Mark::default())
                .await?
                .is_none()
            {
                // A purge has begun: the rest is compared where the source is whole.
                let state = self.state().await?;
                low = super::work::floor(self.checked, &state).max(low);
                continue;
            }
            low = bounds.last().copied().unwrap_or(sealed);
            self.context.progress.set("buckets", self.tally.buckets, None);
        }
        Ok(Ended::Complete)
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_secs()).unwrap_or(0)
}
