//! Cron expressions in a time zone, and the occurrences due between two instants.
//!
//! Five fields, read by croner 4: day-of-month OR day-of-week when both are restricted, as POSIX
//! has it; `L`, `W`, `#`, names and `@nicknames`. Clock changes: a fixed-time schedule (one hour,
//! one minute) whose time falls into the gap runs at the first instant after it, and in the
//! repeated hour runs on the first pass only; any other schedule runs at every real occurrence.

use std::fmt;

use croner::parser::{CronParser, Seconds, Year};
use croner::{Cron, JobType};
use jiff::{SignedDuration, Timestamp, Zoned};
use serde::Serialize;

use crate::values::{Timezone, ValueError};

/// How far ahead a day that the zone skips may be to explain a search without a result
/// (Pacific/Apia had no 30 December 2011).
const LONGEST_STEP_TO_A_GAP: SignedDuration = SignedDuration::from_hours(72);

/// A cron expression in a time zone that fires at least once more.
#[derive(Debug, Clone)]
pub struct Schedule {
    text: String,
    cron: Cron,
    timezone: Timezone,
}

/// One due time of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Occurrence {
    /// The slot, as an instant; with the job's name it identifies the occurrence.
    pub scheduled_for: Timestamp,
    /// What a clock change did to it.
    pub adjusted: Option<Adjusted>,
}

/// What a clock change did to a fixed-time occurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Adjusted {
    /// Its local time did not exist; it runs at the first instant after the gap.
    Gap,
    /// Its local time came twice; it runs on the first pass.
    Fold,
}

impl Adjusted {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Fold => "fold",
        }
    }
}

impl Schedule {
    /// Reads five cron fields.
    ///
    /// # Errors
    /// When the text is not a cron expression of five fields.
    pub fn parse(text: &str, timezone: Timezone) -> Result<Self, ValueError> {
        let help = "a schedule has five fields, minute hour day-of-month month day-of-week, such as \"0 2 * * *\" for 02:00 each day";
        let bad = |problem: String| ValueError {
            problem,
            help: help.to_owned(),
        };
        let fields = text.split_whitespace().count();
        if fields != 5 && !text.trim_start().starts_with('@') {
            return Err(bad(format!("`{text}` has {fields} fields instead of five")));
        }
        let cron = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build()
            .parse(text)
            .map_err(|error| bad(format!("`{text}` is not a schedule: {error}")))?;
        Ok(Self {
            text: text.to_owned(),
            cron,
            timezone,
        })
    }

    /// The zone the fields are read in.
    #[must_use]
    pub fn timezone(&self) -> &Timezone {
        &self.timezone
    }

