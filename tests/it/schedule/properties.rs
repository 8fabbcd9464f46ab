//! Properties that hold for every schedule, zone and time.

use std::collections::BTreeSet;

use jiff::civil::DateTime;
use jiff::{SignedDuration, Timestamp};
use pgreeve::schedule::cron::Schedule;
use proptest::prelude::*;

const ZONES: [&str; 9] = [
    "UTC",
    "America/New_York",
    "Europe/London",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Africa/Cairo",
    "Pacific/Apia",
    "America/Nuuk",
    "Asia/Kathmandu",
];

fn field(values: std::ops::RangeInclusive<u8>) -> impl Strategy<Value = String> {
    let (low, high) = (*values.start(), *values.end());
    let number = move || low..=high;
    prop_oneof![
        3 => Just("*".to_owned()),
        4 => number().prop_map(|value| value.to_string()),
        1 => (number(), number()).prop_map(|(a, b)| format!("{a},{b}")),
        1 => (number(), number()).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        2 => (2..=high.max(3)).prop_map(|step| format!("*/{step}")),
    ]
}

fn schedules() -> impl Strategy<Value = Schedule> {
    let fields = (field(0..=59), field(0..=23), field(1..=31), field(1..=12), field(0..=7));
    (fields, prop::sample::select(ZONES.to_vec())).prop_map(|((minute, hour, day, month, week_day), zone)| {
        let text = format!("{minute} {hour} {day} {month} {week_day}");
        Schedule::parse(&text, zone.parse().unwrap()).unwrap()
    })
}

/// Instants around a clock change of one of the zones, and any others.
fn instants() -> impl Strategy<Value = Timestamp> {
    let changes = [
        "2026-03-08T07:00:00Z",
        "2026-11-01T06:00:00Z",
        "2026-03-29T01:00:00Z",
        "2026-10-25T01:00:00Z",
        "2026-04-04T15:00:00Z",
        "2026-10-03T15:30:00Z",
        "2026-04-05T03:00:00Z",
        "2026-09-06T04:00:00Z",
        "2026-04-23T22:00:00Z",
        "2026-10-29T21:00:00Z",
        "2011-12-30T10:00:00Z",
        "2026-10-25T01:00:00Z",
    ];
    let near = (prop::sample::select(changes.to_vec()), -200_000_i64..200_000)
        .prop_map(|(change, seconds)| change.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds));
    prop_oneof![3 => near, 1 => (1_100_000_000_i64..2_500_000_000).prop_map(|second| Timestamp::from_second(second).unwrap())]
}

/// What the rules say, minute by minute: what the zone's clock shows, has shown, and jumps over.
fn naive(schedule: &Schedule, after: Timestamp, until: Timestamp) -> Vec<Timestamp> {
    let zone = schedule.timezone().rules();
    let fields = schedule.fields();
    let minute = SignedDuration::from_mins(1);
    let mut at = Timestamp::from_second(after.as_second().div_euclid(60) * 60 - 3 * 86_400).unwrap();
    let mut shown: BTreeSet<DateTime> = BTreeSet::new();
    let mut before = zone.to_datetime(at - minute);
    let mut found = Vec::new();
    while at <= until {
        let clock = zone.to_datetime(at);
        let mut fires = fields.names(clock) && (!fields.is_fixed() || !shown.contains(&clock));
        let mut skipped = before + minute;
        while fields.is_fixed() && skipped < clock {
            let day = skipped.date();
            let exists = day == clock.date() || shown.iter().any(|time| time.date() == day);
            fires |= exists && fields.names(skipped);
            skipped += minute;
        }
        if fires && at > after {
            found.push(at);
        }
        shown.insert(clock);
        before = clock;
        at += minute;
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn occurrences_are_those_of_a_clock_that_is_watched(schedule in schedules(), after in instants()) {
        let until = after + SignedDuration::from_hours(60);
        let found: Vec<Timestamp> = schedule.between(after, until).map(|slot| slot.scheduled_for).collect();
        prop_assert_eq!(found, naive(&schedule, after, until), "{} in {}", schedule, schedule.timezone().name());
    }

    #[test]
    fn occurrences_increase_and_stepping_equals_iterating(schedule in schedules(), after in instants(), steps in prop::collection::vec(1_i64..200_000, 1..6)) {
        let until = after + SignedDuration::from_secs(steps.iter().sum());
        let all: Vec<Timestamp> = schedule.between(after, until).map(|slot| slot.scheduled_for).collect();
        prop_assert!(all.iter().all(|at| *at > after) && all.windows(2).all(|pair| pair[0] < pair[1]));
        let mut stepped = Vec::new();
        let mut from = after;
        for step in steps {
            let to = from + SignedDuration::from_secs(step);
            stepped.extend(schedule.between(from, to).map(|slot| slot.scheduled_for));
            from = to;
        }
        prop_assert_eq!(&stepped, &all);
        let tail: Vec<Timestamp> = schedule.last_between(after, until, 3).iter().map(|slot| slot.scheduled_for).collect();
        prop_assert_eq!(&tail[..], &all[all.len().saturating_sub(3)..]);
    }
}
