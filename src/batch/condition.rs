//! Which rows are due, as SQL: one part for each reason why an old row may have to stay.
//!
//! The parts are kept apart, so that what each of them keeps can be counted, and joined in one
//! order. An old row is due, or exempt, or held, or referenced; never two of these.

use uuid::Uuid;

use crate::ledger::holds::Standing;
use crate::postgres::catalog::Relation;
use crate::postgres::catalog::effects::IncomingKey;
use crate::postgres::quote::identifier;

/// A row that stays because it is the newest of its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// The columns that make a group, and whether each may be null. Nulls make a group of their own.
    pub(super) columns: Vec<(String, bool)>,
    /// The primary key, which decides between rows of one age.
    pub(super) key: Vec<String>,
}

/// The condition, in parts.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    alias: String,
    /// Old enough, and in a state to move from.
    standing: String,
    /// The operator's condition.
    predicate: Option<String>,
    /// There is a newer row of the same group.
    superseded: Option<String>,
    /// No hold covers it, by the hold's identity.
    free: Vec<(Uuid, String)>,
    /// Another row references it.
    referenced: Option<String>,
    /// What it owns elsewhere is within reach.
    usable: Option<String>,
}

impl Condition {
    /// Rows that stand and meet the operator's condition.
    pub(super) fn new(alias: &str, standing: String, predicate: Option<&str>) -> Self {
        Self {
            alias: alias.to_owned(),
            standing,
            predicate: predicate.map(bracketed),
            superseded: None,
            free: Vec::new(),
            referenced: None,
            usable: None,
        }
    }

    /// The operator's own condition.
    pub(super) fn predicate(&self) -> Option<&str> {
        self.predicate.as_deref()
    }

    /// Keeps the newest row of each group, by age; among equals the one with the greatest primary key,
    /// then the one stored last.
    pub(super) fn keep_latest(&mut self, root: &Relation, age_column: &str, group: &Group) {
        let alias = &self.alias;
        let column = |of: &str, name: &str| format!("{of}.{}", identifier(name));
        let same = group.columns.iter().map(|(name, nullable)| {
            let (newer, this) = (column("pgreeve_newer", name), column(alias, name));
            if *nullable {
                format!("({newer} = {this} OR ({newer} IS NULL AND {this} IS NULL))")
            } else {
                format!("{newer} = {this}")
            }
        });
        let order = |of: &str| {
            let mut columns = vec![column(of, age_column)];
            columns.extend(group.key.iter().map(|name| column(of, name)));
            columns.extend([format!("{of}.tableoid"), format!("{of}.ctid")]);
            columns.join(", ")
        };
        self.superseded = Some(format!(
            "EXISTS (SELECT 1 FROM {} AS pgreeve_newer WHERE {} AND ({}) > ({}))",
            root.quoted(),
            same.collect::<Vec<_>>().join(" AND "),
            order("pgreeve_newer"),
            order(alias),
        ));
    }

    /// Keeps rows that a foreign key points at. A row that points at itself does not keep itself.
    pub(super) fn keep_referenced(&mut self, keys: &[IncomingKey]) {
        let alias = &self.alias;
        let referenced = keys.iter().map(|key| {
            let pairs = key
                .columns
                .iter()
                .map(|(from, to)| format!("pgreeve_child.{} = {alias}.{}", identifier(from), identifier(to)));
            let other = if key.own {
                format!(" AND (pgreeve_child.tableoid, pgreeve_child.ctid) <> ({alias}.tableoid, {alias}.ctid)")
            } else {
                String::new()
            };
            format!(
                "EXISTS (SELECT 1 FROM {} AS pgreeve_child WHERE {}{other})",
                key.quoted,
                pairs.collect::<Vec<_>>().join(" AND ")
            )
        });
        let referenced: Vec<String> = referenced.collect();
        self.referenced = (!referenced.is_empty()).then(|| format!("({})", referenced.join(" OR ")));
    }

    /// Keeps rows that do not meet a condition, which is never null.
    pub(super) fn require(&mut self, condition: String) {
        self.usable = Some(condition);
    }

    /// Keeps rows that a legal hold covers; instead of those of before.
    pub(super) fn hold(&mut self, holds: &[Standing]) {
        self.free = (holds.iter())
            .map(|hold| (hold.hold_id, hold.spares(&self.alias)))
            .collect();
    }

    fn free(&self) -> Option<String> {
        let parts: Vec<&str> = self.free.iter().map(|(_, text)| text.as_str()).collect();
        (!parts.is_empty()).then(|| parts.join(" AND "))
    }

    /// What a row must meet to be due.
    pub(super) fn eligible(&self) -> String {
        joined([Some(self.due_but_for_reach()), self.usable.clone()])
    }

    /// The same for people and records. What a hold says may be about a person and stays out: its
    /// identity stands for it.
    pub(super) fn shown(&self) -> String {
        let free = self
            .free
            .iter()
            .map(|(id, _)| format!("NOT /* covered by hold {id} */"));
        let unreferenced = self.referenced.as_ref().map(|referenced| format!("NOT {referenced}"));
        let mut parts = vec![Some(self.due_but_for_others()), unreferenced, self.usable.clone()];
        parts.extend(free.map(Some));
        joined(parts)
    }

