//! `why`: why a job ran, or did not run, at an instant. First the schedule field by field, then the
//! gates between a slot and its run, in their order, as the ledger tells.

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::site::{database_failure, job, target};
use super::{Exit, Failure, output};
use crate::config::{Config, JobSettings};
use crate::job::Outcome;
use crate::ledger::runs::{self, RunRecord};
use crate::ledger::slots::{self, Evaluated};
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;
use crate::schedule::cron::Occurrence;
use crate::schedule::fields::NAMES;
use crate::schedule::policy::start_delay;
use crate::values::{JobName, Name};

/// How far back the slot before is looked for.
const BACK: SignedDuration = SignedDuration::from_hours(24 * 3660);

/// What stands between a slot and the end of its run, in order: its name, the word that begins the
/// reason of a slot it stopped, and what it means to pass it.
const GATES: [(&str, &str, &str); 8] = [
    ("lead", "missed", "a daemon led the database when the slot came"),
    ("pause", "paused", "the job was not paused"),
    ("overlap", "overlap", "no other run of the job was in the way"),
    (
        "turn",
        "start_deadline",
        "its group and its tables were free, and there was room under max_runs",
    ),
    ("primary", "standby", "the server was the primary"),
    ("approval", "gated", "nothing held the policy back"),
    (
        "rollups",
        "rollup",
        "no rollup of its table had less sealed than was due",
    ),
    ("run", "run", "the run came to a green end"),
];

/// A gate's answer.
struct Gate {
    name: &'static str,
    /// `passed`, `stopped`, `waiting` or `not_reached`.
    result: &'static str,
    detail: String,
}

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

/// What the ledger knows.
struct Known {
    evaluated: Option<Evaluated>,
    run: Option<RunRecord>,
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
        Some(_) if due > Timestamp::now() => (vec![waiting("lead", format!("it starts at {due}"))], None),
        Some(slot) => match look(target(config, &settings.database)?, &settings.database, name, slot).await {
            Ok(known) => (gates(&known, slot), known.run),
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

fn waiting(name: &'static str, detail: String) -> Gate {
    Gate {
        name,
        result: "waiting",
        detail,
    }
}

/// The gates up to the one that stopped the slot, and those behind it.
fn gates(known: &Known, slot: &Occurrence) -> Vec<Gate> {
    let Some(run) = &known.run else {
        return vec![without_row(known, slot)];
    };
    let reason = run.reason.clone().unwrap_or_default();
    let last = GATES.len() - 1;
    let stopped_at = match run.outcome() {
        Some(Outcome::Succeeded) => None,
        Some(Outcome::Missed) => Some(0),
        Some(Outcome::Gated) if reason.starts_with("rollup: ") => Some(last - 1),
        Some(Outcome::Gated) => Some(last - 2),
        Some(Outcome::Skipped) => {
            let word = reason.split(':').next().unwrap_or_default();
            Some(GATES.iter().position(|(_, begins, _)| *begins == word).unwrap_or(last))
        }
        _ => Some(last),
    };
    let gate = |(index, (name, _, passed)): (usize, &(&'static str, &str, &str))| {
        let (result, detail) = match stopped_at {
            Some(stop) if index > stop => ("not_reached", String::new()),
            Some(stop) if index == stop => match (&run.outcome, run.started_at) {
                (None, None) => ("waiting", "admitted; it waits for its turn".to_owned()),
                (None, Some(since)) => ("waiting", format!("under way since {since}")),
                _ => ("stopped", reason.clone()),
            },
            _ => ("passed", (*passed).to_owned()),
        };
        Gate { name, result, detail }
    };
    GATES.iter().enumerate().map(gate).collect()
}

/// Why a slot that was due has no row.
fn without_row(known: &Known, slot: &Occurrence) -> Gate {
    let (result, detail) = match &known.evaluated {
        None => (
            "stopped",
            "no daemon has evaluated this job in its database yet".to_owned(),
        ),
        Some(evaluated) if evaluated.until < slot.scheduled_for => (
            "waiting",
            format!(
                "slots are evaluated until {}; no daemon has led the database since",
                evaluated.until
            ),
        ),
        Some(_) => (
            "stopped",
            "it has no row: the job or its schedule is newer than this slot, or the row is older than history_keep"
                .to_owned(),
        ),
    };
    Gate {
        name: "lead",
        result,
        detail,
    }
}

/// What one field of the schedule says of the instant: its value there, and whether it matches.
struct FieldAnswer<'a> {
    name: &'static str,
    text: &'a str,
    local: (String, bool),
    utc: (String, bool),
}

/// All that is said.
struct Answer<'a> {
    settings: &'a JobSettings,
    minute: Timestamp,
    slot: Option<Occurrence>,
    due: Timestamp,
    gates: Vec<Gate>,
    run: Option<RunRecord>,
}

impl Answer<'_> {
    fn local(&self, at: Timestamp) -> String {
        let zone = self.settings.schedule.timezone().rules();
        at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    }