    /// The next occurrence after an instant; `None` when it never fires again.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Occurrence> {
        let zone = self.timezone.rules();
        let search = |from: Timestamp, inclusive: bool| {
            self.cron
                .find_next_occurrence(&from.to_zoned(zone.clone()), inclusive)
                .ok()
        };
        if let Some(found) = search(after, false) {
            return Some(self.occurrence(&found));
        }
        // croner gives up in a gap longer than its search of two hours; the search goes on behind
        // the gap. A schedule that never fires has no such gap ahead.
        let behind = zone.following(after).next()?.timestamp();
        let near = after.duration_until(behind) <= LONGEST_STEP_TO_A_GAP;
        near.then(|| search(behind, true))
            .flatten()
            .map(|found| self.occurrence(&found))
    }

    /// The occurrences in the half-open interval `(after, until]`, in order.
    pub fn between(&self, after: Timestamp, until: Timestamp) -> impl Iterator<Item = Occurrence> + '_ {
        let mut last = after;
        std::iter::from_fn(move || {
            let next = self.next_after(last).filter(|next| next.scheduled_for <= until)?;
            last = next.scheduled_for;
            Some(next)
        })
    }

    fn occurrence(&self, found: &Zoned) -> Occurrence {
        let fixed = self.cron.determine_job_type() == JobType::FixedTime;
        let adjusted = if !fixed {
            None
        } else if !self.cron.is_time_matching(found).unwrap_or(true) {
            Some(Adjusted::Gap)
        } else if self
            .timezone
            .rules()
            .to_ambiguous_timestamp(found.datetime())
            .is_ambiguous()
        {
            Some(Adjusted::Fold)
        } else {
            None
        };
        Occurrence {
            scheduled_for: found.timestamp(),
            adjusted,
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(text: &str, zone: &str) -> Schedule {
        Schedule::parse(text, zone.parse().unwrap()).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn instants(schedule: &Schedule, after: &str, until: &str) -> Vec<String> {
        schedule
            .between(at(after), at(until))
            .map(|slot| slot.scheduled_for.to_string())
            .collect()
    }

    #[test]
    fn the_interval_excludes_its_start_and_includes_its_end() {
        let hourly = schedule("0 * * * *", "UTC");
        assert_eq!(
            instants(&hourly, "2026-01-01T00:00:00Z", "2026-01-01T02:00:00Z"),
            ["2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z"]
        );
        assert!(instants(&hourly, "2026-01-01T00:00:00Z", "2026-01-01T00:59:59Z").is_empty());
    }

    #[test]
    fn a_time_in_the_gap_runs_once_after_it() {
        let daily = schedule("30 2 * * *", "America/New_York");
        let slot = daily.next_after(at("2026-03-08T00:00:00-05:00")).unwrap();
        assert_eq!(
            slot,
            Occurrence {
                scheduled_for: at("2026-03-08T07:00:00Z"),
                adjusted: Some(Adjusted::Gap)
            }
        );
        assert_eq!(
            daily.next_after(slot.scheduled_for).unwrap().scheduled_for,
            at("2026-03-09T06:30:00Z")
        );
    }

    #[test]
    fn a_time_in_the_fold_runs_on_the_first_pass_only() {
        let daily = schedule("30 1 * * *", "America/New_York");
        let slot = daily.next_after(at("2026-11-01T00:00:00-04:00")).unwrap();
        assert_eq!(
            slot,
            Occurrence {
                scheduled_for: at("2026-11-01T05:30:00Z"),
                adjusted: Some(Adjusted::Fold)
            }
        );
        assert_eq!(
            daily.next_after(slot.scheduled_for).unwrap().scheduled_for,
            at("2026-11-02T06:30:00Z")
        );
        let half_hourly = schedule("*/30 * * * *", "America/New_York");
        assert_eq!(
            instants(&half_hourly, "2026-11-01T05:00:00Z", "2026-11-01T07:00:00Z").len(),
            4
        );
    }

    #[test]
    fn a_day_that_the_zone_skips_does_not_end_the_schedule() {
        let daily = schedule("0 12 * * *", "Pacific/Apia");
        let days = instants(&daily, "2011-12-29T00:00:00Z", "2012-01-01T00:00:00Z");
        assert_eq!(
            days,
            ["2011-12-29T22:00:00Z", "2011-12-30T22:00:00Z", "2011-12-31T22:00:00Z"]
        );
    }

    #[test]
    fn the_thirty_first_of_february_never_fires() {
        assert_eq!(
            schedule("0 0 31 2 *", "UTC").next_after(at("2026-01-01T00:00:00Z")),
            None
        );
    }

    #[test]
    fn a_schedule_of_six_fields_or_nonsense_is_refused() {
        for text in ["* * * * * *", "", "61 * * * *", "hello", "0 25 * * *", "@reboot"] {
            assert!(Schedule::parse(text, Timezone::utc()).is_err(), "{text}");
        }
    }

    #[test]
    fn both_day_fields_are_joined_by_or() {
        let first_or_monday = schedule("0 0 1 * Mon", "UTC");
        assert_eq!(
            instants(&first_or_monday, "2026-01-31T00:00:00Z", "2026-02-02T00:00:00Z"),
            ["2026-02-01T00:00:00Z", "2026-02-02T00:00:00Z"]
        );
    }
}
