//! A right that a role needs, as the statement that gives it.

use sqlx::PgConnection;

use super::quote::identifier;
use super::sqlstate::DatabaseError;

/// A statement and whether it is needed still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The statement, without a semicolon.
    pub statement: String,
    /// Whether the role has what it gives.
    pub held: bool,
}

impl Grant {
    /// A right with its state.
    pub fn new(statement: impl Into<String>, held: bool) -> Self {
        Self {
            statement: statement.into(),
            held,
        }
    }
}

/// What the session's role needs for the ledger: a schema of its own in the database.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn for_ledger(connection: &mut PgConnection) -> Result<Vec<Grant>, DatabaseError> {
    type Row = (String, String, bool, Option<String>, bool);
    let (role, database, creates, owner, owns): Row = sqlx::query_as(
        "SELECT current_user::text, pg_catalog.current_database()::text,
                pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
                pg_catalog.pg_get_userbyid(n.nspowner)::text,
                coalesce(pg_catalog.pg_has_role(n.nspowner, 'USAGE'), true)
         FROM (SELECT) AS one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'pgreeve'",
    )
    .fetch_one(connection)
    .await?;
    let (role, database) = (identifier(&role), identifier(&database));
    let mut grants = vec![
        // The session is open, so it may connect.
        Grant::new(format!("GRANT CONNECT ON DATABASE {database} TO {role}"), true),
        Grant::new(format!("GRANT CREATE ON DATABASE {database} TO {role}"), creates),
    ];
    if let (Some(owner), false) = (owner, owns) {
        let owner = identifier(&owner);
        // Another role made the ledger: its member may go on with it.
        grants.push(Grant::new(format!("GRANT {owner} TO {role}"), false));
    }
    Ok(grants)
}
