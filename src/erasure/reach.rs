//! The tables in reach of a subject: what foreign keys and soft edges lead to, from the catalog.

use std::collections::{BTreeMap, HashMap, VecDeque};

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::rule::{Action, Rule, TableRule};
use crate::job::JobError;
use crate::postgres::catalog::columns::{self, Column};
use crate::postgres::catalog::references::{self, Reference};
use crate::postgres::catalog::{self, Relation, RelationKind, ResolveError, nearest};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::{Edge, TableName};

/// A table in reach.
#[derive(Debug, Clone)]
pub struct Node {
    /// The table.
    pub relation: Relation,
    /// Its columns.
    pub columns: Vec<Column>,
    /// What happens to its rows; none was decided otherwise.
    pub rule: Option<TableRule>,
    /// How it is reached, from the subject's table on, for people.
    pub path: String,
    /// How many links away from the subject.
    pub depth: usize,
    /// Whether some of its rows are the subject's own.
    pub owned: bool,
}

impl Node {
    /// What happens to its rows; `Delete` while nobody has decided, to see how far that would reach.
    #[must_use]
    pub fn action(&self) -> Action {
        self.rule.as_ref().map_or(Action::Delete, |rule| rule.action)
    }

    /// A column by its exact name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// What makes a row refer to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A foreign key.
    Key(Reference),
    /// A soft edge.
    Soft(Edge),
}

/// A way from rows of a table to rows that refer to them.
#[derive(Debug, Clone)]
pub struct Link {
    /// The node that refers.
    pub child: usize,
    /// The node that is referred to.
    pub parent: usize,
    /// The columns of the parent that are referred to.
    pub keys: Vec<String>,
    /// How.
    pub kind: LinkKind,
    /// Whether what refers is the subject's own, too; else the reference is only taken out.
    pub follow: bool,
}

impl Link {
    /// `the foreign key NAME (ON DELETE CASCADE)`, or `the edge …`.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.kind {
            LinkKind::Key(key) => format!("the foreign key {} (ON DELETE {})", key.name, key.on_delete),
            LinkKind::Soft(edge) => format!("the edge {edge}"),
        }
    }

    /// The columns of the child that refer.
    #[must_use]
    pub fn columns(&self) -> Vec<&str> {
        match &self.kind {
            LinkKind::Key(key) => key.columns.iter().map(|(child, _)| child.as_str()).collect(),
            LinkKind::Soft(edge) => vec![&edge.column],
        }
    }

    /// Whether the server itself keeps the reference whole.
    #[must_use]
    pub fn is_key(&self) -> bool {
        matches!(self.kind, LinkKind::Key(_))
    }
}

/// All tables in reach; the first node is the subject's own.
#[derive(Debug, Clone)]
pub struct Reach {
    /// The tables.
    pub nodes: Vec<Node>,
    /// The ways between them.
    pub links: Vec<Link>,
    /// The node of the requests' table, where the application asks.
    pub requests: Option<usize>,
}

/// What the catalog says, before it is walked.
struct Ground {
    references: Vec<Reference>,
    /// The relations that the rule names.
    named: BTreeMap<TableName, Relation>,
    /// Soft edges, with the tables of both ends.
    edges: Vec<(Oid, Oid, Edge)>,
    rules: HashMap<Oid, TableRule>,
    requests: Option<Oid>,
}

/// Reads what is in reach of the subject.
///
/// # Errors
/// Refused when a name of the rule stands for no table, or when a table has an action that nothing
/// leads to.
pub async fn read(connection: &mut PgConnection, rule: &Rule) -> Result<Reach, JobError> {
    let ground = ground(connection, rule).await?;
    let root = relation(&ground, &rule.subject.table)?;
    let mut walk = Walk::begin(connection, ground, root).await?;
    while let Some(parent) = walk.queue.pop_front() {
        walk.expand(connection, parent).await?;
    }
    walk.finish(rule)
}

struct Walk {
    ground: Ground,
    nodes: Vec<Node>,
    links: Vec<Link>,
    by_oid: HashMap<Oid, usize>,
    queue: VecDeque<usize>,
}

impl Walk {
    async fn begin(connection: &mut PgConnection, ground: Ground, root: Relation) -> Result<Self, JobError> {
        let mut walk = Self {
            ground,
            nodes: Vec::new(),
            links: Vec::new(),
            by_oid: HashMap::new(),
            queue: VecDeque::new(),
        };
        let path = root.display();
        walk.add(connection, root, path, 0).await?;
        walk.own(0);
        Ok(walk)
    }

