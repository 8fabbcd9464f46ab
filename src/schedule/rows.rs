//! Slots become rows: what is missed, what is skipped, what runs, in one transaction with the mark
//! that says how far the schedule has been evaluated.

use jiff::Timestamp;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::cron::{Adjusted, Occurrence};
use super::due::Decision;
use super::overlap::Overlapping;
use super::pausing::Held;
use super::recovery::RecoveryError;
use super::slots::ScheduledJob;
use crate::audit::{AuditLog, Entry, RecordKind};
use crate::job::{Outcome, Trigger};
use crate::ledger::leader::Term;
use crate::ledger::runs::{self, NewRun, Unrun};
use crate::ledger::slots;
use crate::postgres::sqlstate::DatabaseError;
use crate::telemetry;
use crate::values::RunId;

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
