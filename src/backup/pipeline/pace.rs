//! Keeps what goes to a store below so many bytes a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The turns in which parts are sent. A part goes at the network's own speed, and the next one begins
/// when its time at the wanted speed is over; so the mean is kept, in steps of a part.
#[derive(Debug)]
pub struct Pace {
    /// Bytes a second, never 0.
    rate: u64,
    /// When the next part may begin.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    /// Nothing is sent yet. `rate` is in bytes a second.
    #[must_use]
    pub fn new(rate: u64) -> Self {
        Self {
            rate: rate.max(1),
            free_at: Mutex::new(None),
        }
    }

    /// Waits for the turn of a part.
    pub async fn turn(&self, bytes: usize) {
        let begins = self.reserve(Instant::now(), bytes);
        tokio::time::sleep_until(begins.into()).await;
    }

    /// When a part may begin that is ready at `now`; the next one begins after it.
    fn reserve(&self, now: Instant, bytes: usize) -> Instant {
        let nanos = u128::from(bytes as u64) * 1_000_000_000 / u128::from(self.rate);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = free_at.map_or(now, |free_at| free_at.max(now));
        *free_at = begins.checked_add(takes).or(Some(begins));
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_begin_no_sooner_than_their_bytes_allow_and_time_unused_is_not_saved_up() {
        let pace = Pace::new(1000);
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(pace.reserve(start, 500), start);
        assert_eq!(pace.reserve(start, 2000), at(500));
        assert_eq!(pace.reserve(at(100), 100), at(2500));
        // Nothing was sent for a while: the next part begins at once, and the one after it waits.
        assert_eq!(pace.reserve(at(60_000), 1000), at(60_000));
        assert_eq!(pace.reserve(at(60_000), 1000), at(61_000));
    }
}
