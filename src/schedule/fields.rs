//! The five fields of a schedule: what may be written, and which times of a calendar they name.
//!
//! croner reads the fields and knows their days (`L`, `W`, `#`). What it would take without a word
//! and mean something else by (`1,,2`, a month's name as a minute) is refused here first.

use std::sync::Arc;

use croner::parser::{CronParser, Seconds, Year};
use croner::{Cron, Weekday};
use jiff::civil::{Date, DateTime, Time};

use super::seconds;
use crate::values::ValueError;

/// What each field is called, in order.
pub const NAMES: [&str; 5] = ["minute", "hour", "day of month", "month", "day of week"];

const DAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
const MONTHS: [&str; 12] = [
    "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
];
const NICKNAMES: [(&str, &str); 7] = [
    ("@YEARLY", "0 0 1 1 *"),
    ("@ANNUALLY", "0 0 1 1 *"),
    ("@MONTHLY", "0 0 1 * *"),
    ("@WEEKLY", "0 0 * * 0"),
    ("@DAILY", "0 0 * * *"),
    ("@MIDNIGHT", "0 0 * * *"),
    ("@HOURLY", "0 * * * *"),
];

/// Five fields that make sense, each by itself. Together they may still never match.
#[derive(Debug, Clone)]
pub struct Fields {
    /// Upper case, one space between fields, nicknames written out: equal for equal fields.
    text: String,
    /// The field of seconds, which no operator's schedule has.
    seconds: Option<String>,
    /// Shared by all copies: croner keeps ten thousand bytes of years for each expression.
    cron: Arc<Cron>,
    times: Arc<[Time]>,
    fixed: bool,
}

impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, &self.seconds) == (&other.text, &other.seconds)
    }
}

impl Eq for Fields {}

impl Fields {
    /// Reads five fields, or a nickname such as `@daily`.
    ///
    /// # Errors
    /// When a field is not one; the error names it.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let mut fields = split(text, 5 + usize::from(seconds::are_asked_for()))?;
        let seconds = (fields.len() > 5).then(|| fields.remove(0));
        let in_minute = seconds.as_deref().map_or_else(|| Ok(vec![0]), of_a_minute)?;
        for (index, field) in fields.iter().enumerate() {
            check(index, field).map_err(|problem| ValueError {
                problem: format!("`{field}` is not a {}: {problem}", NAMES[index]),
                help: help(index).to_owned(),
            })?;
        }
        let text = fields.join(" ");
        let cron = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build()
            .parse(&text)
            .map_err(|error| ValueError {
                problem: format!("`{text}` is not a schedule: {error}"),
                help: GENERAL_HELP.to_owned(),
            })?;
        let hours = cron.pattern.hours.values();
        let times = hours.iter().flat_map(|hour| {
            let minutes = cron.pattern.minutes.values().into_iter();
            let in_minute = &in_minute;
            minutes.flat_map(move |minute| in_minute.iter().filter_map(move |second| time(*hour, minute, *second)))
        });
        Ok(Self {
            times: times.collect(),
            fixed: seconds.is_none() && fields.iter().take(2).all(|field| !field.contains(['*', '/'])),
            text,
            seconds,
            cron: Arc::new(cron),
        })
    }

    /// The fields as they were read: upper case, nicknames written out.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The five fields, in order.
    pub fn each(&self) -> impl Iterator<Item = &str> {
        self.text.split(' ')
    }

    /// Whether hour and minute are named, without `*` and steps: such a schedule means times of the
    /// day, any other means a distance.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// Whether a day may match by either of two restricted day fields.
    #[must_use]
    pub fn joins_days_by_or(&self) -> bool {
        let pattern = &self.cron.pattern;
        !pattern.is_dom_wildcard() && !pattern.is_dow_wildcard() && !pattern.matches_dom_and_dow()
    }

    /// The times of a day on which it fires, in order.
    #[must_use]
    pub fn times(&self) -> &[Time] {
        &self.times
    }

    /// The days of the month that are named by their number.
    #[must_use]
    pub fn days_of_month(&self) -> Vec<u16> {
        if self.cron.pattern.is_dom_wildcard() || self.cron.pattern.days.has_modifiers() {
            return Vec::new();
        }
        self.cron.pattern.days.values()
    }

    /// Whether it fires on a date.
    #[must_use]
    pub fn is_on(&self, date: Date) -> bool {
        self.is_in_month(date) && self.is_on_day(date)
    }

    /// Whether its month field matches a date.
    #[must_use]
    pub fn is_in_month(&self, date: Date) -> bool {
        self.cron
            .pattern
            .month_match(u32::from(date.month().unsigned_abs()))
            .unwrap_or(false)
    }

    /// Whether its two day fields, as they are joined, match a date.
    #[must_use]
    pub fn is_on_day(&self, date: Date) -> bool {
        let weekday = u32::from(date.weekday().to_sunday_zero_offset().unsigned_abs());
        self.cron
            .pattern
            .day_match(
                i32::from(date.year()),
                u32::from(date.month().unsigned_abs()),
                u32::from(date.day().unsigned_abs()),
                Weekday::from_days_from_sunday(weekday),
            )
            .unwrap_or(false)
    }

    /// Whether it names this minute of the calendar.
    #[must_use]
    pub fn names(&self, at: DateTime) -> bool {
        self.times.binary_search(&at.time()).is_ok() && self.is_on(at.date())
    }

    /// Which fields match a time of the calendar, each by itself, in order.
    #[must_use]
    pub fn matching(&self, at: DateTime) -> [bool; 5] {
        let pattern = &self.cron.pattern;
        let of_day = |fields: String| Self::parse(&fields).is_ok_and(|fields| fields.is_on_day(at.date()));
        let texts: Vec<&str> = self.each().collect();
        let text = |index: usize| texts.get(index).copied().unwrap_or("*");
        [
            pattern
                .minute_match(u32::from(at.minute().unsigned_abs()))
                .unwrap_or(false),
            pattern.hour_match(u32::from(at.hour().unsigned_abs())).unwrap_or(false),
            of_day(format!("* * {} * *", text(2))),
            self.is_in_month(at.date()),
            of_day(format!("* * * * {}", text(4))),
        ]
    }

    /// The first minute it names at or after `from` and before `until`.
    #[must_use]
    pub fn first_named(&self, from: DateTime, until: DateTime) -> Option<DateTime> {
        let mut date = from.date();
        let mut earliest = from.time();
        while date <= until.date() {
            if self.is_in_month(date) {
                if self.is_on_day(date) {
                    let index = self.times.partition_point(|time| *time < earliest);
                    if let Some(time) = self.times.get(index) {
                        return Some(date.to_datetime(*time)).filter(|found| *found < until);
                    }
                }
                date = date.tomorrow().ok()?;
            } else {
                date = date.last_of_month().tomorrow().ok()?;
            }
            earliest = Time::midnight();
        }
        None
    }
}

