//! Which tables a dump has, where it is not all of them.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::preflight::RELATIONS;
use crate::job::JobError;
use crate::postgres::quote;
use crate::values::TableName;

/// The name that stands for all of a schema.
const ALL: &str = "*";

/// How many names a refusal lists.
const LISTED: usize = 5;

/// How long the arguments that leave tables out may be in all: a process takes about 2 MiB.
const ARGUMENTS: usize = 1024 * 1024;

const OPERATION: &str = "select what to dump";

/// What is left out. Types, functions and schemas are in every dump: what is there may need them.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    oids: Vec<i64>,
    /// As the manifest lists them: `schema.table`, `schema.*`.
    pub left_out: Vec<String>,
    arguments: Vec<String>,
}

impl Selection {
    /// The relations that are left out.
    #[must_use]
    pub fn oids(&self) -> &[i64] {
        &self.oids
    }

    /// The arguments of `pg_dump` that leave them out.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }
}

/// A relation of the application.
#[derive(Debug, Clone, sqlx::FromRow)]
struct Relation {
    oid: Oid,
    schema: String,
    name: String,
    /// The table that it is a partition of.
    parent: Option<Oid>,
}

/// Finds what `include` (all, if it is empty) and `exclude` leave out. A partition goes with its
/// table, a sequence with the column that owns it.
///
/// # Errors
/// A refusal names an entry that means no table, and what cannot be restored without what is left
/// out.
pub async fn resolve(
    connection: &mut PgConnection,
    include: &[TableName],
    exclude: &[TableName],
) -> Result<Selection, JobError> {
    if include.is_empty() && exclude.is_empty() {
        return Ok(Selection::default());
    }
    let relations = relations(connection).await?;
    let included = matching(&relations, include, "include")?;
    let excluded = matching(&relations, exclude, "exclude")?;
    let stays = |relation: &Relation| {
        (include.is_empty() || included.contains(&relation.oid.0)) && !excluded.contains(&relation.oid.0)
    };
    let left_out: Vec<&Relation> = relations.iter().filter(|relation| !stays(relation)).collect();
    if left_out.len() == relations.len() {
        return Err(JobError::refused(
            OPERATION,
            "`include` and `exclude` leave no table",
            "let `include` name what is to be dumped",
        ));
    }
    let mut selection = describe(&relations, &left_out);
    selection.oids.extend(owned_sequences(connection, &selection).await?);
    check_needs(connection, &selection).await?;
    let length: usize = selection.arguments.iter().map(|argument| argument.len() + 9).sum();
    if length > ARGUMENTS {
        return Err(JobError::refused(
            OPERATION,
            format!(
                "{} tables are left out one by one, more than a command line can name",
                left_out.len()
            ),
            "leave out whole schemas: exclude = [\"schema.*\"]",
        ));
    }
    Ok(selection)
}

async fn relations(connection: &mut PgConnection) -> Result<Vec<Relation>, JobError> {
    let sql = format!(
        "SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name,
                CASE WHEN c.relispartition THEN (SELECT i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid) END AS parent
         FROM {RELATIONS} AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
           AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend o WHERE c.relkind = 'S' AND o.objid = c.oid
                           AND o.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND o.deptype IN ('a', 'i'))
         ORDER BY 2, 3"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .fetch_all(connection)
        .await
        .map_err(|error| JobError::database(OPERATION, &error.into()))
}

/// The sequences of columns that are left out: `pg_dump` leaves them out by itself.
async fn owned_sequences(connection: &mut PgConnection, selection: &Selection) -> Result<Vec<i64>, JobError> {
    sqlx::query_scalar(
        "SELECT d.objid::int8 FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'S'
         WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i')
           AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
           AND d.refobjid = ANY (SELECT pg_catalog.unnest($1::int8[])::oid)",
    )
    .bind(selection.oids())
    .fetch_all(connection)
    .await
    .map_err(|error| JobError::database(OPERATION, &error.into()))
}

