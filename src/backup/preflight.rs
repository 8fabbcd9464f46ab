//! Whether a dump can be whole, before anything is done: versions, rights, row security.

use std::path::Path;

use sqlx::{PgConnection, Row};

use super::dump::Content;
use super::program::{self, Programs, Version};
use super::standby::no_standby;
use crate::job::JobError;
use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;

/// How many names a refusal lists.
const LISTED: usize = 5;

/// What preflight learned on the way.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The version of `pg_dump`.
    pub client: Version,
    /// The server's version.
    pub server: Version,
    /// How many tables will be dumped.
    pub tables: u64,
    /// The database's size on disk.
    pub database_bytes: u64,
    /// What does not stand in the way, but should be known.
    pub warnings: Vec<String>,
}

/// The application's relations: not those of the system, nor those an extension brings along.
pub(super) const RELATIONS: &str = "pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
       AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                       AND d.objid = c.oid AND d.deptype = 'e')";

/// Of the relations, those that are not left out.
const KEPT: &str = "c.oid <> ALL (SELECT pg_catalog.unnest($1::int8[])::oid)";

/// Checks all that would make a dump fail late or, worse, be incomplete.
///
/// # Errors
/// A refusal names what is missing and the statement that grants it.
pub async fn check(connection: &mut PgConnection, programs: &Programs, content: &Content) -> Result<Ready, JobError> {
    let failed = |error: DatabaseError| JobError::database("check the rights of the backup's role", &error);
    let client = program::version(&programs.pg_dump)
        .await
        .map_err(|error| JobError::refused("find pg_dump", error.to_string(), "install postgresql-client"))?;
    let about = facts(connection).await.map_err(failed)?;
    if let Some(refusal) = older_client(&client, &about.server, &programs.pg_dump) {
        return Err(refusal);
    }
    check_place(&about, content)?;
    let left_out = content.selection.oids();
    if !about.is_superuser {
        check_schemas(connection, &about.role, left_out).await?;
        check_tables(connection, &about.role, left_out).await?;
        check_row_security(connection, &about.role, about.bypasses_rls, left_out).await?;
        if !content.schema_only {
            check_large_objects(connection, &about.role).await?;
        }
    }
    let unlogged = (content.on_standby && about.unlogged > 0).then(|| {
        format!(
            "{} unlogged tables are dumped without rows: a standby does not have them",
            about.unlogged
        )
    });
    let warnings = (about.tables >= about.lock_slots)
        .then(|| {
            format!(
                "{} tables need as many locks at once and the server has room for about {}: raise max_locks_per_transaction",
                about.tables, about.lock_slots
            )
        })
        .into_iter()
        .chain(unlogged)
        .collect();
    Ok(Ready {
        client,
        server: about.server,
        tables: about.tables,
        database_bytes: about.database_bytes,
        warnings,
    })
}

/// What the server says of itself and the role.
pub(super) struct Facts {
    server: Version,
    pub(super) role: String,
    pub(super) is_superuser: bool,
    pub(super) bypasses_rls: bool,
    is_standby: bool,
    tables: u64,
    unlogged: u64,
    lock_slots: u64,
    database_bytes: u64,
}

pub(super) async fn facts(connection: &mut PgConnection) -> Result<Facts, DatabaseError> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!(
        "SELECT pg_catalog.current_setting('server_version_num')::int / 10000 AS major,
                pg_catalog.current_setting('server_version') AS version,
                r.rolname::text AS role, r.rolsuper, r.rolbypassrls,
                pg_catalog.pg_is_in_recovery() AS standby,
                (SELECT count(*) FROM {RELATIONS} AND c.relkind IN ('r', 'p')) AS tables,
                (SELECT count(*) FROM {RELATIONS} AND c.relkind = 'r' AND c.relpersistence = 'u') AS unlogged,
                pg_catalog.current_setting('max_locks_per_transaction')::bigint
                    * (pg_catalog.current_setting('max_connections')::bigint
                       + pg_catalog.current_setting('max_prepared_transactions')::bigint) AS slots,
                pg_catalog.pg_database_size(pg_catalog.current_database()) AS bytes
         FROM pg_catalog.pg_roles r WHERE r.rolname = current_user"
    )))
    .fetch_one(connection)
    .await?;
    Ok(Facts {
        server: Version {
            major: row.try_get::<i32, _>("major")?.unsigned_abs(),
            text: row.try_get("version")?,
        },
        role: row.try_get("role")?,
        is_superuser: row.try_get("rolsuper")?,
        bypasses_rls: row.try_get("rolbypassrls")?,
        is_standby: row.try_get("standby")?,
        tables: row.try_get::<i64, _>("tables")?.unsigned_abs(),
        unlogged: row.try_get::<i64, _>("unlogged")?.unsigned_abs(),
        lock_slots: row.try_get::<i64, _>("slots")?.unsigned_abs(),
        database_bytes: row.try_get::<i64, _>("bytes")?.unsigned_abs(),
    })
}

/// A backup is taken from the primary, unless a standby is named; then from a standby.
fn check_place(about: &Facts, content: &Content) -> Result<(), JobError> {
    match (about.is_standby, content.on_standby) {
        (true, false) => Err(JobError::refused(
            "export a snapshot",
            "the server is a standby",
            "run the backup against the primary, or name this server in `standby`",
        )),
        (false, true) => Err(no_standby()),
        _ => Ok(()),
    }
}

