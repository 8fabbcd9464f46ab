//! Buckets: where each begins and ends on the calendar of a zone.
//!
//! Buckets follow each other without gap or overlap, whatever the clocks do. That is why they are
//! computed here and not by `date_trunc` row by row: where a repeated hour holds a midnight, or a
//! clock changes by half an hour, `date_trunc` answers with a beginning that lies after the row.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Span, Timestamp, ToSpan};
use serde::{Serialize, Serializer};

use crate::values::ValueError;

const HELP: &str = "write minutes that divide an hour (\"15m\"), \"1h\", hours that divide a day (\"6h\"), \"1d\", \"1w\", \"1mo\", \"3mo\" or \"1y\"";

/// How long a bucket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 1 to 3600 seconds, a divisor of an hour. They are seconds that pass: each pass of a repeated hour
    /// has buckets of its own.
    Seconds(u16),
    /// 2 to 12 hours, a divisor of 24, as the wall clock shows them: a repeated hour belongs to the
    /// bucket that it repeats.
    Hours(u8),
    /// A day from midnight to midnight, of 23 or 25 hours where clocks change.
    Day,
    /// From Monday.
    Week,
    /// A month of the calendar.
    Month,
    /// Three months.
    Quarter,
    /// A year of the calendar.
    Year,
}

impl Width {
    /// Whether it is shorter than a day.
    #[must_use]
    pub fn is_short(self) -> bool {
        matches!(self, Self::Seconds(_) | Self::Hours(_))
    }

    /// How exactly changes are noted: by an hour, or by the bucket where that is shorter.
    #[must_use]
    pub fn cell_seconds(self) -> u16 {
        match self {
            Self::Seconds(seconds) => seconds,
            _ => 3600,
        }
    }

    /// The beginning of the bucket that an instant is in.
    #[must_use]
    pub fn floor(self, at: Timestamp, zone: &TimeZone) -> Timestamp {
        if let Self::Seconds(seconds) = self {
            return floor_seconds(at, i64::from(seconds), zone);
        }
        let local = zone.to_datetime(at);
        let first = first_at(self.begins(local), zone);
        // A clock that was set back over the beginning: the bucket began on the first pass.
        first.filter(|first| *first <= at).unwrap_or(at)
    }

    /// The beginning of the next bucket after one that begins at `start`.
    #[must_use]
    pub fn next(self, start: Timestamp, zone: &TimeZone) -> Timestamp {
        if let Self::Seconds(seconds) = self {
            return next_seconds(start, i64::from(seconds), zone);
        }
        let mut local = self.begins(zone.to_datetime(start));
        // A calendar day that a zone skipped begins and ends at the same instant.
        for _ in 0..3 {
            let Ok(later) = local.checked_add(self.span()) else {
                break;
            };
            local = later;
            match first_at(local, zone) {
                Some(next) if next > start => return next,
                Some(_) => {}
                None => break,
            }
        }
        Timestamp::MAX
    }

    /// The first beginning of a bucket that is not before an instant.
    #[must_use]
    pub fn ceil(self, at: Timestamp, zone: &TimeZone) -> Timestamp {
        let floor = self.floor(at, zone);
        if floor == at { at } else { self.next(floor, zone) }
    }

    /// The beginnings from `low`, itself one, on to the first that is not before `high`, at most
    /// `most` buckets.
    #[must_use]
    pub fn bounds(self, low: Timestamp, high: Timestamp, most: usize, zone: &TimeZone) -> Vec<Timestamp> {
        let mut bounds = vec![low];
        let mut at = low;
        while at < high && bounds.len() <= most {
            at = self.next(at, zone);
            bounds.push(at);
        }
        bounds
    }

    /// The wall clock's time at which the bucket of a wall clock's time begins.
    fn begins(self, local: DateTime) -> DateTime {
        let date = local.date();
        let midnight = |date: Date| date.to_datetime(jiff::civil::Time::midnight());
        let days_back = |days: i8| date.checked_sub(i64::from(days).days()).unwrap_or(date);
        let first = |month: i8| Date::new(date.year(), month, 1).unwrap_or(date);
        match self {
            Self::Seconds(_) => local,
            Self::Hours(hours) => {
                let hour = i8::try_from(hours).map_or(0, |hours| local.hour() - local.hour() % hours.max(1));
                date.at(hour, 0, 0, 0)
            }
            Self::Day => midnight(date),
            Self::Week => midnight(days_back(date.weekday().to_monday_zero_offset())),
            Self::Month => midnight(first(date.month())),
            Self::Quarter => midnight(first(date.month() - (date.month() - 1) % 3)),
            Self::Year => midnight(first(1)),
        }
    }