const GENERAL_HELP: &str =
    "a schedule has five fields, minute hour day-of-month month day-of-week, such as \"0 2 * * *\" for 02:00 each day";

fn time(hour: u16, minute: u16, second: u16) -> Option<Time> {
    let value = |number: u16| i8::try_from(number).ok();
    Time::new(value(hour)?, value(minute)?, value(second)?, 0).ok()
}

/// The seconds that a field names, which is written as that of minutes.
fn of_a_minute(field: &str) -> Result<Vec<u16>, ValueError> {
    let fields = Fields::parse(&format!("{field} * * * *"))?;
    Ok(fields.cron.pattern.minutes.values())
}

fn split(text: &str, most: usize) -> Result<Vec<String>, ValueError> {
    let bad = |problem: String, help: &str| ValueError {
        problem,
        help: help.to_owned(),
    };
    let upper = text.trim().to_uppercase();
    if upper.starts_with('@') {
        let known = NICKNAMES.iter().find(|(nickname, _)| *nickname == upper);
        let help = "the nicknames are @yearly, @annually, @monthly, @weekly, @daily, @midnight and @hourly";
        let (_, fields) = known.ok_or_else(|| bad(format!("`{text}` is not a nickname of a schedule"), help))?;
        return Ok(fields.split(' ').map(str::to_owned).collect());
    }
    let fields: Vec<String> = upper.split_whitespace().map(str::to_owned).collect();
    if !(5..=most).contains(&fields.len()) {
        return Err(bad(
            format!("`{text}` has {} fields instead of five", fields.len()),
            GENERAL_HELP,
        ));
    }
    Ok(fields)
}

fn help(index: usize) -> &'static str {
    match index {
        0 => "write numbers from 0 to 59: 30, 0,30, 10-20, */15, 5-59/10",
        1 => "write numbers from 0 to 23: 2, 8,20, 9-17, */6; over midnight 22-23,0-2",
        2 => {
            "write numbers from 1 to 31: 1, 1,15, */2; L the last day, 15W the working day nearest to the 15th, LW the last one"
        }
        3 => "write numbers from 1 to 12 or JAN to DEC: 6, JAN,JUL, 1-3, */3",
        _ => {
            "write numbers from 0 (Sunday) to 7 (Sunday) or SUN to SAT: 1, MON-FRI, MON#1 the first Monday, FRI#L the last Friday; +MON joins with the day of the month by AND"
        }
    }
}

/// Whether a field is written in a way that means one thing.
fn check(index: usize, field: &str) -> Result<(), String> {
    let field = match field.strip_prefix('+') {
        Some(rest) if index == 4 => rest,
        _ => field,
    };
    if field == "?" && (index == 2 || index == 4) {
        return Ok(());
    }
    for item in field.split(',') {
        if item.is_empty() {
            return Err("an element of the list is empty".to_owned());
        }
        check_item(index, item)?;
    }
    Ok(())
}

