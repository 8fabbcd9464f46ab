//! Cron expressions in a time zone, and the occurrences due between two instants.
//!
//! The fields name times of the calendar; a zone maps these to instants. Where its clock is set
//! forward or back the two kinds of schedule differ:
//!
//! | | a fixed schedule (hour and minute are named) | any other |
//! |---|---|---|
//! | a time that does not exist | once, at the first instant after the gap | not at all |
//! | a time that comes twice | once, on the first pass | on both passes |
//! | a day that the zone leaves out whole | not at all | not at all |

use std::fmt;

use jiff::civil::{DateTime, Time};
use jiff::tz::AmbiguousOffset;
use jiff::{SignedDuration, Span, Timestamp};
use serde::Serialize;

use super::fields::Fields;
use crate::values::{Timezone, ValueError};
pub use crate::words::Adjusted;

/// How far ahead an occurrence is looked for. Days of the week and leap days come around within 40
/// years (1 March 2096 to 29 February 2104 included), so what does not fire by then never does.
const HORIZON_DAYS: i32 = 45 * 366;

/// No zone's clock was ever set back by more than a day.
const LONGEST_FOLD: SignedDuration = SignedDuration::from_hours(25);

/// A cron expression in a time zone.
#[derive(Debug, Clone)]
pub struct Schedule {
    text: String,
    fields: Fields,
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

impl Schedule {
    /// Reads five cron fields, or a nickname such as `@daily`.
    ///
    /// # Errors
    /// When the text is not a cron expression of five fields.
    pub fn parse(text: &str, timezone: Timezone) -> Result<Self, ValueError> {
        Ok(Self {
            text: text.to_owned(),
            fields: Fields::parse(text)?,
            timezone,
        })
    }

    /// The zone the fields are read in.
    #[must_use]
    pub fn timezone(&self) -> &Timezone {
        &self.timezone
    }

    /// The five fields.
    #[must_use]
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Whether it means the same times as another one, however both are written.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.fields == other.fields && self.timezone.name() == other.timezone.name()
    }

    /// The next occurrence after an instant; `None` when it never fires again.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Occurrence> {
        if self.fields.is_fixed() {
            self.next_fixed(after)
        } else {
            self.next_interval(after).map(|scheduled_for| Occurrence {
                scheduled_for,
                adjusted: None,
            })
        }
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

    /// The last occurrences in `(after, until]`, at most `most`, in order.
    #[must_use]
    pub fn last_between(&self, after: Timestamp, until: Timestamp, most: usize) -> Vec<Occurrence> {
        // Looks back twice as far each time, so that a year of minutes is not walked for the last one.
        let mut back = SignedDuration::from_hours(1);
        loop {
            let from = until.checked_sub(back).map_or(after, |from| from.max(after));
            let mut found: Vec<Occurrence> = self.between(from, until).collect();
            if found.len() >= most || from == after {
                return found.split_off(found.len().saturating_sub(most));
            }
            back = back.saturating_mul(2);
        }
    }

    /// Whether this instant is an occurrence.
    #[must_use]
    pub fn occurs_at(&self, at: Timestamp) -> Option<Occurrence> {
        let before = at.checked_sub(SignedDuration::from_nanos(1)).ok()?;
        self.next_after(before).filter(|next| next.scheduled_for == at)
    }

    /// Walks the calendar: each time that is named, at the instant where the zone first shows it.
    fn next_fixed(&self, after: Timestamp) -> Option<Occurrence> {
        let zone = self.timezone.rules();
        let local = zone.to_datetime(after);
        let today = local.date();
        // Soon after a transition, times that the clock has shown already may be shown again.
        let steady = zone
            .preceding(after)
            .next()
            .is_none_or(|transition| transition.timestamp().duration_until(after) > LONGEST_FOLD);
        let mut from = if steady {
            local
        } else {
            local.checked_sub(LONGEST_FOLD).unwrap_or(local)
        };
        let until = today
            .checked_add(Span::new().days(HORIZON_DAYS))
            .map_or(DateTime::MAX, |date| date.to_datetime(Time::midnight()));
        loop {
            let named = self.fields.first_named(from, until)?;
            if let Some(found) = self.first_instant_of(named).filter(|found| found.scheduled_for > after) {
                return Some(found);
            }
            from = named.checked_add(SignedDuration::from_nanos(1)).ok()?;
        }
    }

