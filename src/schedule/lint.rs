//! What a schedule says that its author may not mean.

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::cron::{Adjusted, Occurrence, Schedule};
use super::fields::NAMES;

/// A year, for what comes around in one.
const YEAR: SignedDuration = SignedDuration::from_hours(24 * 366);
/// How many values each field has, where they are evenly spread over its unit.
const SIZES: [Option<u32>; 5] = [Some(60), Some(24), None, Some(12), Some(7)];

/// Something to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lint {
    /// What is odd about the schedule, lowercase, without a full stop.
    pub problem: String,
    /// What to write instead, if that is meant.
    pub help: String,
}

impl Lint {
    fn new(problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            help: help.into(),
        }
    }
}

/// Everything odd about a schedule that fires, as of `now`.
#[must_use]
pub fn lint(schedule: &Schedule, now: Timestamp) -> Vec<Lint> {
    let mut lints = uneven_steps(schedule);
    lints.extend(two_days(schedule));
    lints.extend(rare(schedule, now).or_else(|| short_months(schedule)));
    lints.extend(clock_changes(schedule, now));
    lints
}

/// `*/7` of minutes: the last distance of each hour is another one.
fn uneven_steps(schedule: &Schedule) -> Vec<Lint> {
    let mut lints = Vec::new();
    for ((field, name), size) in schedule.fields().each().zip(NAMES).zip(SIZES) {
        for step in field.split(',').filter_map(|item| item.strip_prefix("*/")) {
            let Ok(step) = step.parse::<u32>() else { continue };
            match size {
                Some(size) if step >= size => lints.push(Lint::new(
                    format!("the step of `{field}` is longer than the {name} field has values, so it matches the first one only"),
                    format!("a step counts within its field; write the one {name} that is meant"),
                )),
                Some(size) if size % step != 0 => lints.push(Lint::new(
                    format!("`{field}` is uneven: every {step} values of the {name}, and {} at the end", size % step),
                    format!("write a step that divides {size}, such as {}", nearest_divisor(size, step)),
                )),
                None if step > 1 => lints.push(Lint::new(
                    format!("`{field}` begins anew each month: the 1st follows the last day whatever the step"),
                    "list the days of the month, or use days of the week",
                )),
                _ => {}
            }
        }
    }
    lints
}

fn nearest_divisor(size: u32, step: u32) -> String {
    let divisors = (2..=size / 2).filter(|divisor| size.is_multiple_of(*divisor));
    let nearest = divisors.min_by_key(|divisor| divisor.abs_diff(step)).unwrap_or(1);
    format!("*/{nearest}")
}

/// Cron joins the two day fields by OR, which surprises those who expect AND.
fn two_days(schedule: &Schedule) -> Option<Lint> {
    schedule.fields().joins_days_by_or().then(|| {
        Lint::new(
            "fires on the days of the month and also on the days of the week",
            "cron joins the two by OR; restrict one of them only, put + before the day of the week to join them by AND, or leave it if that is meant",
        )
    })
}

/// What fires less than once a year.
fn rare(schedule: &Schedule, now: Timestamp) -> Option<Lint> {
    let first = schedule.next_after(now)?;
    let second = schedule.next_after(first.scheduled_for)?;
    let date = |slot: &Occurrence| schedule.timezone().rules().to_datetime(slot.scheduled_for).date();
    let longest = now
        .duration_until(first.scheduled_for)
        .max(first.scheduled_for.duration_until(second.scheduled_for));
    if now.duration_until(first.scheduled_for) > YEAR.saturating_mul(5) {
        return Some(Lint::new(
            format!("does not fire within the next five years, but on {}", date(&first)),
            "write a date that comes around sooner",
        ));
    }
    (longest > YEAR).then(|| {
        Lint::new(
            format!(
                "does not fire every year: on {}, then on {}",
                date(&first),
                date(&second)
            ),
            "29 February exists in leap years only; write 28, or L for the last day",
        )
    })
}

/// The 29th to 31st do not exist in each month.
fn short_months(schedule: &Schedule) -> Option<Lint> {
    let fields = schedule.fields();
    let days = fields.days_of_month();
    let month = fields.each().nth(3)?;
    let late = days.iter().all(|day| *day > 28) && !days.is_empty();
    (late && month == "*").then(|| {
        Lint::new(
            "skips the months that have no such day",
            "write L for the last day of each month",
        )
    })
}

/// A fixed time that the zone's clock leaves out or shows twice within a year.
fn clock_changes(schedule: &Schedule, now: Timestamp) -> Option<Lint> {
    if !schedule.fields().is_fixed() {
        return None;
    }
    let zone = schedule.timezone().rules();
    let until = now.checked_add(YEAR).ok()?;
    let changes = zone.following(now).map(|change| change.timestamp());
    let adjusted = changes.take_while(|change| *change <= until).find_map(|change| {
        let from = change.checked_sub(SignedDuration::from_hours(26)).ok()?;
        let to = change.checked_add(SignedDuration::from_hours(26)).ok()?;
        schedule.between(from.max(now), to).find(|slot| slot.adjusted.is_some())
    })?;
    let day = zone.to_datetime(adjusted.scheduled_for).date();
    let what = match adjusted.adjusted? {
        Adjusted::Gap => "does not exist there, and the job runs when the clock has been set",
        Adjusted::Fold => "comes twice there, and the job runs the first time",
    };
    let help = match safe_time(schedule, zone, now) {
        Some(time) => format!(
            "{:02}:{:02} is never left out or repeated in this zone; or use UTC",
            time.hour(),
            time.minute()
        ),
        None => "use UTC".to_owned(),
    };
    Some(Lint::new(
        format!("one of its times on {day} {what} ({})", schedule.timezone().name()),
        help,
    ))
}

