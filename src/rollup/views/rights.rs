//! What a role must be to refresh a view.

use sqlx::PgConnection;

use super::check::{reading, refuse};
use crate::job::JobError;
use crate::postgres::catalog::Relation;
use crate::postgres::grant::Grant;
use crate::postgres::quote::identifier;

/// The first server where a privilege stands for ownership.
const MAINTAIN_SINCE: i32 = 170_000;

/// What the role needs: to be, or to be a member of, each view's owner; since PostgreSQL 17 the
/// privilege MAINTAIN will do.
pub(super) async fn needed(connection: &mut PgConnection, relations: &[Relation]) -> Result<Vec<Grant>, JobError> {
    let mut grants: Vec<Grant> = Vec::new();
    for relation in relations {
        let name = relation.display();
        let (role, version, usage, owns, superuser): (String, i32, bool, bool, bool) = sqlx::query_as(
            "SELECT current_user::text, current_setting('server_version_num')::int4,
                    has_schema_privilege(c.relnamespace, 'USAGE'), pg_has_role(c.relowner, 'USAGE'), o.rolsuper
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_roles o ON o.oid = c.relowner WHERE c.oid = $1",
        )
        .bind(relation.oid)
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| reading(&name)(error.into()))?;
        let role = identifier(&role);
        let usage_on = format!("GRANT USAGE ON SCHEMA {} TO {role}", identifier(&relation.schema));
        let own = if version >= MAINTAIN_SINCE {
            let maintains = owns || maintains(connection, relation).await?;
            Grant::new(format!("GRANT MAINTAIN ON {} TO {role}", relation.quoted()), maintains)
        } else if superuser {
            // Nobody should be made a member of a superuser for this.
            let statement = format!("ALTER MATERIALIZED VIEW {} OWNER TO {role}", relation.quoted());
            Grant::new(statement, owns)
        } else {
            Grant::new(format!("GRANT {} TO {role}", identifier(&relation.owner)), owns)
        };
        for grant in [Grant::new(usage_on, usage), own] {
            if !grants.contains(&grant) {
                grants.push(grant);
            }
        }
    }
    Ok(grants)
}

async fn maintains(connection: &mut PgConnection, relation: &Relation) -> Result<bool, JobError> {
    sqlx::query_scalar("SELECT has_table_privilege($1::oid, 'MAINTAIN')")
        .bind(relation.oid)
        .fetch_one(connection)
        .await
        .map_err(|error| reading(&relation.display())(error.into()))
}

/// Refuses a role that lacks something, with the statements that mend it.
pub(super) fn allowed(needed: &[Grant]) -> Result<(), JobError> {
    let lacking: Vec<&str> = needed
        .iter()
        .filter(|grant| !grant.held)
        .map(|grant| grant.statement.as_str())
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let cause = "a view is refreshed by its owner only, and the role is not, nor a member of it";
    Err(refuse("the role's rights on the views", cause, lacking.join("; ")))
}
