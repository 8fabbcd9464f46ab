//! Newtypes that parse themselves: once a value of one of these types exists, it makes sense.
//!
//! Nothing here knows of configuration files, databases or jobs.

use std::fmt::{self, Write};
use std::str::FromStr;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Why a text is not a value of the wanted type: what is wrong, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct ValueError {
    /// What is wrong with the text, lowercase, without a full stop.
    pub problem: String,
    /// What to write instead.
    pub help: String,
}

impl ValueError {
    fn new(problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            help: help.into(),
        }
    }
}

/// The digest of a text by which it is known: `sha256:` and 64 hexadecimal digits.
#[must_use]
pub fn fingerprint(text: &str) -> String {
    let mut fingerprint = "sha256:".to_owned();
    for byte in Sha256::digest(text) {
        let _ = write!(fingerprint, "{byte:02x}");
    }
    fingerprint
}

/// The name of a job, a database or a store in the configuration: a lowercase letter, then up to
/// 62 lowercase letters, digits, `-` or `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// The name of a job.
pub type JobName = Name;

impl Name {
    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest_ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        let first_ok = text.chars().next().is_some_and(|c| c.is_ascii_lowercase());
        if first_ok && text.len() <= 63 && text.chars().all(rest_ok) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ValueError::new(
                format!("`{text}` is not a name"),
                "a name is a lowercase letter, then up to 62 lowercase letters, digits, `-` or `_`",
            ))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = ValueError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A length of time as an operator writes it: `90d`, `2h`, `7y`, `1h30m`.
///
/// Months and days stay months and days (a month before 31 March is 28 or 29 February, a day
/// across a clock change has 23 or 25 hours); they become an instant only beside a date and a zone.
/// Units: `y mo w d h m s ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Period {
    months: u32,
    days: u32,
    millis: u64,
}

impl Period {
    /// A period of whole seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self {
            months: 0,
            days: 0,
            millis: seconds * 1000,
        }
    }

    /// Whole months, days and milliseconds of absolute time.
    #[must_use]
    pub const fn parts(&self) -> (u32, u32, u64) {
        (self.months, self.days, self.millis)
    }

    /// As PostgreSQL's `interval` input, with calendar units kept apart: `84 mons 0 days 0.000 secs`.
    #[must_use]
    pub fn to_interval(&self) -> String {
        format!(
            "{} mons {} days {}.{:03} secs",
            self.months,
            self.days,
            self.millis / 1000,
            self.millis % 1000
        )
    }

    /// The instant this long before another one, in that one's calendar and zone: a day before a
    /// clock change is 23 or 25 hours. The earliest possible instant when it would be before that.
    #[must_use]
    pub fn before(&self, instant: &Zoned) -> Timestamp {
        let calendar = Span::new().months(self.months).days(self.days);
        let clock = Duration::from_millis(self.millis);
        instant
            .checked_sub(calendar)
            .and_then(|earlier| earlier.checked_sub(clock))
            .map_or(Timestamp::MIN, |earlier| earlier.timestamp())
    }

    /// As a span of absolute time, a day being 24 hours; `None` when it has months or years, whose
    /// length depends on the date.
    #[must_use]
    pub fn to_duration(&self) -> Option<Duration> {
        (self.months == 0).then(|| Duration::from_millis(self.millis) + Duration::from_hours(24 * u64::from(self.days)))
    }
}

