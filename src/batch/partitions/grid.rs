//! Where partitions begin and end: those that are there, and those of an interval.

use jiff::civil::DateTime;
use serde_json::{Value, json};

use crate::batch::statement::AgeType;
use crate::postgres::catalog::partitions::Partition;
use crate::postgres::quote::literal;
use crate::values::Period;

/// Where partitions begin and end.
pub(super) struct Grid {
    /// The type of the bounds.
    pub(super) age_type: AgeType,
    /// The zone in which days and months begin.
    pub(super) zone: String,
    /// How much one holds.
    pub(super) interval: Period,
}

impl Grid {
    /// The bound so many intervals after another. On a day whose midnight a clock change skips, the
    /// bound is the first instant of the day, and the next one is midnight again.
    pub(super) fn after(&self, anchor: &str, steps: u64) -> String {
        let interval = literal(&self.interval.to_interval());
        let (anchor, zone) = (literal(anchor), literal(&self.zone));
        let (months, clock) = (
            format!("date_trunc('day', {interval}::interval) * {steps}"),
            format!("({interval}::interval - date_trunc('day', {interval}::interval)) * {steps}"),
        );
        match self.age_type {
            AgeType::Timestamptz => format!(
                "SELECT (((CASE WHEN date_trunc('day', local) AT TIME ZONE {zone} = at THEN date_trunc('day', local) ELSE local END
                           + {months}) AT TIME ZONE {zone}) + {clock})::text
                 FROM (SELECT at, at AT TIME ZONE {zone} AS local FROM (SELECT {anchor}::timestamptz AS at) AS a) AS b"
            ),
            AgeType::Timestamp => format!("SELECT ({anchor}::timestamp + {interval}::interval * {steps})::text"),
            AgeType::Date => format!("SELECT ({anchor}::date + {interval}::interval * {steps})::date::text"),
        }
    }

    /// The beginning of the year, month, week or day that holds a value.
    pub(super) fn floor(&self, value: &str) -> String {
        let unit = match self.interval.parts() {
            (months, 0, 0) if months > 0 && months % 12 == 0 => "year",
            (months, 0, 0) if months > 0 => "month",
            (0, days, 0) if days > 0 && days % 7 == 0 => "week",
            _ => "day",
        };
        let (value, zone) = (literal(value), literal(&self.zone));
        match self.age_type {
            AgeType::Timestamptz => format!(
                "SELECT (date_trunc('{unit}', {value}::timestamptz AT TIME ZONE {zone}) AT TIME ZONE {zone})::text"
            ),
            AgeType::Timestamp => format!("SELECT date_trunc('{unit}', {value}::timestamp)::text"),
            AgeType::Date => format!("SELECT date_trunc('{unit}', {value}::timestamp)::date::text"),
        }
    }

    /// A bound as a part of a name. Shorter than a day it is told in UTC, where no hour comes twice.
    pub(super) fn label(&self, bound: &str) -> String {
        let (bound, zone) = (literal(bound), literal(&self.zone));
        let (format, zone) = match self.interval.parts() {
            (months, 0, 0) if months > 0 && months % 12 == 0 => ("YYYY", zone),
            (months, 0, 0) if months > 0 => ("YYYYMM", zone),
            (_, _, 0) => ("YYYYMMDD", zone),
            _ => ("YYYYMMDD_HH24MISS", literal("UTC")),
        };
        match self.age_type {
            AgeType::Timestamptz => format!("SELECT to_char({bound}::timestamptz AT TIME ZONE {zone}, '{format}')"),
            AgeType::Timestamp | AgeType::Date => format!("SELECT to_char({bound}::timestamp, '{format}')"),
        }
    }
}

/// What partitions there are.
pub(super) struct Covered {
    /// `(from, to, to as a text)` in order, open ends as the ends of time.
    pub(super) ranges: Vec<(DateTime, DateTime, Option<String>)>,
    /// The present time.
    pub(super) now: DateTime,
    /// The same as the server writes it.
    pub(super) now_text: String,
}

impl Covered {
    /// The partitions there are, and the present time.
    pub(super) fn new(existing: &[Partition], now: &str) -> Self {
        let mut ranges: Vec<_> = existing
            .iter()
            .map(|partition| {
                let from = partition
                    .lower
                    .as_deref()
                    .map_or(DateTime::MIN, |bound| point(bound, DateTime::MIN));
                let to = partition
                    .upper
                    .as_deref()
                    .map_or(DateTime::MAX, |bound| point(bound, DateTime::MAX));
                (from, to, partition.upper.clone())
            })
            .collect();
        ranges.sort();
        Self {
            ranges,
            now: point(now, DateTime::MAX),
            now_text: now.to_owned(),
        }
    }

    /// The partition that begins at a bound, or the next one after it.
    pub(super) fn from(&self, at: DateTime) -> Option<&(DateTime, DateTime, Option<String>)> {
        self.ranges.iter().find(|(from, _, _)| *from >= at)
    }

    /// Holes between partitions that end before now; nothing fills them any more.
    pub(super) fn gaps(&self, age_type: AgeType) -> Vec<Value> {
        let pairs = self.ranges.iter().zip(self.ranges.iter().skip(1));
        pairs
            .filter(|((_, end, _), (next, _, _))| end < next && *next <= self.now)
            .map(|((_, end, _), (next, _, _))| json!({ "from": bound_text(age_type, *end), "to": bound_text(age_type, *next) }))
            .collect()
    }
}

/// A bound as a value that can be compared.
pub(super) fn point(text: &str, otherwise: DateTime) -> DateTime {
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return instant.to_zoned(jiff::tz::TimeZone::UTC).datetime();
    }
    text.parse().unwrap_or(otherwise)
}

/// A point as a literal of the column's type; instants are in UTC.
pub(super) fn bound_text(age_type: AgeType, at: DateTime) -> String {
    match age_type {
        AgeType::Timestamptz => at.strftime("%Y-%m-%d %H:%M:%S%.f+00").to_string(),
        AgeType::Timestamp => at.strftime("%Y-%m-%d %H:%M:%S%.f").to_string(),
        AgeType::Date => at.date().to_string(),
    }
}
