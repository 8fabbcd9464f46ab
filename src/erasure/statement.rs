//! The one place where statements on user tables are built. Names come from the catalog and are
//! quoted; the only parameter is the request, `$1`, or in a script its variable: what finds a subject's
//! rows is read from the request's scope, so no value of a person ever stands in a statement or its
//! parameters.

mod apply;
mod collect;
mod link;
mod masking;
pub(super) mod requests;
mod restraint;
mod scope;
pub(super) mod script;

use self::masking::unmasked;
pub(super) use self::restraint::Restraint;
use self::scope::Scope;
pub(super) use self::scope::{identifier_source, source};
use super::plan::{ErasurePlan, Step, Work};
use super::reach::Node;
use crate::postgres::quote::identifier;

/// Builds the statements of one plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statements<'a> {
    plan: &'a ErasurePlan,
    scope: Scope,
}

impl<'a> Statements<'a> {
    /// The statements of a plan.
    pub(super) fn new(plan: &'a ErasurePlan) -> Self {
        Self {
            plan,
            scope: Scope("$1"),
        }
    }

    fn node(self, place: usize) -> Option<&'a Node> {
        self.plan.reach.nodes.get(place)
    }

    /// Every row of a table, whose names may be used in conditions.
    fn from(node: &Node) -> String {
        format!("{} AS {}", node.relation.quoted(), alias(node))
    }

    /// The subject's own row, locked, so that no new row can refer to it meanwhile.
    pub(super) fn lock_root(self) -> Option<String> {
        let root = self.node(0)?;
        let found = self.is_root(root)?;
        Some(format!(
            "SELECT 1 FROM {} WHERE {found} FOR UPDATE OF {}",
            Self::from(root),
            alias(root)
        ))
    }

    /// The subject's own row.
    pub(super) fn find_root(self) -> Option<String> {
        let root = self.node(0)?;
        Some(format!(
            "SELECT 1 FROM {} WHERE {}",
            Self::from(root),
            self.is_root(root)?
        ))
    }

    /// The subject's key as the server writes it; an error when it cannot be one. `$1` is the text.
    pub(super) fn canonical_key(self) -> Option<String> {
        let column = self.node(0)?.column(&self.plan.key)?;
        Some(format!("SELECT ($1::text::{})::text", column.type_name))
    }

    /// The same for an array of them, in its order.
    pub(super) fn canonical_keys(self) -> Option<String> {
        let column = self.node(0)?.column(&self.plan.key)?;
        Some(format!(
            "SELECT ARRAY(SELECT t.key::{}::text FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS t (key, place) ORDER BY t.place)",
            column.type_name
        ))
    }

    fn is_root(self, root: &Node) -> Option<String> {
        let column = root.column(&self.plan.key)?;
        let values = self.scope.values(
            &source(root, std::slice::from_ref(&self.plan.key)),
            1,
            &column.type_name,
        );
        Some(format!("{}.{} = ANY ({values})", alias(root), identifier(&column.name)))
    }

    /// Whether a row of a node is the subject's own; `false` for a table with none.
    pub(super) fn owned(self, place: usize) -> String {
        let Some(node) = self.node(place) else {
            return "false".to_owned();
        };
        if place == 0 {
            return self.is_root(node).unwrap_or_else(|| "false".to_owned());
        }
        let links = self
            .plan
            .reach
            .links
            .iter()
            .filter(|link| link.follow && link.child == place);
        let parts: Vec<String> = links.filter_map(|link| self.refers(link, &alias(node))).collect();
        if parts.is_empty() {
            "false".to_owned()
        } else {
            format!("({})", parts.join(" OR "))
        }
    }

    /// The rows that a step is about, whatever holds say: the subject's own, or those that refer.
    pub(super) fn due(self, step: &Step) -> Option<String> {
        let node = self.node(step.node)?;
        Some(match &step.work {
            Work::Keep | Work::Delete => self.owned(step.node),
            Work::Unlink(link, _) => self.refers(self.plan.reach.links.get(*link)?, &alias(node))?,
            Work::Mask(set) => {
                let open: Vec<String> = set
                    .iter()
                    .filter_map(|(column, mask)| unmasked(self.scope, node, column, mask))
                    .collect();
                format!("{} AND ({})", self.owned(step.node), open.join(" OR "))
            }
        })
    }

    /// How many rows a step is about, counted up to a limit.
    pub(super) fn count(self, step: &Step, limit: u64) -> Option<String> {
        let node = self.node(step.node)?;
        Some(format!(
            "SELECT count(*) FROM (SELECT 1 FROM {} WHERE {} LIMIT {limit}) AS due",
            Self::from(node),
            self.due(step)?
        ))
    }

    /// The same, without the rows that holds keep.
    pub(super) fn count_free(self, step: &Step, restraint: &Restraint, limit: u64) -> Option<String> {
        let node = self.node(step.node)?;
        Some(format!(
            "SELECT count(*) FROM (SELECT 1 FROM {} WHERE {}{} LIMIT {limit}) AS due",
            Self::from(node),
            self.due(step)?,
            restraint.sql()
        ))
    }

    /// How many rows each of some steps is about, counted up to a limit, in their order.
    pub(super) fn counts<'s>(self, steps: impl Iterator<Item = &'s Step>, limit: u64) -> Option<String> {
        let counts: Option<Vec<String>> = steps.map(|step| self.count(step, limit)).collect();
        let counts = counts?.join("), (");
        Some(if counts.is_empty() {
            "SELECT '{}'::int8[]".to_owned()
        } else {
            format!("SELECT ARRAY[({counts})]")
        })
    }
}

fn alias(node: &Node) -> String {
    identifier(&node.relation.name)
}
