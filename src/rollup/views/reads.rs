//! What views read, at any distance, as the catalog has it.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::check::{View, display, reading};
use crate::job::JobError;

/// For each view, which of the others it reads, through whatever views lie between; and warnings.
pub(super) async fn reads(
    connection: &mut PgConnection,
    views: &[View],
) -> Result<(Vec<Vec<usize>>, Vec<String>), JobError> {
    let oids: Vec<Oid> = views.iter().map(|view| view.relation.oid).collect();
    let pairs: Vec<(Oid, Oid, String, String)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "{READS}
         SELECT r.view, c.oid, n.nspname::text, c.relname::text
         FROM reads r JOIN pg_catalog.pg_class c ON c.oid = r.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'm' ORDER BY 3, 4"
    )))
    .bind(&oids)
    .fetch_all(connection)
    .await
    .map_err(|error| reading("what the views read")(error.into()))?;
    let place = |oid: Oid| oids.iter().position(|other| *other == oid);
    let mut after = vec![Vec::new(); views.len()];
    let mut warnings = Vec::new();
    for (view, read, schema, name) in pairs {
        let Some(reader) = place(view) else { continue };
        match (place(read), after.get_mut(reader)) {
            (Some(other), Some(after)) => after.push(other),
            _ => warnings.extend(views.get(reader).map(|view| {
                let (view, read) = (view.relation.display(), display(&schema, &name));
                format!("{view} reads the materialized view {read}, which this job does not refresh: it is no newer")
            })),
        }
    }
    Ok((after, warnings))
}

/// Warnings about tables of which the views lose what is purged.
pub(super) async fn purged(connection: &mut PgConnection, views: &[View]) -> Result<Vec<String>, JobError> {
    let failed = reading("what the views read");
    let ledger: bool = sqlx::query_scalar("SELECT pg_catalog.to_regclass('pgreeve.purge') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| failed(error.into()))?;
    if !ledger {
        return Ok(Vec::new());
    }
    let oids: Vec<Oid> = views.iter().map(|view| view.relation.oid).collect();
    let pairs: Vec<(Oid, String)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "{READS}
         SELECT DISTINCT r.view, p.relation
         FROM reads r JOIN pg_catalog.pg_class c ON c.oid = r.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pgreeve.purge p ON p.relation = n.nspname || '.' || c.relname ORDER BY 2"
    )))
    .bind(&oids)
    .fetch_all(connection)
    .await
    .map_err(|error| failed(error.into()))?;
    let warning = |(view, table): (Oid, String)| {
        let view = views
            .iter()
            .find(|other| other.relation.oid == view)?
            .relation
            .display();
        Some(format!(
            "{view} reads {table}, which is purged: what goes there goes from the view too; a rollup keeps its figures"
        ))
    };
    Ok(pairs.into_iter().filter_map(warning).collect())
}

/// All that some views read, at any distance.
const READS: &str = "WITH RECURSIVE reads (view, relation) AS (
        SELECT v.oid, d.refobjid
        FROM unnest($1::oid[]) AS v (oid) JOIN pg_catalog.pg_rewrite w ON w.ev_class = v.oid
        JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = w.oid
            AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> v.oid
        UNION
        SELECT r.view, d.refobjid
        FROM reads r JOIN pg_catalog.pg_rewrite w ON w.ev_class = r.relation
        JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = w.oid
            AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> r.relation)";
