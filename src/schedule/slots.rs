//! Slots become rows: what is missed, what is skipped, what runs, in one transaction with the mark
//! that says how far the schedule has been evaluated.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::cron::{Occurrence, Schedule};
use super::policy::Missed;
use super::recovery::RecoveryError;
use crate::audit::{AuditLog, Entry, RecordKind};
use crate::job::{Outcome, Trigger};
use crate::ledger::leader::Term;
use crate::ledger::runs::{self, NewRun};
use crate::ledger::slots::{self, Evaluated};
use crate::postgres::sqlstate::DatabaseError;
use crate::runner::RunnableJob;
use crate::telemetry;
use crate::values::RunId;

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
    /// Slots up to and including this instant have rows. Set when the lead is taken.
    evaluated_until: Timestamp,
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
            evaluated_until: Timestamp::now(),
        }
    }

    /// The slots that came due since the last evaluation.
    #[must_use]
    pub fn due_until(&self, now: Timestamp) -> Vec<Occurrence> {
        self.schedule.between(self.evaluated_until, now).collect()
    }

    fn evaluated(&self, until: Timestamp) -> Evaluated {
        Evaluated {
            schedule: self.schedule.to_string(),
            timezone: self.schedule.timezone().name().to_owned(),
            until,
        }
    }
}

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

/// Learns from the ledger how far each schedule was evaluated. A job that was never seen begins
/// now and catches nothing up; so does one whose schedule or zone was changed, after the slots of
/// the old schedule are accounted for.
pub async fn first_seen(
    connection: &mut PgConnection,
    jobs: &mut [ScheduledJob],
    audit: &AuditLog,
    now: Timestamp,
) -> Result<(), RecoveryError> {
    for job in jobs {
        job.evaluated_until = match slots::load(connection, &job.runnable.name).await? {
            Some(known) if known == job.evaluated(known.until) => known.until,
            Some(known) => {
                audit
                    .append(
                        Entry::new(
                            RecordKind::ConfigApplied,
                            json!({
                                "schedule_before": known.schedule, "timezone_before": known.timezone, "evaluated_until": known.until,
                                "schedule": job.schedule.to_string(), "timezone": job.schedule.timezone().name(),
                            }),
                        )
                        .job(job.runnable.name.clone()),
                    )
                    .await?;
                now
            }
            None => now,
        };
        slots::save(connection, &job.runnable.name, &job.evaluated(job.evaluated_until)).await?;
    }
    Ok(())
}

/// Writes the rows of one job's due slots.
pub(super) struct Writer<'a> {
    pub(super) audit: &'a AuditLog,
    pub(super) instance: &'a str,
    pub(super) term: &'a Term,
    pub(super) job: &'a mut ScheduledJob,
}

impl Writer<'_> {
    /// Accounts for all slots until `now`. The audit record of what is not run comes first, so that
    /// a crash between the two repeats a record rather than losing one.
    pub(super) async fn write(
        self,
        connection: &mut PgConnection,
        mut missed: Vec<(Occurrence, String)>,
        run: Vec<(Occurrence, Trigger)>,
        busy: Option<RunId>,
        now: Timestamp,
    ) -> Result<Vec<Admission>, RecoveryError> {
        let mut skipped = Vec::new();
        let mut to_run = run;
        if let Some(running) = busy {
            let reason = format!("overlap: run {running} of the job is still under way");
            skipped.extend(to_run.drain(..).map(|(slot, trigger)| (slot, trigger, reason.clone())));
        }
        self.announce(RecordKind::Missed, missed.iter().map(|(slot, reason)| (slot, reason)))
            .await?;
        self.announce(
            RecordKind::Skipped,
            skipped.iter().map(|(slot, _, reason)| (slot, reason)),
        )
        .await?;

        let mut admitted = Vec::new();
        let mut transaction = connection.begin().await.map_err(DatabaseError::from)?;
        self.term
            .fence
            .hold(&mut transaction)
            .await
            .map_err(DatabaseError::from)?;
        for (slot, reason) in missed.drain(..) {
            let row = self.row(&slot, Trigger::Schedule);
            runs::account(&mut transaction, &row, Outcome::Missed, &reason).await?;
        }
        for (slot, trigger, reason) in skipped {
            let row = self.row(&slot, trigger);
            runs::account(&mut transaction, &row, Outcome::Skipped, &reason).await?;
        }
        for (slot, trigger) in to_run {
            let row = self.row(&slot, trigger);
            if runs::admit(&mut transaction, &row).await? {
                admitted.push(Admission {
                    run: row.run,
                    scheduled_for: slot.scheduled_for,
                    trigger,
                });
            }
        }
        slots::save(&mut transaction, &self.job.runnable.name, &self.job.evaluated(now)).await?;
        transaction.commit().await.map_err(DatabaseError::from)?;
        self.job.evaluated_until = self.job.evaluated_until.max(now);
        Ok(admitted)
    }

    /// One audit record for all slots of a kind: how many, the first, the last, and why.
    async fn announce<'s>(
        &self,
        kind: RecordKind,
        mut slots: impl Iterator<Item = (&'s Occurrence, &'s String)>,
    ) -> Result<(), RecoveryError> {
        let Some((first, reason)) = slots.next() else {
            return Ok(());
        };
        let outcome = if kind == RecordKind::Missed {
            Outcome::Missed
        } else {
            Outcome::Skipped
        };
        let (count, last) = slots.fold((1_u64, first), |(count, _), (slot, _)| (count + 1, slot));
        let body = json!({
            "slots": count, "first": first.scheduled_for, "last": last.scheduled_for, "reason": reason,
        });
        let entry = Entry::new(kind, body)
            .job(self.job.runnable.name.clone())
            .database(self.term.cluster.clone())
            .policy(self.job.runnable.policy.clone());
        self.audit.append(entry).await?;
        telemetry::metrics::slots_ended(self.job.runnable.name.as_str(), outcome, count);
        Ok(())
    }

    fn row(&self, slot: &Occurrence, trigger: Trigger) -> NewRun {
        NewRun {
            run: RunId::new(),
            job: self.job.runnable.name.clone(),
            kind: self.job.runnable.job.kind(),
            scheduled_for: Some(slot.scheduled_for),
            timezone: self.job.schedule.timezone().name().to_owned(),
            adjusted: slot.adjusted,
            trigger,
            actor: format!("daemon:{}", self.instance),
            instance: self.instance.to_owned(),
            epoch: self.term.fence.epoch,
            policy: self.job.runnable.policy.clone(),
        }
    }
}
