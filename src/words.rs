//! The words of the records. Each is the same in TOML, code, SQL, JSON and metrics.

use serde::{Deserialize, Serialize};

/// What a job does. The word is the same in TOML, SQL, JSON and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Deletes rows past their keep period.
    Retention,
    /// Moves rows from one state to another when they are old enough.
    Transition,
    /// Brings measures by buckets of time up to date.
    Rollup,
    /// Brings materialized views up to date.
    Refresh,
    /// Streams `pg_dump` to a store.
    Backup,
    /// Writes the rows of one tenant or subject to a store.
    Export,
    /// Erases people who asked for it.
    Erasure,
    /// Makes partitions ahead of the time they are needed.
    Partitions,
    /// Vacuums, analyzes and reindexes where that is needed.
    Upkeep,
    /// Reads figures of the database and compares them with their limits.
    Health,
    /// Calls a function of the application.
    Call,
    /// Restores the newest backup into a throwaway server and proves it.
    RestoreCheck,
}

impl Kind {
    /// The kind's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Transition => "transition",
            Self::Rollup => "rollup",
            Self::Refresh => "refresh",
            Self::Backup => "backup",
            Self::Export => "export",
            Self::Erasure => "erasure",
            Self::Partitions => "partitions",
            Self::Upkeep => "upkeep",
            Self::Health => "health",
            Self::Call => "call",
            Self::RestoreCheck => "restore_check",
        }
    }

    /// Whether a run destroys or changes rows of the application, as far as a policy says.
    #[must_use]
    pub fn is_destructive(self) -> bool {
        matches!(self, Self::Retention | Self::Transition | Self::Erasure)
    }

    /// Whether a new or changed policy must be approved before its first run: of kinds that destroy or
    /// change rows, and of one of which nobody knows what it does.
    #[must_use]
    pub fn needs_approval(self) -> bool {
        self.is_destructive() || self == Self::Call
    }
}

/// Whether a new or changed policy must be approved before its first run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// A destructive policy is planned, and runs after `pgreeve approve HASH`.
    Required,
    /// It runs at once.
    None,
}

impl Approval {
    /// Every choice, with its word.
    pub const WORDS: [(&'static str, Self); 2] = [("required", Self::Required), ("none", Self::None)];
}

/// How a run ended. Only [`Outcome::Succeeded`] is green.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All that was due is done, and that was checked.
    Succeeded,
    /// Something was done and something due is left.
    Partial,
    /// Another job's state, or a missing approval, held the run back.
    Gated,
    /// A precondition does not hold; nothing was changed.
    Refused,
    /// An error ended the run.
    Failed,
    /// The run's time limit ended it.
    TimedOut,
    /// An operator or a shutdown ended it.
    Cancelled,
    /// The slot was due and was deliberately not run.
    Skipped,
    /// The slot was due while nobody could run it.
    Missed,
    /// The process that ran it died.
    Abandoned,
    /// Whether its last effect happened cannot be known.
    Unknown,
}

impl Outcome {
    /// The outcome's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Partial => "partial",
            Self::Gated => "gated",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
            Self::Missed => "missed",
            Self::Abandoned => "abandoned",
            Self::Unknown => "unknown",
        }
    }

    /// Every outcome, for readers of stored words.
    pub const ALL: [Self; 11] = [
        Self::Succeeded,
        Self::Partial,
        Self::Gated,
        Self::Refused,
        Self::Failed,
        Self::TimedOut,
        Self::Cancelled,
        Self::Skipped,
        Self::Missed,
        Self::Abandoned,
        Self::Unknown,
    ];

    /// The outcome that a stored word stands for.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }
}

/// What started a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// Its slot came.
    Schedule,
    /// Its slot had passed while nobody ran it.
    CatchUp,
    /// An operator asked.
    Manual,
}

impl Trigger {
    /// The trigger's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::CatchUp => "catch_up",
            Self::Manual => "manual",
        }
    }
}

/// What a clock change did to a fixed-time occurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Adjusted {
    /// Its local time did not exist; it runs at the first instant after the gap.
    Gap,
    /// Its local time came twice; it runs on the first pass.
    Fold,
}

impl Adjusted {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Fold => "fold",
        }
    }
}
