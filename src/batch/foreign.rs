//! Rows that are kept elsewhere: by another server, which is worked on through `postgres_fdw`, or by
//! an extension with ways of its own, which is refused by name.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::preflight::{reading, refuse};
use super::rule::Rule;
use crate::job::JobError;
use crate::postgres::catalog::leaves::Leaf;
use crate::postgres::catalog::managed::{self, Manager};
use crate::postgres::catalog::{Relation, RelationKind};
use crate::postgres::quote::literal;

/// Parts a table's leaves into those that can be worked on and foreign ones that cannot.
///
/// # Errors
/// Refused when the table itself is such a foreign one.
pub(super) async fn reachable(
    connection: &mut PgConnection,
    relation: &Relation,
    leaves: Vec<Leaf>,
    deletes: bool,
) -> Result<(Vec<Leaf>, Vec<Leaf>), JobError> {
    let table = relation.display();
    let is_foreign = |leaf: &Leaf| leaf.relation.kind == RelationKind::Foreign;
    let foreign: Vec<Oid> = leaves
        .iter()
        .filter(|leaf| is_foreign(leaf))
        .map(|leaf| leaf.relation.oid)
        .collect();
    if foreign.is_empty() {
        return Ok((leaves, Vec::new()));
    }
    let writable = managed::writable_foreign(connection, &foreign)
        .await
        .map_err(reading(&table))?;
    let takes = |oid: Oid| {
        let found = writable.iter().find(|(table, ..)| *table == oid);
        found.is_some_and(|(_, delete, update)| if deletes { *delete } else { *update })
    };
    if relation.kind == RelationKind::Foreign && !takes(relation.oid) {
        return Err(refuse(
            &table,
            "it is a foreign table, and not one of postgres_fdw that can be changed from here",
            "run the job against the server that stores the table",
        ));
    }
    Ok(leaves
        .into_iter()
        .partition(|leaf| !is_foreign(leaf) || takes(leaf.relation.oid)))
}

/// Refuses tables of extensions that keep their rows in places of their own.
pub(super) async fn unmanaged(connection: &mut PgConnection, relation: &Relation, rule: &Rule) -> Result<(), JobError> {
    let table = relation.display();
    let manager = managed::manager(connection, relation.oid)
        .await
        .map_err(reading(&table))?;
    let (cause, remedy) = match manager {
        None => return Ok(()),
        Some(Manager::Timescale) => (
            "it is a hypertable of TimescaleDB, which removes whole chunks by its own means",
            format!(
                "SELECT drop_chunks({}, older_than => interval {}), or add_retention_policy with the same interval",
                literal(&relation.quoted()),
                literal(&rule.period.to_interval())
            ),
        ),
        Some(Manager::Citus) => (
            "it is distributed by Citus, and its rows are on other nodes",
            "partition it by time and CALL drop_old_time_partitions, or run a job on each node's shards".to_owned(),
        ),
    };
    Err(refuse(&table, cause, remedy))
}
