//! What `why` says, as text and as JSON.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::gates::Gate;
use crate::cli::output;
use crate::config::JobSettings;
use crate::ledger::runs::RunRecord;
use crate::schedule::cron::Occurrence;
use crate::schedule::fields::NAMES;

/// How far back the slot before is looked for.
const BACK: SignedDuration = SignedDuration::from_hours(24 * 3660);

/// What one field of the schedule says of the instant: its value there, and whether it matches.
struct FieldAnswer<'a> {
    name: &'static str,
    text: &'a str,
    local: (String, bool),
    utc: (String, bool),
}

/// All that is said.
pub(super) struct Answer<'a> {
    pub(super) settings: &'a JobSettings,
    /// The minute that was asked for.
    pub(super) minute: Timestamp,
    /// The slot that it is.
    pub(super) slot: Option<Occurrence>,
    /// When that slot's run is to start.
    pub(super) due: Timestamp,
    pub(super) gates: Vec<Gate>,
    pub(super) run: Option<RunRecord>,
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

    pub(super) fn to_json(&self) -> Value {
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

    pub(super) fn print(&self) {
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
