//! What a campaign does to the leader before: it is ended when it is silent, and its epoch is over
//! before a new one begins.

use sqlx::PgConnection;

use super::LEASE;
use crate::ledger::locks;
use crate::postgres::sqlstate::DatabaseError;

/// How often a campaign ends the sessions of older epochs and tries to raise the epoch.
const EPOCH_ATTEMPTS: u32 = 5;

/// Lets the server notice within seconds that this host has gone, instead of hours. A Unix socket
/// ignores the settings.
pub(super) async fn notice_a_dead_peer(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    for (name, value) in [
        ("tcp_keepalives_idle", "5"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "20s"),
    ] {
        sqlx::query("SELECT pg_catalog.set_config($1, $2, false)")
            .bind(name)
            .bind(value)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Ends the session of a leader that has asked nothing for a whole lease. It has stopped believing
/// in itself before, unless it is stopped altogether; then the fence keeps it out when it goes on.
pub(super) async fn end_a_silent_leader(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    let ended = sqlx::query_scalar::<_, Option<i32>>(
        // Found first, ended then: in a condition the server might call the function on all of them.
        "WITH silent AS MATERIALIZED (
             SELECT a.pid FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
             WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid = $1::bigint::oid AND l.objid = 1::oid
               AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
               AND pg_catalog.clock_timestamp() - a.state_change > $2::double precision * interval '1 second')
         SELECT CASE WHEN pg_catalog.pg_terminate_backend(pid, 5000) THEN pid END FROM silent",
    )
    .bind(i64::from(locks::LEADER_CLASS.cast_unsigned()))
    .bind(LEASE.as_secs_f64())
    .fetch_optional(connection)
    .await?
    .flatten();
    if let Some(pid) = ended {
        tracing::warn!(
            backend.pid = pid,
            "the leader was silent for longer than its lease; its session was ended"
        );
    }
    Ok(())
}

pub(super) async fn raise_epoch(
    connection: &mut PgConnection,
    instance: &str,
    timeline: i64,
) -> Result<i64, DatabaseError> {
    for attempt in 1.. {
        end_older_runs(connection).await?;
        let raised = sqlx::query_scalar(
            // The timeline leads the number: what an old primary counted last may never have reached
            // this one, and must not be counted a second time.
            "UPDATE pgreeve.leader SET epoch = greatest(epoch + 1, $2::bigint << 32), instance = $1, since = pg_catalog.clock_timestamp()
             RETURNING epoch",
        )
        .bind(instance)
        .bind(timeline)
        .fetch_one(&mut *connection)
        .await
        .map_err(DatabaseError::from);
        match raised {
            // An old writer opened a transaction between the two statements; end it too.
            Err(error) if error.is("55P03") && attempt < EPOCH_ATTEMPTS => {}
            other => return other,
        }
    }
    unreachable!("the loop returns")
}

/// Ends every session that holds a job's lock: with the leader's lock in our hand, none of them
/// belongs to a run that may still write. Their work is rolled back by the server.
async fn end_older_runs(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    sqlx::query(
        "SELECT pg_catalog.pg_terminate_backend(l.pid, 5000)
         FROM pg_catalog.pg_locks l
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid = $1::bigint::oid
           AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())",
    )
    .bind(i64::from(locks::JOB_CLASS.cast_unsigned()))
    .execute(connection)
    .await?;
    Ok(())
}
