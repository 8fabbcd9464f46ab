//! The statements that delete or change rows of a part of a table, and those that lock or read them first.

use super::{Range, Statements};
use crate::postgres::catalog::Relation;

impl Statements {
    /// Locks the rows of a part of a leaf that are due, and answers where they are: locked rows stay
    /// where they are.
    pub(in crate::batch) fn lock(&self, leaf: &Relation, range: &Range, waiting: bool) -> String {
        let Self { alias, eligible, .. } = self;
        format!(
            "SELECT {alias}.ctid::text FROM {table} WHERE {within}{eligible} FOR {strength} OF {alias}{skip}",
            table = self.only(leaf),
            within = self.within(range),
            strength = self.strength(),
            skip = if waiting { "" } else { " SKIP LOCKED" },
        )
    }

    /// Deletes or changes the rows at `$1`, places that this transaction has locked, that are due now.
    pub(in crate::batch) fn apply_locked(&self, leaf: &Relation) -> String {
        let Self { alias, eligible, .. } = self;
        format!(
            "{} WHERE {alias}.ctid = ANY ($1::text[]::tid[]) AND {eligible}",
            self.verb(leaf)
        )
    }

    /// Deletes or changes the rows of a part of a leaf that are due.
    pub(in crate::batch) fn apply(&self, leaf: &Relation, range: &Range) -> String {
        format!("{} WHERE {}{}", self.verb(leaf), self.within(range), self.eligible)
    }

    /// The rows of a part of a leaf that are due.
    pub(in crate::batch) fn select(&self, leaf: &Relation, range: &Range, list: &str) -> String {
        let (table, within) = (self.only(leaf), self.within(range));
        format!("SELECT {list} FROM {table} WHERE {within}{}", self.eligible)
    }

    /// As [`Statements::apply`], answering with the text of a column of each row.
    pub(in crate::batch) fn apply_returning(&self, leaf: &Relation, range: &Range, column: &str) -> String {
        format!("{} RETURNING {}::text", self.apply(leaf, range), self.column(column))
    }

    /// The same, but leaves out rows that another session holds. A `ctid` never leaves its
    /// statement, and the condition is checked again on the row as it is then.
    pub(in crate::batch) fn apply_unlocked(&self, leaf: &Relation, range: &Range) -> String {
        let Self { alias, eligible, .. } = self;
        let strength = self.strength();
        format!(
            "{verb} WHERE {alias}.ctid = ANY (ARRAY(SELECT {alias}.ctid FROM {table} WHERE {within}{eligible} \
             FOR {strength} OF {alias} SKIP LOCKED)) AND {eligible}",
            verb = self.verb(leaf),
            table = self.only(leaf),
            within = self.within(range),
        )
    }

    fn verb(&self, leaf: &Relation) -> String {
        let table = self.only(leaf);
        match &self.assignments {
            None => format!("DELETE FROM {table}"),
            Some(assignments) => format!("UPDATE {table} SET {assignments}"),
        }
    }

    /// How strongly rows are locked that are to be deleted or changed.
    fn strength(&self) -> &'static str {
        if self.assignments.is_some() {
            "NO KEY UPDATE"
        } else {
            "UPDATE"
        }
    }
}
