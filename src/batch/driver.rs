//! How the rows of a leaf are found, and why so.

use std::fmt;

use super::preflight::Target;
use crate::postgres::catalog::RelationKind;
use crate::postgres::catalog::leaves::Leaf;

/// A way through a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Driver {
    /// Along an index by age, from the oldest row; never back, so that dead and exempt rows are
    /// stepped over once. Of a foreign table too: its server finds the way.
    Age,
    /// Along a primary key that counts up, from the first old row to the last.
    Key,
    /// Block by block.
    Block,
}

impl Driver {
    /// The way through one leaf.
    pub(super) fn of(leaf: &Leaf) -> Self {
        if leaf.age_index.is_some() || leaf.relation.kind == RelationKind::Foreign {
            Self::Age
        } else if leaf.key.is_some() {
            Self::Key
        } else {
            Self::Block
        }
    }

    /// Why that one.
    fn why(leaf: &Leaf, age_column: &str) -> String {
        match (&leaf.age_index, &leaf.key) {
            (Some(index), _) => format!("the index {index} leads with {age_column}"),
            (None, _) if leaf.relation.kind == RelationKind::Foreign => {
                format!(
                    "the server that stores {} finds its rows by age",
                    leaf.relation.display()
                )
            }
            (None, Some(key)) => format!(
                "no valid, non-partial btree index leads with {age_column}; the primary key {key} counts up, so old rows \
                 are close together in it"
            ),
            (None, None) => {
                format!("no valid, non-partial btree index leads with {age_column}, so the whole table is read once")
            }
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Age => "time_range",
            Self::Key => "key_range",
            Self::Block => "tid_range",
        })
    }
}

/// The drivers of all leaves in words: `time_range`, `key_range`, `tid_range` or `mixed`, and why.
pub(super) fn explain(target: &Target, age_column: &str) -> (String, String) {
    let leaves = &target.leaves;
    let Some(first) = leaves.first() else {
        let why = "there is no table that holds rows".to_owned();
        return (Driver::Block.to_string(), why);
    };
    let driver = Driver::of(first);
    let why = Driver::why(first, age_column);
    match leaves.iter().find(|leaf| Driver::of(leaf) != driver) {
        None if leaves.len() == 1 => (driver.to_string(), why),
        None => (
            driver.to_string(),
            format!("{why} (likewise on all {} tables below)", leaves.len()),
        ),
        Some(other) => (
            "mixed".to_owned(),
            format!(
                "{}: {why}; {}: {}",
                first.relation.display(),
                other.relation.display(),
                Driver::why(other, age_column)
            ),
        ),
    }
}
