//! How large the next batch is: sized by time, not by rows.

use std::time::Duration;

/// How long a batch should take.
pub(super) const TARGET: Duration = Duration::from_millis(250);

/// How long it should take while other sessions work.
pub(super) const TARGET_BESIDE_OTHERS: Duration = Duration::from_millis(5);

/// A size that follows the time its batches take.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    size: u64,
    least: u64,
    most: u64,
}

impl Pace {
    /// Starts at a size between two bounds.
    pub(super) fn new(size: u64, least: u64, most: u64) -> Self {
        Self {
            size: size.clamp(least, most),
            least,
            most,
        }
    }

    /// The size of the next batch.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Learns how long a batch took: twice as large when it was very quick, a fifth
    /// larger when it was quick, half when it was slow.
    pub(super) fn took(&mut self, elapsed: Duration, target: Duration) {
        if elapsed > target.mul_f64(1.5) {
            self.halve();
        } else if elapsed < target / 8 {
            self.size = self.size.saturating_mul(2).clamp(self.least, self.most);
        } else if elapsed < target.mul_f64(0.8) {
            self.size = (self.size + (self.size / 5).max(1)).min(self.most);
        }
    }

    /// Half the size; false when it cannot be smaller.
    pub(super) fn halve(&mut self) -> bool {
        let smaller = self.size > self.least;
        self.size = (self.size / 2).max(self.least);
        smaller
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_follows_the_time_within_its_bounds() {
        let mut pace = Pace::new(1000, 100, 1500);
        pace.took(Duration::from_millis(100), TARGET);
        assert_eq!(pace.size(), 1200);
        pace.took(Duration::from_millis(10), TARGET);
        assert_eq!(pace.size(), 1500);
        pace.took(Duration::from_millis(250), TARGET);
        assert_eq!(pace.size(), 1500);
        pace.took(Duration::from_secs(3), TARGET);
        assert_eq!(pace.size(), 750);
        pace.took(Duration::from_millis(16), TARGET_BESIDE_OTHERS);
        assert_eq!(pace.size(), 375);
        for _ in 0..10 {
            pace.halve();
        }
        assert_eq!(pace.size(), 100);
        assert!(!pace.halve());
    }

    #[test]
    fn a_size_of_one_grows() {
        let mut pace = Pace::new(0, 1, 10);
        pace.took(Duration::ZERO, TARGET);
        assert_eq!(pace.size(), 2);
    }
}
