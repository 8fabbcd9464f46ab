//! What a rollup's role must be allowed to do and see.

use sqlx::PgConnection;

use super::check::{self, Checked, Subject, reading};
use super::spec::{Mode, Rollup};
use crate::job::JobError;
use crate::postgres::catalog::Relation;
use crate::postgres::grant::Grant;
use crate::postgres::quote::{identifier, literal};

/// All that the role needs, as far as the tables are there.
pub(super) async fn of(connection: &mut PgConnection, rollup: &Rollup) -> Result<Vec<Grant>, JobError> {
    let checked = check::look_up(connection, rollup).await?;
    needed(connection, rollup, &checked).await
}

/// Refuses a role that lacks something, with the statements that mend it.
pub(super) async fn check(connection: &mut PgConnection, rollup: &Rollup, checked: &Checked) -> Result<(), JobError> {
    let lacking: Vec<String> = needed(connection, rollup, checked)
        .await?
        .into_iter()
        .filter(|grant| !grant.held)
        .map(|grant| grant.statement)
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let blind = lacking.iter().any(|grant| grant.contains("pg_read_all_stats"));
    let cause = if blind {
        "the role cannot see when the transactions of others began, so rows that are committed late would be lost"
    } else {
        "the role lacks rights on its tables"
    };
    Err(JobError::refused(
        format!("check the rights of the rollup into {}", rollup.target),
        cause,
        lacking.join("; "),
    )
    .about(if blind { "target" } else { "source" }))
}

/// All that the role needs, each with whether it has it.
pub(super) async fn needed(
    connection: &mut PgConnection,
    rollup: &Rollup,
    checked: &Checked,
) -> Result<Vec<Grant>, JobError> {
    let failed = reading("the role's rights");
    let (role, sees): (String, bool) =
        sqlx::query_as("SELECT current_user::text, pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')")
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| failed(error.into()))?;
    let role = identifier(&role);
    let mut grants = Vec::new();
    if rollup.source().is_none_or(|source| source.mode == Mode::Recompute) {
        grants.push(Grant::new(format!("GRANT pg_read_all_stats TO {role}"), sees));
    }
    let mut hidden = Vec::new();
    if let Subject::Source { relation, .. } = &checked.subject {
        on(connection, relation, &["SELECT"], &role, &mut grants, &mut hidden).await?;
    }
    if let Some(target) = &checked.target {
        let words = ["SELECT", "INSERT", "DELETE"];
        on(connection, target, &words, &role, &mut grants, &mut hidden).await?;
    }
    if let Some(hidden) = hidden.into_iter().reduce(|one, other| one || other) {
        grants.push(Grant::new(format!("ALTER ROLE {role} BYPASSRLS"), !hidden));
    }
    Ok(grants)
}

/// The rights on one table. `hidden` gets an entry when it has row security: whether that hides rows.
async fn on(
    connection: &mut PgConnection,
    table: &Relation,
    words: &[&str],
    role: &str,
    grants: &mut Vec<Grant>,
    hidden: &mut Vec<bool>,
) -> Result<(), JobError> {
    let held: Vec<String> = words
        .iter()
        .map(|word| format!("has_table_privilege({}::oid, {})", table.oid.0, literal(word)))
        .collect();
    let sql = format!(
        "SELECT has_schema_privilege(c.relnamespace, 'USAGE'), c.relrowsecurity, row_security_active(c.oid), ARRAY[{}]
         FROM pg_catalog.pg_class c WHERE c.oid = {}::oid",
        held.join(", "),
        table.oid.0
    );
    let row: (bool, bool, bool, Vec<bool>) = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .persistent(false)
        .fetch_one(connection)
        .await
        .map_err(|error| reading(&table.display())(error.into()))?;
    let (usage, secured, filtered, held) = row;
    grants.push(Grant::new(
        format!("GRANT USAGE ON SCHEMA {} TO {role}", identifier(&table.schema)),
        usage,
    ));
    for (word, held) in words.iter().zip(held) {
        grants.push(Grant::new(
            format!("GRANT {word} ON {} TO {role}", table.quoted()),
            held,
        ));
    }
    if secured {
        hidden.push(filtered);
    }
    Ok(())
}
