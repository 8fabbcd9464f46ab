//! Time limits that hold: a run that is over its time, or cancelled, is asked, then its statement
//! is cancelled on the server, then its session is ended, and only when the server says so is the
//! run closed.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;

/// After being asked, before its statement is cancelled on the server.
const ASK: Duration = Duration::from_secs(2);
/// After that, before its session is ended: an upload may need so long to be aborted.
const CANCEL: Duration = Duration::from_secs(30);
/// After that, before the task itself is dropped.
const TERMINATE: Duration = Duration::from_secs(5);
/// How long short work on a session of its own may take.
const ANSWER: Duration = Duration::from_secs(45);

/// Why a run was ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its time was up.
    TimedOut,
    /// It was cancelled.
    Cancelled,
}

/// How a supervised run came to its end.
pub(super) enum Ended<T> {
    /// By itself, or after being asked: what it answered, and why it was asked.
    Answered(T, Option<Cause>),
    /// It panicked.
    Panicked,
    /// It had to be dropped.
    Dropped(Cause),
}

/// What a supervisor watches.
pub(super) struct Watched<'a> {
    pub(super) target: &'a ConnectTarget,
    pub(super) backend_pid: i32,
    pub(super) deadline: Instant,
    /// Asks the run to end at its next safe point.
    pub(super) stop: &'a CancellationToken,
    /// Ends the run now.
    pub(super) hard: &'a CancellationToken,
}

/// Waits for a run's task, and ends it when its time is up or `hard` is cancelled.
pub(super) async fn supervise<T>(mut task: JoinHandle<T>, watched: Watched<'_>) -> Ended<T> {
    let cause = tokio::select! {
        joined = &mut task => return answered(joined, None),
        () = tokio::time::sleep_until(watched.deadline.into()) => Cause::TimedOut,
        () = watched.hard.cancelled() => Cause::Cancelled,
    };
    watched.stop.cancel();
    if let Ok(joined) = tokio::time::timeout(ASK, &mut task).await {
        return answered(joined, Some(cause));
    }
    signal(&watched, "pg_cancel_backend").await;
    if let Ok(joined) = tokio::time::timeout(CANCEL, &mut task).await {
        return answered(joined, Some(cause));
    }
    signal(&watched, "pg_terminate_backend").await;
    if let Ok(joined) = tokio::time::timeout(TERMINATE, &mut task).await {
        return answered(joined, Some(cause));
    }
    task.abort();
    match task.await {
        Ok(value) => Ended::Answered(value, Some(cause)),
        Err(_) => Ended::Dropped(cause),
    }
}

fn answered<T>(joined: Result<T, tokio::task::JoinError>, cause: Option<Cause>) -> Ended<T> {
    match joined {
        Ok(value) => Ended::Answered(value, cause),
        Err(_) => Ended::Panicked,
    }
}

async fn signal(watched: &Watched<'_>, function: &str) {
    if let Err(error) = try_signal(watched, function).await {
        tracing::warn!(error = %error, backend.pid = watched.backend_pid, "{function} did not reach the server");
    }
}

async fn try_signal(watched: &Watched<'_>, function: &str) -> Result<(), DatabaseError> {
    answered_in_time(async {
        let mut session = Session::open(watched.target, &SessionSettings::control("pgreeve:cancel")).await?;
        let sql = format!("SELECT pg_catalog.{function}($1)");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(watched.backend_pid)
            .execute(session.connection())
            .await?;
        session.close().await;
        Ok(())
    })
    .await
}

/// Waits for short work on a session of its own, but not for ever: a server that has accepted the
/// connection may be silent all the same.
pub(super) async fn answered_in_time<T>(
    work: impl Future<Output = Result<T, DatabaseError>>,
) -> Result<T, DatabaseError> {
    tokio::time::timeout(ANSWER, work).await.unwrap_or_else(|_| {
        Err(DatabaseError::passing(format!(
            "the server did not answer within {} s",
            ANSWER.as_secs()
        )))
    })
}

/// Ends the sessions that a run left behind and waits until the server has none such, so that no
/// statement of the run is under way when its records are closed.
pub(super) async fn confirm_gone(
    target: &ConnectTarget,
    backend_pid: i32,
    application_name: &str,
) -> Result<(), DatabaseError> {
    answered_in_time(async {
        let mut session = Session::open(target, &SessionSettings::control("pgreeve:cancel")).await?;
        end_sessions(session.connection(), Some(backend_pid), application_name).await?;
        session.close().await;
        Ok(())
    })
    .await
}

/// The same on a connection that is open: the run's own server process, and whatever else connected
/// under the run's name, as `pg_dump` does.
pub(super) async fn end_sessions(
    connection: &mut PgConnection,
    backend_pid: Option<i32>,
    application_name: &str,
) -> Result<(), DatabaseError> {
    // The name guards against a process number that has been given to somebody else meanwhile. One
    // that the server cut may have lost the run's number, and is no guard for other processes.
    let left: bool = sqlx::query_scalar(
        "SELECT coalesce(bool_or(NOT pg_catalog.pg_terminate_backend(pid, 10000)), false) FROM pg_catalog.pg_stat_activity
         WHERE datname = pg_catalog.current_database() AND application_name = pg_catalog.left($2, 63)
           AND pid <> pg_catalog.pg_backend_pid() AND (pid = $1 OR pg_catalog.octet_length($2) <= 63)",
    )
    .bind(backend_pid)
    .bind(application_name)
    .fetch_one(connection)
    .await?;
    if left {
        return Err(DatabaseError::passing(format!(
            "a server process of {application_name} does not end"
        )));
    }
    Ok(())
}
