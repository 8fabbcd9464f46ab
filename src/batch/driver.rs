//! How the rows of a leaf are found, and why so.

use std::fmt;

use super::preflight::Target;
use crate::postgres::catalog::leaves::Leaf;

/// A way through a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Driver {
    /// Along an index by age, from the oldest row; never back, so that dead and exempt rows are
    /// stepped over once.
    TimeRange,
    /// Block by block.
    TidRange,
}

impl Driver {
    /// The way through one leaf.
    pub(super) fn of(leaf: &Leaf) -> Self {
        if leaf.age_index.is_some() {
            Self::TimeRange
        } else {
            Self::TidRange
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TimeRange => "time_range",
            Self::TidRange => "tid_range",
        })
    }
}

/// The drivers of all leaves in words: `time_range`, `tid_range` or `mixed`, and why.
pub(super) fn explain(target: &Target, age_column: &str) -> (String, String) {
    let leaves = &target.leaves;
    let without: Vec<&Leaf> = leaves.iter().filter(|leaf| leaf.age_index.is_none()).collect();
    let indexed = leaves.iter().find_map(|leaf| leaf.age_index.as_deref());
    match (indexed, without.first()) {
        (None, None) => (
            Driver::TidRange.to_string(),
            "there is no table that holds rows".to_owned(),
        ),
        (Some(index), None) => (
            Driver::TimeRange.to_string(),
            format!("the index {index} leads with {age_column}{}", on_each(leaves.len())),
        ),
        (None, Some(_)) => (
            Driver::TidRange.to_string(),
            format!(
                "no valid, non-partial btree index leads with {age_column}{}, so the whole table is read once",
                on_each(leaves.len())
            ),
        ),
        (Some(_), Some(first)) => (
            "mixed".to_owned(),
            format!(
                "an index leads with {age_column} on {} of {} tables; {} and others without one are read whole",
                leaves.len() - without.len(),
                leaves.len(),
                first.relation.display()
            ),
        ),
    }
}

fn on_each(leaves: usize) -> String {
    if leaves > 1 {
        format!(" (likewise on all {leaves} tables below)")
    } else {
        String::new()
    }
}
