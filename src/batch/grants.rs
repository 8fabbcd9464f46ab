//! The statements that give a role what a rule needs.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::partitions::PartitionMode;
use super::preflight::{self, reading};
use super::rule::{Change, Rule};
use crate::job::JobError;
use crate::postgres::catalog::access::{self, Need};
use crate::postgres::catalog::leaves;
use crate::postgres::grant::Grant;
use crate::postgres::quote::{identifier, qualified};

/// What the session's role needs on the rule's table and on each table that holds its rows: of whole
/// partitions that are dropped or detached, to own them. Where nothing is said about partitions, rows
/// are deleted without that, so it is not asked for.
///
/// # Errors
/// Refused when there is no such table.
pub async fn grants(
    connection: &mut PgConnection,
    rule: &Rule,
    partitions: Option<PartitionMode>,
) -> Result<Vec<Grant>, JobError> {
    let relation = preflight::table(connection, rule).await?;
    let read = reading(&relation.display());
    let mut tables = vec![relation.clone()];
    let leaves = leaves::of(connection, relation.oid, &rule.age_column)
        .await
        .map_err(&read)?;
    tables.extend(
        leaves
            .into_iter()
            .map(|leaf| leaf.relation)
            .filter(|leaf| leaf.oid != relation.oid),
    );
    let need = need(rule);
    let oids: Vec<Oid> = tables.iter().map(|table| table.oid).collect();
    let access = access::of(connection, &oids, &need).await.map_err(&read)?;
    let secured = access::with_row_security(connection, &oids).await.map_err(&read)?;
    let grantee = identifier(&access::current_role(connection).await.map_err(&read)?);

    let words = match &need {
        Need::Delete => ["SELECT", "DELETE"].map(str::to_owned),
        Need::Update(columns) => {
            let columns: Vec<String> = columns.iter().map(|column| identifier(column)).collect();
            ["SELECT".to_owned(), format!("UPDATE ({})", columns.join(", "))]
        }
    };
    let mut grants = Vec::new();
    for table in &tables {
        let missing = access
            .iter()
            .find(|access| access.table == table.oid)
            .map(|access| &access.missing);
        let held =
            |word: &str| missing.is_some_and(|missing| !missing.iter().any(|lacks| word.starts_with(lacks.as_str())));
        let schema = identifier(&table.schema);
        grants.push(Grant::new(
            format!("GRANT USAGE ON SCHEMA {schema} TO {grantee}"),
            held("USAGE"),
        ));
        for word in &words {
            let statement = format!("GRANT {word} ON {} TO {grantee}", qualified(&table.schema, &table.name));
            grants.push(Grant::new(statement, held(word)));
        }
    }
    if matches!(partitions, Some(PartitionMode::Drop | PartitionMode::Detach)) {
        let owners = access::owners(connection, relation.oid).await.map_err(&read)?;
        grants.extend(
            owners
                .into_iter()
                .map(|(owner, owned)| Grant::new(format!("GRANT {} TO {grantee}", identifier(&owner)), owned)),
        );
    }
    if secured {
        let hidden = access.iter().any(|access| access.rows_hidden);
        grants.push(Grant::new(format!("ALTER ROLE {grantee} BYPASSRLS"), !hidden));
    }
    Ok(grants)
}

fn need(rule: &Rule) -> Need {
    match &rule.change {
        Change::Delete => Need::Delete,
        Change::Update(change) => Need::Update(change.set.keys().chain(&change.stamp).cloned().collect()),
    }
}
