//! The advisory locks that keep runs apart. Each is held by the session that does the work, so it
//! lives exactly as long as the work; no stored flag can be left behind.
//!
//! Keys are pairs of integers: a class of our own, and a hash of what is locked. Two names with
//! the same hash exclude each other needlessly, never wrongly.

use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use crate::postgres::sqlstate::DatabaseError;

/// `pgre` in ASCII: who leads the database (second key 1).
pub const LEADER_CLASS: i32 = 0x7067_7265;
/// One running job.
pub const JOB_CLASS: i32 = LEADER_CLASS + 1;
/// One thing that two runs must not use at the same time.
pub const EXCLUSION_CLASS: i32 = LEADER_CLASS + 2;
/// The legal holds of the database (second key 1): shared by every batch, alone for a new hold.
pub const HOLD_CLASS: i32 = LEADER_CLASS + 40;

/// The target of a rollup: one transaction at a time replaces rows in it.
pub const ROLLUP_CLASS: i32 = LEADER_CLASS + 70;

/// A restore into a database of a name, wherever on the server its session is.
pub const RESTORE_CLASS: i32 = LEADER_CLASS + 71;

/// The second key of a name.
#[must_use]
pub fn key(name: &str) -> i32 {
    let digest = Sha256::digest(name.as_bytes());
    i32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// The second key of the rows of a table, given the root of its partitions.
#[must_use]
pub fn rows_key(Oid(root): Oid) -> i32 {
    key(&format!("rows of relation {root}"))
}

/// Takes a lock for the session if it is free.
pub async fn try_lock(connection: &mut PgConnection, class: i32, key: i32) -> Result<bool, DatabaseError> {
    Ok(sqlx::query_scalar("SELECT pg_catalog.pg_try_advisory_lock($1, $2)")
        .bind(class)
        .bind(key)
        .fetch_one(connection)
        .await?)
}

/// Gives a lock of the session back. Answers whether it was held.
pub async fn unlock(connection: &mut PgConnection, class: i32, key: i32) -> Result<bool, DatabaseError> {
    Ok(sqlx::query_scalar("SELECT pg_catalog.pg_advisory_unlock($1, $2)")
        .bind(class)
        .bind(key)
        .fetch_one(connection)
        .await?)
}

/// Waits for a lock for the session, at most so long. The session's own limits are put back
/// afterwards.
///
/// # Errors
/// SQLSTATE `55P03` when the time is up.
pub async fn lock_within(
    connection: &mut PgConnection,
    class: i32,
    key: i32,
    limit: Duration,
) -> Result<(), DatabaseError> {
    let lock_timeout = set(connection, "lock_timeout", &format!("{}ms", limit.as_millis().max(1))).await?;
    let statement_timeout = set(connection, "statement_timeout", "0").await?;
    let locked = sqlx::query("SELECT pg_catalog.pg_advisory_lock($1, $2)")
        .bind(class)
        .bind(key)
        .execute(&mut *connection)
        .await;
    set(connection, "statement_timeout", &statement_timeout).await?;
    set(connection, "lock_timeout", &lock_timeout).await?;
    locked?;
    Ok(())
}

/// Changes a setting of the session and answers what it was.
pub async fn set(connection: &mut PgConnection, name: &str, value: &str) -> Result<String, DatabaseError> {
    let before = sqlx::query_scalar("SELECT pg_catalog.current_setting($1)")
        .bind(name)
        .fetch_one(&mut *connection)
        .await?;
    sqlx::query("SELECT pg_catalog.set_config($1, $2, false)")
        .bind(name)
        .bind(value)
        .execute(connection)
        .await?;
    Ok(before)
}

/// Ends the sessions that hold a lock, and waits until they are gone.
pub async fn end_holder(connection: &mut PgConnection, class: i32, key: i32) -> Result<(), DatabaseError> {
    sqlx::query(
        "SELECT pg_catalog.pg_terminate_backend(l.pid, 10000) FROM pg_catalog.pg_locks l
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.pid <> pg_catalog.pg_backend_pid()
           AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
           AND l.classid = $1::bigint::oid AND l.objid = $2::bigint::oid",
    )
    .bind(i64::from(class.cast_unsigned()))
    .bind(i64::from(key.cast_unsigned()))
    .execute(connection)
    .await?;
    Ok(())
}

/// The application name and server process of whoever holds a lock, for messages.
pub async fn holder(connection: &mut PgConnection, class: i32, key: i32) -> Result<Option<String>, DatabaseError> {
    Ok(sqlx::query_scalar(
        "SELECT a.application_name || ' (server process ' || a.pid || ')'
         FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
           AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
           AND l.classid = $1::bigint::oid AND l.objid = $2::bigint::oid
         LIMIT 1",
    )
    .bind(i64::from(class.cast_unsigned()))
    .bind(i64::from(key.cast_unsigned()))
    .fetch_optional(connection)
    .await?)
}
