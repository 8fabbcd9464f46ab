//! Occurrences at the clock changes of seven zones, against instants worked out by hand from the
//! zones' rules.

use jiff::Timestamp;
use pgreeve::schedule::cron::Schedule;

/// Zone, schedule, after which instant, and the occurrences that follow, with what a clock change
/// did to them.
type Row = (&'static str, &'static str, &'static str, &'static [&'static str]);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // New York, 2026: 02:00 to 03:00 are left out on 8 March (07:00Z); 01:00 to 02:00 come twice on
    // 1 November (05:00Z and 06:00Z).
    ("America/New_York", "30 2 * * *", "2026-03-07T12:00:00Z", &["2026-03-08T07:00:00Z gap", "2026-03-09T06:30:00Z"]),
    ("America/New_York", "0 2,3 * * *", "2026-03-07T12:00:00Z", &["2026-03-08T07:00:00Z", "2026-03-09T06:00:00Z", "2026-03-09T07:00:00Z"]),
    ("America/New_York", "15 */2 * * *", "2026-03-08T05:00:00Z", &["2026-03-08T05:15:00Z", "2026-03-08T08:15:00Z", "2026-03-08T10:15:00Z"]),
    ("America/New_York", "30 1 * * *", "2026-10-31T12:00:00Z", &["2026-11-01T05:30:00Z fold", "2026-11-02T06:30:00Z"]),
    ("America/New_York", "30 1 * * *", "2026-11-01T05:30:00Z", &["2026-11-02T06:30:00Z"]),
    ("America/New_York", "30 1 * * *", "2026-11-01T06:00:00Z", &["2026-11-02T06:30:00Z"]),
    ("America/New_York", "15 * * * *", "2026-11-01T04:00:00Z", &["2026-11-01T04:15:00Z", "2026-11-01T05:15:00Z", "2026-11-01T06:15:00Z", "2026-11-01T07:15:00Z"]),
    ("America/New_York", "*/30 * * * *", "2026-11-01T05:00:00Z", &["2026-11-01T05:30:00Z", "2026-11-01T06:00:00Z", "2026-11-01T06:30:00Z", "2026-11-01T07:00:00Z"]),
    ("America/New_York", "30 2 * * Mon", "2026-03-07T12:00:00Z", &["2026-03-09T06:30:00Z", "2026-03-16T06:30:00Z"]),
    // London, 2026: 01:00 to 02:00 are left out on 29 March (01:00Z), and come twice on 25 October
    // (00:00Z and 01:00Z).
    ("Europe/London", "30 1 * * *", "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z gap", "2026-03-30T00:30:00Z"]),
    ("Europe/London", "0 0 * * *", "2026-03-28T12:00:00Z", &["2026-03-29T00:00:00Z", "2026-03-29T23:00:00Z"]),
    ("Europe/London", "*/30 * * * *", "2026-03-29T00:00:00Z", &["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"]),
    ("Europe/London", "30 1,13 * * *", "2026-10-24T23:00:00Z", &["2026-10-25T00:30:00Z fold", "2026-10-25T13:30:00Z", "2026-10-26T01:30:00Z"]),
    ("Europe/London", "*/30 1 * * *", "2026-10-24T23:00:00Z", &["2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:00:00Z"]),
    // Lord Howe, 2026: half an hour. 01:30 to 02:00 come twice on 5 April (14:30Z and 15:00Z of the
    // 4th); 02:00 to 02:30 are left out on 4 October (15:30Z of the 3rd).
    ("Australia/Lord_Howe", "45 1 * * *", "2026-04-04T00:00:00Z", &["2026-04-04T14:45:00Z fold", "2026-04-05T15:15:00Z"]),
    ("Australia/Lord_Howe", "*/15 * * * *", "2026-04-04T14:15:00Z", &["2026-04-04T14:30:00Z", "2026-04-04T14:45:00Z", "2026-04-04T15:00:00Z", "2026-04-04T15:15:00Z", "2026-04-04T15:30:00Z"]),
    ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T00:00:00Z", &["2026-10-03T15:30:00Z gap", "2026-10-04T15:15:00Z"]),
    ("Australia/Lord_Howe", "*/15 * * * *", "2026-10-03T15:00:00Z", &["2026-10-03T15:15:00Z", "2026-10-03T15:30:00Z", "2026-10-03T15:45:00Z"]),
    // Santiago, 2026: midnight. 23:00 to 24:00 of 4 April come twice (02:00Z and 03:00Z of the 5th);
    // 00:00 to 01:00 of 6 September are left out (04:00Z).
    ("America/Santiago", "30 23 * * *", "2026-04-04T12:00:00Z", &["2026-04-05T02:30:00Z fold", "2026-04-06T03:30:00Z"]),
    ("America/Santiago", "0 0 * * *", "2026-04-04T12:00:00Z", &["2026-04-05T04:00:00Z", "2026-04-06T04:00:00Z"]),
    ("America/Santiago", "0 0 * * *", "2026-09-05T12:00:00Z", &["2026-09-06T04:00:00Z gap", "2026-09-07T03:00:00Z"]),
    ("America/Santiago", "0 0 * * Sun", "2026-09-01T00:00:00Z", &["2026-09-06T04:00:00Z gap", "2026-09-13T03:00:00Z"]),
    // Cairo, 2026: 00:00 to 01:00 of 24 April are left out (22:00Z of the 23rd); 23:00 to 24:00 of 29
    // October come twice (20:00Z and 21:00Z).
    ("Africa/Cairo", "30 0 * * *", "2026-04-23T12:00:00Z", &["2026-04-23T22:00:00Z gap", "2026-04-24T21:30:00Z"]),
    ("Africa/Cairo", "0 23 * * *", "2026-10-29T12:00:00Z", &["2026-10-29T20:00:00Z fold", "2026-10-30T21:00:00Z"]),
    ("Africa/Cairo", "*/30 23 * * *", "2026-10-29T12:00:00Z", &["2026-10-29T20:00:00Z", "2026-10-29T20:30:00Z", "2026-10-29T21:00:00Z", "2026-10-29T21:30:00Z", "2026-10-30T21:00:00Z"]),
    // Apia left out 30 December 2011: 24:00 of the 29th (10:00Z of the 30th) was 00:00 of the 31st.
    ("Pacific/Apia", "0 12 * * *", "2011-12-29T00:00:00Z", &["2011-12-29T22:00:00Z", "2011-12-30T22:00:00Z"]),
    ("Pacific/Apia", "30 23 * * *", "2011-12-29T00:00:00Z", &["2011-12-29T09:30:00Z", "2011-12-30T09:30:00Z", "2011-12-31T09:30:00Z"]),
    ("Pacific/Apia", "0 0 * * *", "2011-12-29T00:00:00Z", &["2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"]),
    ("Pacific/Apia", "0 */12 * * *", "2011-12-29T12:00:00Z", &["2011-12-29T22:00:00Z", "2011-12-30T10:00:00Z", "2011-12-30T22:00:00Z"]),
    ("Pacific/Apia", "0 0 30 12 *", "2011-06-01T00:00:00Z", &["2012-12-29T10:00:00Z"]),
    // UTC: the calendar alone.
    ("UTC", "0 0 29 2 *", "2026-01-01T00:00:00Z", &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]),
    ("UTC", "0 0 L * *", "2028-01-31T12:00:00Z", &["2028-02-29T00:00:00Z", "2028-03-31T00:00:00Z"]),
    ("UTC", "0 0 15W * *", "2026-08-01T00:00:00Z", &["2026-08-14T00:00:00Z", "2026-09-15T00:00:00Z"]),
    ("UTC", "0 0 LW * *", "2026-01-01T00:00:00Z", &["2026-01-30T00:00:00Z", "2026-02-27T00:00:00Z"]),
    ("UTC", "0 0 * * Mon#1", "2026-10-31T00:00:00Z", &["2026-11-02T00:00:00Z", "2026-12-07T00:00:00Z"]),
    ("UTC", "0 0 * * FRI#L", "2026-11-01T00:00:00Z", &["2026-11-27T00:00:00Z", "2026-12-25T00:00:00Z"]),
    ("UTC", "0 0 13 * +Fri", "2026-03-14T00:00:00Z", &["2026-11-13T00:00:00Z", "2027-08-13T00:00:00Z"]),
    ("UTC", "0 0 13 * Fri", "2026-11-06T00:00:00Z", &["2026-11-13T00:00:00Z", "2026-11-20T00:00:00Z"]),
    ("UTC", "@midnight", "2026-12-31T00:00:00Z", &["2027-01-01T00:00:00Z"]),
];