    /// Due, whatever the row owns.
    fn due_but_for_reach(&self) -> String {
        let unreferenced = self.referenced.as_ref().map(|referenced| format!("NOT {referenced}"));
        joined([Some(self.due_but_for_others()), self.free(), unreferenced])
    }

    /// Rows that would be due but for what they own.
    pub(super) fn unusable(&self) -> Option<String> {
        let usable = self.usable.as_ref()?;
        Some(format!("{} AND NOT {usable}", self.due_but_for_reach()))
    }

    /// Old enough, and nothing but holds and references to keep it.
    fn due_but_for_others(&self) -> String {
        joined([
            Some(self.standing.clone()),
            self.predicate.clone(),
            self.superseded.clone(),
        ])
    }

    /// Rows that are old enough and do not meet the operator's condition, or are the newest of their
    /// group.
    pub(super) fn exempt(&self) -> Option<String> {
        if self.predicate.is_none() && self.superseded.is_none() {
            return None;
        }
        let wanted = joined([self.predicate.clone(), self.superseded.clone()]);
        let wanted = if self.superseded.is_some() {
            format!("({wanted})")
        } else {
            wanted
        };
        Some(format!("{} AND {wanted} IS NOT TRUE", self.standing))
    }

    /// Rows that would be due but for a hold.
    pub(super) fn held(&self) -> Option<String> {
        let free = self.free()?;
        Some(joined([Some(self.due_but_for_others()), Some(format!("NOT ({free})"))]))
    }

    /// Rows that would be due but for a row that references them.
    pub(super) fn exempt_referenced(&self) -> Option<String> {
        let referenced = self.referenced.clone()?;
        Some(joined([Some(self.due_but_for_others()), self.free(), Some(referenced)]))
    }

    /// Whether rows stay that others reference.
    pub(super) fn keeps_referenced(&self) -> bool {
        self.referenced.is_some()
    }
}

/// On lines of its own: a comment at the end of a condition must not hide the parenthesis.
fn bracketed(text: &str) -> String {
    format!("(\n{text}\n)")
}

fn joined(parts: impl IntoIterator<Item = Option<String>>) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join(" AND ")
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::types::Oid;

    use super::*;
    use crate::postgres::catalog::RelationKind;

    fn hold(name: &str, only: &[u32]) -> Standing {
        Standing {
            hold_id: Uuid::nil(),
            name: name.to_owned(),
            predicate: "user_id = 7 -- Jane".to_owned(),
            only: only.iter().map(|oid| Oid(*oid)).collect(),
        }
    }

    fn condition() -> Condition {
        Condition::new("\"events\"", "OLD".to_owned(), Some("processed"))
    }

    #[test]
    fn a_hold_is_safe_against_null_and_the_name_of_the_table_it_was_placed_on() {
        let mut condition = condition();
        condition.hold(&[hold("events", &[]), hold("events_1", &[5, 6])]);
        assert_eq!(
            condition.eligible(),
            "OLD AND (\nprocessed\n) AND (\nuser_id = 7 -- Jane\n) IS NOT TRUE AND (\"events\".tableoid NOT IN (5, 6) OR \
             NOT EXISTS (SELECT 1 FROM (SELECT \"events\".*) AS \"events_1\" WHERE (\nuser_id = 7 -- Jane\n)))"
        );
        assert!(!condition.shown().contains("Jane"), "{}", condition.shown());
        assert!(
            condition
                .held()
                .unwrap()
                .starts_with("OLD AND (\nprocessed\n) AND NOT (")
        );
        condition.hold(&[]);
        assert_eq!(condition.eligible(), "OLD AND (\nprocessed\n)");
        assert_eq!(condition.held(), None);
    }

    #[test]
    fn the_newest_row_of_a_group_is_one_row_even_among_equals() {
        let mut condition = condition();
        let root = Relation {
            oid: Oid(1),
            schema: "public".to_owned(),
            name: "events".to_owned(),
            kind: RelationKind::Table,
            owner: "app".to_owned(),
            permanent: true,
            rows: 0.0,
            pages: 0,
        };
        let group = Group {
            columns: vec![("user_id".to_owned(), false), ("kind".to_owned(), true)],
            key: vec!["id".to_owned()],
        };
        condition.keep_latest(&root, "at", &group);
        let superseded = concat!(
            r#"EXISTS (SELECT 1 FROM "public"."events" AS pgreeve_newer WHERE "#,
            r#"pgreeve_newer."user_id" = "events"."user_id" AND "#,
            r#"(pgreeve_newer."kind" = "events"."kind" OR (pgreeve_newer."kind" IS NULL AND "events"."kind" IS NULL)) AND "#,
            r#"(pgreeve_newer."at", pgreeve_newer."id", pgreeve_newer.tableoid, pgreeve_newer.ctid) > "#,
            r#"("events"."at", "events"."id", "events".tableoid, "events".ctid))"#,
        );
        assert_eq!(
            condition.eligible(),
            format!("OLD AND (\nprocessed\n) AND {superseded}")
        );
        assert_eq!(
            condition.exempt().unwrap(),
            format!("OLD AND ((\nprocessed\n) AND {superseded}) IS NOT TRUE")
        );
    }
}
