//! The exact mode: triggers on the source note which buckets each statement touches.
//!
//! They fire once a statement and write one row for each hour that it touched, so that writers never
//! wait for each other. The function runs with the rights of its owner, the role of pgreeve, so
//! the application's roles need none on the ledger.

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection};

use super::check::{Checked, Subject, reading, refuse};
use super::spec::Source;
use crate::job::JobError;
use crate::postgres::catalog::Relation;
use crate::postgres::quote::{literal, qualified};
use crate::values::{JobName, fingerprint};

/// Each statement's event with the tables of changed rows that it offers.
const EVENTS: [(&str, &str); 3] = [
    ("INSERT", "NEW TABLE AS pgreeve_new"),
    ("DELETE", "OLD TABLE AS pgreeve_old"),
    ("UPDATE", "OLD TABLE AS pgreeve_old NEW TABLE AS pgreeve_new"),
];

/// What a batch of a retention says in its transaction: the source's rows go, what was computed of
/// them stays.
pub const RETENTION_SETTING: &str = "pgreeve.retention";

fn function(job: &JobName) -> String {
    let digest = fingerprint(job.as_str());
    let digits = digest.strip_prefix("sha256:").unwrap_or(&digest);
    format!("rollup_{}", digits.get(..16).unwrap_or(digits))
}

/// The statements that put the triggers on some tables; the function first.
pub(super) fn install(job: &JobName, source: &Source, checked: &Checked, tables: &[Relation]) -> Vec<String> {
    let Subject::Source { fresh, .. } = &checked.subject else {
        return Vec::new();
    };
    let seconds = checked.width.cell_seconds();
    let cells = |rows: &str| {
        let at = fresh.instant_of(rows, &source.time_column);
        format!(
            "SELECT date_bin('{seconds} seconds', {at}, '2000-01-01 00:00:00+00'::timestamptz) FROM {rows} WHERE isfinite({at})"
        )
    };
    let note = |selects: &str| {
        format!(
            "INSERT INTO pgreeve.rollup_dirty (job, cell) SELECT {}, c.cell FROM ({selects}) AS c (cell)",
            literal(job.as_str())
        )
    };
    let (old, new) = (cells("pgreeve_old"), cells("pgreeve_new"));
    let distinct = |select: &str| note(&select.replacen("SELECT", "SELECT DISTINCT", 1));
    let name = qualified("pgreeve", &function(job));
    let mut statements = vec![format!(
        "CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
         SET search_path = pg_catalog, pg_temp AS $pgreeve$
         BEGIN
             IF TG_OP = 'DELETE' AND current_setting('{RETENTION_SETTING}', true) = 'on' THEN RETURN NULL; END IF;
             IF TG_OP = 'INSERT' THEN {};
             ELSIF TG_OP = 'DELETE' THEN {};
             ELSE {};
             END IF;
             RETURN NULL;
         END $pgreeve$",
        distinct(&new),
        distinct(&old),
        note(&format!("{old} UNION {new}")),
    )];
    for table in tables {
        for (event, rows) in EVENTS {
            statements.push(format!(
                "CREATE TRIGGER {}_{} AFTER {event} ON {} REFERENCING {rows} FOR EACH STATEMENT EXECUTE FUNCTION {name}()",
                function(job),
                event.to_ascii_lowercase(),
                table.quoted()
            ));
        }
    }
    statements
}

/// The statement that removes function and triggers. It needs no right on the tables.
pub(super) fn remove(job: &JobName) -> String {
    format!(
        "DROP FUNCTION IF EXISTS {}() CASCADE",
        qualified("pgreeve", &function(job))
    )
}

/// The tables of a tree that lack a trigger.
pub(super) async fn missing(connection: &mut PgConnection, job: &JobName, tree: &[Oid]) -> Result<Vec<Oid>, JobError> {
    sqlx::query_scalar(
        "SELECT t.oid FROM unnest($1::oid[]) AS t (oid)
         WHERE 3 > (SELECT count(*) FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
                    WHERE g.tgrelid = t.oid AND g.tgenabled IN ('O', 'A') AND p.proname = $2
                      AND p.pronamespace = to_regnamespace('pgreeve'))",
    )
    .bind(tree)
    .bind(function(job))
    .fetch_all(connection)
    .await
    .map_err(|error| reading("the rollup's triggers")(error.into()))
}

/// Refuses a source whose triggers are gone; answers with warnings about partitions without.
pub(super) async fn check(
    connection: &mut PgConnection,
    job: &JobName,
    checked: &Checked,
) -> Result<Vec<String>, JobError> {
    let Subject::Source { relation, tree, .. } = &checked.subject else {
        return Ok(Vec::new());
    };
    let missing = missing(connection, job, tree).await?;
    if missing.contains(&relation.oid) {
        return Err(refuse(
            "mode",
            &relation.display(),
            "the triggers that note its changes are gone or disabled",
            format!(
                "`pgreeve rollup init {job}` puts them back, `pgreeve rollup reconcile {job}` finds what was missed"
            ),
        ));
    }
    Ok(if missing.is_empty() {
        Vec::new()
    } else {
        vec![format!(
            "{} partitions have no trigger: rows that are written into them directly are not noticed; \
             `pgreeve rollup init {job}` puts it on them",
            missing.len()
        )]
    })
}

/// Some tables by their OIDs.
pub(super) async fn tables(connection: &mut PgConnection, oids: &[Oid]) -> Result<Vec<Relation>, JobError> {
    let mut tables = Vec::new();
    for oid in oids {
        let name: Option<(String, String)> = sqlx::query_as(AssertSqlSafe(
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
        ))
        .bind(oid)
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| reading("the source's partitions")(error.into()))?;
        let Some((schema, name)) = name else { continue };
        let table = crate::values::TableName {
            schema: Some(schema),
            name,
        };
        tables.push(super::check::find(connection, &table, "source").await?);
    }
    Ok(tables)
}
