//! Slots become rows: what is missed, what is skipped, what runs, in one transaction with the mark
//! that says how far the schedule has been evaluated.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::cron::{Adjusted, Occurrence, Schedule};
use super::due::{self, Decision, RUN_ALL_LIMIT};
use super::overlap::Overlapping;
use super::pausing::Held;
use super::policy::{Missed, Overlap};
use super::recovery::RecoveryError;
use crate::audit::{AuditLog, Entry, RecordKind};
use crate::job::{Outcome, Trigger};
use crate::ledger::leader::Term;
use crate::ledger::runs::{self, NewRun, Unrun};
use crate::ledger::slots::{self, Evaluated};
use crate::postgres::sqlstate::DatabaseError;
use crate::runner::RunnableJob;
use crate::telemetry;
use crate::values::RunId;

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
    fn current(&self) -> &Schedule {
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

    fn note_evaluated(&mut self, until: Timestamp) {
        self.evaluated_until = self.evaluated_until.max(until);
        self.before = self.before.take().filter(|former| former.until > until);
    }
}

pub use super::marks::first_seen;

/// A slot whose run may start: its row is committed.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The run's identity.
    pub run: RunId,
    /// The slot.
    pub scheduled_for: Timestamp,
    /// By schedule, or caught up.
    pub trigger: Trigger,
}

/// Writes the rows of one job's due slots.
pub struct Writer<'a> {
    /// Where what is not run is put on record.
    pub audit: &'a AuditLog,
    /// Who writes.
    pub instance: &'a str,
    /// By which right.
    pub term: &'a Term,
    /// Whose slots.
    pub job: &'a mut ScheduledJob,
}

impl Writer<'_> {
    /// Accounts for all slots until `until`, and answers which runs may start; of those that meet a
    /// run of the job, as many as `overlapping` admits, and of the `paused` ones none. The audit record of what is not run is made just before
    /// the rows are committed: a crash between the two repeats a record rather than losing one, and
    /// what the database refuses is not announced.
    ///
    /// # Errors
    /// Also when the term is over. No slot has a row then that had none, or, when the commit was
    /// not answered, all of them may have theirs; the next evaluation finds out.
    pub async fn write(
        self,
        connection: &mut PgConnection,
        decision: Decision,
        paused: Vec<Held>,
        overlapping: Option<Overlapping>,
        until: Timestamp,
    ) -> Result<Vec<Admission>, RecoveryError> {
        let Decision { missed, mut run } = decision;
        let by_schedule = |slots: Vec<Held>| -> Vec<Unrun> {
            let slots = slots.into_iter();
            slots
                .map(|(slot, reason)| unrun(&slot, Trigger::Schedule, reason))
                .collect()
        };
        let (missed, paused) = (by_schedule(missed), by_schedule(paused));
        let skipped: Vec<Unrun> = overlapping.map_or_else(Vec::new, |overlapping| {
            let slots = run.drain(..run.len().saturating_sub(overlapping.admitted));
            slots
                .map(|(slot, trigger)| unrun(&slot, trigger, overlapping.reason.clone()))
                .collect()
        });
        let mut transaction = connection.begin().await.map_err(DatabaseError::from)?;
        self.term
            .fence
            .hold(&mut transaction)
            .await
            .map_err(DatabaseError::from)?;
        let (mut admitted, mut ended) = (Vec::new(), Vec::new());
        for (slot, trigger) in run {
            admitted.extend(self.admit(&mut transaction, &slot, trigger).await?);
        }
        slots::save(&mut transaction, &self.job.runnable.name, &self.job.evaluated(until)).await?;
        for (outcome, kind, slots) in [
            (Outcome::Missed, RecordKind::Missed, missed),
            (Outcome::Skipped, RecordKind::Skipped, paused),
            (Outcome::Skipped, RecordKind::Skipped, skipped),
        ] {
            let Some(first) = slots.first() else { continue };
            let like = self.row(first.scheduled_for, first.adjusted, first.trigger);
            let accounted = runs::account(&mut transaction, &like, outcome, &slots).await?;
            let accounted = slots.iter().filter(|slot| accounted.contains(&slot.scheduled_for));
            ended.push((outcome, self.announce(kind, accounted).await?));
        }
        transaction.commit().await.map_err(DatabaseError::from)?;
        for (outcome, count) in ended {
            telemetry::metrics::slots_ended(self.job.runnable.name.as_str(), outcome, count);
        }
        self.job.note_evaluated(until);
        Ok(admitted)
    }

    /// Opens the row of a slot that is to run. A row that is there already is somebody else's, or
    /// our own from a commit that was not answered.
    async fn admit(
        &self,
        transaction: &mut PgConnection,
        slot: &Occurrence,
        trigger: Trigger,
    ) -> Result<Option<Admission>, DatabaseError> {
        let row = self.row(slot.scheduled_for, slot.adjusted, trigger);
        let run = if runs::admit(transaction, &row).await? {
            Some(row.run)
        } else {
            runs::admitted_before(transaction, &row).await?
        };
        Ok(run.map(|run| Admission {
            run,
            scheduled_for: slot.scheduled_for,
            trigger,
        }))
    }

    /// One audit record for all slots of a kind: how many, the first, the last, and why. Answers
    /// with how many they are.
    async fn announce<'s>(
        &self,
        kind: RecordKind,
        mut slots: impl Iterator<Item = &'s Unrun>,
    ) -> Result<u64, RecoveryError> {
        let Some(first) = slots.next() else {
            return Ok(0);
        };
        let (count, last) = slots.fold((1_u64, first), |(count, _), slot| (count + 1, slot));
        let body = json!({
            "slots": count, "first": first.scheduled_for, "last": last.scheduled_for, "reason": first.reason,
        });
        let entry = Entry::new(kind, body)
            .job(self.job.runnable.name.clone())
            .database(self.term.cluster.clone())
            .policy(self.job.runnable.policy.clone());
        self.audit.append(entry).await?;
        Ok(count)
    }

    fn row(&self, scheduled_for: Timestamp, adjusted: Option<Adjusted>, trigger: Trigger) -> NewRun {
        NewRun {
            run: RunId::new(),
            job: self.job.runnable.name.clone(),
            kind: self.job.runnable.job.kind(),
            scheduled_for: Some(scheduled_for),
            timezone: self.job.current().timezone().name().to_owned(),
            adjusted,
            trigger,
            actor: format!("daemon:{}", self.instance),
            instance: self.instance.to_owned(),
            epoch: self.term.fence.epoch,
            policy: self.job.runnable.policy.clone(),
        }
    }
}

fn unrun(slot: &Occurrence, trigger: Trigger, reason: String) -> Unrun {
    Unrun {
        scheduled_for: slot.scheduled_for,
        adjusted: slot.adjusted,
        trigger,
        reason,
    }
}
