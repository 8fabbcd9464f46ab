//! What changes rows.

use sqlx::postgres::types::Oid;

use super::masking::masked;
use super::{Restraint, Statements, alias};
use crate::erasure::objects::OBJECTS;
use crate::erasure::plan::{Step, Work};
use crate::postgres::quote::{identifier, literal};

impl Statements<'_> {
    /// A step on all its rows. Answers with one number: how many they were.
    pub(in crate::erasure) fn apply(self, step: &Step, restraint: &Restraint) -> Option<String> {
        Some(format!(
            "WITH {}{} SELECT count(*) FROM done",
            self.part(step, restraint, "done")?,
            self.keys_noted(step)
        ))
    }

    /// A step on all its rows, as a part of a statement.
    fn part(self, step: &Step, restraint: &Restraint, name: &str) -> Option<String> {
        self.part_of(step, &format!("{}{}", self.due(step)?, restraint.sql()), name)
    }

    fn part_of(self, step: &Step, due: &str, name: &str) -> Option<String> {
        let node = self.node(step.node)?;
        let table = Self::from(node);
        Some(match &step.work {
            Work::Keep => format!("{name} AS (SELECT 1 FROM {table} WHERE {due})"),
            Work::Delete => {
                let key = self.plan.objects.get(&step.node);
                let returned =
                    key.map(|objects| format!("{}.{}::text AS key", alias(node), identifier(&objects.key_column)));
                let returned = returned.as_deref().unwrap_or("1");
                format!("{name} AS (DELETE FROM {table} WHERE {due} RETURNING {returned})")
            }
            Work::Unlink(link, columns) => {
                let set = Self::taken_out(self.plan.reach.links.get(*link)?, node, columns);
                format!("{name} AS (UPDATE {table} SET {set} WHERE {due} RETURNING 1)")
            }
            Work::Mask(set) => masked(self.scope, node, set, &table, due, name),
        })
    }

    /// Writes the keys of the objects of rows that a deletion returns into the request's scope.
    fn keys_noted(self, step: &Step) -> String {
        if step.work != Work::Delete || !self.plan.objects.contains_key(&step.node) {
            return String::new();
        }
        format!(
            ", noted AS (INSERT INTO pgreeve.erasure_scope (request_id, source, value)
                 SELECT DISTINCT {}::uuid, {}, ARRAY[key] FROM done WHERE key IS NOT NULL)",
            self.scope.0,
            literal(OBJECTS)
        )
    }

    /// The keys that were noted by a deletion and that no row which stays names, too.
    pub(in crate::erasure) fn object_keys(self, step: &Step) -> Option<String> {
        let (node, objects) = (self.node(step.node)?, self.plan.objects.get(&step.node)?);
        if step.work != Work::Delete {
            return None;
        }
        Some(format!(
            "SELECT s.value[1] FROM pgreeve.erasure_scope s WHERE s.request_id = {} AND s.source = {}
               AND NOT EXISTS (SELECT FROM {} WHERE {}.{} = s.value[1]) ORDER BY 1",
            self.scope.0,
            literal(OBJECTS),
            Self::from(node),
            alias(node),
            identifier(&objects.key_column)
        ))
    }

    /// Steps whose tables refer to each other, in one statement. Answers with one number each.
    pub(in crate::erasure) fn apply_together(self, steps: &[(&Step, Restraint)]) -> Option<String> {
        let parts: Option<Vec<String>> = (steps.iter().enumerate())
            .map(|(at, (step, restraint))| self.part(step, restraint, &format!("done_{at}")))
            .collect();
        let counts: Vec<String> = (0..steps.len())
            .map(|at| format!("(SELECT count(*) FROM done_{at})"))
            .collect();
        Some(format!(
            "WITH {} SELECT ARRAY[{}]",
            parts?.join(", "),
            counts.join(", ")
        ))
    }

    /// A step on at most so many rows of one of the tables that hold a node's rows. Answers with how
    /// many they were.
    pub(in crate::erasure) fn apply_some(
        self,
        step: &Step,
        restraint: &Restraint,
        leaf: Oid,
        rows: u64,
    ) -> Option<String> {
        let node = self.node(step.node)?;
        let (table, alias) = (Self::from(node), alias(node));
        // Through the table itself, so that its rights are enough; a ctid is not unique across leaves.
        let due = format!(
            "{}{} AND {alias}.tableoid = {}",
            self.due(step)?,
            restraint.sql(),
            leaf.0
        );
        let some =
            format!("{alias}.ctid = ANY (ARRAY(SELECT {alias}.ctid FROM {table} WHERE {due} LIMIT {rows})) AND {due}");
        Some(format!(
            "WITH {}{} SELECT count(*) FROM done",
            self.part_of(step, &some, "done")?,
            self.keys_noted(step)
        ))
    }
}
