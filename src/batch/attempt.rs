//! What a batch is asked to do, and what became of it.

use std::time::Duration;

use super::outside::Trouble;
use super::statement::{Range, Statements};
use super::stride::End;
use super::throttle::Weight;
use crate::ledger::holds::Holds;
use crate::ledger::leader::FenceError;
use crate::postgres::catalog::Relation;
use crate::postgres::sqlstate::DatabaseError;

/// What a batch is to cover.
#[derive(Debug, Clone)]
pub(super) enum Slice {
    /// The next old rows by age.
    Ages {
        /// Younger than this; from the beginning without.
        after: Option<String>,
        /// Until where.
        end: End,
    },
    /// The next so many rows by key.
    Keys {
        /// The key's column.
        column: String,
        /// Greater than this.
        after: i64,
        /// Not greater than this.
        last: i64,
        /// How many, old or not.
        rows: u64,
    },
    /// Some blocks.
    Blocks {
        /// From this one,
        from: u32,
        /// to before this one.
        until: u32,
    },
}

impl Slice {
    /// Whether it ends where rows were only expected to end.
    pub(super) fn is_guessed(&self) -> bool {
        matches!(
            self,
            Self::Ages {
                end: End::Guessed(_),
                ..
            }
        )
    }
}

/// How far a batch may go for a row that another session holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Wait for it, up to the session's `lock_timeout`.
    Wait,
    /// Leave it out and count it.
    Leave,
    /// Change nothing and count what is due: without the right to lock rows one by one.
    Count,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attempt {
    /// It is committed.
    Done {
        /// How many rows it deleted or changed.
        rows: u64,
        /// How many due rows it left to other sessions.
        locked: u64,
        /// The part of the table it covered.
        range: Range,
        /// What it was to others.
        weight: Weight,
    },
    /// Too many rows share the age at the batch's end; nothing was changed.
    Crowded,
}

/// Why a batch changed nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// It would exceed the rows that the run may touch.
    TooMany,
    /// A legal hold was placed or released since the statements were compiled.
    HoldsChanged,
    /// Another leader has taken over.
    Superseded(FenceError),
    /// The batch took too long.
    TimedOut(DatabaseError),
    /// Another session holds a lock, or was preferred in a deadlock.
    Contended(DatabaseError),
    /// Something outside the database.
    Outside(Trouble),
    /// The commit was not answered; it may have happened.
    Unanswered(DatabaseError),
    /// Anything else.
    Other(DatabaseError),
}

impl Failure {
    pub(super) fn at_commit(error: sqlx::Error) -> Self {
        let error = DatabaseError::from(error);
        if error.leaves_in_doubt() {
            Self::Unanswered(error)
        } else {
            Self::Other(error)
        }
    }

    pub(super) fn of(error: DatabaseError, elapsed: Duration, limit: Duration) -> Self {
        match error.sqlstate.as_deref() {
            // The code is the same when somebody cancels the statement; then it ran for less.
            Some("57014") if elapsed >= limit.mul_f64(0.9) => Self::TimedOut(error),
            Some("55P03" | "40P01" | "40001") => Self::Contended(error),
            _ => Self::Other(error),
        }
    }
}

/// The batch to run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    /// The rule.
    pub(super) statements: &'a Statements,
    /// The legal holds that are part of it.
    pub(super) holds: &'a Holds,
    /// Whose rows.
    pub(super) leaf: &'a Relation,
    /// Which of them.
    pub(super) slice: &'a Slice,
    /// How far it may go for a row that another session holds.
    pub(super) patience: Patience,
    /// The most rows it may touch.
    pub(super) allowed: Option<u64>,
}