    fn previous(&self) -> Option<Timestamp> {
        let before = self.minute.checked_sub(SignedDuration::from_nanos(1)).ok()?;
        let after = self.minute.checked_sub(BACK).unwrap_or(Timestamp::MIN);
        let found = self.settings.schedule.last_between(after, before, 1);
        found.last().map(|slot| slot.scheduled_for)
    }

    fn next(&self) -> Option<Timestamp> {
        self.settings
            .schedule
            .next_after(self.minute)
            .map(|slot| slot.scheduled_for)
    }

    fn fields(&self) -> Vec<FieldAnswer<'_>> {
        let fields = self.settings.schedule.fields();
        let side = |zone: &TimeZone| {
            let at = zone.to_datetime(self.minute);
            values(at).into_iter().zip(fields.matching(at))
        };
        let sides = side(self.settings.schedule.timezone().rules()).zip(side(&TimeZone::UTC));
        NAMES
            .iter()
            .zip(fields.each())
            .zip(sides)
            .map(|((name, text), (local, utc))| FieldAnswer { name, text, local, utc })
            .collect()
    }

    fn to_json(&self) -> Value {
        let fields: Vec<Value> = self
            .fields()
            .into_iter()
            .map(|field| {
                json!({
                    "field": field.name, "text": field.text,
                    "local": { "value": field.local.0, "matches": field.local.1 },
                    "utc": { "value": field.utc.0, "matches": field.utc.1 },
                })
            })
            .collect();
        let gates: Vec<Value> = self
            .gates
            .iter()
            .map(|gate| json!({ "gate": gate.name, "result": gate.result, "detail": gate.detail }))
            .collect();
        json!({
            "job": self.settings.name, "database": self.settings.database, "schedule": self.settings.schedule.to_string(),
            "timezone": self.settings.schedule.timezone().name(), "at": self.minute, "local": self.local(self.minute),
            "fields": fields, "is_slot": self.slot.is_some(), "adjusted": self.slot.as_ref().and_then(|slot| slot.adjusted),
            "starts_at": self.slot.is_some().then_some(self.due), "previous": self.previous(), "next": self.next(),
            "gates": gates, "run": self.run,
        })
    }

    fn print(&self) {
        let zone = self.settings.schedule.timezone().name();
        output::line(&format!(
            "job       {} on {}",
            self.settings.name, self.settings.database
        ));
        output::line(&format!("schedule  {} in {zone}", self.settings.schedule));
        output::line(&format!(
            "at        {}, which is {}",
            self.minute,
            self.local(self.minute)
        ));
        output::line("");
        let mark = |(value, matches): &(String, bool)| format!("{value} {}", if *matches { "yes" } else { "no" });
        let rows: Vec<Vec<String>> = self
            .fields()
            .iter()
            .map(|field| {
                let (name, text) = (field.name.to_owned(), field.text.to_owned());
                vec![name, text, mark(&field.local), mark(&field.utc)]
            })
            .collect();
        output::table(&["FIELD", "SCHEDULE", &format!("IN {zone}"), "IN UTC"], &rows);
        output::line("");
        let instant =
            |at: Option<Timestamp>| at.map_or_else(|| "none".to_owned(), |at| format!("{at} ({})", self.local(at)));
        match &self.slot {
            None => output::line(&format!(
                "It is not a slot. The slot before is {}, the next one is {}.",
                instant(self.previous()),
                instant(self.next())
            )),
            Some(slot) => {
                let adjusted = slot.adjusted.map_or(String::new(), |adjusted| {
                    format!(", moved by a clock change ({})", adjusted.as_str())
                });
                output::line(&format!("It is a slot{adjusted}."));
            }
        }
        if !self.gates.is_empty() {
            output::line("");
            let rows: Vec<Vec<String>> = self
                .gates
                .iter()
                .map(|gate| vec![gate.name.to_owned(), gate.result.to_owned(), gate.detail.clone()])
                .collect();
            output::table(&["GATE", "RESULT", "DETAIL"], &rows);
        }
        if let Some(run) = &self.run {
            let outcome = run.outcome.as_deref().unwrap_or("running");
            output::line("");
            output::line(&format!("run {}: {outcome} ({})", run.run_id, run.trigger));
        }
    }
}

/// A time of the calendar as the five fields see it.
fn values(at: DateTime) -> [String; 5] {
    [
        at.minute().to_string(),
        at.hour().to_string(),
        at.day().to_string(),
        at.month().to_string(),
        at.strftime("%a").to_string(),
    ]
}
