//! All that a plan is decided by, read in one transaction.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::indexes::Index;
use super::leftovers::{Invalid, Leftover};
use super::tables::Table;
use super::{Action, Upkeep, indexes, leftovers, rights, tables};
use crate::job::JobError;
use crate::postgres::sqlstate::DatabaseError;

/// What was found.
pub(super) struct Survey {
    /// The tables that are maintained.
    pub(super) tables: Vec<Table>,
    /// Their indexes of some size.
    pub(super) indexes: Vec<Index>,
    /// What interrupted rebuilds left.
    pub(super) leftovers: Vec<Leftover>,
    /// Which tables are not, and how they would be.
    pub(super) lacking: Option<String>,
    pub(super) warnings: Vec<String>,
}

pub(super) async fn survey(connection: &mut PgConnection, upkeep: &Upkeep) -> Result<Survey, JobError> {
    tables::check_counting(connection).await?;
    let found = tables::survey(connection, upkeep).await?;
    let role = rights::Role::read(connection).await?;
    let (tables, lacking) = rights::sort(&role, found, upkeep)?;
    let mut warnings: Vec<String> = lacking.iter().cloned().collect();
    let (indexes, leftovers) = if upkeep.actions.contains(&Action::Reindex) {
        let indexes = indexes::survey(connection, &tables, upkeep.min_index_size)
            .await
            .map_err(reading)?;
        let oids: Vec<Oid> = tables.iter().map(|table| table.oid).collect();
        let Invalid { leftovers, strangers } = leftovers::find(connection, Some(&oids)).await.map_err(reading)?;
        warnings.extend(indexes::unjudged(&indexes));
        warnings.extend(strangers.into_iter().map(|index| {
            format!(
                "{index} is invalid: every write maintains it and no query uses it; unless a CREATE INDEX CONCURRENTLY is at work on it, drop it and create it again"
            )
        }));
        (indexes, leftovers)
    } else {
        (Vec::new(), Vec::new())
    };
    Ok(Survey {
        tables,
        indexes,
        leftovers,
        lacking,
        warnings,
    })
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` passes")]
pub(super) fn reading(error: DatabaseError) -> JobError {
    JobError::database("read the catalog about tables and indexes", &error)
}
