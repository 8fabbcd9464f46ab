//! How long a call may take, and how often it is tried. The SDK's own retries are off: they give up
//! after seconds, and nothing in them ends a wait for a peer that says nothing.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::failure::Failure;
use crate::store::{StoreError, StoreErrorKind};

/// Time limits of an S3 store. The defaults suit uploads that take hours; tests set shorter ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For a connection to be made. Default 10 s.
    pub connect: Duration,
    /// For one attempt of a call to be answered, and for a transfer to stand still. Default 60 s.
    pub attempt: Duration,
    /// An attempt that sends a body may take longer: as long as at this many bytes a second.
    /// Default 256 KiB/s.
    pub slowest: u64,
    /// For one attempt to complete an upload, during which a server may join thousands of parts.
    /// Default 5 min.
    pub complete: Duration,
    /// For all attempts of a small call. Default 2 min.
    pub call: Duration,
    /// For all attempts of a part, or to complete an upload. Default 15 min.
    pub part: Duration,
    /// Before the second attempt; then twice as long each time. Default 500 ms.
    pub first_wait: Duration,
    /// Between attempts at most. Default 20 s.
    pub longest_wait: Duration,
    /// How often a broken transfer is resumed before it has brought another MiB. Default 8.
    pub resumes: u32,
}

impl Limits {
    /// For somebody who waits for the answer: a store that is down is told within seconds.
    #[must_use]
    pub fn attended() -> Self {
        Self {
            connect: Duration::from_secs(5),
            attempt: Duration::from_secs(10),
            call: Duration::from_secs(10),
            ..Self::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            attempt: Duration::from_mins(1),
            slowest: 256 * 1024,
            complete: Duration::from_mins(5),
            call: Duration::from_mins(2),
            part: Duration::from_mins(15),
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(20),
            resumes: 8,
        }
    }
}

/// The limits of one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    attempt: Duration,
    all: Duration,
    first_wait: Duration,
    longest_wait: Duration,
}

impl Limits {
    /// For a call without a large body.
    pub(super) fn of_call(&self) -> Patience {
        self.patience(self.attempt, self.call)
    }

    /// For a part of so many bytes.
    pub(super) fn of_part(&self, bytes: usize) -> Patience {
        self.patience(self.transfer(bytes), self.part)
    }

    /// For an object of so many bytes in one piece.
    pub(super) fn of_object(&self, bytes: usize) -> Patience {
        let attempt = self.transfer(bytes);
        self.patience(attempt, self.call.max(attempt.saturating_mul(2)))
    }

    fn transfer(&self, bytes: usize) -> Duration {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.attempt.max(Duration::from_secs(bytes / self.slowest.max(1)))
    }

    /// For completing an upload.
    pub(super) fn of_complete(&self) -> Patience {
        self.patience(self.complete, self.part)
    }

    fn patience(&self, attempt: Duration, all: Duration) -> Patience {
        Patience {
            attempt,
            all,
            first_wait: self.first_wait,
            longest_wait: self.longest_wait,
        }
    }
}

/// Tries a call until it succeeds, fails for good, or the time is up; then the last failure stands.
pub(super) async fn attempts<T, F, C>(operation: &str, patience: Patience, mut call: C) -> Result<T, Failure>
where
    C: FnMut() -> F,
    F: Future<Output = Result<T, Failure>>,
{
    let end = Instant::now() + patience.all;
    let mut wait = patience.first_wait;
    let mut attempt = 1_u32;
    loop {
        let limit = patience.attempt.min(end.saturating_duration_since(Instant::now()));
        let failed = match timeout(limit, call()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(failed)) => failed,
            Err(_) => silent(operation, limit),
        };
        let pause = jittered(wait);
        // An attempt with less than half its time left would fail for that alone.
        if !failed.again || Instant::now() + pause + patience.attempt / 2 >= end {
            return Err(failed.after(attempt));
        }
        tracing::warn!(store.attempt = attempt, store.error = %failed.error.cause, "{operation} failed, trying again");
        sleep(pause).await;
        wait = wait.saturating_mul(2).min(patience.longest_wait);
        attempt = attempt.saturating_add(1);
    }
}

fn silent(operation: &str, limit: Duration) -> Failure {
    let error = StoreError::new(
        StoreErrorKind::Transient,
        operation,
        format!("no answer within {:.1} s", limit.as_secs_f64()),
    );
    Failure {
        error: error.with_remedy("check the network between this host and the store, and the store's own health"),
        again: true,
        code: String::new(),
    }
}

/// Between half and the whole of a pause, so that uploads that failed together do not come back
/// together.
fn jittered(pause: Duration) -> Duration {
    let [.., random] = Uuid::now_v7().into_bytes();
    pause.mul_f64(0.5 + f64::from(random) / 512.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_may_take_as_long_as_at_the_slowest_pace() {
        let limits = Limits::default();
        assert_eq!(limits.of_part(16 << 20).attempt, Duration::from_secs(64));
        assert_eq!(limits.of_part(8 << 20).attempt, Duration::from_mins(1));
        assert_eq!(limits.of_part(64 << 20).attempt, Duration::from_secs(256));
    }

    #[test]
    fn pauses_differ_but_are_never_longer_than_asked() {
        let asked = Duration::from_secs(8);
        let pauses: Vec<_> = (0..64).map(|_| jittered(asked)).collect();
        assert!(pauses.iter().all(|pause| (asked / 2..=asked).contains(pause)));
        assert!(pauses.iter().any(|pause| pause != &pauses[0]));
    }
}
