//! Which database is led: of which cluster, and on which timeline.

use sqlx::PgConnection;

use crate::postgres::sqlstate::DatabaseError;

/// Which database a connection reaches, as `SYSTEM_IDENTIFIER/OID`: what `initdb` made, and the
/// number in that cluster, which outlives a new name. Two databases of one cluster share an audit
/// log, and neither may close the runs of the other. `oid:OID` where the role may not read the first.
pub async fn identify(connection: &mut PgConnection) -> Result<String, DatabaseError> {
    let allowed: bool =
        sqlx::query_scalar("SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')")
            .fetch_one(&mut *connection)
            .await?;
    let identity = if allowed {
        "SELECT c.system_identifier::text || '/' || d.oid FROM pg_catalog.pg_control_system() c, pg_catalog.pg_database d
         WHERE d.datname = pg_catalog.current_database()"
    } else {
        "SELECT 'oid:' || oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"
    };
    Ok(sqlx::query_scalar(identity).fetch_one(connection).await?)
}

/// Whether a server is in recovery.
pub async fn is_standby(connection: &mut PgConnection) -> Result<bool, DatabaseError> {
    Ok(sqlx::query_scalar("SELECT pg_catalog.pg_is_in_recovery()")
        .fetch_one(connection)
        .await?)
}

/// The timeline that a primary writes to.
pub(super) async fn timeline(connection: &mut PgConnection) -> Result<i64, DatabaseError> {
    let file: String = sqlx::query_scalar("SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn())")
        .fetch_one(connection)
        .await?;
    // The first eight of its hexadecimal digits.
    file.get(..8)
        .and_then(|digits| i64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| DatabaseError::local(format!("`{file}` is not the name of a WAL file")))
}
