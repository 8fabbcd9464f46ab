//! What legal holds keep from a step.

use super::{Statements, alias};
use crate::erasure::reach::{Link, LinkKind};
use crate::ledger::holds::Standing;
use crate::postgres::quote::identifier;

/// Which rows of a node a step leaves to a legal hold, as SQL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::erasure) struct Restraint {
    /// No hold covers the row.
    free: Vec<String>,
    /// Nothing that a hold keeps refers to the row.
    unreferenced: Vec<String>,
}

impl Restraint {
    /// Whether it keeps nothing.
    pub(in crate::erasure) fn is_empty(&self) -> bool {
        self.free.is_empty() && self.unreferenced.is_empty()
    }

    pub(super) fn sql(&self) -> String {
        self.free
            .iter()
            .chain(&self.unreferenced)
            .fold(String::new(), |mut text, part| {
                text.push_str(" AND ");
                text.push_str(part);
                text
            })
    }
}

impl Statements<'_> {
    /// What holds keep of a step's rows. `kept_children` are links whose child a hold keeps rows of.
    pub(in crate::erasure) fn restraint(self, place: usize, holds: &[Standing], kept_children: &[&Link]) -> Restraint {
        let Some(node) = self.node(place) else {
            return Restraint::default();
        };
        let alias = alias(node);
        let mut unreferenced = Vec::new();
        for link in kept_children {
            let (Some(child), LinkKind::Key(key)) = (self.node(link.child), &link.kind) else {
                continue;
            };
            let pairs: Vec<String> = (key.columns.iter())
                .map(|(from, to)| format!("pgreeve_child.{} = {alias}.{}", identifier(from), identifier(to)))
                .collect();
            let itself = if link.child == place {
                format!(" AND (pgreeve_child.tableoid, pgreeve_child.ctid) <> ({alias}.tableoid, {alias}.ctid)")
            } else {
                String::new()
            };
            unreferenced.push(format!(
                "NOT EXISTS (SELECT 1 FROM {} AS pgreeve_child WHERE {}{itself})",
                child.relation.quoted(),
                pairs.join(" AND ")
            ));
        }
        Restraint {
            free: holds.iter().map(|hold| hold.spares(&alias)).collect(),
            unreferenced,
        }
    }
}
