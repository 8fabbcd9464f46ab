//! Creates the roles that a backup needs and a server lacks, out of the backup's own script of
//! roles. Roles that exist are left as they are, and nobody gets a password.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::io::AsyncReadExt;

use super::Restore;
use crate::backup::digest::sha256_hex;
use crate::backup::manifest::{Object, Role};
use crate::job::JobError;
use crate::postgres::quote;
use crate::store::{ObjectKey, Store};

/// The largest script that is read.
const LIMIT: u64 = 64 * 1024 * 1024;

/// Creates the missing roles with their attributes and memberships.
///
/// # Errors
/// When the backup has no script, it cannot be read, or a statement is refused.
pub(super) async fn create(
    request: &Restore<'_>,
    admin: &mut PgConnection,
    missing: &[String],
    operation: &str,
) -> Result<(), JobError> {
    let object = request
        .manifest
        .objects
        .iter()
        .find(|object| object.role == Role::Globals);
    let Some(object) = object else {
        let cause = format!("the backup has no roles, and the server lacks {}", missing.join(", "));
        return Err(JobError::refused(
            operation,
            cause,
            "create them, or restore with --no-owner",
        ));
    };
    let script = script(request, object)
        .await
        .map_err(|cause| JobError::permanent(operation, format!("read {}: {cause}", object.key)))?;
    for statement in statements(&script, missing) {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
            .execute(&mut *admin)
            .await
            .map_err(|error| JobError::database("create the backup's roles", &error.into()))?;
    }
    tracing::info!(roles = missing.join(", "), "created the roles that the server lacked");
    Ok(())
}

async fn script(request: &Restore<'_>, object: &Object) -> Result<String, String> {
    let key = ObjectKey::new(object.key.as_str()).map_err(|error| error.to_string())?;
    let store: &Arc<dyn Store> = &request.store;
    let mut stored = Vec::new();
    store
        .open(&key)
        .await
        .map_err(|error| error.to_string())?
        .take(LIMIT)
        .read_to_end(&mut stored)
        .await
        .map_err(|error| error.to_string())?;
    if sha256_hex(&stored) != object.sha256 {
        return Err("it is not what was stored".to_owned());
    }
    let mut script = String::new();
    let read = if request.manifest.encrypted_to.is_empty() {
        MultiGzDecoder::new(stored.as_slice())
            .take(LIMIT)
            .read_to_string(&mut script)
    } else {
        let identities = request
            .identities
            .as_ref()
            .ok_or("it is encrypted: give --identity FILE")?;
        let opened = identities.open(stored.as_slice()).map_err(|error| error.to_string())?;
        MultiGzDecoder::new(opened).take(LIMIT).read_to_string(&mut script)
    };
    read.map_err(|error| error.to_string())?;
    Ok(script)
}

/// The statements of a script of `pg_dumpall` that make roles: each stands on a line of its own.
fn statements<'a>(script: &'a str, missing: &[String]) -> Vec<&'a str> {
    // `pg_dumpall` quotes only what needs it.
    let named: BTreeSet<String> = missing
        .iter()
        .flat_map(|role| [role.clone(), quote::identifier(role)])
        .collect();
    let is_missing = |text: &str| named.contains(text);
    let wanted = |line: &&str| {
        let Some(line) = line.strip_suffix(';') else {
            return false;
        };
        if let Some(role) = line.strip_prefix("CREATE ROLE ") {
            return is_missing(role);
        }
        if let Some(role) = line.strip_prefix("ALTER ROLE ") {
            return role.split_once(" WITH ").is_some_and(|(role, _)| is_missing(role));
        }
        // Only what makes a new role a member: what exists gets no rights.
        line.strip_prefix("GRANT ")
            .and_then(|line| line.split_once(" TO "))
            .is_some_and(|(_, rest)| {
                let member = [" WITH ", " GRANTED BY "].iter().fold(rest, |member, word| {
                    member.split_once(word).map_or(member, |(member, _)| member)
                });
                is_missing(member)
            })
    };
    script
        .lines()
        .filter(wanted)
        .map(|line| line.split_once(" GRANTED BY ").map_or(line, |(grant, _)| grant))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_roles_are_made_and_others_get_nothing() {
        let script = "CREATE ROLE app;\nALTER ROLE app WITH NOSUPERUSER LOGIN;\nCREATE ROLE postgres;\n\
                      ALTER ROLE postgres WITH SUPERUSER;\nCREATE ROLE \"Odd;Role\";\nALTER ROLE \"Odd;Role\" WITH NOLOGIN;\n\
                      ALTER ROLE app SET work_mem TO '1GB';\nCREATE TABLESPACE app OWNER app LOCATION '/x';\n\
                      GRANT readers TO app GRANTED BY postgres;\nGRANT app TO postgres GRANTED BY postgres;\n\
                      GRANT readers TO app2 WITH INHERIT TRUE GRANTED BY postgres;\n";
        let missing = ["app".to_owned(), "Odd;Role".to_owned()];
        assert_eq!(
            statements(script, &missing),
            [
                "CREATE ROLE app;",
                "ALTER ROLE app WITH NOSUPERUSER LOGIN;",
                "CREATE ROLE \"Odd;Role\";",
                "ALTER ROLE \"Odd;Role\" WITH NOLOGIN;",
                "GRANT readers TO app",
            ]
        );
    }
}