fn check_item(index: usize, item: &str) -> Result<(), String> {
    let (range, step) = match item.split_once('/') {
        Some((range, step)) => (range, Some(step)),
        None => (item, None),
    };
    if let Some(step) = step {
        if !step.parse::<u16>().is_ok_and(|step| step > 0) || step.starts_with('+') {
            return Err(format!("`{step}` is not a step"));
        }
        if range != "*" && !range.contains('-') {
            return Err(format!(
                "a step needs a range: write {range}-{}/{step}",
                bounds(index).1
            ));
        }
    }
    if range == "*" {
        return Ok(());
    }
    if let Some((low, high)) = range.split_once('-') {
        let (low, high) = (value(index, low)?, value(index, high)?);
        // Sunday ends a range as 7.
        let high = if index == 4 && high == 0 { 7 } else { high };
        return if low <= high {
            Ok(())
        } else {
            Err("a range goes from the smaller to the greater".to_owned())
        };
    }
    match index {
        2 if matches!(range, "L" | "LW") => Ok(()),
        2 => value(index, range.strip_suffix('W').unwrap_or(range)).map(drop),
        4 => {
            let day = match range.split_once('#') {
                Some((day, "1" | "2" | "3" | "4" | "5" | "L")) => day,
                Some((_, which)) => return Err(format!("`#{which}` is none of #1 to #5 and #L")),
                None => range.strip_suffix('L').filter(|day| !day.is_empty()).unwrap_or(range),
            };
            value(index, day).map(drop)
        }
        _ => value(index, range).map(drop),
    }
}

fn bounds(index: usize) -> (u16, u16) {
    [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)][index.min(4)]
}

fn value(index: usize, text: &str) -> Result<u16, String> {
    let named = |names: &[&str], first: usize| {
        let position = names.iter().position(|name| *name == text)?;
        u16::try_from(position + first).ok()
    };
    let name = match index {
        3 => named(&MONTHS, 1),
        4 => named(&DAYS, 0),
        _ => None,
    };
    if let Some(value) = name {
        return Ok(value);
    }
    let (low, high) = bounds(index);
    let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(value) if digits && (low..=high).contains(&value) => Ok(value),
        Ok(_) if digits => Err(format!("{text} is not between {low} and {high}")),
        _ => Err(format!("`{text}` means nothing here")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_croner_would_take_and_misread_is_refused() {
        for text in [
            "* * * * * *",
            "",
            "61 * * * *",
            "hello",
            "0 25 * * *",
            "@reboot",
            "@every 5m",
            "1,,2 * * * *",
            ", * * * *",
            "MON * * * *",
            "0 0 JAN * *",
            "0 0 * MON *",
            "0 0 * * MONDAY",
            "0 0 1MON * *",
            "0 0 0 * *",
            "0 22-2 * * *",
            "5/15 * * * *",
            "*/0 * * * *",
            "0 0 ? ? *",
            "0 0 L-3 * *",
            "0 0 * * MON#6",
            "0 0 W * *",
            "0 0 * * L",
            "0 0 * * FRI-MON",
            "+5 * * * *",
            "0 0 * * 8",
            "00005 * * * *",
            "* * * * *; drop",
            "* * * * \u{661}",
        ] {
            assert!(Fields::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_posix_and_its_extensions_mean_is_taken() {
        for text in [
            "0 2 * * *",
            "*/15 0-6,22,23 1,15 JAN-MAR,12 Mon-Fri",
            "5-59/10 * * * 7",
            "0 0 L * *",
            "0 0 LW * *",
            "0 0 15W * ?",
            "0 0 ? * fri#l",
            "0 0 * * 5L",
            "0 0 * * MON#1,THU#3",
            "0 0 13 * +FRI",
            "0 0 * * SAT-SUN",
            "@midnight",
            " @Daily ",
            "@hourly",
        ] {
            assert!(Fields::parse(text).is_ok(), "{text}: {:?}", Fields::parse(text));
        }
    }

    #[test]
    fn spelling_makes_no_difference() {
        let fields = |text: &str| Fields::parse(text).unwrap();
        assert_eq!(fields("@midnight"), fields(" 0   0 * * * "));
        assert_eq!(fields("0 0 * * mon"), fields("0 0 * * MON"));
        assert_ne!(fields("0 0 * * mon"), fields("0 0 * * tue"));
    }

    #[test]
    fn hours_and_minutes_that_are_named_make_a_fixed_schedule() {
        for (text, fixed) in [
            ("30 2 * * *", true),
            ("0 2,14 * * *", true),
            ("0 1-5 * * *", true),
            ("0 * * * *", false),
            ("*/5 2 * * *", false),
            ("0 0-23/2 * * *", false),
        ] {
            assert_eq!(Fields::parse(text).unwrap().is_fixed(), fixed, "{text}");
        }
    }

    #[test]
    fn each_field_tells_whether_it_matches() {
        // 13 November 2026 is a Friday.
        let at = jiff::civil::date(2026, 11, 13).at(2, 30, 0, 0);
        let fields = Fields::parse("30 3 13 11 Mon").unwrap();
        assert_eq!(fields.matching(at), [true, false, true, true, false]);
        assert_eq!(
            Fields::parse("0 2 L * FRI#2").unwrap().matching(at),
            [false, true, false, true, true]
        );
    }
}
