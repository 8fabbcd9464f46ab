//! How far no transaction under way can still write rows into the past.
//!
//! A transaction's `now()` is when it began, and it may insert with it much later. Neither its
//! transaction number nor its locks show it before it writes; only the time it began does. So that
//! is asked of all sessions, and with it the prepared transactions, which have no session.

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use crate::job::JobError;
use crate::postgres::sqlstate::DatabaseError;

/// What is known of the transactions under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Horizon {
    /// No transaction that begins later, and none under way, has an earlier `now()`. None while a
    /// prepared transaction holds what it wrote into the source: when it began is not known.
    pub(super) until: Option<Timestamp>,
    /// What holds it back, in words.
    pub(super) held_by: Option<String>,
}

/// Reads the horizon. Rows are to be read in a later statement.
pub(super) async fn read(connection: &mut PgConnection, sources: &[Oid]) -> Result<Horizon, JobError> {
    ask(connection, sources)
        .await
        .map_err(|error| JobError::database("look for transactions under way", &error))
}

async fn ask(connection: &mut PgConnection, sources: &[Oid]) -> Result<Horizon, DatabaseError> {
    // What this transaction has read of the sessions before is kept until its end otherwise.
    sqlx::query("SELECT pg_catalog.pg_stat_clear_snapshot()")
        .execute(&mut *connection)
        .await?;
    // A session tells when its transaction began a moment after it did; five seconds cover that.
    // Vacuum writes no rows.
    let (now, oldest, pid): (SqlTimestamp, Option<SqlTimestamp>, Option<i32>) = sqlx::query_as(
        "SELECT n.now - interval '5 seconds', a.xact_start, a.pid
         FROM (SELECT pg_catalog.clock_timestamp() AS now OFFSET 0) AS n
         LEFT JOIN LATERAL (
             SELECT xact_start, pid FROM pg_catalog.pg_stat_activity
             WHERE pid <> pg_catalog.pg_backend_pid() AND xact_start IS NOT NULL AND backend_type <> 'autovacuum worker'
               AND (datid IS NULL OR datid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))
             ORDER BY xact_start LIMIT 1) AS a ON true",
    )
    .fetch_one(&mut *connection)
    .await?;
    // After the sessions: one that prepares its transaction in between is seen here.
    let prepared: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l
             WHERE l.pid IS NULL AND l.granted AND l.locktype = 'relation' AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
               AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
               AND (l.relation = ANY ($1) OR cardinality($1) = 0))",
    )
    .bind(sources)
    .fetch_one(connection)
    .await?;
    if prepared {
        return Ok(Horizon {
            until: None,
            held_by: Some("a prepared transaction that wrote into the source; see pg_prepared_xacts".to_owned()),
        });
    }
    let (now, oldest) = (now.to_jiff(), oldest.map(SqlTimestamp::to_jiff));
    let held_by = match (oldest, pid) {
        (Some(oldest), Some(pid)) if oldest < now => {
            Some(format!("a transaction of server process {pid} that began at {oldest}"))
        }
        _ => None,
    };
    Ok(Horizon {
        until: Some(oldest.map_or(now, |oldest| oldest.min(now))),
        held_by,
    })
}
