//! A length of time as an operator writes it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::{Span, Timestamp, Zoned};
use serde::{Deserialize, Serialize};

use super::ValueError;

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

    /// The instant this long after another one, in that one's calendar and zone. The latest possible
    /// instant when it would be after that.
    #[must_use]
    pub fn after(&self, instant: &Zoned) -> Timestamp {
        let calendar = Span::new().months(self.months).days(self.days);
        let clock = Duration::from_millis(self.millis);
        instant
            .checked_add(calendar)
            .and_then(|later| later.checked_add(clock))
            .map_or(Timestamp::MAX, |later| later.timestamp())
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_period_after_an_instant_follows_the_calendar() {
        let after = |period: &str, instant: &str| {
            let instant: Zoned = instant.parse().unwrap();
            period.parse::<Period>().unwrap().after(&instant).to_string()
        };
        assert_eq!(after("1mo", "2024-01-31T12:00[UTC]"), "2024-02-29T12:00:00Z");
        assert_eq!(after("1d", "2026-03-29T00:00[Europe/Berlin]"), "2026-03-29T22:00:00Z");
        assert_eq!(after("24h", "2026-03-29T00:00[Europe/Berlin]"), "2026-03-29T23:00:00Z");
        assert_eq!(after("10000y", "2026-01-01T00:00[UTC]"), Timestamp::MAX.to_string());
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
}
