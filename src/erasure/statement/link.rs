//! Which rows refer to rows of a subject, and how such a reference is taken out.

use super::Statements;
use super::alias;
use super::scope::{Scope, source};
use crate::erasure::reach::{Link, LinkKind, Node};
use crate::postgres::quote::{identifier, literal};
use crate::values::{Edge, PathStep};

/// Types that compare as text.
const TEXTS: [&str; 4] = ["text", "character varying", "character", "citext"];

const INTEGERS: [&str; 3] = ["smallint", "integer", "bigint"];

impl Statements<'_> {
    /// Whether a row of a link's child refers to the subject's rows of its parent.
    pub(super) fn refers(self, link: &Link, alias: &str) -> Option<String> {
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
                    .map(|(column, value)| format!("{column} = ANY ({})", self.scope.array(&source, value)))?;
                if pairs.len() == 1 {
                    return Some(first);
                }
                let (columns, values): (Vec<String>, Vec<String>) = pairs.into_iter().unzip();
                Some(format!(
                    "({first} AND ({}) IN (SELECT {} FROM {}))",
                    columns.join(", "),
                    values.join(", "),
                    self.scope.of(&source)
                ))
            }
            LinkKind::Soft(edge) => soft(self.scope, edge, child, parent, &source, alias),
        }
    }

    pub(super) fn taken_out(link: &Link, node: &Node, columns: &[String]) -> String {
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
}

fn soft(scope: Scope, edge: &Edge, child: &Node, parent: &Node, source: &str, alias: &str) -> Option<String> {
    let column = child.column(&edge.column)?;
    let key = parent.column(&edge.key)?;
    let name = format!("{alias}.{}", identifier(&edge.column));
    let texts = scope.values(source, 1, "text");
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
            format!("{name} && {}", scope.values(source, 1, element))
        } else {
            format!("{name}::text[] && {texts}")
        });
    }
    let integers = |base: &str| INTEGERS.contains(&base);
    Some(
        if column.base_type == key.base_type || (integers(&column.base_type) && integers(&key.base_type)) {
            format!("{name} = ANY ({})", scope.values(source, 1, &key.type_name))
        } else if is_text(&column.base_type) {
            format!("{name} = ANY ({})", scope.values(source, 1, &column.type_name))
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
