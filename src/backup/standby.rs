//! Dumps from a standby: what was committed on the primary before the run must be in the dump.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::{Connection, PgConnection};

use crate::job::JobError;
use crate::postgres::connect::ConnectTarget;

/// How long a standby may take to replay what the primary has written when the run begins.
const CATCH_UP: Duration = Duration::from_mins(1);

/// How often it is asked.
const POLL: Duration = Duration::from_millis(200);

const OPERATION: &str = "wait for the standby";

/// Waits until the standby has replayed what the primary has on disk now. Answers with the primary's
/// clock before that: the dump's data is not older.
///
/// # Errors
/// When it is no standby, follows another server, or does not catch up in a minute.
pub async fn catch_up(primary: &mut PgConnection, standby: &ConnectTarget) -> Result<Timestamp, JobError> {
    let failed = |error: sqlx::Error| JobError::database(OPERATION, &error.into());
    let (now, lsn): (SqlTimestamp, String) =
        sqlx::query_as("SELECT pg_catalog.clock_timestamp(), pg_catalog.pg_current_wal_flush_lsn()::text")
            .fetch_one(&mut *primary)
            .await
            .map_err(failed)?;
    let mut connection = standby
        .connect("pgreeve:standby")
        .await
        .map_err(|error| JobError::database(OPERATION, &error))?;
    let (ours, theirs) = (identity(primary).await?, identity(&mut connection).await?);
    if let (Some(ours), Some(theirs)) = (ours, theirs)
        && ours != theirs
    {
        return Err(JobError::refused(
            OPERATION,
            format!(
                "{} does not follow the primary: it is the cluster {theirs}, not {ours}",
                standby.describe()
            ),
            "name a standby of this database's server",
        ));
    }
    let begun = Instant::now();
    loop {
        let behind: Option<i64> = sqlx::query_scalar("SELECT ($1::pg_lsn - pg_catalog.pg_last_wal_replay_lsn())::int8")
            .bind(&lsn)
            .fetch_one(&mut connection)
            .await
            .map_err(failed)?;
        match behind {
            None => return Err(no_standby()),
            Some(..=0) => break,
            Some(_) if begun.elapsed() < CATCH_UP => tokio::time::sleep(POLL).await,
            Some(bytes) => {
                let cause = format!(
                    "{} is {bytes} bytes behind after {} s",
                    standby.describe(),
                    CATCH_UP.as_secs()
                );
                return Err(JobError::transient(OPERATION, cause));
            }
        }
    }
    connection.close().await.map_err(failed)?;
    Ok(now.to_jiff())
}

/// The refusal of a server that replays nothing.
pub(super) fn no_standby() -> JobError {
    JobError::refused(
        OPERATION,
        "the server that `standby` names is not one: it may have been promoted",
        "name a server that follows the primary, or leave out `standby`",
    )
}

/// The cluster's identity, where the role may read it.
async fn identity(connection: &mut PgConnection) -> Result<Option<String>, JobError> {
    sqlx::query_scalar(
        "SELECT CASE WHEN pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
                THEN (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) END",
    )
    .fetch_one(connection)
    .await
    .map_err(|error| JobError::database(OPERATION, &error.into()))
}
