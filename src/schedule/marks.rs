//! How far each job's schedule has been evaluated, as the ledger remembers it: at the first start,
//! after a change of the schedule, and after a clock that ran ahead.

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use super::cron::Schedule;
use super::recovery::RecoveryError;
use super::slots::{Former, ScheduledJob};
use crate::audit::{AuditLog, Entry, RecordKind};
use crate::ledger::leader::Leader;
use crate::ledger::slots::{self, Evaluated};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::JobName;

/// A mark may be this far ahead of the clock: two hosts' clocks differ, and are corrected.
const AHEAD: SignedDuration = SignedDuration::from_mins(1);

/// Learns from the ledger how far each schedule was evaluated. A job that was never seen begins
/// now and catches nothing up; one whose schedule or zone was changed begins now too, after the slots
/// of the old schedule until now are accounted for.
pub async fn first_seen(
    connection: &mut PgConnection,
    jobs: &mut [ScheduledJob],
    audit: &AuditLog,
    now: Timestamp,
) -> Result<(), RecoveryError> {
    for job in jobs {
        job.before = None;
        let Some(known) = slots::load(connection, &job.runnable.name).await? else {
            begin(connection, job, now).await?;
            continue;
        };
        let former = read(&known);
        if former.as_ref().is_some_and(|former| former.is_same_as(&job.schedule)) {
            job.evaluated_until = known.until;
            rewind(connection, job, audit, now).await?;
            continue;
        }
        announce_change(audit, job, &known, former.is_some()).await?;
        let has_slots = |former: &Schedule| {
            former
                .next_after(known.until)
                .is_some_and(|next| next.scheduled_for <= now)
        };
        if let Some(schedule) = former.filter(has_slots) {
            // The mark says the new schedule once the last slot of the old one has its row.
            job.evaluated_until = known.until;
            job.before = Some(Former { schedule, until: now });
        } else {
            begin(connection, job, now).await?;
        }
    }
    Ok(())
}

async fn begin(connection: &mut PgConnection, job: &mut ScheduledJob, now: Timestamp) -> Result<(), RecoveryError> {
    job.evaluated_until = now;
    slots::set(connection, &job.runnable.name, &job.evaluated(now)).await?;
    Ok(())
}

/// `None` for a schedule that this program or this host's tz data cannot read any more.
fn read(known: &Evaluated) -> Option<Schedule> {
    Schedule::parse(&known.schedule, known.timezone.parse().ok()?).ok()
}

async fn announce_change(
    audit: &AuditLog,
    job: &ScheduledJob,
    known: &Evaluated,
    readable: bool,
) -> Result<(), RecoveryError> {
    let name = &job.runnable.name;
    if !readable {
        tracing::warn!(job.name = %name, schedule = known.schedule, timezone = known.timezone,
            "the schedule that held before cannot be read any more; its slots since {} are not accounted for", known.until);
    }
    let body = json!({
        "schedule_before": known.schedule, "timezone_before": known.timezone, "evaluated_until": known.until,
        "schedule": job.schedule.to_string(), "timezone": job.schedule.timezone().name(), "readable": readable,
    });
    audit
        .append(Entry::new(RecordKind::ConfigApplied, body).job(name.clone()))
        .await?;
    Ok(())
}

/// Brings back a mark that lies ahead of the clock: the clock was set back, or ran ahead when the mark
/// was set. Slots that have rows keep them; the others come due again.
pub async fn rewind(
    connection: &mut PgConnection,
    job: &mut ScheduledJob,
    audit: &AuditLog,
    now: Timestamp,
) -> Result<(), RecoveryError> {
    let mark = job.evaluated_until;
    if now.duration_until(mark) <= AHEAD {
        return Ok(());
    }
    let name = job.runnable.name.clone();
    tracing::warn!(job.name = %name, mark = %mark, "the schedule was evaluated by a clock that was ahead; it is evaluated again from now");
    let body = json!({ "evaluated_until": mark, "again_from": now });
    audit
        .append(Entry::new(RecordKind::ClockJump, body).job(name.clone()))
        .await?;
    job.evaluated_until = now;
    slots::set(connection, &name, &job.evaluated(now)).await?;
    Ok(())
}

/// Moves many marks at once; none moves back.
pub(super) async fn save_all(lead: &mut Leader, marks: &[(JobName, Evaluated)]) -> Result<(), RecoveryError> {
    let fence = lead.term.fence;
    let mut transaction = lead.connection().begin().await.map_err(DatabaseError::from)?;
    fence.hold(&mut transaction).await.map_err(DatabaseError::from)?;
    slots::save_all(&mut transaction, marks).await?;
    transaction.commit().await.map_err(DatabaseError::from)?;
    Ok(())
}
