//! What happens to each table in reach, in which order. Whatever nobody decided is refused, with all
//! such tables in one message.

mod decided;
mod unlinks;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::postgres::types::Oid;

use self::decided::{columns_exist, identifiers, imply_requests, undecided};
use self::unlinks::unlinks;
use super::mask::Mask;
use super::objects::{self, RowObjects};
use super::order;
use super::proof::ScanScope;
use super::reach::{Link, LinkKind, Node, Reach};
use super::rule::{Action, Rule};
use crate::job::JobError;
use crate::values::fingerprint;

/// One change to the rows of one table, with a row of its own in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its place in the order, from 1.
    pub number: i32,
    /// The table's node.
    pub node: usize,
    /// What is done.
    pub work: Work,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Counts what stays.
    Keep,
    /// Masks columns of the subject's rows.
    Mask(Vec<(String, Mask)>),
    /// Takes a reference out of rows that stay: the link, and the columns that become null.
    Unlink(usize, Vec<String>),
    /// Deletes the subject's rows.
    Delete,
}

impl Work {
    /// The step's word in the ledger.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Mask(_) => "mask",
            Self::Unlink(..) => "unlink",
            Self::Delete => "delete",
        }
    }
}

/// A plan that makes sense.
#[derive(Debug, Clone)]
pub struct ErasurePlan {
    /// The tables and the ways between them.
    pub reach: Reach,
    /// The subject's key column.
    pub key: String,
    /// Further columns whose values are the person: a node and a column each.
    pub identifiers: Vec<(usize, String)>,
    /// What is done, in order. Steps of one stage are done by one statement: their tables refer to
    /// each other in a circle.
    pub stages: Vec<Vec<Step>>,
    /// The objects that rows of a node own.
    pub objects: BTreeMap<usize, RowObjects>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// Decides what happens, or refuses.
pub fn decide(rule: &Rule, mut reach: Reach) -> Result<ErasurePlan, JobError> {
    imply_requests(rule, &mut reach);
    undecided(&reach)?;
    columns_exist(rule, &reach)?;
    let identifiers = identifiers(rule, &reach)?;
    let mut warnings = Vec::new();
    let unlinks = unlinks(&mut reach, &mut warnings)?;
    let stages = order::stages(&reach, &unlinks);
    let objects = objects::of(rule, &reach)?;
    for link in &reach.links {
        if let (LinkKind::Key(key), Some(child)) = (&link.kind, reach.nodes.get(link.child))
            && !key.indexed
        {
            warnings.push(format!(
                "no index finds the rows of {} by the foreign key {}: each request reads the whole table",
                child.relation.display(),
                key.name
            ));
        }
    }
    let plan = ErasurePlan {
        reach,
        key: rule.subject.key.clone(),
        identifiers,
        stages,
        objects,
        warnings,
    };
    objects::apart(&plan)?;
    Ok(plan)
}

impl ErasurePlan {
    /// The node of the subject's own table.
    #[must_use]
    pub fn root(&self) -> Option<&Node> {
        self.reach.nodes.first()
    }

    /// All steps in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.stages.iter().flatten()
    }

    /// The columns that rows in reach are referred to by, each with its node, from the subject outwards.
    #[must_use]
    pub fn sources(&self) -> Vec<(usize, &[String])> {
        let mut sources: Vec<(usize, &[String])> = Vec::new();
        for link in &self.reach.links {
            let source = (link.parent, link.keys.as_slice());
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        sources.sort_by_key(|(parent, _)| self.reach.nodes.get(*parent).map(|node| node.depth));
        sources
    }

    /// Whether all links lead away from the subject. Then each source is complete when those nearer to
    /// the subject are; else what they collect must be walked until nothing new is found.
    #[must_use]
    pub fn is_straight(&self) -> bool {
        let depth = |place: usize| self.reach.nodes.get(place).map_or(0, |node| node.depth);
        let outwards = |link: &Link| !link.follow || depth(link.child) > depth(link.parent);
        self.reach.links.iter().all(outwards)
    }

    /// Whether a mask replaces the subject's identifiers in texts.
    #[must_use]
    pub fn replaces_texts(&self) -> bool {
        self.steps().any(|step| match &step.work {
            Work::Mask(set) => set.iter().any(|(_, mask)| *mask == Mask::TextReplace),
            _ => false,
        })
    }

    /// The part of the schema that the plan was made for: tables, their foreign keys in reach, and
    /// their columns that can hold text.
    #[must_use]
    pub fn schema(&self) -> Value {
        let mut tables = serde_json::Map::new();
        for (place, node) in self.reach.nodes.iter().enumerate() {
            let texts: Vec<&str> = (node.columns.iter())
                .filter(|column| holds_text(&column.base_type))
                .map(|column| column.name.as_str())
                .collect();
            let links = self.reach.links.iter().filter(|link| link.child == place);
            let mut keys: Vec<&str> = links
                .filter_map(|link| match &link.kind {
                    LinkKind::Key(key) => Some(key.name.as_str()),
                    LinkKind::Soft(_) => None,
                })
                .collect();
            keys.sort_unstable();
            keys.dedup();
            tables.insert(node.relation.display(), json!({ "columns": texts, "keys": keys }));
        }
        Value::Object(tables)
    }

    /// The digest of [`Self::schema`].
    #[must_use]
    pub fn schema_digest(&self) -> String {
        fingerprint(&self.schema().to_string())
    }

    /// Where identifiers may stay, and where rows go.
    #[must_use]
    pub fn scan_scope(&self) -> ScanScope {
        let mut scope = ScanScope::default();
        for (place, node) in self.reach.nodes.iter().enumerate() {
            let oid = node.relation.oid;
            match node.action() {
                Action::Keep => scope.kept.push((oid, None)),
                Action::Mask => {
                    let set = node.rule.as_ref().map(|rule| &rule.set);
                    let mut stays = |column: &str| {
                        if !set.is_some_and(|set| set.contains_key(column)) {
                            scope.kept.push((oid, Some(column.to_owned())));
                        }
                    };
                    if place == 0 {
                        stays(&self.key);
                    }
                    for link in &self.reach.links {
                        if link.follow && link.child == place && !self.is_unlinked(link) {
                            link.columns().into_iter().for_each(&mut stays);
                        }
                        if link.follow && link.parent == place {
                            link.keys.iter().for_each(|key| stays(key));
                        }
                    }
                }
                Action::Delete | Action::Unlink => {}
            }
        }
        scope.changed = self.changed();
        scope
    }

    fn is_unlinked(&self, link: &Link) -> bool {
        self.steps().any(|step| {
            matches!(&step.work, Work::Unlink(at, _) if self.reach.links.get(*at).is_some_and(|other| std::ptr::eq(other, link)))
        })
    }

    fn changed(&self) -> Vec<Oid> {
        let changing = self.steps().filter(|step| step.work != Work::Keep);
        let mut oids: Vec<Oid> = changing
            .filter_map(|step| self.reach.nodes.get(step.node).map(|node| node.relation.oid))
            .collect();
        oids.sort_by_key(|oid| oid.0);
        oids.dedup();
        oids
    }
}

/// Whether a column of a type can hold an identifier as text.
#[must_use]
pub fn holds_text(base_type: &str) -> bool {
    let element = base_type.trim_end_matches("[]");
    let element = element.rsplit('.').next().unwrap_or(element).trim_matches('"');
    matches!(
        element,
        "text" | "character varying" | "character" | "bpchar" | "citext" | "json" | "jsonb" | "xml" | "hstore" | "name"
    )
}