    async fn add(
        &mut self,
        connection: &mut PgConnection,
        relation: Relation,
        path: String,
        depth: usize,
    ) -> Result<usize, JobError> {
        if let Some(known) = self.by_oid.get(&relation.oid) {
            return Ok(*known);
        }
        let columns = columns::of(connection, relation.oid)
            .await
            .map_err(reading(&relation.display()))?;
        let node = self.nodes.len();
        self.by_oid.insert(relation.oid, node);
        self.nodes.push(Node {
            rule: self.ground.rules.get(&relation.oid).cloned(),
            relation,
            columns,
            path,
            depth,
            owned: false,
        });
        Ok(node)
    }

    fn own(&mut self, node: usize) {
        if let Some(found) = self.nodes.get_mut(node)
            && !found.owned
        {
            found.owned = true;
            self.queue.push_back(node);
        }
    }

    /// Adds whatever refers to rows of a node.
    async fn expand(&mut self, connection: &mut PgConnection, parent: usize) -> Result<(), JobError> {
        let Some(node) = self.nodes.get(parent) else {
            return Ok(());
        };
        let (oid, path, depth, deleted) = (
            node.relation.oid,
            node.path.clone(),
            node.depth,
            node.action() == Action::Delete,
        );
        let keys: Vec<Reference> = self
            .ground
            .references
            .iter()
            .filter(|key| key.parent == oid)
            .cloned()
            .collect();
        let edges: Vec<(Oid, Edge)> = (self.ground.edges.iter())
            .filter(|(_, to, _)| *to == oid)
            .map(|(from, _, edge)| (*from, edge.clone()))
            .collect();
        let kinds = keys.into_iter().map(|key| (key.child, LinkKind::Key(key)));
        let kinds = kinds.chain(edges.into_iter().map(|(child, edge)| (child, LinkKind::Soft(edge))));
        for (child, kind) in kinds {
            let mut link = Link {
                child: 0,
                parent,
                keys: match &kind {
                    LinkKind::Key(key) => key.columns.iter().map(|(_, to)| to.clone()).collect(),
                    LinkKind::Soft(edge) => vec![edge.key.clone()],
                },
                kind,
                follow: false,
            };
            link.follow = self.follows(child, oid, &link);
            // A row that stays can be referred to; only a soft reference to a person is one.
            if !link.follow && !deleted && link.is_key() {
                continue;
            }
            let failed = reading(&path);
            let Some(relation) = references::relation_of(connection, child).await.map_err(failed)? else {
                continue;
            };
            if relation.schema == "pgreeve" {
                continue;
            }
            let way = format!("{path} ← {} by {}", relation.display(), link.describe());
            link.child = self.add(connection, relation, way, depth + 1).await?;
            if link.follow {
                self.own(link.child);
            }
            self.links.push(link);
        }
        Ok(())
    }

    /// Whether rows that refer are the subject's own. What the subject's own table refers to, or a
    /// table to itself, leads to other people, unless the rule says `via`.
    fn follows(&self, child: Oid, parent: Oid, link: &Link) -> bool {
        let root = self.nodes.first().map(|node| node.relation.oid);
        if Some(child) == root {
            return false;
        }
        match self.ground.rules.get(&child) {
            Some(rule) if rule.action == Action::Unlink => false,
            Some(rule) if !rule.via.is_empty() => link
                .columns()
                .iter()
                .any(|column| rule.via.iter().any(|via| via == column)),
            _ => child != parent,
        }
    }

    fn finish(self, rule: &Rule) -> Result<Reach, JobError> {
        for name in rule.tables.keys() {
            let relation = self.ground.named.get(name);
            if relation.is_some_and(|relation| !self.by_oid.contains_key(&relation.oid)) {
                return Err(refuse(
                    format!("{name} has an action, and no foreign key or edge leads there from the subject"),
                    format!(
                        "add an edge such as \"{name}.COLUMN = {}.{}\", or take the table out",
                        rule.subject.table, rule.subject.key
                    ),
                ));
            }
        }
        let requests = self.ground.requests.and_then(|oid| self.by_oid.get(&oid).copied());
        Ok(Reach {
            nodes: self.nodes,
            links: self.links,
            requests,
        })
    }
}

