//! What happens to each table in reach, in which order. Whatever nobody decided is refused, with all
//! such tables in one message.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::postgres::types::Oid;

use super::mask::Mask;
use super::objects::{self, RowObjects};
use super::order;
use super::proof::ScanScope;
use super::reach::{Link, LinkKind, Node, Reach, find_column, refuse};
use super::rule::{Action, ColumnName, Rule, TableRule};
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

/// The application's request is the record that one was made: it stays, unless the rule decides.
fn imply_requests(rule: &Rule, reach: &mut Reach) {
    let root_stays = reach.nodes.first().is_some_and(|root| root.action() != Action::Delete);
    let (Some(place), Some(requests)) = (reach.requests, &rule.requests) else {
        return;
    };
    let hard = reach
        .links
        .iter()
        .any(|link| link.child == place && link.parent == 0 && link.is_key());
    let Some(node) = reach.nodes.get_mut(place) else { return };
    if node.rule.is_some() {
        return;
    }
    let nullable = node.column(&requests.subject).is_some_and(|column| !column.not_null);
    let mask = |column: &str| [(column.to_owned(), Mask::Null)].into();
    node.rule = if !root_stays && hard && nullable {
        Some(TableRule {
            action: Action::Mask,
            set: mask(&requests.subject),
            basis: None,
            until: None,
            via: Vec::new(),
        })
    } else if root_stays || !hard {
        Some(TableRule {
            action: Action::Keep,
            set: std::collections::BTreeMap::new(),
            basis: Some("Art. 5(2): the record of the request".to_owned()),
            until: None,
            via: Vec::new(),
        })
    } else {
        None
    };
}

/// Refuses tables in reach that nobody decided about, all at once.
fn undecided(reach: &Reach) -> Result<(), JobError> {
    let open: Vec<&Node> = reach.nodes.iter().filter(|node| node.rule.is_none()).collect();
    let Some(first) = open.first() else { return Ok(()) };
    let named: Vec<String> = open
        .iter()
        .map(|node| format!("{} ({})", node.relation.display(), node.path))
        .collect();
    Err(refuse(
        format!("no action was decided for {}", named.join("; ")),
        format!(
            "add to `tables`, such as \"{}\" = {{ action = \"delete\" }}, or mask, keep, unlink; `pgreeve erasure plan JOB \
             --init` proposes them",
            first.relation.display().replace('"', "\\\"")
        ),
    ))
}

/// Refuses columns of the rule that do not exist.
fn columns_exist(rule: &Rule, reach: &Reach) -> Result<(), JobError> {
    if let Some(root) = reach.nodes.first() {
        let key = find_column(root, &rule.subject.key)?;
        if root.action() == Action::Mask && root.rule.as_ref().is_some_and(|rule| rule.set.contains_key(&key.name)) {
            return Err(refuse(
                format!("{} masks the subject's own key {}", root.relation.display(), key.name),
                "leave the key, or delete the row",
            ));
        }
    }
    for node in &reach.nodes {
        for name in node.rule.iter().flat_map(|rule| rule.set.keys().chain(&rule.via)) {
            find_column(node, name)?;
        }
    }
    for link in &reach.links {
        let (Some(child), Some(parent)) = (reach.nodes.get(link.child), reach.nodes.get(link.parent)) else {
            continue;
        };
        for key in &link.keys {
            find_column(parent, key)?;
        }
        if let LinkKind::Soft(edge) = &link.kind {
            let column = find_column(child, &edge.column)?;
            if !edge.path.is_empty()
                && !matches!(column.base_type.as_str(), "json" | "jsonb")
                && !column.base_type.ends_with("[]")
            {
                return Err(refuse(
                    format!(
                        "the edge {edge} looks into {}, which is of type {}",
                        edge.column, column.full_type
                    ),
                    "a path leads into a column of type json or jsonb",
                ));
            }
        }
    }
    if let (Some(requests), Some(node)) = (&rule.requests, reach.requests.and_then(|place| reach.nodes.get(place))) {
        let always = [&requests.id, &requests.subject, &requests.status, &requests.received_at];
        for name in always.into_iter().chain(&requests.finished_at) {
            find_column(node, name).map_err(|error| error.about("requests"))?;
        }
    }
    Ok(())
}