fn older_client(client: &Version, server: &Version, pg_dump: &Path) -> Option<JobError> {
    if client.major >= server.major {
        return None;
    }
    Some(JobError::refused(
        "check the version of pg_dump",
        format!(
            "{} is version {} and the server is version {}; an older pg_dump refuses a newer server",
            pg_dump.display(),
            client.text,
            server.text
        ),
        format!("install postgresql-client-{} or later", server.major),
    ))
}

/// Answers a question about the relations that are not left out, which are `$1`.
async fn names(connection: &mut PgConnection, sql: String, left_out: &[i64]) -> Result<Vec<String>, JobError> {
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .bind(left_out)
        .fetch_all(connection)
        .await
        .map_err(|error| JobError::database("check the rights of the backup's role", &error.into()))
}

pub(super) async fn check_schemas(connection: &mut PgConnection, role: &str, left_out: &[i64]) -> Result<(), JobError> {
    let closed = names(
        connection,
        format!(
            "SELECT DISTINCT pg_catalog.quote_ident(n.nspname) FROM {RELATIONS}
               AND c.relkind IN ('r', 'p', 'S') AND {KEPT} AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE') ORDER BY 1"
        ),
        left_out,
    )
    .await?;
    refusal(&closed, |names| {
        (
            format!("the role {role} may not use the schema {names}"),
            format!("GRANT pg_read_all_data TO {};", quote::identifier(role)),
        )
    })
    .map_or(Ok(()), Err)
}

pub(super) async fn check_tables(connection: &mut PgConnection, role: &str, left_out: &[i64]) -> Result<(), JobError> {
    let unreadable = names(
        connection,
        format!(
            "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM {RELATIONS}
               AND CASE WHEN c.relkind = 'S' THEN NOT pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
                        WHEN c.relkind IN ('r', 'p') THEN NOT pg_catalog.has_table_privilege(c.oid, 'SELECT')
                        ELSE false END AND {KEPT}
             ORDER BY 1"
        ),
        left_out,
    )
    .await?;
    refusal(&unreadable, |names| {
        (
            format!("the role {role} may not read {names}"),
            format!("GRANT pg_read_all_data TO {};", quote::identifier(role)),
        )
    })
    .map_or(Ok(()), Err)
}

pub(super) async fn check_row_security(
    connection: &mut PgConnection,
    role: &str,
    bypasses: bool,
    left_out: &[i64],
) -> Result<(), JobError> {
    if bypasses {
        return Ok(());
    }
    let filtered = names(
        connection,
        format!(
            "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM {RELATIONS}
               AND c.relkind IN ('r', 'p') AND {KEPT} AND pg_catalog.row_security_active(c.oid) ORDER BY 1"
        ),
        left_out,
    )
    .await?;
    refusal(&filtered, |names| {
        (
            format!("row security would hide rows of {names} from the role {role}"),
            format!("ALTER ROLE {} BYPASSRLS;", quote::identifier(role)),
        )
    })
    .map_or(Ok(()), Err)
}

pub(super) async fn check_large_objects(connection: &mut PgConnection, role: &str) -> Result<(), JobError> {
    // Neither pg_read_all_data nor BYPASSRLS reaches large objects.
    let unreadable = names(
        connection,
        "SELECT l.oid::text FROM pg_catalog.pg_largeobject_metadata l
         WHERE $1::int8[] IS NOT NULL AND NOT pg_catalog.pg_has_role(l.lomowner, 'USAGE')
           AND pg_catalog.current_setting('lo_compat_privileges') <> 'on'
           AND NOT EXISTS (SELECT 1 FROM pg_catalog.aclexplode(l.lomacl) a WHERE a.privilege_type = 'SELECT'
                           AND (a.grantee = 0 OR pg_catalog.pg_has_role(a.grantee, 'USAGE')))
         ORDER BY l.oid LIMIT 1000"
            .to_owned(),
        &[],
    )
    .await?;
    refusal(&unreadable, |names| {
        (
            format!("the role {role} may not read the large objects {names}"),
            format!(
                "GRANT SELECT ON LARGE OBJECT … TO {}, or back up as their owner or a superuser",
                quote::identifier(role)
            ),
        )
    })
    .map_or(Ok(()), Err)
}

fn refusal(names: &[String], words: impl FnOnce(&str) -> (String, String)) -> Option<JobError> {
    let (listed, more) = names.split_at(names.len().min(LISTED));
    let mut list = listed.join(", ");
    if !more.is_empty() {
        list = format!("{list} and {} more", more.len());
    }
    (!names.is_empty()).then(|| {
        let (cause, remedy) = words(&list);
        JobError::refused("check the rights of the backup's role", cause, remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(major: u32) -> Version {
        Version {
            major,
            text: format!("{major}.1"),
        }
    }

    #[test]
    fn an_older_pg_dump_is_refused_and_both_versions_are_named() {
        let pg_dump = Path::new("/usr/bin/pg_dump");
        assert!(older_client(&version(15), &version(15), pg_dump).is_none());
        assert!(older_client(&version(17), &version(15), pg_dump).is_none());
        let error = older_client(&version(14), &version(15), pg_dump).unwrap();
        assert!(error.cause.contains("14.1") && error.cause.contains("15.1"), "{error}");
        assert_eq!(error.remedy.unwrap(), "install postgresql-client-15 or later");
    }
}