/// The relations that the entries mean, with all their partitions.
fn matching(relations: &[Relation], entries: &[TableName], key: &str) -> Result<BTreeSet<u32>, JobError> {
    let mut found = BTreeSet::new();
    for entry in entries {
        let meant: Vec<&Relation> = relations
            .iter()
            .filter(|relation| entry.schema.as_ref().is_none_or(|schema| *schema == relation.schema))
            .filter(|relation| relation.name == entry.name || entry.schema.is_some() && entry.name == ALL)
            .collect();
        let public = meant.iter().find(|relation| relation.schema == "public");
        match (&entry.schema, public, meant.as_slice()) {
            (_, _, []) => {
                return Err(JobError::refused(
                    OPERATION,
                    format!("`{key}` names {entry}, and there is no such table"),
                    "write a table's name as the catalog has it, or \"schema.*\" for all of a schema",
                ));
            }
            (None, Some(public), [_, _, ..]) => _ = found.insert(public.oid.0),
            (None, None, [_, _, ..]) => {
                return Err(JobError::refused(
                    OPERATION,
                    format!("`{key}` names {entry}, which several schemas have"),
                    "write \"schema.table\"",
                ));
            }
            (_, _, meant) => found.extend(meant.iter().map(|relation| relation.oid.0)),
        }
    }
    // Partitions of partitions too: until nothing is added.
    loop {
        let partitions: Vec<u32> = relations
            .iter()
            .filter(|relation| !found.contains(&relation.oid.0))
            .filter(|relation| relation.parent.is_some_and(|parent| found.contains(&parent.0)))
            .map(|relation| relation.oid.0)
            .collect();
        if partitions.is_empty() {
            return Ok(found);
        }
        found.extend(partitions);
    }
}

fn describe(relations: &[Relation], left_out: &[&Relation]) -> Selection {
    let mut all: BTreeMap<&str, usize> = BTreeMap::new();
    for relation in relations {
        *all.entry(relation.schema.as_str()).or_default() += 1;
    }
    let mut by_schema: BTreeMap<&str, Vec<&Relation>> = BTreeMap::new();
    for relation in left_out {
        by_schema.entry(relation.schema.as_str()).or_default().push(relation);
    }
    let mut selection = Selection {
        oids: left_out.iter().map(|relation| i64::from(relation.oid.0)).collect(),
        ..Selection::default()
    };
    for (schema, relations) in by_schema {
        if all.get(schema) == Some(&relations.len()) {
            selection
                .arguments
                .push(format!("--exclude-table={}.*", quote::identifier(schema)));
            selection.left_out.push(name(schema, ALL));
            continue;
        }
        for relation in relations {
            let qualified = quote::qualified(schema, &relation.name);
            selection.arguments.push(format!("--exclude-table={qualified}"));
            selection.left_out.push(name(schema, &relation.name));
        }
    }
    selection
}

fn name(schema: &str, name: &str) -> String {
    let name = TableName {
        schema: Some(schema.to_owned()),
        name: name.to_owned(),
    };
    name.to_string()
}

/// A restore would fail where something that stays needs something that does not.
async fn check_needs(connection: &mut PgConnection, selection: &Selection) -> Result<(), JobError> {
    let needs: Vec<String> = sqlx::query_scalar(
        "WITH out AS (SELECT pg_catalog.unnest($1::int8[])::oid AS oid), need (kept, gone) AS (
             SELECT conrelid, confrelid FROM pg_catalog.pg_constraint WHERE contype = 'f'
             UNION SELECT inhrelid, inhparent FROM pg_catalog.pg_inherits
             UNION SELECT r.ev_class, d.refobjid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
                   WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
                     AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
             UNION SELECT a.adrelid, d.refobjid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attrdef a ON a.oid = d.objid
                   WHERE d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
                     AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass)
         SELECT DISTINCT pg_catalog.format('%s needs %s', kept::pg_catalog.regclass, gone::pg_catalog.regclass)
         FROM need WHERE gone IN (SELECT oid FROM out) AND kept NOT IN (SELECT oid FROM out) ORDER BY 1",
    )
    .bind(selection.oids())
    .fetch_all(connection)
    .await
    .map_err(|error| JobError::database(OPERATION, &error.into()))?;
    if needs.is_empty() {
        return Ok(());
    }
    let (listed, more) = needs.split_at(needs.len().min(LISTED));
    let more = if more.is_empty() {
        String::new()
    } else {
        format!(" and {} more", more.len())
    };
    Err(JobError::refused(
        OPERATION,
        format!("the dump could not be restored: {}{more}", listed.join(", ")),
        "leave out both, or neither",
    ))
}
