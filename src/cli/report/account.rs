//! What the audit log says of a stretch of time: each job's slots, and what else was decided and done.
//!
//! Which slots were due is computed anew, from every version of the schedules that was in force: a
//! schedule that left no record would otherwise look as if nothing had been due.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::audit::segment::Segment;
use crate::audit::{AuditError, Record, RecordKind};
use crate::schedule::cron::Schedule;

/// The outcome of a slot that no record names.
pub(super) const NO_RECORD: &str = "no record";

/// The outcome of a run that started and has not ended.
const RUNNING: &str = "running";

/// One job's account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Job {
    /// How many slots were due.
    pub(super) expected: u64,
    /// How many slots came to each outcome; `no record` where the log does not say.
    pub(super) slots: BTreeMap<String, u64>,
    /// How many runs that an operator asked for came to each outcome.
    pub(super) manual: BTreeMap<String, u64>,
    /// Why slots and runs were not green, and how many.
    pub(super) reasons: BTreeMap<String, u64>,
}

/// A record that is worth a line of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Event {
    pub(super) seq: u64,
    pub(super) ts: Timestamp,
    pub(super) kind: String,
    pub(super) job: Option<String>,
    pub(super) actor: Option<String>,
    /// What it says, in words or identifiers.
    pub(super) what: String,
}

/// What a stretch of the log says.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) jobs: BTreeMap<String, Job>,
    pub(super) configuration: Vec<Event>,
    pub(super) decisions: Vec<Event>,
    pub(super) backups: Vec<Event>,
    pub(super) erasures: BTreeMap<String, u64>,
}

/// What became of a slot or a run.
#[derive(Debug, Clone)]
struct Fate {
    outcome: String,
    reason: Option<String>,
}

/// Reads the log from its first record on. Blocks.
pub(super) fn read(dir: &Path, from: Timestamp, to: Timestamp) -> Result<Account, AuditError> {
    let mut reader = Reader {
        from,
        to,
        account: Account::default(),
        schedules: BTreeMap::new(),
        since: from,
        slots: BTreeMap::new(),
        manual: BTreeMap::new(),
    };
    for (segment, length) in Segment::snapshot(dir)? {
        let mut lines = segment.lines(length)?;
        while let Some(line) = lines.next_line()? {
            // Whether a line that cannot be read is one of ours is for the verification to say.
            if let Ok(record) = Record::<Value>::parse(line.bytes) {
                reader.take(&record);
            }
        }
    }
    Ok(reader.close())
}

struct Reader {
    from: Timestamp,
    to: Timestamp,
    account: Account,
    /// Each job's schedule with its zone, and since when it is in force.
    schedules: BTreeMap<String, String>,
    since: Timestamp,
    /// By job, what became of each slot.
    slots: BTreeMap<String, BTreeMap<Timestamp, Option<Fate>>>,
    /// By job and run, what became of each run without a slot.
    manual: BTreeMap<(String, String), Fate>,
}

impl Reader {
    fn take(&mut self, record: &Record<'_, Value>) {
        let kind = RecordKind::from_word(&record.kind);
        if kind == Some(RecordKind::ConfigApplied) && record.body.get("schedules").is_some() {
            self.expect_until(record.ts);
            self.schedules = texts(&record.body["schedules"]);
        }
        match kind {
            Some(
                RecordKind::RunStart
                | RecordKind::RunEnd
                | RecordKind::RunInterrupted
                | RecordKind::Missed
                | RecordKind::Skipped,
            ) => self.account_for(record),
            Some(kind) if record.ts >= self.from && record.ts < self.to => self.list(kind, record),
            _ => {}
        }
    }

    /// Adds the slots that were due under the schedules in force until an instant.
    fn expect_until(&mut self, until: Timestamp) {
        let (begin, end) = (self.since.max(self.from), until.min(self.to));
        self.since = until.max(self.since);
        for (job, text) in &self.schedules {
            let Some((fields, zone)) = text.rsplit_once(' ') else {
                continue;
            };
            let Ok(zone) = zone.parse() else { continue };
            let Ok(schedule) = Schedule::parse(fields, zone) else {
                continue;
            };
            let before = begin.checked_sub(jiff::SignedDuration::from_nanos(1)).unwrap_or(begin);
            let slots = self.slots.entry(job.clone()).or_default();
            for slot in schedule.between(before, end).filter(|slot| slot.scheduled_for < end) {
                slots.entry(slot.scheduled_for).or_default();
            }
        }
    }

