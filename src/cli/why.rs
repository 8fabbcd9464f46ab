//! `why`: why a job ran, or did not run, at an instant. First the schedule field by field, then the
//! gates between a slot and its run, in their order, as the ledger tells.

mod answer;
mod gates;

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use self::answer::Answer;
use self::gates::Known;
use super::site::{database_failure, job, target};
use super::{Exit, Failure, output};
use crate::config::Config;
use crate::ledger::runs;
use crate::ledger::slots;
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;
use crate::schedule::cron::Occurrence;
use crate::schedule::policy::start_delay;
use crate::values::{JobName, Name};

/// When the operator means: an instant, or a time of the calendar in the job's zone.
#[derive(Debug, Clone, Copy)]
pub(super) enum At {
    Instant(Timestamp),
    Local(DateTime),
}

/// Reads `2026-03-08T07:00:00Z`, or `2026-03-08T02:30` in the job's zone.
pub(super) fn parse_at(text: &str) -> Result<At, String> {
    let instant = text.parse().map(At::Instant);
    instant.or_else(|_| text.parse().map(At::Local)).map_err(|_| {
        format!("`{text}` is not a time; write 2026-03-08T07:00:00Z, or 2026-03-08T02:30 for the job's zone")
    })
}

impl At {
    pub(super) fn resolve(self, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Instant(instant) => Some(instant),
            Self::Local(local) => match zone.to_ambiguous_timestamp(local).offset() {
                AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Fold { before: offset, .. } => {
                    offset.to_timestamp(local).ok()
                }
                // A time that does not exist means the first instant after the gap.
                AmbiguousOffset::Gap { before, .. } => {
                    let behind = before.to_timestamp(local).ok()?;
                    let behind = behind.checked_add(SignedDuration::from_secs(1)).ok()?;
                    zone.preceding(behind).next().map(|change| change.timestamp())
                }
            },
        }
    }
}

pub(super) async fn why(config: &Config, name: &JobName, at: At, as_json: bool) -> Result<Exit, Failure> {
    let settings = job(config, name)?;
    let zone = settings.schedule.timezone().rules();
    let at = at
        .resolve(zone)
        .ok_or_else(|| Failure::new(Exit::Usage, "this time is beyond the calendar"))?;
    let minute = Timestamp::from_second(at.as_second().div_euclid(60) * 60).unwrap_or(at);
    let slot = settings.schedule.occurs_at(minute);
    let delay = start_delay(settings.jitter, &config.daemon.instance, name);
    let due = minute.checked_add(delay).unwrap_or(minute);
    let mut exit = Exit::Green;
    let (gates, run) = match &slot {
        None => (Vec::new(), None),
        Some(_) if due > Timestamp::now() => (vec![gates::waiting("lead", format!("it starts at {due}"))], None),
        Some(slot) => match look(target(config, &settings.database)?, &settings.database, name, slot).await {
            Ok(known) => (gates::of(&known, slot), known.run),
            Err(error) => {
                // What the schedule says is worth having all the same.
                let failure = database_failure(&format!("read the ledger of {}", settings.database), &error);
                output::error(&failure.message, failure.remedy.as_deref());
                exit = failure.exit;
                (Vec::new(), None)
            }
        },
    };
    let answer = Answer {
        settings,
        minute,
        slot,
        due,
        gates,
        run,
    };
    if as_json {
        output::document(&json!({ "version": 1, "why": answer.to_json() }));
    } else {
        answer.print();
    }
    Ok(exit)
}

async fn look(
    target: &ConnectTarget,
    database: &Name,
    job: &JobName,
    slot: &Occurrence,
) -> Result<Known, DatabaseError> {
    let mut session = Session::open(target, &SessionSettings::control("pgreeve:why")).await?;
    let exists: bool = sqlx::query_scalar("SELECT pg_catalog.to_regclass('pgreeve.run') IS NOT NULL")
        .fetch_one(session.connection())
        .await?;
    let mut known = Known {
        evaluated: None,
        run: None,
    };
    if exists {
        known.evaluated = slots::load(session.connection(), job).await?;
        known.run = runs::of_slot(session.connection(), database.as_str(), job, slot.scheduled_for).await?;
    }
    session.close().await;
    Ok(known)
}
