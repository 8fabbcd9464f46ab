//! A first version of a job's `tables`, proposed from the catalog for somebody to look at.

use std::fmt::Write;

use sqlx::PgConnection;

use super::reach::{self, Node, Reach, reading};
use super::rule::Rule;
use crate::job::JobError;
use crate::values::JobName;

/// Words in a table's name that let its rows be wanted for longer than the person.
const KEPT: [(&str, &str); 12] = [
    ("invoice", "accounts are kept by law"),
    ("payment", "accounts are kept by law"),
    ("subscription", "accounts may have to be kept by law"),
    ("order", "accounts may have to be kept by law"),
    ("transaction", "accounts are kept by law"),
    ("billing", "accounts are kept by law"),
    ("consent", "proof of consent may be needed for claims"),
    ("opt_out", "a suppression list keeps its entry so that it works"),
    ("suppress", "a suppression list keeps its entry so that it works"),
    ("blacklist", "a suppression list keeps its entry so that it works"),
    ("audit", "an audit trail is kept, with the person masked"),
    ("history", "a history may be a record that others rely on"),
];

/// The text of a first `tables` section: an action for each table in reach, with how it is reached,
/// and as comments what somebody should think about.
///
/// # Errors
/// Refused when the subject's table is not found.
pub async fn propose(connection: &mut PgConnection, job: &JobName, rule: &Rule) -> Result<String, JobError> {
    let reach = reach::read(connection, rule).await?;
    let mut text = format!(
        "# A first version, to be looked at: `delete` is what the law asks for unless there is a ground to keep.\n\
         # mask = {{ action = \"mask\", set = {{ COLUMN = \"MASK\" }} }}, keep = {{ action = \"keep\", basis = \"Art. 17(3)(b)\", until = \"7y\" }}.\n\
         [jobs.{job}.erasure.tables]\n"
    );
    for node in &reach.nodes {
        table(&mut text, &reach, node);
    }
    for line in loose(connection, rule, &reach).await? {
        text.push_str(&line);
    }
    Ok(text)
}

fn table(text: &mut String, reach: &Reach, node: &Node) {
    let relation = &node.relation;
    let name = if relation.schema == "public" {
        relation.name.clone()
    } else {
        relation.display()
    };
    let _ = writeln!(text, "# {}", node.path.replace('\n', " "));
    let lower = node.relation.name.to_lowercase();
    if let Some((_, why)) = KEPT.iter().find(|(word, _)| lower.contains(word)) {
        let _ = writeln!(text, "# look: {why}.");
    }
    let others = reach.links.iter().filter(|link| link.is_key());
    let several = others.filter(|link| {
        reach
            .nodes
            .get(link.child)
            .is_some_and(|child| std::ptr::eq(child, node))
    });
    let columns: Vec<&str> = several.flat_map(reach::Link::columns).collect();
    if columns.len() > 1 {
        let _ = writeln!(
            text,
            "# look: a row may refer by {}; with via = [\"…\"] only some of them make it the person's own.",
            columns.join(", ")
        );
    }
    let key = if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
        name.clone()
    } else {
        serde_json::Value::from(name.as_str()).to_string()
    };
    let value = match &node.rule {
        Some(rule) if rule.action != super::rule::Action::Delete => {
            let _ = writeln!(
                text,
                "# {name} is decided already ({}): keep its line.",
                rule.action.as_str()
            );
            return;
        }
        _ => "{ action = \"delete\" }",
    };
    let _ = writeln!(text, "{key} = {value}");
}

/// Columns that look like references to the subject and are none: candidates for `edges`.
async fn loose(connection: &mut PgConnection, rule: &Rule, reach: &Reach) -> Result<Vec<String>, JobError> {
    let name = &rule.subject.table.name;
    let singular = name.strip_suffix('s').unwrap_or(name).to_lowercase();
    let names = [
        format!("{singular}_id"),
        format!("{singular}id"),
        format!("{name}_id").to_lowercase(),
    ];
    let identifiers: Vec<String> = rule
        .subject
        .identifiers
        .iter()
        .map(|column| column.column.to_lowercase())
        .collect();
    let found: Vec<(String, String, String, bool)> = sqlx::query_as(
        "SELECT n.nspname::text, c.relname::text, a.attname::text, t.typname IN ('json', 'jsonb')
         FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
         WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
           AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgreeve')
           AND (lower(a.attname) = ANY ($1) OR lower(a.attname) = ANY ($2) OR t.typname IN ('json', 'jsonb'))
         ORDER BY 4, 1, 2, 3",
    )
    .bind(names.as_slice())
    .bind(&identifiers)
    .fetch_all(connection)
    .await
    .map_err(|error| reading("columns that may refer to the subject")(error.into()))?;
    let known = |schema: &str, table: &str, column: &str| {
        reach.links.iter().any(|link| {
            let child = reach.nodes.get(link.child);
            child.is_some_and(|child| child.relation.schema == schema && child.relation.name == table)
                && link.columns().contains(&column)
        })
    };
    let root = reach
        .nodes
        .first()
        .map(|node| (node.relation.schema.as_str(), node.relation.name.as_str()));
    let subject = &rule.subject;
    Ok(found
        .into_iter()
        .filter(|(schema, table, column, _)| Some((schema.as_str(), table.as_str())) != root && !known(schema, table, column))
        .map(|(schema, table, column, json)| {
            let from = if schema == "public" { table } else { format!("{schema}.{table}") };
            if json {
                format!("# look: {from}.{column} is JSON; an edge is \"{from}.{column}->>'…' = {}.{}\"\n", subject.table, subject.key)
            } else if identifiers.contains(&column.to_lowercase()) {
                format!("# look: edges = [\"{from}.{column} = {}.{column}\"] would be a reference that no foreign key declares\n", subject.table)
            } else {
                format!(
                    "# look: edges = [\"{from}.{column} = {}.{}\"] would be a reference that no foreign key declares\n",
                    subject.table, subject.key
                )
            }
        })
        .collect())
}