    fn span(self) -> Span {
        match self {
            Self::Seconds(seconds) => i64::from(seconds).seconds(),
            Self::Hours(hours) => i64::from(hours).hours(),
            Self::Day => 1.day(),
            Self::Week => 1.week(),
            Self::Month => 1.month(),
            Self::Quarter => 3.months(),
            Self::Year => 1.year(),
        }
    }
}

fn second(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond().div_euclid(1_000_000_000)).unwrap_or_default()
}

fn instant(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or(if second < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// The beginning by the offset in force, or the last change of the clock since then that does not fit
/// the width: it begins a bucket too.
fn floor_seconds(at: Timestamp, width: i64, zone: &TimeZone) -> Timestamp {
    let offset = i64::from(zone.to_offset(at).seconds());
    let begin = instant(second(at) - (second(at) + offset).rem_euclid(width));
    let just_after = at.checked_add(SignedDuration::from_nanos(1)).unwrap_or(at);
    match zone.preceding(just_after).next().map(|change| change.timestamp()) {
        Some(change) if change > begin && shifts(change, width, zone) => change,
        _ => begin,
    }
}

fn next_seconds(start: Timestamp, width: i64, zone: &TimeZone) -> Timestamp {
    let offset = i64::from(zone.to_offset(start).seconds());
    let end = instant(second(start) - (second(start) + offset).rem_euclid(width) + width);
    match zone.following(start).next().map(|change| change.timestamp()) {
        Some(change) if change < end && shifts(change, width, zone) => change,
        _ => end,
    }
}

/// Whether a change of the clock moves where buckets begin.
fn shifts(change: Timestamp, width: i64, zone: &TimeZone) -> bool {
    let before = change.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(change);
    let offset = |at| i64::from(zone.to_offset(at).seconds()).rem_euclid(width);
    offset(before) != offset(change)
}

/// The first instant at which a wall clock shows this time or has passed it.
fn first_at(local: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Fold { before: offset, .. } => {
            offset.to_timestamp(local).ok()
        }
        AmbiguousOffset::Gap { before, .. } => {
            let behind = before.to_timestamp(local).ok()?;
            let behind = behind.checked_add(SignedDuration::from_secs(1)).ok()?;
            zone.preceding(behind).next().map(|change| change.timestamp())
        }
    }
}

impl FromStr for Width {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bad = |problem: String| ValueError {
            problem,
            help: HELP.to_owned(),
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u16 = number
            .parse()
            .map_err(|_| bad(format!("`{text}` is not the width of a bucket")))?;
        let small = |number: u16| u8::try_from(number).unwrap_or(u8::MAX);
        Ok(match (number, unit) {
            (1..=60, "s") if 60 % number == 0 => Self::Seconds(number),
            (1..=60, "m") if 60 % number == 0 => Self::Seconds(number * 60),
            (1, "h") => Self::Seconds(3600),
            (2..=12, "h") if 24 % number == 0 => Self::Hours(small(number)),
            (24, "h") | (1, "d") => Self::Day,
            (7, "d") | (1, "w") => Self::Week,
            (1, "mo") => Self::Month,
            (3, "mo") => Self::Quarter,
            (12, "mo") | (1, "y") => Self::Year,
            (_, "s") => return Err(bad(format!("{number} seconds do not divide a minute evenly"))),
            (_, "m") => return Err(bad(format!("{number} minutes do not divide an hour evenly"))),
            (_, "h") => return Err(bad(format!("{number} hours do not divide a day evenly"))),
            (_, "d" | "w") => return Err(bad(format!("`{text}` divides neither a week nor a month evenly"))),
            (_, "mo" | "y") => return Err(bad(format!("`{text}` does not divide a year evenly"))),
            _ => return Err(bad(format!("`{text}` is not the width of a bucket"))),
        })
    }
}

impl fmt::Display for Width {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seconds(3600) => f.write_str("1h"),
            Self::Seconds(seconds) if seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
            Self::Seconds(seconds) => write!(f, "{seconds}s"),
            Self::Hours(hours) => write!(f, "{hours}h"),
            Self::Day => f.write_str("1d"),
            Self::Week => f.write_str("1w"),
            Self::Month => f.write_str("1mo"),
            Self::Quarter => f.write_str("3mo"),
            Self::Year => f.write_str("1y"),
        }
    }
}

impl Serialize for Width {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn lengths(width: &str, from: &str, to: &str, name: &str) -> Vec<i64> {
        let width: Width = width.parse().unwrap();
        let bounds = width.bounds(at(from), at(to), 1000, &zone(name));
        bounds
            .windows(2)
            .map(|pair| second(pair[1]) - second(pair[0]))
            .collect()
    }

