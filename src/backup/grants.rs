//! The statements that give a role what a dump needs.

use sqlx::PgConnection;

use super::preflight::{self, check_large_objects, check_row_security, check_schemas, check_tables};
use crate::job::{Disposition, JobError};
use crate::postgres::grant::Grant;
use crate::postgres::quote::identifier;

/// What the session's role needs to dump all of its database, by the same checks as before a dump.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn grants(connection: &mut PgConnection) -> Result<Vec<Grant>, JobError> {
    let about = preflight::facts(connection)
        .await
        .map_err(|error| JobError::database("read the rights of the backup's role", &error))?;
    let role = identifier(&about.role);
    let all = about.is_superuser;
    let reads = all
        || (holds(check_schemas(connection, &about.role, &[]).await)?
            && holds(check_tables(connection, &about.role, &[]).await)?);
    let sees = all || holds(check_row_security(connection, &about.role, about.bypasses_rls, &[]).await)?;
    let mut grants = vec![
        Grant::new(format!("GRANT pg_read_all_data TO {role}"), reads),
        Grant::new(format!("ALTER ROLE {role} BYPASSRLS"), sees),
    ];
    if !all && !holds(check_large_objects(connection, &about.role).await)? {
        let each = format!(
            "DO $$ DECLARE id oid; BEGIN FOR id IN SELECT oid FROM pg_catalog.pg_largeobject_metadata LOOP \
             EXECUTE pg_catalog.format('GRANT SELECT ON LARGE OBJECT %s TO {}', id); END LOOP; END $$",
            role.replace('%', "%%").replace('\'', "''")
        );
        grants.push(Grant::new(each, false));
    }
    Ok(grants)
}

fn holds(checked: Result<(), JobError>) -> Result<bool, JobError> {
    match checked {
        Ok(()) => Ok(true),
        Err(error) if error.disposition == Disposition::Refused => Ok(false),
        Err(error) => Err(error),
    }
}
