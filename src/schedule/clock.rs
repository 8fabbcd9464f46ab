//! Whether the host's clock was set, or stood still while the host slept.
//!
//! Two clocks are read at each beat: the wall's, which may be set, and a monotonic one, which only
//! counts while the host is awake. Where they disagree, slots are not lost: those that a clock set
//! forward, or a sleep, went past are treated as after a downtime; those that a clock set back comes
//! to again have their rows.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

/// The smallest step that is worth a record; time servers correct less without a step.
const SMALLEST: SignedDuration = SignedDuration::from_secs(5);

/// The last reading of both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: Timestamp,
    steady: Instant,
}

/// A step of the wall's clock against the steady one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jump {
    /// What it showed before, with the time since added.
    pub expected: Timestamp,
    /// What it shows.
    pub found: Timestamp,
}

impl Jump {
    /// By how much; negative when it was set back.
    #[must_use]
    pub fn by(&self) -> SignedDuration {
        self.expected.duration_until(self.found)
    }
}

impl Clock {
    /// A first reading.
    #[must_use]
    pub fn new(wall: Timestamp, steady: Instant) -> Self {
        Self { wall, steady }
    }

    /// Another reading, and the step since the last one, if there was one.
    pub fn read(&mut self, wall: Timestamp, steady: Instant) -> Option<Jump> {
        let passed = steady.saturating_duration_since(self.steady);
        let expected = self.wall.checked_add(passed).unwrap_or(Timestamp::MAX);
        *self = Self { wall, steady };
        let jump = Jump { expected, found: wall };
        (jump.by().abs() >= SMALLEST).then_some(jump)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What is noticed after `passed` seconds when the wall's clock moves by `moved`.
    fn step(passed: u64, moved: i64) -> Option<i64> {
        let (wall, steady) = ("2026-06-01T12:00:00Z".parse::<Timestamp>().unwrap(), Instant::now());
        let mut clock = Clock::new(wall, steady);
        let jump = clock.read(
            wall + SignedDuration::from_secs(moved),
            steady + Duration::from_secs(passed),
        );
        assert_eq!(
            clock.read(
                wall + SignedDuration::from_secs(moved + 1),
                steady + Duration::from_secs(passed + 1)
            ),
            None,
            "a step is noticed once"
        );
        jump.map(|jump| jump.by().as_secs())
    }

    #[test]
    fn a_clock_that_runs_evenly_has_no_step() {
        assert_eq!(step(1, 1), None);
        assert_eq!(step(20, 20), None, "a slow beat is no step");
        assert_eq!(step(1, 5), None);
        assert_eq!(step(1, -3), None);
    }

    #[test]
    fn a_step_and_a_sleep_are_noticed_with_their_length() {
        assert_eq!(step(1, 6), Some(5));
        assert_eq!(step(1, 512), Some(511));
        assert_eq!(step(1, 3601), Some(3600));
        assert_eq!(step(1, -3599), Some(-3600));
        assert_eq!(step(1, -4), Some(-5));
    }
}