    #[test]
    fn days_of_clock_changes_have_23_and_25_hours_or_half_an_hour_less_and_more() {
        let hours = |halves: &[f64]| {
            let second = |hours: &f64| SignedDuration::from_secs_f64(hours * 3600.0).as_secs();
            halves.iter().map(second).collect::<Vec<_>>()
        };
        let york = "America/New_York";
        assert_eq!(
            lengths("1d", "2026-03-07T05:00:00Z", "2026-03-10T04:00:00Z", york),
            hours(&[24.0, 23.0, 24.0])
        );
        assert_eq!(
            lengths("1d", "2026-10-31T04:00:00Z", "2026-11-03T05:00:00Z", york),
            hours(&[24.0, 25.0, 24.0])
        );
        let howe = "Australia/Lord_Howe";
        assert_eq!(
            lengths("1d", "2026-04-03T13:00:00Z", "2026-04-06T13:30:00Z", howe),
            hours(&[24.0, 24.5, 24.0])
        );
        assert_eq!(
            lengths("1d", "2026-10-02T13:30:00Z", "2026-10-05T13:00:00Z", howe),
            hours(&[24.0, 23.5, 24.0])
        );
    }

    #[test]
    fn hours_are_hours_that_pass_and_begin_where_the_wall_clock_says() {
        // The repeated hour of New York is two hours.
        let york = lengths("1h", "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z", "America/New_York");
        assert_eq!((york.len(), york.iter().all(|length| *length == 3600)), (25, true));
        // Lord Howe's half hour is a bucket of its own, so that whole days are whole numbers of buckets.
        let howe = lengths(
            "1h",
            "2026-04-04T13:00:00Z",
            "2026-04-05T13:30:00Z",
            "Australia/Lord_Howe",
        );
        assert_eq!(
            (howe.len(), howe.iter().filter(|length| **length == 1800).count()),
            (25, 1)
        );
        let calcutta = "1h"
            .parse::<Width>()
            .unwrap()
            .floor(at("2026-01-01T10:45:00Z"), &zone("Asia/Kolkata"));
        assert_eq!(calcutta, at("2026-01-01T10:30:00Z"));
        let six = lengths("6h", "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z", "America/New_York");
        assert_eq!(six, [7 * 3600, 6 * 3600, 6 * 3600, 6 * 3600]);
    }

    #[test]
    fn a_midnight_that_comes_twice_or_never_begins_one_day() {
        // Havana sets its clocks from 01:00 back to 00:00, and from 00:00 ahead to 01:00.
        let havana = lengths("1d", "2025-10-31T04:00:00Z", "2025-11-04T05:00:00Z", "America/Havana");
        assert_eq!(havana, [24, 24, 25, 24].map(|hours| hours * 3600));
        let second_pass = "1d"
            .parse::<Width>()
            .unwrap()
            .floor(at("2025-11-02T05:30:00Z"), &zone("America/Havana"));
        assert_eq!(second_pass, at("2025-11-02T04:00:00Z"));
        // Samoa had no 30 December 2011.
        let samoa = lengths("1d", "2011-12-29T10:00:00Z", "2012-01-01T10:00:00Z", "Pacific/Apia");
        assert_eq!(samoa, [24 * 3600; 3]);
    }

    #[test]
    fn a_width_that_does_not_divide_is_refused() {
        for text in [
            "7m", "7s", "90s", "0m", "61m", "5h", "13h", "2d", "2w", "2mo", "2y", "h", "", "1 h", "-1h", "1.5h",
            "99999h",
        ] {
            assert!(text.parse::<Width>().is_err(), "{text}");
        }
        for text in ["5s", "1m", "15m", "1h", "6h", "1d", "1w", "1mo", "3mo", "1y"] {
            assert_eq!(text.parse::<Width>().unwrap().to_string(), text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Each instant is in one bucket, and buckets touch.
        #[test]
        fn buckets_have_no_gap_and_no_overlap(
            second in 0_i64..2_000_000_000,
            width in prop::sample::select(vec!["10s", "1m", "15m", "1h", "2h", "6h", "12h", "1d", "1w", "1mo", "3mo", "1y"]),
            name in prop::sample::select(vec![
                "UTC", "America/New_York", "Australia/Lord_Howe", "America/Havana", "Pacific/Apia", "Asia/Kathmandu",
                "Atlantic/Azores", "America/Sao_Paulo", "Africa/Cairo", "Antarctica/Troll",
            ]),
        ) {
            let (width, zone, at) = (width.parse::<Width>().unwrap(), zone(name), instant(second));
            let start = width.floor(at, &zone);
            let end = width.next(start, &zone);
            prop_assert!(start <= at && at < end, "{start} {at} {end}");
            prop_assert_eq!(width.floor(start, &zone), start);
            let last = end.checked_sub(SignedDuration::from_micros(1)).unwrap();
            prop_assert_eq!(width.floor(last, &zone), start);
            prop_assert_eq!(width.floor(end, &zone), end);
            prop_assert_eq!(width.ceil(start, &zone), start);
        }
    }
}