#[test]
fn occurrences_at_clock_changes_are_those_worked_out_by_hand() {
    for (zone, text, after, expected) in TABLE {
        let schedule = Schedule::parse(text, zone.parse().unwrap()).unwrap();
        let mut last: Timestamp = after.parse().unwrap();
        for wanted in *expected {
            let next = schedule.next_after(last).unwrap();
            let adjusted = next
                .adjusted
                .map(|word| format!(" {}", word.as_str()))
                .unwrap_or_default();
            assert_eq!(
                format!("{}{adjusted}", next.scheduled_for),
                *wanted,
                "{text} in {zone} after {after}"
            );
            last = next.scheduled_for;
        }
    }
}

#[test]
fn an_occurrence_is_recognised_by_its_instant() {
    let daily = Schedule::parse("30 2 * * *", "America/New_York".parse().unwrap()).unwrap();
    let at = |text: &str| daily.occurs_at(text.parse().unwrap());
    assert!(at("2026-03-08T07:00:00Z").is_some_and(|slot| slot.adjusted.is_some()));
    assert!(at("2026-03-09T06:30:00Z").is_some_and(|slot| slot.adjusted.is_none()));
    assert!(at("2026-03-09T06:30:01Z").is_none() && at("2026-03-08T06:30:00Z").is_none());
}
