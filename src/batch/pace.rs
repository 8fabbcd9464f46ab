//! How large the next batch is: sized by time, not by rows.

use std::time::Duration;

/// What a batch should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Aim {
    /// How long it should take.
    pub(super) time: Duration,
    /// How many bytes of WAL should be written meanwhile.
    pub(super) wal: u64,
}

/// Where nobody else works. The server's WAL writer takes up what asynchronous commits leave behind; a
/// batch that fills the WAL buffers (16 MiB on all but small servers) before it commits has to write
/// them out itself, which takes as long again as the deletion.
pub(super) const ALONE: Aim = Aim {
    time: Duration::from_millis(250),
    wal: 6 << 20,
};

/// While other sessions work. Their commits wait until the WAL before them is on the disk, ours too.
pub(super) const BESIDE_OTHERS: Aim = Aim {
    time: Duration::from_millis(5),
    wal: 704 << 10,
};

/// The part of what a batch should be that a larger one is expected to reach.
const NEARLY: f64 = 0.9;

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

    /// Learns what a batch was: up to twice as large when it was quick, half when it was slow. A batch
    /// that wrote much was slow, whatever the clock says.
    pub(super) fn took(&mut self, elapsed: Duration, wal: u64, aim: Aim) {
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = (elapsed.as_secs_f64() / aim.time.as_secs_f64()).max(wal as f64 / aim.wal as f64);
        if share > 1.5 {
            self.halve();
        } else if share < 0.8 {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a size that is not negative"
            )]
            let larger = (self.size as f64 * (NEARLY / share).min(2.0)) as u64;
            self.size = larger.max(self.size + 1).min(self.most);
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
        pace.took(Duration::from_millis(180), 0, ALONE);
        assert_eq!(pace.size(), 1250);
        pace.took(Duration::from_millis(10), 0, ALONE);
        assert_eq!(pace.size(), 1500);
        pace.took(Duration::from_millis(250), 0, ALONE);
        assert_eq!(pace.size(), 1500);
        pace.took(Duration::from_secs(3), 0, ALONE);
        assert_eq!(pace.size(), 750);
        pace.took(Duration::from_millis(16), 0, BESIDE_OTHERS);
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
        pace.took(Duration::ZERO, 0, ALONE);
        assert_eq!(pace.size(), 2);
    }

    #[test]
    fn a_quick_batch_that_writes_much_is_a_large_one() {
        let quick = Duration::from_millis(1);
        let mut pace = Pace::new(1000, 100, 50_000);
        pace.took(quick, ALONE.wal, ALONE);
        assert_eq!(pace.size(), 1000);
        pace.took(quick, ALONE.wal / 2, ALONE);
        assert_eq!(pace.size(), 1800);
        pace.took(quick, ALONE.wal * 2, ALONE);
        assert_eq!(pace.size(), 900);
        pace.took(quick, BESIDE_OTHERS.wal * 2, BESIDE_OTHERS);
        assert_eq!(pace.size(), 450);
    }
}