    /// Where a named time lies; `None` when its whole day is left out.
    fn first_instant_of(&self, named: DateTime) -> Option<Occurrence> {
        let zone = self.timezone.rules();
        let (offset, adjusted) = match zone.to_ambiguous_timestamp(named).offset() {
            AmbiguousOffset::Unambiguous { offset } => (offset, None),
            AmbiguousOffset::Fold { before, .. } => (before, Some(Adjusted::Fold)),
            AmbiguousOffset::Gap { before, after } => {
                // Read by the old offset it lies behind the transition, at which the gap ends.
                let behind = before.to_timestamp(named).ok()?;
                let transition = zone
                    .preceding(behind.checked_add(SignedDuration::from_secs(1)).ok()?)
                    .next()?
                    .timestamp();
                let (starts, ends) = (before.to_datetime(transition), after.to_datetime(transition));
                let day_exists =
                    (starts.date() == named.date() && starts.time() > Time::midnight()) || ends.date() == named.date();
                // The end of the gap may be named itself; then nothing was moved.
                let adjusted = (!self.fields.names(ends)).then_some(Adjusted::Gap);
                return day_exists.then_some(Occurrence {
                    scheduled_for: transition,
                    adjusted,
                });
            }
        };
        Some(Occurrence {
            scheduled_for: offset.to_timestamp(named).ok()?,
            adjusted,
        })
    }

    /// Walks the time line: between two transitions the zone's clock runs evenly.
    fn next_interval(&self, after: Timestamp) -> Option<Timestamp> {
        let zone = self.timezone.rules();
        let horizon = after
            .checked_add(SignedDuration::from_hours(24 * i64::from(HORIZON_DAYS)))
            .unwrap_or(Timestamp::MAX);
        let mut from = after.checked_add(SignedDuration::from_nanos(1)).ok()?;
        while from < horizon {
            let offset = zone.to_offset(from);
            let end = zone
                .following(from)
                .next()
                .map_or(horizon, |transition| transition.timestamp().min(horizon));
            let found = self
                .fields
                .first_named(offset.to_datetime(from), offset.to_datetime(end));
            if let Some(found) = found {
                return offset.to_timestamp(found).ok();
            }
            from = end;
        }
        None
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
    fn both_day_fields_are_joined_by_or() {
        let first_or_monday = schedule("0 0 1 * Mon", "UTC");
        assert_eq!(
            instants(&first_or_monday, "2026-01-31T00:00:00Z", "2026-02-02T00:00:00Z"),
            ["2026-02-01T00:00:00Z", "2026-02-02T00:00:00Z"]
        );
    }
    #[test]
    fn a_gap_over_midnight_does_not_lose_the_week() {
        // Nuuk's clocks go from Saturday 23:00 to Sunday 00:00.
        let weekly = schedule("30 23 * * Sat", "America/Nuuk");
        assert_eq!(
            weekly.next_after(at("2025-03-29T12:00:00Z")).unwrap(),
            Occurrence {
                scheduled_for: at("2025-03-30T01:00:00Z"),
                adjusted: Some(Adjusted::Gap)
            }
        );
    }

    #[test]
    fn the_last_ones_are_found_without_walking_all() {
        let minutely = schedule("* * * * *", "UTC");
        let (after, until) = (at("2025-01-01T00:00:00Z"), at("2026-01-01T00:00:30Z"));
        let last = minutely.last_between(after, until, 2);
        let texts: Vec<String> = last.iter().map(|slot| slot.scheduled_for.to_string()).collect();
        assert_eq!(texts, ["2025-12-31T23:59:00Z", "2026-01-01T00:00:00Z"]);
        let yearly = schedule("@yearly", "UTC");
        assert_eq!(yearly.last_between(after, until, 100).len(), 1);
        assert_eq!(yearly.last_between(until, until, 100), []);
    }

    #[test]
    fn the_ends_of_time_are_no_trouble() {
        for text in ["* * * * *", "0 0 * * *", "0 0 31 2 *", "0 0 29 2 +Mon"] {
            for zone in ["UTC", "Europe/Berlin", "Pacific/Apia"] {
                for instant in [Timestamp::MIN, Timestamp::MAX, at("9999-12-30T21:59:00Z")] {
                    let _ = schedule(text, zone).next_after(instant);
                }
            }
        }
        assert_eq!(
            schedule("0 0 29 2 +Mon", "UTC")
                .next_after(at("2076-03-01T00:00:00Z"))
                .map(|slot| slot.scheduled_for),
            Some(at("2112-02-29T00:00:00Z"))
        );
    }
}
