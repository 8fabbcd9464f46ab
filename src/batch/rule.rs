//! What a run is to do, in the words of the configuration.

use std::collections::BTreeMap;

use super::throttle::Throttle;
use crate::values::{JobName, Period, TableName, Timezone};

/// Which rows are due, and what becomes of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Whose rows.
    pub table: TableName,
    /// The column that says how old a row is. Rows without an age are never due.
    pub age_column: String,
    /// The column that says it where that one is null.
    pub age_fallback: Option<String>,
    /// How old a row must be.
    pub period: Period,
    /// What a row must meet besides, in SQL that was checked to be one expression.
    pub predicate: Option<String>,
    /// The zone of a column without one, and in which days are counted; UTC if there is none.
    pub timezone: Option<Timezone>,
    /// What becomes of the rows.
    pub change: Change,
    /// Columns that make a group: the newest row of each group stays, whatever its age.
    pub keep_latest_per: Vec<String>,
    /// Whether rows stay that a foreign key points at.
    pub skip_if_referenced: bool,
    /// Rollups that must have sealed what is deleted, besides those that the ledger knows.
    pub after: Vec<JobName>,
    /// What makes a run implausible.
    pub brakes: Brakes,
    /// When a run yields.
    pub throttle: Throttle,
}

/// What becomes of rows that are due.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// They are deleted.
    Delete,
    /// They move to another state.
    Update(StateChange),
}

/// From which states to which.
#[derive(Debug, Clone, PartialEq)]
pub struct StateChange {
    /// The state's column.
    pub from_column: String,
    /// The values that a row may move from.
    pub from_values: Vec<String>,
    /// The values that it takes, by column.
    pub set: BTreeMap<String, String>,
    /// Columns that take the time of the move where they are null.
    pub stamp: Vec<String>,
}

/// Limits beyond which a run is refused as implausible.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Brakes {
    /// The most rows.
    pub max_rows: Option<u64>,
    /// The largest part of the table, 0 to 1.
    pub max_fraction: Option<f64>,
}

impl Rule {
    /// What says how old a row is, in words.
    #[must_use]
    pub fn age(&self) -> String {
        match &self.age_fallback {
            Some(fallback) => format!("{} or else {fallback}", self.age_column),
            None => self.age_column.clone(),
        }
    }

    /// The zone in which days are counted.
    #[must_use]
    pub fn zone(&self) -> Timezone {
        self.timezone.clone().unwrap_or_else(Timezone::utc)
    }
}
