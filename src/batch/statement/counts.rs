//! What is asked of a table and changes nothing: whether the rule makes sense, how many rows it means, what is left.

use super::{Range, Statements};
use crate::batch::report::COUNT_LIMIT;
use crate::postgres::catalog::Relation;
use crate::postgres::catalog::leaves::Leaf;
use crate::postgres::quote::{identifier, literal};

impl Statements {
    /// A statement whose plan shows whether the condition makes sense.
    pub(in crate::batch) fn probe(&self) -> String {
        format!("SELECT 1 FROM {} WHERE {}", self.root, self.eligible)
    }

    /// `(leaf, rows)`: how many rows are due in each. An index can answer for one leaf, but not tell
    /// leaves apart.
    pub(in crate::batch) fn count_by_leaf(&self, leaves: &[Leaf]) -> String {
        let Self {
            root, alias, eligible, ..
        } = self;
        if let [leaf] = leaves {
            let (oid, table) = (leaf.relation.oid.0, self.only(&leaf.relation));
            return format!("SELECT '{oid}'::oid, count(*) FROM {table} WHERE {eligible} HAVING count(*) > 0");
        }
        format!("SELECT {alias}.tableoid, count(*) FROM {root} WHERE {eligible} GROUP BY 1")
    }

    /// `(rows, met)`: whether there is a row, and one that meets the operator's condition, of whatever
    /// age; nothing without a condition.
    pub(in crate::batch) fn met(&self) -> Option<String> {
        let Self { root, condition, .. } = self;
        condition.predicate().map(|predicate| {
            format!("SELECT EXISTS (SELECT 1 FROM {root}), EXISTS (SELECT 1 FROM {root} WHERE {predicate})")
        })
    }

    /// How many rows can never be due because nothing says how old they are, up to a limit.
    pub(in crate::batch) fn ageless(&self) -> String {
        let Self { root, ageless, .. } = self;
        format!("SELECT count(*) FROM (SELECT 1 FROM {root} WHERE {ageless} LIMIT {COUNT_LIMIT}) AS bounded")
    }

    /// `(rows, due)`: how many rows a part of the table with all below it holds, and how many are due.
    pub(in crate::batch) fn count_whole(&self, part: &str) -> String {
        let Self { alias, eligible, .. } = self;
        format!("SELECT count(*), count(*) FILTER (WHERE {eligible}) FROM {part} AS {alias}")
    }

    /// How many rows there are, due or not.
    pub(in crate::batch) fn count_all(&self) -> String {
        format!("SELECT count(*) FROM {}", self.root)
    }

    /// Whether there is a row of the time from an instant until now, whatever else it is.
    pub(in crate::batch) fn written_since(&self, instant: &str) -> String {
        let Self { root, age, .. } = self;
        let at = self.instant(age);
        let (low, high) = (
            self.value_at(&format!("{}::timestamptz", literal(instant))),
            self.value_at("now()"),
        );
        format!(
            "SELECT EXISTS (SELECT 1 FROM {root} WHERE {age} >= {low} AND {age} <= {high} AND {at} >= {}::timestamptz)",
            literal(instant)
        )
    }

    /// How many rows of another table point at rows that are due, up to a limit.
    pub(in crate::batch) fn count_referencing(&self, table: &str, columns: &[(String, String)]) -> String {
        let Self {
            root, alias, eligible, ..
        } = self;
        let pairs: Vec<String> = columns
            .iter()
            .map(|(from, to)| format!("pgreeve_child.{} = {alias}.{}", identifier(from), identifier(to)))
            .collect();
        format!(
            "SELECT count(*) FROM (SELECT 1 FROM {table} AS pgreeve_child WHERE EXISTS \
             (SELECT 1 FROM {root} WHERE {eligible} AND {}) LIMIT {COUNT_LIMIT}) AS bounded",
            pairs.join(" AND ")
        )
    }

    /// `(rows, oldest)`: how many rows are due, up to a limit, and the oldest of those counted.
    pub(in crate::batch) fn remaining(&self) -> String {
        let Self {
            root, age, eligible, ..
        } = self;
        format!(
            "SELECT count(*), {}::text FROM (SELECT {age} AS age FROM {root} WHERE {eligible} LIMIT {COUNT_LIMIT}) AS bounded",
            self.instant("min(age)")
        )
    }

    /// The age of the oldest row that is due.
    pub(in crate::batch) fn oldest_remaining(&self) -> String {
        let Self {
            root, age, eligible, ..
        } = self;
        format!(
            "SELECT {}::text FROM {root} WHERE {eligible}",
            self.instant(&format!("min({age})"))
        )
    }

    /// How many old rows stay, up to a limit, each where it applies: because they do not meet the
    /// operator's condition or are the newest of their group, because a hold covers them, because
    /// others reference them.
    pub(in crate::batch) fn staying(&self) -> [Option<String>; 3] {
        let condition = &self.condition;
        [condition.exempt(), condition.held(), condition.exempt_referenced()].map(|condition| {
            let root = &self.root;
            condition.map(|condition| {
                format!("SELECT count(*) FROM (SELECT 1 FROM {root} WHERE {condition} LIMIT {COUNT_LIMIT}) AS bounded")
            })
        })
    }

    /// Those of the values `$1` that a column holds in any row, due or not.
    pub(in crate::batch) fn values_among(&self, column: &str) -> String {
        let (root, column) = (&self.root, self.column(column));
        format!("SELECT DISTINCT {column}::text FROM {root} WHERE {column} = ANY($1)")
    }

    /// `(rows, oldest, youngest)`: how many rows of a part of a leaf are due, and of which times.
    pub(in crate::batch) fn summary(&self, leaf: &Relation, range: &Range) -> String {
        let ends = ["min", "max"].map(|end| self.instant(&format!("{end}({})", self.age)));
        let list = format!("count(*), {}::text, {}::text", ends[0], ends[1]);
        self.select(leaf, range, &list)
    }

    /// How many rows stay only because of [`Statements::require`], up to a limit.
    pub(in crate::batch) fn unusable(&self) -> Option<String> {
        let (root, condition) = (&self.root, self.condition.unusable()?);
        Some(format!(
            "SELECT count(*) FROM (SELECT 1 FROM {root} WHERE {condition} LIMIT {COUNT_LIMIT}) AS bounded"
        ))
    }

    /// How many rows of a part of a leaf are due.
    pub(in crate::batch) fn count_within(&self, leaf: &Relation, range: &Range) -> String {
        let (table, within) = (self.only(leaf), self.within(range));
        format!("SELECT count(*) FROM {table} WHERE {within}{}", self.eligible)
    }
}
