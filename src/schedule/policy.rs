//! What happens to an occurrence that could not run when it came due.

use serde::Serialize;

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
}

impl Overlap {
    /// Every choice, with its word.
    pub const WORDS: [(&'static str, Self); 1] = [("skip", Self::Skip)];
}
