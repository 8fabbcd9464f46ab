//! What a role must be to maintain a table. A vacuum of a table that it may not maintain is a warning
//! that nobody reads, and a success.

use sqlx::PgConnection;

use super::survey::reading;
use super::tables::{MAINTAIN_SINCE, Table};
use super::{Action, Upkeep};
use crate::job::JobError;
use crate::postgres::grant::Grant;
use crate::postgres::quote::identifier;

/// How many tables a warning names.
const NAMED: usize = 5;

/// The session's role.
pub(super) struct Role {
    name: String,
    /// Whether the server has the privilege MAINTAIN.
    maintains: bool,
}

impl Role {
    pub(super) async fn read(connection: &mut PgConnection) -> Result<Self, JobError> {
        let (name, version): (String, i32) =
            sqlx::query_as("SELECT current_user::text, current_setting('server_version_num')::int4")
                .fetch_one(connection)
                .await
                .map_err(|error| reading(error.into()))?;
        Ok(Self {
            name: identifier(&name),
            maintains: version >= MAINTAIN_SINCE,
        })
    }

    /// What lets it maintain a table.
    fn grant(&self, table: &Table) -> String {
        if self.maintains {
            format!("GRANT MAINTAIN ON {} TO {}", table.quoted(), self.name)
        } else if table.owned_by_superuser {
            // Nobody should be made a member of a superuser for this.
            format!("ALTER TABLE {} OWNER TO {}", table.quoted(), self.name)
        } else {
            format!("GRANT {} TO {}", identifier(&table.owner), self.name)
        }
    }
}

/// The rights that the tables need.
pub(super) fn needed(role: &Role, tables: &[Table]) -> Vec<Grant> {
    let mut grants: Vec<Grant> = Vec::new();
    for table in tables {
        let grant = Grant::new(role.grant(table), table.may_reindex);
        if !grants.contains(&grant) {
            grants.push(grant);
        }
    }
    grants
}

/// Keeps the tables that the role may maintain. Of tables that were named all must be; of all tables of a
/// database the others are named, and a run that passes over them is not green.
pub(super) fn sort(role: &Role, tables: Vec<Table>, upkeep: &Upkeep) -> Result<(Vec<Table>, Option<String>), JobError> {
    let rebuilds = upkeep.actions.contains(&Action::Reindex);
    let may = |table: &Table| if rebuilds { table.may_reindex } else { table.may_vacuum };
    let (may, mut lacking): (Vec<Table>, Vec<Table>) = tables.into_iter().partition(may);
    if upkeep.tables.is_empty() {
        // Whoever owns the ledger may look after it.
        lacking.retain(|table| table.schema != "pgreeve");
    }
    if lacking.is_empty() {
        return Ok((may, None));
    }
    let mut remedies: Vec<String> = Vec::new();
    for table in &lacking {
        let grant = role.grant(table);
        if !remedies.contains(&grant) && remedies.len() < NAMED {
            remedies.push(grant);
        }
    }
    let remedy = remedies.join("; ");
    let mut names: Vec<String> = lacking.iter().take(NAMED).map(Table::display).collect();
    if lacking.len() > NAMED {
        names.push(format!("{} more", lacking.len() - NAMED));
    }
    let cause = format!(
        "a table is maintained by its owner only, and the role may not maintain {}",
        names.join(", ")
    );
    if upkeep.tables.is_empty() {
        let remedy = format!("{remedy}; or name the tables that are meant in `tables`");
        return Ok((may, Some(format!("{cause}: {remedy}"))));
    }
    Err(JobError::refused("the role's rights on the tables", cause, remedy).about("tables"))
}