async fn ground(connection: &mut PgConnection, rule: &Rule) -> Result<Ground, JobError> {
    let mut named = BTreeMap::new();
    let mut wanted: Vec<&TableName> = rule.tables.keys().chain([&rule.subject.table]).collect();
    wanted.extend(rule.edges.iter().flat_map(|edge| [&edge.child, &edge.parent]));
    wanted.extend(rule.subject.identifiers.iter().filter_map(|name| name.table.as_ref()));
    wanted.extend(rule.requests.iter().map(|requests| &requests.table));
    for name in wanted {
        if !named.contains_key(name) {
            named.insert(name.clone(), find(connection, name).await?);
        }
    }
    let mut rules = HashMap::new();
    for (name, table) in &rule.tables {
        let Some(relation) = named.get(name) else { continue };
        if rules.insert(relation.oid, table.clone()).is_some() {
            return Err(refuse(
                format!("{} has two actions, once as {name}", relation.display()),
                "name it once",
            ));
        }
    }
    let oid = |name: &TableName| named.get(name).map(|relation| relation.oid);
    let mut edges: Vec<(Oid, Oid, Edge)> = Vec::new();
    for edge in &rule.edges {
        if let (Some(from), Some(to)) = (oid(&edge.child), oid(&edge.parent)) {
            edges.push((from, to, edge.clone()));
        }
    }
    // The application's request names the subject, whether a foreign key says so or not.
    let requests = rule.requests.as_ref().and_then(|requests| oid(&requests.table));
    if let (Some(requests), Some(from), Some(to)) = (&rule.requests, requests, oid(&rule.subject.table)) {
        let edge = Edge {
            child: requests.table.clone(),
            column: requests.subject.clone(),
            path: Vec::new(),
            parent: rule.subject.table.clone(),
            key: rule.subject.key.clone(),
        };
        if !rule.edges.contains(&edge) {
            edges.push((from, to, edge));
        }
    }
    let references = references::all(connection).await.map_err(reading("foreign keys"))?;
    Ok(Ground {
        references,
        named,
        edges,
        rules,
        requests,
    })
}

fn relation(ground: &Ground, name: &TableName) -> Result<Relation, JobError> {
    let found = ground.named.get(name).cloned();
    found.ok_or_else(|| refuse(format!("there is no table {name}"), "correct its name"))
}

/// A table by its configured name.
async fn find(connection: &mut PgConnection, name: &TableName) -> Result<Relation, JobError> {
    let relation = match catalog::resolve(connection, name).await {
        Ok(relation) => relation,
        Err(ResolveError::Database(error)) => return Err(reading(&name.to_string())(error)),
        Err(ref error @ ResolveError::Missing { ref near }) => {
            let remedy = if near.is_empty() {
                "write the table as the catalog has it, letter case included".to_owned()
            } else {
                format!("did you mean {}?", near.join(" or "))
            };
            return Err(refuse(format!("{name}: {error}"), remedy));
        }
        Err(error @ ResolveError::Ambiguous(_)) => {
            return Err(refuse(format!("{name}: {error}"), "write the table with its schema"));
        }
    };
    if relation.schema == "pgreeve" {
        return Err(refuse(
            format!("{name}: the ledger is no table of the application"),
            "take it out; the ledger holds no personal data of finished requests",
        ));
    }
    if !matches!(relation.kind, RelationKind::Table | RelationKind::Partitioned) {
        return Err(refuse(
            format!(
                "{name} is a {}, which stores no rows of its own here",
                relation.kind.as_str()
            ),
            "name the table that stores the rows",
        ));
    }
    Ok(relation)
}

/// A column that the rule names.
pub(super) fn find_column<'a>(node: &'a Node, name: &str) -> Result<&'a Column, JobError> {
    node.column(name).ok_or_else(|| {
        let near = nearest(name, node.columns.iter().map(|column| column.name.as_str()), 3);
        let remedy = if near.is_empty() {
            "write the column as the catalog has it, letter case included".to_owned()
        } else {
            format!("did you mean {}?", near.join(" or "))
        };
        refuse(format!("{} has no column {name}", node.relation.display()), remedy)
    })
}

/// A refusal of a plan.
pub(super) fn refuse(cause: impl Into<String>, remedy: impl Into<String>) -> JobError {
    JobError::refused("plan the erasure", cause, remedy).about("tables")
}

/// An error of the database while the catalog is read.
pub(super) fn reading(table: &str) -> impl Fn(DatabaseError) -> JobError + use<> {
    let operation = format!("read the catalog about {table}");
    move |error| JobError::database(operation.clone(), &error)
}
