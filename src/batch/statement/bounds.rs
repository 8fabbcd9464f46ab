//! Where a walk begins, and where its next batch ends.

use super::Statements;
use crate::postgres::catalog::Relation;
use crate::postgres::quote::identifier;

impl Statements {
    /// `(age, rows)`: the age at which the next so many old rows end, due or not, and how many rows have
    /// exactly that age, up to a limit. Exempt rows at the head of the index are stepped over once per
    /// run, not once per batch. No row when fewer are left.
    pub(in crate::batch) fn upper_bound(&self, leaf: &Relation, after: Option<&str>, rows: u64, limit: u64) -> String {
        let Self { age, cutoff, .. } = self;
        let (table, after) = (self.only(leaf), self.after(after));
        let skip = rows.saturating_sub(1);
        format!(
            "SELECT upper.age::text, (SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {age} = upper.age LIMIT {limit}) AS bounded) \
             FROM (SELECT {age} AS age FROM {table} WHERE {after}{age} < {cutoff} ORDER BY {age} OFFSET {skip} LIMIT 1) AS upper"
        )
    }

    /// `(first, last)`: the blocks between which the old rows of a leaf are stored.
    pub(in crate::batch) fn block_bounds(&self, leaf: &Relation, after: Option<&str>) -> String {
        let Self { alias, age, cutoff, .. } = self;
        let (table, after) = (self.only(leaf), self.after(after));
        format!(
            "SELECT min(block), max(block) FROM (SELECT ({alias}.ctid::text::point)[0]::int8 AS block \
             FROM {table} WHERE {after}{age} < {cutoff}) AS stored"
        )
    }

    /// `(first, last)`: the keys between which the old rows of a leaf are.
    pub(in crate::batch) fn key_bounds(&self, leaf: &Relation, key: &str) -> String {
        let Self { alias, age, cutoff, .. } = self;
        let (table, key) = (self.only(leaf), identifier(key));
        format!("SELECT min({alias}.{key})::int8, max({alias}.{key})::int8 FROM {table} WHERE {age} < {cutoff}")
    }

    /// The key at which the next so many rows end, old or not. No row when fewer are left.
    pub(in crate::batch) fn upper_key(&self, leaf: &Relation, key: &str, after: i64, last: i64, rows: u64) -> String {
        let (table, key) = (self.only(leaf), format!("{}.{}", self.alias, identifier(key)));
        let skip = rows.saturating_sub(1);
        format!(
            "SELECT {key}::int8 FROM {table} WHERE {key} > '{after}'::int8 AND {key} <= '{last}'::int8 ORDER BY {key} OFFSET {skip} LIMIT 1"
        )
    }

    pub(super) fn after(&self, after: Option<&str>) -> String {
        after.map_or_else(String::new, |value| {
            format!("{} > {} AND ", self.age, self.age_type.literal(value))
        })
    }
}
