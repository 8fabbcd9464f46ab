//! How long to wait before another attempt: exponential, capped, with full jitter, so that many
//! jobs that failed together do not come back together.

use std::time::Duration;

use uuid::Uuid;

const BASE: Duration = Duration::from_secs(1);
const CAP: Duration = Duration::from_mins(1);

/// The pause after attempt number `attempt` (from 1): between 0 and `min(60 s, 1 s × 2^attempt)`.
pub(super) fn pause_before(attempt: u32) -> Duration {
    let most = BASE.saturating_mul(2_u32.saturating_pow(attempt.min(16))).min(CAP);
    // A version 4 UUID is the randomness at hand; 52 bits of it make an even fraction.
    let random = Uuid::new_v4().as_u128() >> 76;
    #[expect(clippy::cast_precision_loss, reason = "52 bits fit a double exactly")]
    let fraction = random as f64 / (1_u64 << 52) as f64;
    most.mul_f64(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_stays_below_its_cap_and_varies() {
        let pauses: Vec<Duration> = (0..200).map(|_| pause_before(20)).collect();
        assert!(pauses.iter().all(|pause| *pause <= CAP));
        assert!(pauses.iter().any(|pause| *pause > CAP / 2) && pauses.iter().any(|pause| *pause < CAP / 2));
        assert!((0..200).all(|_| pause_before(1) <= Duration::from_secs(2)));
    }
}
