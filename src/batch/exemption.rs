//! Checks of what a policy keeps besides its condition: the newest row of a group, and rows that
//! others reference.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::condition::Group;
use super::preflight::{Target, reading, refuse};
use super::rule::Rule;
use crate::job::JobError;
use crate::postgres::catalog::RelationKind;
use crate::postgres::catalog::keys;
use crate::postgres::quote::identifier;

/// The groups whose newest row stays; none if the policy names no columns. Warns where no index finds
/// them.
pub(super) async fn group(
    connection: &mut PgConnection,
    rule: &Rule,
    target: &mut Target,
) -> Result<Option<Group>, JobError> {
    if rule.keep_latest_per.is_empty() {
        return Ok(None);
    }
    let table = target.relation.display();
    let mut columns = Vec::new();
    for name in &rule.keep_latest_per {
        let column = target.column(name).map_err(|error| error.about("keep_latest_per"))?;
        columns.push((column.name.clone(), !column.not_null));
    }
    let foreign = target
        .leaves
        .iter()
        .find(|leaf| leaf.relation.kind == RelationKind::Foreign);
    if let Some(leaf) = foreign {
        return Err(refuse(
            &table,
            format!(
                "the newest of a group cannot be told where rows are on another server ({})",
                leaf.relation.display()
            ),
            "run the job on the server that stores the rows, or leave `keep_latest_per` out",
        )
        .about("keep_latest_per"));
    }
    let key = keys::primary_key(connection, target.relation.oid)
        .await
        .map_err(reading(&table))?;
    let leaves: Vec<Oid> = target.leaves.iter().map(|leaf| leaf.relation.oid).collect();
    let bare = keys::without_index_on(connection, &leaves, &rule.keep_latest_per)
        .await
        .map_err(reading(&table))?;
    if !bare.is_empty() {
        target.warnings.push(format!(
            "no index of {} begins with {}: finding the newest row of each group reads the table again in each batch",
            bare.join(", "),
            rule.keep_latest_per.join(", ")
        ));
    }
    Ok(Some(Group { columns, key }))
}

/// Refuses to keep referenced rows where that cannot be seen or held still.
pub(super) fn references(rule: &Rule, target: &Target) -> Result<(), JobError> {
    if !rule.skip_if_referenced || target.keys.is_empty() {
        return Ok(());
    }
    let (table, user) = (target.relation.display(), &target.role);
    let hidden: Vec<&str> = target
        .keys
        .iter()
        .filter(|key| !key.readable)
        .map(|key| key.quoted.as_str())
        .collect();
    if !hidden.is_empty() {
        return Err(refuse(
            &table,
            format!(
                "the role {user} may not read what references the table: {}",
                hidden.join(", ")
            ),
            format!("GRANT SELECT ON {} TO {}", hidden.join(", "), identifier(user)),
        )
        .about("skip_if_referenced"));
    }
    let unlockable = target
        .leaves
        .iter()
        .find(|leaf| !target.lockable.contains(&leaf.relation.oid));
    if let Some(leaf) = unlockable {
        return Err(refuse(
            &table,
            format!(
                "`skip_if_referenced` locks rows before it looks for references, and the role {user} may not lock rows of {}",
                leaf.relation.display()
            ),
            format!(
                "GRANT UPDATE ({}) ON {} TO {}",
                identifier(&rule.age_column),
                leaf.relation.quoted(),
                identifier(user)
            ),
        )
        .about("skip_if_referenced"));
    }
    Ok(())
}
