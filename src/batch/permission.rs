//! What the run's role must be allowed to do and see.

use sqlx::postgres::types::Oid;

use super::preflight::refuse;
use crate::job::JobError;
use crate::postgres::catalog::Relation;
use crate::postgres::catalog::access::{Access, Need};
use crate::postgres::catalog::leaves::Leaf;
use crate::postgres::quote::{identifier, qualified};

/// Refuses a role that row security would filter: it would find nothing to do, and say so.
pub(super) fn rows_visible(
    relation: &Relation,
    leaves: &[Leaf],
    access: &[Access],
    role: &str,
) -> Result<(), JobError> {
    let hidden: Vec<Oid> = access
        .iter()
        .filter(|access| access.rows_hidden)
        .map(|access| access.table)
        .collect();
    let names: Vec<String> = named(relation, leaves, &hidden)
        .iter()
        .map(|table| table.display())
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(refuse(
        &relation.display(),
        format!(
            "row-level security would hide rows of {} from the role {role}",
            names.join(", ")
        ),
        format!("ALTER ROLE {} BYPASSRLS", identifier(role)),
    ))
}

/// Refuses a role that lacks a privilege, with the grants that mend it.
pub(super) fn privileges(
    relation: &Relation,
    leaves: &[Leaf],
    access: &[Access],
    role: &str,
    need: &Need,
) -> Result<(), JobError> {
    let lacking = |word: &str| -> Vec<&Relation> {
        let held = |access: &&Access| access.missing.iter().any(|missing| missing == word);
        let tables: Vec<Oid> = access.iter().filter(held).map(|access| access.table).collect();
        named(relation, leaves, &tables)
    };
    let mut words = Vec::new();
    let mut grants = Vec::new();
    let mut schemas: Vec<String> = lacking("USAGE").iter().map(|table| identifier(&table.schema)).collect();
    schemas.dedup();
    if !schemas.is_empty() {
        words.push("USAGE");
        grants.push(format!(
            "GRANT USAGE ON SCHEMA {} TO {}",
            schemas.join(", "),
            identifier(role)
        ));
    }
    for word in ["SELECT", "DELETE", "UPDATE"] {
        let tables: Vec<String> = lacking(word)
            .iter()
            .map(|table| qualified(&table.schema, &table.name))
            .collect();
        if tables.is_empty() {
            continue;
        }
        words.push(word);
        let columns = match need {
            Need::Update(columns) if word == "UPDATE" => {
                let columns: Vec<String> = columns.iter().map(|column| identifier(column)).collect();
                format!(" ({})", columns.join(", "))
            }
            _ => String::new(),
        };
        grants.push(format!(
            "GRANT {word}{columns} ON {} TO {}",
            tables.join(", "),
            identifier(role)
        ));
    }
    if words.is_empty() {
        return Ok(());
    }
    Err(refuse(
        &relation.display(),
        format!("the role {role} lacks {}", words.join(", ")),
        grants.join("; "),
    ))
}

/// Those of a table and its leaves that are among `tables`, the table itself first.
fn named<'a>(relation: &'a Relation, leaves: &'a [Leaf], tables: &[Oid]) -> Vec<&'a Relation> {
    let leaves = leaves.iter().map(|leaf| &leaf.relation);
    let others = leaves.filter(|leaf| leaf.oid != relation.oid);
    std::iter::once(relation)
        .chain(others)
        .filter(|relation| tables.contains(&relation.oid))
        .collect()
}
