//! A session's locks need a session: what gives a pooler in transaction mode away.

use sqlx::Connection;

use crate::postgres::connect::{ConnectTarget, Session};
use crate::postgres::sqlstate::DatabaseError;

/// A pooler in transaction mode gives each transaction whatever server process is free: a lock of
/// the session would be somebody else's the next moment. It gives itself away to two connections,
/// one of which keeps a transaction open: both have the same server process, or the other's changes.
///
/// # Errors
/// When there is one; the message says what to do.
pub async fn refuse_a_pooler(target: &ConnectTarget, session: &mut Session) -> Result<(), DatabaseError> {
    match moves_between_processes(target, session).await {
        Ok(false) => Ok(()),
        Ok(true) => Err(pooler(target)),
        // A statement that another client prepared, or one of ours that is gone, tells as much.
        Err(error) if error.is("42P05") || error.is("26000") => Err(pooler(target)),
        Err(error) => Err(error),
    }
}

async fn moves_between_processes(target: &ConnectTarget, session: &mut Session) -> Result<bool, DatabaseError> {
    let pid = "SELECT pg_catalog.pg_backend_pid()";
    let mut probe = target.connect("pgreeve:probe").await?;
    let mut transaction = probe.begin().await?;
    let others: i32 = sqlx::query_scalar(pid).fetch_one(&mut *transaction).await?;
    let ours: i32 = sqlx::query_scalar(pid).fetch_one(session.connection()).await?;
    transaction.rollback().await?;
    probe.close().await?;
    Ok(others == session.backend_pid() || ours != session.backend_pid())
}

fn pooler(target: &ConnectTarget) -> DatabaseError {
    DatabaseError::local(format!(
        "{} is a pooler in transaction mode, which cannot keep a session's locks and settings: let `url` name the server itself, or a pool in session mode",
        target.describe()
    ))
}
