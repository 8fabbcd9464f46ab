//! How a job's occurrences are treated: those nobody could run, those that meet a run, and which of
//! those that wait goes first.

use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::job::Kind;
use crate::values::JobName;

/// What to do about occurrences that passed while nobody could run them. Each of them gets a row
/// whatever the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// None of them runs.
    Skip,
    /// The newest of them runs once, for all.
    RunOnce,
    /// Each of them runs, in order.
    RunAll,
}

impl Missed {
    /// Every choice, with its word.
    pub const WORDS: [(&'static str, Self); 3] = [
        ("skip", Self::Skip),
        ("run_once", Self::RunOnce),
        ("run_all", Self::RunAll),
    ];
}

/// What to do about an occurrence that comes due while the job's previous run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// It does not run, and gets a row that says so.
    Skip,
    /// It runs after the one under way. A further one that comes meanwhile does not run.
    QueueOne,
    /// The one under way is ended, then it runs.
    CancelRunning,
}

impl Overlap {
    /// Every choice, with its word.
    pub const WORDS: [(&'static str, Self); 3] = [
        ("skip", Self::Skip),
        ("queue_one", Self::QueueOne),
        ("cancel_running", Self::CancelRunning),
    ];
}

/// Which of the runs that wait goes first: the smallest. What the law sets a date for comes before
/// what protects data, that before what removes it.
#[must_use]
pub fn priority(kind: Kind) -> u8 {
    match kind {
        Kind::Erasure => 0,
        Kind::Backup | Kind::Partitions => 1,
        Kind::Rollup | Kind::Refresh => 2,
        Kind::Retention => 3,
        Kind::Transition | Kind::Call => 4,
        Kind::RestoreCheck | Kind::Export | Kind::Health => 5,
        Kind::Upkeep => 6,
    }
}

/// How long after its slot a job starts: at least zero, less than `jitter`, always the same for a job
/// of an instance. Many daemons with the same schedule so do not start together.
#[must_use]
pub fn start_delay(jitter: Duration, instance: &str, job: &JobName) -> Duration {
    let seconds = jitter.as_secs();
    if seconds == 0 {
        return Duration::ZERO;
    }
    let digest = Sha256::digest(format!("{instance}\n{job}"));
    let number = digest
        .iter()
        .take(8)
        .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    Duration::from_secs(number % seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_stable_spread_and_shorter_than_the_jitter() {
        let jitter = Duration::from_mins(5);
        let delay = |instance: &str, job: &str| start_delay(jitter, instance, &job.parse().unwrap());
        assert_eq!(delay("db1", "purge"), delay("db1", "purge"));
        let delays: std::collections::BTreeSet<Duration> =
            (0..100).map(|number| delay(&format!("db{number}"), "purge")).collect();
        assert!(
            delays.len() > 60 && delays.iter().all(|delay| *delay < jitter),
            "{delays:?}"
        );
        assert_eq!(
            start_delay(Duration::ZERO, "db1", &"purge".parse().unwrap()),
            Duration::ZERO
        );
    }
}
