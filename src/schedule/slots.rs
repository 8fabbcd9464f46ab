//! A job with its schedule, and how far that has been evaluated.

use std::time::Duration;

use jiff::Timestamp;

use super::cron::{Occurrence, Schedule};
use super::due::{self, Decision, RUN_ALL_LIMIT};
use super::policy::{Missed, Overlap};
use crate::ledger::slots::Evaluated;
use crate::runner::RunnableJob;

/// The most slots that one evaluation accounts for: a year of a job that runs each minute has half a
/// million, which no transaction should hold and no evaluation wait for.
pub const CHUNK: usize = 5000;

/// A job with its schedule, and how far that has been evaluated.
pub struct ScheduledJob {
    /// What runs.
    pub runnable: RunnableJob,
    /// When.
    pub schedule: Schedule,
    /// What to do about slots nobody could run.
    pub missed: Missed,
    /// How old a slot may be to be caught up.
    pub catch_up_window: Duration,
    /// What to do about a slot that comes due during a run.
    pub overlap: Overlap,
    /// How long after its slot a run starts.
    pub delay: Duration,
    /// Slots up to and including this instant have rows. Set when the lead is taken.
    pub(super) evaluated_until: Timestamp,
    /// The schedule that held before, while slots of it have no rows yet.
    pub(super) before: Option<Former>,
    /// Where the schedule is quiet: no slot after the first instant and before the second.
    quiet: Option<(Timestamp, Timestamp)>,
}

/// A schedule that was changed, and when.
pub(super) struct Former {
    pub(super) schedule: Schedule,
    pub(super) until: Timestamp,
}

/// Slots that came due, of one schedule.
pub struct Found {
    /// The slots, in order.
    pub slots: Vec<Occurrence>,
    /// Until when these are all.
    pub until: Timestamp,
    rule: Rule,
}

/// What decides about slots.
enum Rule {
    /// The job's policy.
    Ordinary,
    /// Too many younger ones stand behind them.
    Backlog,
    /// Their schedule was changed before they ran.
    Changed,
}

impl ScheduledJob {
    /// A job that is first evaluated when its database's lead is taken.
    #[must_use]
    pub fn new(runnable: RunnableJob, schedule: Schedule, missed: Missed, catch_up_window: Duration) -> Self {
        Self {
            runnable,
            schedule,
            missed,
            catch_up_window,
            overlap: Overlap::Skip,
            delay: Duration::ZERO,
            evaluated_until: Timestamp::now(),
            before: None,
            quiet: None,
        }
    }

    /// The same job with another rule for slots that meet a run, and with starts put off.
    #[must_use]
    pub fn with(self, overlap: Overlap, delay: Duration) -> Self {
        Self { overlap, delay, ..self }
    }

    /// The slots up to this instant have rows.
    #[must_use]
    pub fn evaluated_until(&self) -> Timestamp {
        self.evaluated_until
    }

    /// The slot that follows another one, as an instant.
    #[must_use]
    pub fn slot_after(&self, slot: Timestamp) -> Option<Timestamp> {
        self.schedule.next_after(slot).map(|next| next.scheduled_for)
    }

    /// Whether no slot came due since the last evaluation. The next one is looked up once: thousands
    /// of jobs are asked each second.
    pub(super) fn is_quiet(&mut self, now: Timestamp) -> bool {
        let now = now.checked_sub(self.delay).unwrap_or(now);
        let mark = self.evaluated_until;
        if self.before.is_some() {
            return false;
        }
        if !self.quiet.is_some_and(|(from, next)| from <= mark && mark < next) {
            let next = self.slot_after(mark).unwrap_or(Timestamp::MAX);
            self.quiet = Some((mark, next));
        }
        self.quiet.is_some_and(|(_, next)| now < next)
    }

    /// When a run of the next slot is to start, as far as that is known: after it was asked whether
    /// the schedule [is quiet](Self::is_quiet).
    pub(super) fn next_start(&self) -> Option<Timestamp> {
        let (_, next) = self.quiet?;
        next.checked_add(self.delay).ok()
    }

    /// Moves the mark of a schedule that is quiet; the answer is what the ledger is to keep.
    pub(super) fn pass_quietly(&mut self, now: Timestamp) -> Evaluated {
        let until = now.checked_sub(self.delay).unwrap_or(now);
        self.note_evaluated(until);
        self.evaluated(self.evaluated_until)
    }

    /// The slots that came due since the last evaluation, and until when these are: until `now`, or,
    /// after a long downtime, until the last of the [`CHUNK`] oldest.
    #[must_use]
    pub fn found_until(&self, now: Timestamp) -> Found {
        if let Some(former) = &self.before {
            return self.found_of(former);
        }
        // A start that is put off is a clock that is late.
        let now = now.checked_sub(self.delay).unwrap_or(now);
        let due = self.schedule.between(self.evaluated_until, now);
        let mut slots: Vec<Occurrence> = due.take(CHUNK + RUN_ALL_LIMIT + 1).collect();
        if slots.len() <= CHUNK + RUN_ALL_LIMIT {
            let rule = Rule::Ordinary;
            return Found {
                slots,
                until: now,
                rule,
            };
        }
        slots.truncate(CHUNK);
        let until = slots.last().map_or(now, |slot| slot.scheduled_for);
        let rule = Rule::Backlog;
        Found { slots, until, rule }
    }

    /// The slots of a schedule that was changed before they ran.
    fn found_of(&self, former: &Former) -> Found {
        let due = former.schedule.between(self.evaluated_until, former.until);
        let mut slots: Vec<Occurrence> = due.take(CHUNK + 1).collect();
        let complete = slots.len() <= CHUNK;
        slots.truncate(CHUNK);
        let until = slots
            .last()
            .filter(|_| !complete)
            .map_or(former.until, |slot| slot.scheduled_for);
        let rule = Rule::Changed;
        Found { slots, until, rule }
    }

    /// What to do about slots that were found.
    #[must_use]
    pub fn decide(&self, found: Found) -> Decision {
        match found.rule {
            Rule::Ordinary => due::decide(found.slots, found.until, self.missed, self.catch_up_window),
            Rule::Backlog => due::decide_backlog(found.slots, self.missed),
            Rule::Changed => due::decide_changed(found.slots, self.current()),
        }
    }

    /// What to do about the slots that came due since the last evaluation, and until when these are.
    #[must_use]
    pub fn due_until(&self, now: Timestamp) -> (Decision, Timestamp) {
        let found = self.found_until(now);
        let until = found.until;
        (self.decide(found), until)
    }

    /// The schedule whose slots are accounted for next.
    pub(super) fn current(&self) -> &Schedule {
        self.before.as_ref().map_or(&self.schedule, |former| &former.schedule)
    }

    /// Goes on where the same job was, if its schedule is the same.
    pub(super) fn go_on_from(&mut self, old: &Self) {
        if old.before.is_none() && self.schedule.is_same_as(&old.schedule) {
            self.evaluated_until = old.evaluated_until;
        }
    }

    pub(super) fn evaluated(&self, until: Timestamp) -> Evaluated {
        let in_force = match &self.before {
            Some(former) if until < former.until => &former.schedule,
            _ => &self.schedule,
        };
        Evaluated {
            schedule: in_force.to_string(),
            timezone: in_force.timezone().name().to_owned(),
            until,
        }
    }

    pub(super) fn note_evaluated(&mut self, until: Timestamp) {
        self.evaluated_until = self.evaluated_until.max(until);
        self.before = self.before.take().filter(|former| former.until > until);
    }
}
