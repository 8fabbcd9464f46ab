//! The one place where statements on user tables are built. Names come from the catalog and are
//! quoted; the only parameter is the request, `$1`: what finds a subject's rows is read from the
//! request's scope, so no value of a person ever stands in a statement or its parameters.

pub(super) mod requests;

use std::fmt::Write;

use sqlx::postgres::types::Oid;

use super::mask::Mask;
use super::objects::OBJECTS;
use super::plan::{ErasurePlan, Step, Work};
use super::reach::{Link, LinkKind, Node};
use super::rule::{Edge, PathStep};
use crate::ledger::holds::Standing;
use crate::postgres::catalog::columns::Column;
use crate::postgres::quote::{identifier, literal};

/// Types that compare as text.
const TEXTS: [&str; 4] = ["text", "character varying", "character", "citext"];
const INTEGERS: [&str; 3] = ["smallint", "integer", "bigint"];

/// Builds the statements of one plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statements<'a> {
    plan: &'a ErasurePlan,
}

/// Which rows of a node a step leaves to a legal hold, as SQL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Restraint {
    /// No hold covers the row.
    free: Vec<String>,
    /// Nothing that a hold keeps refers to the row.
    unreferenced: Vec<String>,
}

impl Restraint {
    /// Whether it keeps nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.free.is_empty() && self.unreferenced.is_empty()
    }

    fn sql(&self) -> String {
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

impl<'a> Statements<'a> {
    /// The statements of a plan.
    pub(super) fn new(plan: &'a ErasurePlan) -> Self {
        Self { plan }
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

    fn is_root(self, root: &Node) -> Option<String> {
        let column = root.column(&self.plan.key)?;
        let values = values(
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

    /// Whether a row of a link's child refers to the subject's rows of its parent.
    fn refers(self, link: &Link, alias: &str) -> Option<String> {
        let (child, parent) = (self.node(link.child)?, self.node(link.parent)?);
        let source = source(parent, &link.keys);
        match &link.kind {
            LinkKind::Key(key) => {
                let pairs: Option<Vec<(String, String)>> = (key.columns.iter().enumerate())
                    .map(|(at, (from, to))| {
                        let of_type = &parent.column(to)?.type_name;
                        let column = format!("{alias}.{}", identifier(from));
                        Some((column, format!("(v.value)[{}]::{of_type}", at + 1)))
                    })
                    .collect();
                let pairs = pairs?;
                let first = pairs
                    .first()
                    .map(|(column, value)| format!("{column} = ANY ({})", array(&source, value)))?;
                if pairs.len() == 1 {
                    return Some(first);
                }
                let (columns, values): (Vec<String>, Vec<String>) = pairs.into_iter().unzip();
                Some(format!(
                    "({first} AND ({}) IN (SELECT {} FROM {}))",
                    columns.join(", "),
                    values.join(", "),
                    scope(&source)
                ))
            }
            LinkKind::Soft(edge) => soft(edge, child, parent, &source, alias),
        }
    }

    /// Puts the values that a node's rows are referred to by into the scope; answers with nothing.
    pub(super) fn collect(self, place: usize, keys: &[String]) -> Option<String> {
        let node = self.node(place)?;
        let columns: Vec<String> = keys
            .iter()
            .map(|key| format!("{}.{}", alias(node), identifier(key)))
            .collect();
        let texts: Vec<String> = columns.iter().map(|column| format!("{column}::text")).collect();
        let present: Vec<String> = columns.iter().map(|column| format!("{column} IS NOT NULL")).collect();
        let source = source(node, keys);
        Some(format!(
            "INSERT INTO pgreeve.erasure_scope (request_id, source, value)
             SELECT DISTINCT $1::uuid, {name}, ARRAY[{texts}] FROM {from} WHERE {owned} AND {present}
             EXCEPT SELECT v.request_id, v.source, v.value FROM {scope}",
            name = literal(&source),
            texts = texts.join(", "),
            from = Self::from(node),
            owned = self.owned(place),
            present = present.join(" AND "),
            scope = scope(&source),
        ))
    }

    /// Puts the values of an identifying column into the scope.
    pub(super) fn collect_identifiers(self, place: usize, column: &str) -> Option<String> {
        let node = self.node(place)?;
        let value = format!("{}.{}::text", alias(node), identifier(column));
        let source = identifier_source(node, column);
        Some(format!(
            "INSERT INTO pgreeve.erasure_scope (request_id, source, value)
             SELECT DISTINCT $1::uuid, {name}, ARRAY[{value}] FROM {from} WHERE {owned} AND {value} <> ''
             EXCEPT SELECT v.request_id, v.source, v.value FROM {scope}",
            name = literal(&source),
            from = Self::from(node),
            owned = self.owned(place),
            scope = scope(&source),
        ))
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
                    .filter_map(|(column, mask)| unmasked(node, column, mask))
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

    /// A step on all its rows. Answers with one number: how many they were.
    pub(super) fn apply(self, step: &Step, restraint: &Restraint) -> Option<String> {
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
            Work::Mask(set) => masked(node, set, &table, due, name),
        })
    }

    /// Writes the keys of the objects of rows that a deletion returns into the request's scope.
    fn keys_noted(self, step: &Step) -> String {
        if step.work != Work::Delete || !self.plan.objects.contains_key(&step.node) {
            return String::new();
        }
        format!(
            ", noted AS (INSERT INTO pgreeve.erasure_scope (request_id, source, value)
                 SELECT DISTINCT $1::uuid, {}, ARRAY[key] FROM done WHERE key IS NOT NULL)",
            literal(OBJECTS)
        )
    }

    /// The keys that were noted by a deletion and that no row which stays names, too.
    pub(super) fn object_keys(self, step: &Step) -> Option<String> {
        let (node, objects) = (self.node(step.node)?, self.plan.objects.get(&step.node)?);
        if step.work != Work::Delete {
            return None;
        }
        Some(format!(
            "SELECT s.value[1] FROM pgreeve.erasure_scope s WHERE s.request_id = $1 AND s.source = {}
               AND NOT EXISTS (SELECT FROM {} WHERE {}.{} = s.value[1]) ORDER BY 1",
            literal(OBJECTS),
            Self::from(node),
            alias(node),
            identifier(&objects.key_column)
        ))
    }

    /// Steps whose tables refer to each other, in one statement. Answers with one number each.
    pub(super) fn apply_together(self, steps: &[(&Step, Restraint)]) -> Option<String> {
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
    pub(super) fn apply_some(self, step: &Step, restraint: &Restraint, leaf: Oid, rows: u64) -> Option<String> {
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

    fn taken_out(link: &Link, node: &Node, columns: &[String]) -> String {
        if let LinkKind::Soft(edge) = &link.kind
            && let Some(path) = plain_path(edge)
            && let Some(column) = node.column(&edge.column)
        {
            let value = format!("{}.{}::jsonb #- {path}", alias(node), identifier(&column.name));
            return format!("{} = ({value})::{}", identifier(&column.name), column.type_name);
        }
        let set: Vec<String> = columns
            .iter()
            .map(|column| format!("{} = NULL", identifier(column)))
            .collect();
        set.join(", ")
    }

    /// What holds keep of a step's rows. `kept_children` are links whose child a hold keeps rows of.
    pub(super) fn restraint(self, place: usize, holds: &[Standing], kept_children: &[&Link]) -> Restraint {
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
            free: holds.iter().map(|hold| free_of(hold, &alias)).collect(),
            unreferenced,
        }
    }

    /// A mask on at most two rows, to see whether the table takes it. Values are wanted rather than
    /// nulls, which no mask changes.
    pub(super) fn try_mask(self, place: usize, column: &str, mask: &Mask, wanted: bool) -> Option<String> {
        let node = self.node(place)?;
        let (alias, name) = (alias(node), identifier(column));
        let condition = if wanted {
            format!("{alias}.{name} IS NOT NULL")
        } else {
            "true".to_owned()
        };
        let table = Self::from(node);
        Some(format!(
            "UPDATE {table} SET {name} = {} WHERE ({alias}.tableoid, {alias}.ctid) IN (
                 SELECT {alias}.tableoid, {alias}.ctid FROM {table} WHERE {condition} LIMIT 2)",
            expression(node, column, mask)?
        ))
    }
}

/// Where the values stand that rows of a node are referred to by.
pub(super) fn source(node: &Node, keys: &[String]) -> String {
    format!("{} ({})", node.relation.display(), keys.join(", "))
}

/// Where the values of an identifying column stand.
pub(super) fn identifier_source(node: &Node, column: &str) -> String {
    format!("identifier {}.{column}", node.relation.display())
}

fn alias(node: &Node) -> String {
    identifier(&node.relation.name)
}

fn scope(source: &str) -> String {
    format!(
        "pgreeve.erasure_scope AS v WHERE v.request_id = $1 AND v.source = {}",
        literal(source)
    )
}

/// An array of what an expression makes of each value of a source.
fn array(source: &str, value: &str) -> String {
    format!("ARRAY(SELECT {value} FROM {})", scope(source))
}

fn values(source: &str, place: usize, of_type: &str) -> String {
    array(source, &format!("(v.value)[{place}]::{of_type}"))
}

/// The subject's identifiers, as an array of text.
const IDENTIFIERS: &str = "ARRAY(SELECT (v.value)[1] FROM pgreeve.erasure_scope AS v WHERE v.request_id = $1 AND \
                           pg_catalog.starts_with(v.source, 'identifier '))";

/// A pattern that matches each telling identifier, or nothing.
const PATTERN: &str = "coalesce((SELECT (v.value)[1] FROM pgreeve.erasure_scope AS v WHERE v.request_id = $1 AND v.source = \
                       'pattern'), '(?!)')";

/// The two pads of HMAC-SHA256 under the request's own key, 64 bytes each.
const PADS: &str = "(SELECT r.mask_key FROM pgreeve.erasure_request AS r WHERE r.request_id = $1)";

fn soft(edge: &Edge, child: &Node, parent: &Node, source: &str, alias: &str) -> Option<String> {
    let column = child.column(&edge.column)?;
    let key = parent.column(&edge.key)?;
    let name = format!("{alias}.{}", identifier(&edge.column));
    let texts = values(source, 1, "text");
    if edge.has_each() && !column.base_type.ends_with("[]") {
        let path: String = edge.path.iter().fold("$".to_owned(), |path, step| match step {
            PathStep::Each => path + "[*]",
            PathStep::Member(member) => path + "." + &serde_json::Value::from(member.as_str()).to_string(),
        });
        return Some(format!(
            "EXISTS (SELECT FROM pg_catalog.jsonb_path_query({name}::jsonb, {}) AS e (item) WHERE e.item #>> '{{}}' = ANY ({texts}))",
            literal(&path)
        ));
    }
    if !edge.path.is_empty() && !column.base_type.ends_with("[]") {
        let last = edge.path.len() - 1;
        let steps = edge.path.iter().enumerate().map(|(at, step)| match step {
            PathStep::Member(member) => format!(" {} {}", if at == last { "->>" } else { "->" }, literal(member)),
            PathStep::Each => String::new(),
        });
        return Some(format!("({name}{}) = ANY ({texts})", steps.collect::<String>()));
    }
    if let Some(element) = column.base_type.strip_suffix("[]") {
        let same = element == key.base_type || is_text(element);
        return Some(if same {
            format!("{name} && {}", values(source, 1, element))
        } else {
            format!("{name}::text[] && {texts}")
        });
    }
    let integers = |base: &str| INTEGERS.contains(&base);
    Some(
        if column.base_type == key.base_type || (integers(&column.base_type) && integers(&key.base_type)) {
            format!("{name} = ANY ({})", values(source, 1, &key.type_name))
        } else if is_text(&column.base_type) {
            format!("{name} = ANY ({})", values(source, 1, &column.type_name))
        } else {
            format!("{name}::text = ANY ({texts})")
        },
    )
}

/// A path without arrays, as an array of text; none for a plain column.
fn plain_path(edge: &Edge) -> Option<String> {
    let members: Option<Vec<String>> = (edge.path.iter())
        .map(|step| match step {
            PathStep::Member(member) => Some(literal(member)),
            PathStep::Each => None,
        })
        .collect();
    let members = members.filter(|members| !members.is_empty())?;
    Some(format!("ARRAY[{}]::text[]", members.join(", ")))
}

fn is_text(base_type: &str) -> bool {
    let name = base_type.rsplit('.').next().unwrap_or(base_type);
    TEXTS.contains(&name)
}

fn is_json(column: &Column) -> bool {
    matches!(column.base_type.as_str(), "json" | "jsonb")
}

/// A row that a hold does not cover. Its condition may name the table it was placed on.
fn free_of(hold: &Standing, alias: &str) -> String {
    let predicate = format!("(\n{}\n)", hold.predicate);
    let name = identifier(&hold.name);
    let free = if name == alias {
        format!("{predicate} IS NOT TRUE")
    } else {
        format!("NOT EXISTS (SELECT 1 FROM (SELECT {alias}.*) AS {name} WHERE {predicate})")
    };
    if hold.only.is_empty() {
        return free;
    }
    let leaves: Vec<String> = hold.only.iter().map(|oid| oid.0.to_string()).collect();
    format!("({alias}.tableoid NOT IN ({}) OR {free})", leaves.join(", "))
}

/// An UPDATE that masks, and remembers the tokens it made, by which a masked row is known.
fn masked(node: &Node, set: &[(String, Mask)], table: &str, due: &str, name: &str) -> String {
    let assignments: Vec<String> = set
        .iter()
        .filter_map(|(column, mask)| Some(format!("{} = {}", identifier(column), expression(node, column, mask)?)))
        .collect();
    let tokens: Vec<&String> = set
        .iter()
        .filter(|(_, mask)| !mask.is_idempotent())
        .map(|(column, _)| column)
        .collect();
    let returning: Vec<String> = (tokens.iter().enumerate())
        .map(|(at, column)| format!("{}.{}::text AS token_{at}", alias(node), identifier(column)))
        .collect();
    let returning = if returning.is_empty() {
        "1".to_owned()
    } else {
        returning.join(", ")
    };
    let mut text = format!(
        "{name} AS (UPDATE {table} SET {} WHERE {due} RETURNING {returning})",
        assignments.join(", ")
    );
    for (at, column) in tokens.iter().enumerate() {
        let source = literal(&token_source(node, column));
        let _ = write!(
            text,
            ", {name}_{at} AS (INSERT INTO pgreeve.erasure_scope (request_id, source, value)
                 SELECT DISTINCT $1::uuid, {source}, ARRAY[token_{at}] FROM {name} WHERE token_{at} IS NOT NULL)"
        );
    }
    text
}

fn token_source(node: &Node, column: &str) -> String {
    format!("token {}.{column}", node.relation.display())
}

/// Whether a value is not masked yet.
fn unmasked(node: &Node, name: &str, mask: &Mask) -> Option<String> {
    let column = node.column(name)?;
    let value = format!("{}.{}", alias(node), identifier(name));
    Some(match mask {
        Mask::Null => format!("{value} IS NOT NULL"),
        Mask::Hmac(_) | Mask::EmailToken => {
            let known = values(&token_source(node, name), 1, "text");
            format!("({value} IS NOT NULL AND {value}::text <> ALL ({known}))")
        }
        _ => {
            let masked = expression(node, name, mask)?;
            if column.base_type == "json" {
                format!("({masked})::jsonb IS DISTINCT FROM {value}::jsonb")
            } else {
                format!("({masked}) IS DISTINCT FROM {value}")
            }
        }
    })
}

/// What takes the place of a value.
fn expression(node: &Node, name: &str, mask: &Mask) -> Option<String> {
    let column = node.column(name)?;
    let value = format!("{}.{}", alias(node), identifier(name));
    let of_type = &column.type_name;
    let token = format!(
        "encode(sha256(substring({PADS} FROM 65) || sha256(substring({PADS} FOR 64) || convert_to({value}::text, 'UTF8'))), 'hex')"
    );
    let array = |names: &[String]| {
        let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
        format!("ARRAY[{}]::text[]", names.join(", "))
    };
    Some(match mask {
        Mask::Null => "NULL".to_owned(),
        Mask::Constant(text) => format!("CASE WHEN {value} IS NULL THEN NULL ELSE {}::text::{of_type} END", literal(text)),
        Mask::Hmac(length) => format!("left({token}, {length})::{of_type}"),
        Mask::EmailToken => format!("('erased+' || left({token}, 16) || '@invalid.invalid')::{of_type}"),
        Mask::TruncateDate(unit) => format!("date_trunc({}, {value})::{of_type}", literal(unit)),
        Mask::JsonRemove(path) => format!("({value}::jsonb #- {})::{of_type}", array(path)),
        Mask::JsonScrub(keys) => {
            format!("pgreeve.erasure_json_scrub({value}::jsonb, {}, NULL)::{of_type}", array(keys))
        }
        Mask::JsonScrubOwn(keys) => {
            format!("pgreeve.erasure_json_scrub({value}::jsonb, {}, {IDENTIFIERS})::{of_type}", array(keys))
        }
        Mask::TextReplace if is_json(column) => {
            format!("pgreeve.erasure_json_replace({value}::jsonb, {PATTERN}, {IDENTIFIERS})::{of_type}")
        }
        Mask::TextReplace => format!("regexp_replace({value}::text, {PATTERN}, '[erased]', 'gi')::{of_type}"),
        Mask::ArrayRemove => format!(
            "CASE WHEN {value} IS NULL THEN NULL ELSE ARRAY(SELECT e.item FROM unnest({value}) WITH ORDINALITY AS e (item, place)
             WHERE (lower(e.item::text) = ANY (SELECT lower(i) FROM unnest({IDENTIFIERS}) AS i)) IS NOT TRUE ORDER BY e.place) END"
        ),
    })
}