impl FromStr for Period {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let help = "write a number and a unit, such as \"90d\", \"2h\" or \"1h30m\"; units: y mo w d h m s ms";
        let bad = |problem: String| ValueError::new(problem, help);
        let mut period = Self {
            months: 0,
            days: 0,
            millis: 0,
        };
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(bad("a period must not be empty".to_owned()));
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (number, tail) = rest.split_at(digits);
            let unit_len = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_len);
            let count: u32 = number.parse().map_err(|_| bad(format!("`{text}` is not a period")))?;
            let too_long = || bad(format!("`{text}` is too long a period"));
            let months = |each: u32| count.checked_mul(each).filter(|n| *n <= 120_000);
            let days = |each: u32| count.checked_mul(each).filter(|n| *n <= 3_650_000);
            let millis = |each: u64| u64::from(count) * each;
            let sum = |each: u64| period.millis.checked_add(millis(each)).ok_or_else(too_long);
            match unit {
                "y" => period.months += months(12).ok_or_else(too_long)?,
                "mo" => period.months += months(1).ok_or_else(too_long)?,
                "w" => period.days += days(7).ok_or_else(too_long)?,
                "d" => period.days += days(1).ok_or_else(too_long)?,
                "h" => period.millis = sum(3_600_000)?,
                "m" => period.millis = sum(60_000)?,
                "s" => period.millis = sum(1000)?,
                "ms" => period.millis = sum(1)?,
                "" => return Err(bad(format!("`{text}` has a number without a unit"))),
                other => return Err(bad(format!("`{other}` is not a unit of time"))),
            }
            if period.months > 120_000 || period.days > 3_650_000 {
                return Err(too_long());
            }
            rest = tail.trim_start();
        }
        if period
            == (Self {
                months: 0,
                days: 0,
                millis: 0,
            })
        {
            return Err(bad("a period must be longer than zero".to_owned()));
        }
        Ok(period)
    }
}

impl TryFrom<String> for Period {
    type Error = ValueError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Period> for String {
    fn from(period: Period) -> Self {
        period.to_string()
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (u64::from(self.months / 12), "y"),
            (u64::from(self.months % 12), "mo"),
            (u64::from(self.days), "d"),
            (self.millis / 3_600_000, "h"),
            (self.millis / 60_000 % 60, "m"),
            (self.millis / 1000 % 60, "s"),
            (self.millis % 1000, "ms"),
        ];
        for (count, unit) in parts {
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

/// A table as the configuration names it: `events`, `onboarding.sessions`, `"Odd.Name"`.
///
/// Names are taken exactly as the catalog has them (`User` is Prisma's table, not `user`); double
/// quotes are needed only around a name that holds a dot or a quote.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TableName {
    /// The schema, where one is given.
    pub schema: Option<String>,
    /// The table's own name.
    pub name: String,
}

impl FromStr for TableName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || {
            ValueError::new(
                format!("`{text}` is not a table's name"),
                "write \"table\" or \"schema.table\", as the catalog has it; put double quotes around a name with a dot",
            )
        };
        let mut parts = Vec::new();
        let mut chars = text.chars().peekable();
        loop {
            let mut part = String::new();
            if chars.next_if_eq(&'"').is_some() {
                loop {
                    match chars.next() {
                        Some('"') if chars.next_if_eq(&'"').is_some() => part.push('"'),
                        Some('"') => break,
                        Some(c) => part.push(c),
                        None => return Err(bad()),
                    }
                }
            } else {
                while let Some(c) = chars.next_if(|c| *c != '.' && *c != '"') {
                    part.push(c);
                }
            }
            if part.is_empty() || part.len() > 63 || part.contains('\0') || part.trim() != part {
                return Err(bad());
            }
            parts.push(part);
            match chars.next() {
                None => break,
                Some('.') => {}
                Some(_) => return Err(bad()),
            }
        }
        match (parts.pop(), parts.pop(), parts.is_empty()) {
            (Some(name), schema, true) => Ok(Self { schema, name }),
            _ => Err(bad()),
        }
    }
}

impl TryFrom<String> for TableName {
    type Error = ValueError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TableName> for String {
    fn from(table: TableName) -> Self {
        table.to_string()
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |part: &str| {
            if part.contains(['.', '"']) {
                format!("\"{}\"", part.replace('"', "\"\""))
            } else {
                part.to_owned()
            }
        };
        if let Some(schema) = &self.schema {
            write!(f, "{}.", plain(schema))?;
        }
        f.write_str(&plain(&self.name))
    }
}

/// An IANA time zone of the operating system's tz data, such as `Europe/Berlin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timezone(TimeZone, String);

impl Timezone {
    /// Coordinated universal time.
    #[must_use]
    pub fn utc() -> Self {
        Self(TimeZone::UTC, "UTC".to_owned())
    }