fn identifiers(rule: &Rule, reach: &Reach) -> Result<Vec<(usize, String)>, JobError> {
    let place = |name: &ColumnName| -> Result<usize, JobError> {
        let Some(table) = &name.table else { return Ok(0) };
        let matching = reach.nodes.iter().position(|node| {
            node.relation.name == table.name
                && table
                    .schema
                    .as_ref()
                    .is_none_or(|schema| *schema == node.relation.schema)
        });
        matching.ok_or_else(|| {
            refuse(
                format!("the identifier {name} is of a table that is not in reach"),
                "name a column of a table that a foreign key or an edge leads to",
            )
            .about("subject")
        })
    };
    let mut found = Vec::new();
    for name in &rule.subject.identifiers {
        let place = place(name)?;
        if let Some(node) = reach.nodes.get(place) {
            find_column(node, &name.column).map_err(|error| error.about("subject"))?;
        }
        found.push((place, name.column.clone()));
    }
    Ok(found)
}

/// The references that must be taken out of rows that stay, with the columns that become null.
fn unlinks(reach: &mut Reach, warnings: &mut Vec<String>) -> Result<Vec<(usize, Vec<String>)>, JobError> {
    let mut unlinks = Vec::new();
    for (at, link) in reach.links.iter().enumerate() {
        let (Some(child), Some(parent)) = (reach.nodes.get(link.child), reach.nodes.get(link.parent)) else {
            continue;
        };
        let goes = parent.action() == Action::Delete;
        if link.follow && (child.action() == Action::Delete || !link.is_key() || !goes) {
            continue;
        }
        if link.follow && child.action() == Action::Keep {
            return Err(refuse(
                format!(
                    "{} is kept and refers to {}, which is deleted, by {}",
                    child.relation.display(),
                    parent.relation.display(),
                    link.describe()
                ),
                "mask what is referred to instead of deleting it, or mask this table with set = { COLUMN = \"null\" }",
            ));
        }
        // The mask itself takes the reference out.
        let set = child.rule.as_ref().map(|rule| &rule.set);
        let masked = |column: &str| set.and_then(|set| set.get(column)) == Some(&Mask::Null);
        let columns = link.columns();
        let enough = match &link.kind {
            LinkKind::Key(key) if !key.match_simple => columns.iter().all(|column| masked(column)),
            _ => columns.iter().any(|column| masked(column)),
        };
        if link.follow && enough {
            continue;
        }
        match nullable(reach, link, child) {
            Some(columns) => unlinks.push((at, columns)),
            None if child.action() == Action::Delete && link.is_key() => warnings.push(format!(
                "{} refers to {} by {} and cannot be null: rows of others that do so stop a request",
                child.relation.display(),
                parent.relation.display(),
                link.describe()
            )),
            None => {
                return Err(refuse(
                    format!(
                        "{} refers to {}, which is deleted, by {}, and its columns cannot be null",
                        child.relation.display(),
                        parent.relation.display(),
                        link.describe()
                    ),
                    "choose the action \"delete\" for it, name the column in `via`, or mask what is referred to instead of \
                     deleting it",
                ));
            }
        }
    }
    Ok(unlinks)
}

/// The columns that can be made null to take a reference out.
fn nullable(reach: &Reach, link: &Link, child: &Node) -> Option<Vec<String>> {
    let free = |name: &&str| {
        child
            .column(name)
            .is_some_and(|column| !column.not_null && !column.generated)
    };
    let columns: Vec<&str> = link.columns();
    let open: Vec<&str> = columns.iter().copied().filter(|name| free(name)).collect();
    match &link.kind {
        LinkKind::Key(key) if !key.match_simple => (open.len() == columns.len()).then_some(())?,
        LinkKind::Soft(edge) if !edge.path.is_empty() => {
            return (!edge.has_each()).then(|| vec![edge.column.clone()]);
        }
        _ => (!open.is_empty()).then_some(())?,
    }
    // A column that another reference uses, too, such as a tenant's, stays where it can.
    let shared = |name: &&str| {
        let others = reach
            .links
            .iter()
            .filter(|other| other.child == link.child && !std::ptr::eq(*other, link));
        others
            .filter(|other| other.is_key())
            .any(|other| other.columns().contains(name))
    };
    let own: Vec<&str> = open.iter().copied().filter(|name| !shared(name)).collect();
    let simple = matches!(&link.kind, LinkKind::Key(key) if key.match_simple);
    let chosen = if simple && !own.is_empty() { own } else { open };
    Some(chosen.into_iter().map(str::to_owned).collect())
}