/// The time nearest to the schedule's first one that no clock change of the next ten years touches.
fn safe_time(schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> Option<Time> {
    let wanted = *schedule.fields().times().first()?;
    let until = now.checked_add(YEAR.saturating_mul(10)).ok()?;
    let changed: Vec<_> = zone
        .following(now)
        .map(|change| change.timestamp())
        .take_while(|change| *change <= until)
        .filter_map(|change| {
            let before = zone.to_offset(change.checked_sub(SignedDuration::from_secs(1)).ok()?);
            let (old, new) = (before.to_datetime(change), zone.to_datetime(change));
            // From the earlier to the later of the two readings at the change.
            Some((old.min(new), old.max(new)))
        })
        .collect();
    let is_safe = |time: &Time| {
        changed.iter().all(|(low, high)| {
            let on_day = low.date().to_datetime(*time);
            let on_next = high.date().to_datetime(*time);
            [on_day, on_next].iter().all(|at| at < low || at >= high)
        })
    };
    let minutes = i32::from(wanted.hour()) * 60 + i32::from(wanted.minute());
    // Later is looked at before earlier: a backup ought not to come before the day's end.
    let shifts = (1..48).flat_map(|half_hours| [half_hours * 30, -half_hours * 30]);
    shifts
        .map(|shift| minutes + shift)
        .filter(|minute| (0..24 * 60).contains(minute))
        .filter_map(|minute| Time::new(i8::try_from(minute / 60).ok()?, i8::try_from(minute % 60).ok()?, 0, 0).ok())
        .find(is_safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lints(text: &str, zone: &str) -> Vec<String> {
        let schedule = Schedule::parse(text, zone.parse().unwrap()).unwrap();
        lint(&schedule, "2026-01-15T00:00:00Z".parse().unwrap())
            .into_iter()
            .map(|lint| format!("{} | {}", lint.problem, lint.help))
            .collect()
    }

    #[track_caller]
    fn assert_one(text: &str, zone: &str, parts: &[&str]) {
        let found = lints(text, zone);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(parts.iter().all(|part| found[0].contains(part)), "{text}: {found:?}");
    }

    #[test]
    fn a_plain_schedule_is_not_remarked_upon() {
        for (text, zone) in [
            ("0 2 * * *", "UTC"),
            ("*/15 */6 * * *", "UTC"),
            ("30 3 * * *", "America/New_York"),
            ("0 4 1 * *", "Europe/Berlin"),
            ("30 2 * * Mon", "America/New_York"),
            ("*/10 * * * *", "America/New_York"),
            ("0 0 L * *", "UTC"),
            ("0 0 13 * +Fri", "UTC"),
            ("@midnight", "UTC"),
            ("0 0 1 1 *", "UTC"),
            ("0 0 15,31 * *", "UTC"),
        ] {
            assert_eq!(lints(text, zone), Vec::<String>::new(), "{text} in {zone}");
        }
    }

    #[test]
    fn an_uneven_step_is_shown_with_an_even_one() {
        assert_one(
            "*/7 * * * *",
            "UTC",
            &["every 7 values of the minute, and 4 at the end", "*/6"],
        );
        assert_one("*/90 * * * *", "UTC", &["longer than the minute field"]);
        assert_one(
            "0 */5 * * *",
            "UTC",
            &["every 5 values of the hour, and 4 at the end", "*/4"],
        );
        assert_one("0 0 */2 * *", "UTC", &["begins anew each month"]);
    }

    #[test]
    fn two_restricted_day_fields_are_joined_by_or() {
        assert_one("0 0 1 * Mon", "UTC", &["also on the days of the week", "put + before"]);
        // Other crons would join a step by AND.
        assert_eq!(lints("0 0 */2 * Mon", "UTC").len(), 2);
    }

    #[test]
    fn a_fixed_time_in_a_clock_change_gets_a_better_one() {
        assert_one(
            "30 2 * * *",
            "America/New_York",
            &["2026-03-08 does not exist", "03:00 is never"],
        );
        assert_one(
            "30 1 * * *",
            "America/New_York",
            &["2026-11-01 comes twice", "00:30 is never"],
        );
        assert_one(
            "0 0 * * *",
            "America/Santiago",
            &["2026-09-06 does not exist", "01:00 is never"],
        );
        assert_one("0 0,12 * * Sun", "America/Santiago", &["2026-09-06 does not exist"]);
        assert_one(
            "15 2 * * *",
            "Australia/Lord_Howe",
            &["2026-10-04 does not exist", "02:45 is never"],
        );
    }

    #[test]
    fn what_is_rare_says_when() {
        assert_one("0 0 29 2 *", "UTC", &["on 2028-02-29, then on 2032-02-29", "28"]);
        assert_one("0 0 29 2 +Tue", "UTC", &["on 2028-02-29, then on 2056-02-29"]);
        assert_one("0 0 29 2 +Sun", "UTC", &["five years, but on 2032-02-29"]);
        assert_one("0 0 31 * *", "UTC", &["skips the months", "write L"]);
    }
}
