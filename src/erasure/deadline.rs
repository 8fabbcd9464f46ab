//! The deadline of a request: one calendar month from its receipt (Art. 12(3)), warned of at a half
//! and four fifths of it, extended once by one or two months, and only before it is due.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// When a request is due that was received at an instant: a calendar month later in the zone, the
/// last day of the month where there is no such day.
#[must_use]
pub fn due(received: Timestamp, zone: &TimeZone) -> Timestamp {
    later(received, 1, zone)
}

/// So many calendar months later. The latest instant there is when that is beyond it.
#[must_use]
pub fn later(instant: Timestamp, months: i16, zone: &TimeZone) -> Timestamp {
    instant
        .to_zoned(zone.clone())
        .checked_add(Span::new().months(months))
        .map_or(Timestamp::MAX, |later| later.timestamp())
}

/// Which part of a request's time is up, in per cent: 0, 50, 80 or 100.
#[must_use]
pub fn elapsed(received: Timestamp, due: Timestamp, now: Timestamp) -> i16 {
    let whole = due.duration_since(received).as_secs_f64();
    let gone = now.duration_since(received).as_secs_f64();
    match gone / whole.max(1.0) {
        part if part >= 1.0 => 100,
        part if part >= 0.8 => 80,
        part if part >= 0.5 => 50,
        _ => 0,
    }
}

/// How many whole days are left; negative when it is overdue.
#[must_use]
pub fn days_left(due: Timestamp, now: Timestamp) -> i64 {
    due.duration_since(now).as_secs().div_euclid(86_400)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_request_is_due_a_calendar_month_later_and_at_the_end_of_a_shorter_one() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        assert_eq!(
            due(at("2024-01-31T12:00:00Z"), &TimeZone::UTC),
            at("2024-02-29T12:00:00Z")
        );
        assert_eq!(
            due(at("2026-01-31T12:00:00Z"), &TimeZone::UTC),
            at("2026-02-28T12:00:00Z")
        );
        assert_eq!(
            due(at("2026-12-15T00:00:00Z"), &TimeZone::UTC),
            at("2027-01-15T00:00:00Z")
        );
        // The clock changes on 29 March: the same time of the day is an hour earlier.
        assert_eq!(due(at("2026-03-15T11:00:00Z"), &berlin), at("2026-04-15T10:00:00Z"));
        assert_eq!(
            later(at("2026-01-31T12:00:00Z"), 3, &TimeZone::UTC),
            at("2026-04-30T12:00:00Z")
        );
    }

    #[test]
    fn warnings_begin_at_a_half_and_at_four_fifths() {
        let (received, due) = (at("2026-04-01T00:00:00Z"), at("2026-05-01T00:00:00Z"));
        let of = |now: &str| elapsed(received, due, at(now));
        assert_eq!(of("2026-04-15T23:59:59Z"), 0);
        assert_eq!(of("2026-04-16T00:00:00Z"), 50);
        assert_eq!(of("2026-04-24T23:59:59Z"), 50);
        assert_eq!(of("2026-04-25T00:00:00Z"), 80);
        assert_eq!(of("2026-05-01T00:00:00Z"), 100);
        assert_eq!(days_left(due, at("2026-04-30T12:00:00Z")), 0);
        assert_eq!(days_left(due, at("2026-05-01T00:00:01Z")), -1);
    }
}
