//! What a restore that was killed leaves: a database that nobody can open. It says so itself, so that the
//! next restore into the same name can take its place, and no other database ever is.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::ledger::locks;
use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;

/// The comment of a database that is not whole yet.
const MARK: &str = "pgreeve restores a backup into it, and has not ended";

/// What a name stands for on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// A database.
    Database,
    /// What another restore is filling now.
    Filling,
    /// What a restore left that died.
    Left,
}

/// Looks a name up. Answers [`Found::Left`] only of a database that is marked, that PUBLIC cannot connect
/// to, and that no restore is at work on.
pub(super) async fn find(admin: &mut PgConnection, name: &str) -> Result<Found, DatabaseError> {
    let row: Option<(bool, bool)> = sqlx::query_as(
        "SELECT coalesce(pg_catalog.shobj_description(d.oid, 'pg_database') = $2, false)
                    AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
                                    WHERE a.grantee = 0 AND a.privilege_type = 'CONNECT'),
                EXISTS (SELECT FROM pg_catalog.pg_locks l
                        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.pid <> pg_backend_pid()
                          AND l.classid = $3::int8::oid AND l.objid = $4::int8::oid)
         FROM pg_catalog.pg_database d WHERE d.datname = $1",
    )
    .bind(name)
    .bind(MARK)
    .bind(i64::from(locks::RESTORE_CLASS.cast_unsigned()))
    .bind(i64::from(locks::key(name).cast_unsigned()))
    .fetch_optional(admin)
    .await?;
    Ok(match row {
        None => Found::Nothing,
        Some((false, _)) => Found::Database,
        Some((true, true)) => Found::Filling,
        Some((true, false)) => Found::Left,
    })
}

/// Says on the server that a restore into this name is at work, as long as the session lives. Answers
/// whether no other one is.
pub(super) async fn claim(admin: &mut PgConnection, name: &str) -> Result<bool, DatabaseError> {
    locks::try_lock(admin, locks::RESTORE_CLASS, locks::key(name)).await
}

/// Marks a database as not whole.
pub(super) async fn mark(admin: &mut PgConnection, name: &str) -> Result<(), DatabaseError> {
    comment(admin, name, &quote::literal(MARK)).await
}

/// It is whole.
pub(super) async fn unmark(admin: &mut PgConnection, name: &str) -> Result<(), DatabaseError> {
    comment(admin, name, "NULL").await
}

async fn comment(admin: &mut PgConnection, name: &str, text: &str) -> Result<(), DatabaseError> {
    let statement = format!("COMMENT ON DATABASE {} IS {text}", quote::identifier(name));
    sqlx::query(AssertSqlSafe(statement)).execute(admin).await?;
    Ok(())
}
