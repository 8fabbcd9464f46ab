//! Where the next batch by age ends, told from the one before it.
//!
//! To search for the age at which so many rows end reads the index once more than the deletion does.
//! Where rows come at an even rate the last batch tells it as well; a batch that ends at such a guess
//! is given little time, and after one that was not as expected the end is searched for again.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

use super::statement::AgeType;

/// How long a batch that ends at a guess may take.
pub(super) const GUESSED_TIME: Duration = Duration::from_millis(400);

/// After a batch that took longer than this, a guess could take too long.
const QUICK: Duration = Duration::from_millis(150);

/// The end of a batch by age.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// To be searched for: the next so many old rows, due or not.
    Searched {
        /// How many.
        rows: u64,
    },
    /// Guessed: this age; the cutoff if there is none.
    Guessed(Option<String>),
}

/// The last batch, in microseconds.
#[derive(Debug, Clone)]
pub(super) struct Stride {
    age_type: AgeType,
    cutoff: Option<i64>,
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    end: i64,
    length: i64,
    size: u64,
}

impl Stride {
    /// At the beginning of a walk to a cutoff, as a value of the age column's type.
    pub(super) fn new(age_type: AgeType, cutoff: &str) -> Self {
        Self {
            age_type,
            cutoff: microseconds(age_type, cutoff),
            last: None,
        }
    }

    /// Where a batch of a size should end.
    pub(super) fn next(&self, size: u64) -> End {
        self.guess(size).unwrap_or(End::Searched { rows: size })
    }

    fn guess(&self, size: u64) -> Option<End> {
        let (last, cutoff) = (self.last?, self.cutoff?);
        let length = i128::from(last.length) * i128::from(size) / i128::from(last.size.max(1));
        let end = i128::from(last.end) + length.max(1);
        if end >= i128::from(cutoff) {
            return Some(End::Guessed(None));
        }
        let end = text(self.age_type, i64::try_from(end).ok()?)?;
        Some(End::Guessed(Some(end)))
    }

    /// Learns from a batch of a size that went well.
    pub(super) fn took(
        &mut self,
        (after, through): (Option<&str>, &str),
        size: u64,
        end: &End,
        rows: u64,
        elapsed: Duration,
    ) {
        self.last = None;
        let guessed = matches!(end, End::Guessed(_));
        // A gap, or rows that stay: to guess on would be to crawl.
        if elapsed > QUICK || (guessed && rows < size / 4) {
            return;
        }
        let at = |age| microseconds(self.age_type, age);
        let (Some(after), Some(end)) = (after.and_then(at), at(through)) else {
            return;
        };
        self.last = Some(Last {
            end,
            length: end.saturating_sub(after),
            // Denser than expected: so many rows belong to that length.
            size: size.max(rows),
        });
    }

    /// Searches next time.
    pub(super) fn stumbled(&mut self) {
        self.last = None;
    }
}

/// A day is too coarse to guess with; an infinite age, or one before the year 1, is not guessed from.
fn microseconds(age_type: AgeType, age: &str) -> Option<i64> {
    let instant = match age_type {
        AgeType::Timestamptz => age.parse::<Timestamp>().ok()?,
        AgeType::Timestamp => Offset::UTC.to_timestamp(age.parse::<DateTime>().ok()?).ok()?,
        AgeType::Date => return None,
    };
    Some(instant.as_microsecond())
}

/// As PostgreSQL writes it.
fn text(age_type: AgeType, microseconds: i64) -> Option<String> {
    let at = Timestamp::from_microsecond(microseconds).ok()?;
    let zone = match age_type {
        AgeType::Timestamptz => "+00",
        AgeType::Timestamp => "",
        AgeType::Date => return None,
    };
    Some(format!("{}{zone}", at.strftime("%Y-%m-%d %H:%M:%S%.f")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUTOFF: &str = "2026-01-01 00:00:00+00";

    fn stride() -> Stride {
        let mut stride = Stride::new(AgeType::Timestamptz, CUTOFF);
        let ages = (Some("2025-01-01 00:00:00+00"), "2025-01-01 00:10:00.5+00");
        stride.took(
            ages,
            1000,
            &End::Searched { rows: 1000 },
            1000,
            Duration::from_millis(20),
        );
        stride
    }

    fn guessed(age: &str) -> End {
        End::Guessed(Some(age.to_owned()))
    }

    #[test]
    fn the_end_is_as_far_as_the_last_batch_was_long_for_its_rows() {
        assert_eq!(stride().next(1000), guessed("2025-01-01 00:20:01+00"));
        assert_eq!(stride().next(2000), guessed("2025-01-01 00:30:01.5+00"));
        assert_eq!(stride().next(u64::MAX), End::Guessed(None));
        let mut local = Stride::new(AgeType::Timestamp, "2026-01-01 00:00:00");
        let ages = (Some("2025-01-01 00:00:00"), "2025-01-01 00:00:00.000001");
        local.took(ages, 1, &End::Searched { rows: 1 }, 1, Duration::ZERO);
        assert_eq!(local.next(1), guessed("2025-01-01 00:00:00.000002"));
    }

    #[test]
    fn what_was_not_as_expected_is_searched_again() {
        let searched = End::Searched { rows: 1000 };
        let after = |ages, rows, milliseconds| {
            let mut stride = stride();
            let end = stride.next(1000);
            stride.took(ages, 1000, &end, rows, Duration::from_millis(milliseconds));
            stride.next(1000)
        };
        let ages = (Some("2025-01-01 00:10:00+00"), "2025-01-01 00:20:00+00");
        assert_eq!(after(ages, 1000, 20), guessed("2025-01-01 00:30:00+00"));
        assert_eq!(after(ages, 2000, 20), guessed("2025-01-01 00:25:00+00"));
        assert_eq!(after(ages, 249, 20), searched);
        assert_eq!(after(ages, 1000, 151), searched);
        assert_eq!(after((None, "2025-01-01 00:20:00+00"), 1000, 20), searched);
        assert_eq!(after((Some("-infinity"), "2025-01-01 00:20:00+00"), 1000, 20), searched);
        let mut stumbled = stride();
        stumbled.stumbled();
        assert_eq!(stumbled.next(1000), searched);
        let mut days = Stride::new(AgeType::Date, "2026-01-01");
        let ages = (Some("2025-01-01"), "2025-01-02");
        days.took(ages, 1000, &searched, 1000, Duration::ZERO);
        assert_eq!(days.next(1000), searched);
    }
}