    /// The zone's rules.
    #[must_use]
    pub fn rules(&self) -> &TimeZone {
        &self.0
    }

    /// The zone's IANA name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.1
    }
}

impl FromStr for Timezone {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("utc") {
            return Ok(Self::utc());
        }
        match TimeZone::get(text) {
            Ok(rules) => {
                let name = rules.iana_name().unwrap_or(text).to_owned();
                Ok(Self(rules, name))
            }
            Err(_) => Err(ValueError::new(
                format!("`{text}` is not a time zone of this system"),
                "write an IANA name such as \"UTC\" or \"Europe/Berlin\"; the names come from the operating system's tzdata package",
            )),
        }
    }
}

impl TryFrom<String> for Timezone {
    type Error = ValueError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Timezone> for String {
    fn from(zone: Timezone) -> Self {
        zone.1
    }
}

/// One execution of a job. Version 7 UUIDs: they sort by the time they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub uuid::Uuid);

impl RunId {
    /// A new identity, made now.
    #[must_use]
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7())
    }
}

impl Default for RunId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A password or key. It has no `Display`, and its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself, for the one place that hands it to a third party.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_the_sha256_of_the_text() {
        assert_eq!(
            fingerprint("abc"),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_period_keeps_calendar_units_apart() {
        let period: Period = "1y2mo1w1d2h30m5s7ms".parse().unwrap();
        assert_eq!(period.to_interval(), "14 mons 8 days 9005.007 secs");
        assert_eq!(period.to_string(), "1y2mo8d2h30m5s7ms");
        assert_eq!(period.to_duration(), None);
        assert_eq!(
            "2d".parse::<Period>().unwrap().to_duration(),
            Some(Duration::from_hours(48))
        );
    }

    #[test]
    fn a_period_before_an_instant_follows_the_calendar() {
        let before = |period: &str, instant: &str| {
            let instant: Zoned = instant.parse().unwrap();
            period.parse::<Period>().unwrap().before(&instant).to_string()
        };
        assert_eq!(before("1mo", "2024-03-31T12:00[UTC]"), "2024-02-29T12:00:00Z");
        // The day before has 23 hours in Berlin, from 00:00 of that day to 00:00 of the next.
        assert_eq!(before("1d", "2026-03-30T00:00[Europe/Berlin]"), "2026-03-28T23:00:00Z");
        assert_eq!(before("24h", "2026-03-30T00:00[Europe/Berlin]"), "2026-03-28T22:00:00Z");
        assert_eq!(
            before("10000y3650000d", "2026-01-01T00:00[UTC]"),
            "-009999-01-02T01:59:59Z"
        );
    }

    #[test]
    fn a_period_without_sense_is_refused() {
        let endless = "4294967295h".repeat(2000);
        for text in [
            "",
            endless.as_str(),
            "0d",
            "90",
            "d",
            "-1d",
            "1.5h",
            "1 fortnight",
            "99999999999d",
            "4294967295y",
        ] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_table_is_named_as_the_catalog_has_it() {
        let plain: TableName = "onboarding.sessions".parse().unwrap();
        assert_eq!(
            (plain.schema.as_deref(), plain.name.as_str()),
            (Some("onboarding"), "sessions")
        );
        let odd: TableName = "\"a.b\".\"say \"\"x\"\"\"".parse().unwrap();
        assert_eq!((odd.schema.as_deref(), odd.name.as_str()), (Some("a.b"), "say \"x\""));
        assert_eq!(odd.to_string().parse::<TableName>().unwrap(), odd);
        for text in ["", ".", "a.", ".a", "a.b.c", "\"a", "\"a\"b", " a"] {
            assert!(text.parse::<TableName>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_unknown_zone_is_refused() {
        assert!("Mars/Olympus".parse::<Timezone>().is_err());
        assert_eq!("Europe/Berlin".parse::<Timezone>().unwrap().name(), "Europe/Berlin");
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".to_owned())), "[secret]");
    }
}