    fn account_for(&mut self, record: &Record<'_, Value>) {
        let Some(job) = record.job.as_deref() else { return };
        let text = |key: &str| record.body.get(key).and_then(Value::as_str);
        let instant = |key: &str| text(key).and_then(|text| text.parse::<Timestamp>().ok());
        let outcome = match RecordKind::from_word(&record.kind) {
            Some(RecordKind::RunStart) => RUNNING,
            Some(RecordKind::RunInterrupted) => "abandoned",
            Some(RecordKind::Missed) => "missed",
            Some(RecordKind::Skipped) => "skipped",
            _ => text("outcome").unwrap_or("unknown"),
        };
        let fate = Fate {
            outcome: outcome.to_owned(),
            reason: text("reason").map(str::to_owned),
        };
        let (from, to) = (self.from, self.to);
        let slots = self.slots.entry(job.to_owned()).or_default();
        if let (Some(first), Some(last)) = (instant("first"), instant("last"))
            && first <= last
        {
            // Its ends may be no slot of the schedule as it is now; those in between are known.
            for slot in [first, last].into_iter().filter(|slot| *slot >= from && *slot < to) {
                slots.entry(slot).or_default();
            }
            for (_, known) in slots.range_mut(first..=last) {
                known.get_or_insert_with(|| fate.clone());
            }
        } else if let Some(slot) = instant("scheduled_for") {
            if slot >= from && slot < to {
                slots.insert(slot, Some(fate));
            }
        } else if record.ts >= from
            && record.ts < to
            && let Some(run) = record.run
        {
            self.manual.insert((job.to_owned(), run.to_string()), fate);
        }
    }

    fn list(&mut self, kind: RecordKind, record: &Record<'_, Value>) {
        let event = Event {
            seq: record.seq,
            ts: record.ts,
            kind: record.kind.to_string(),
            job: record.job.as_deref().map(str::to_owned),
            actor: record.actor.as_deref().map(str::to_owned),
            what: said(&record.body),
        };
        let word = kind.as_str();
        match kind {
            RecordKind::ConfigApplied | RecordKind::ConfigRejected => self.account.configuration.push(event),
            RecordKind::PolicyApproved
            | RecordKind::RunCancel
            | RecordKind::JobPaused
            | RecordKind::JobResumed
            | RecordKind::HoldPlaced
            | RecordKind::HoldReleased
            | RecordKind::RollupChanged
            | RecordKind::ErasureExtended
            | RecordKind::ErasureRejected
            | RecordKind::ErasureKeyDestroyed
            | RecordKind::DatabaseRewound
            | RecordKind::ClockJump => self.account.decisions.push(event),
            _ if word.starts_with("backup.") || word.starts_with("restore.") => self.account.backups.push(event),
            _ if word.starts_with("erasure.") => *self.account.erasures.entry(word.to_owned()).or_default() += 1,
            _ => {}
        }
    }

    fn close(mut self) -> Account {
        self.expect_until(self.to.min(Timestamp::now()));
        let mut account = self.account;
        for (job, slots) in self.slots {
            let entry = account.jobs.entry(job).or_default();
            entry.expected = u64::try_from(slots.len()).unwrap_or(u64::MAX);
            for fate in slots.into_values() {
                let fate = fate.unwrap_or_else(|| Fate {
                    outcome: NO_RECORD.to_owned(),
                    reason: Some("the log of this host has no record of it".to_owned()),
                });
                note(&mut entry.reasons, &fate);
                *entry.slots.entry(fate.outcome).or_default() += 1;
            }
        }
        for ((job, _), fate) in self.manual {
            let entry = account.jobs.entry(job).or_default();
            note(&mut entry.reasons, &fate);
            *entry.manual.entry(fate.outcome).or_default() += 1;
        }
        account.jobs.retain(|_, job| job.expected > 0 || !job.manual.is_empty());
        account
    }
}

fn note(reasons: &mut BTreeMap<String, u64>, fate: &Fate) {
    if let Some(reason) = fate.reason.as_deref().filter(|_| fate.outcome != "succeeded") {
        *reasons.entry(format!("{}: {reason}", fate.outcome)).or_default() += 1;
    }
}

fn texts(object: &Value) -> BTreeMap<String, String> {
    let entries = object.as_object().into_iter().flatten();
    entries
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// The identifiers and reasons of a body, in a line. Nothing else of it, so that a report stays short.
fn said(body: &Value) -> String {
    const KEYS: [&str; 14] = [
        "action",
        "backup_id",
        "id",
        "hold",
        "policy",
        "fingerprint_before",
        "fingerprint",
        "jobs",
        "run",
        "until",
        "level",
        "ok",
        "problem",
        "reason",
    ];
    let part = |key: &&str| {
        let text = match body.get(*key)? {
            Value::Null => return None,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Some(format!("{key} {text}"))
    };
    KEYS.iter().filter_map(part).collect::<Vec<_>>().join(", ")
}
