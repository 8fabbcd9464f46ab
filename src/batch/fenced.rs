//! Transactions that write and are no batch: the fence is held before anything else.

use sqlx::{Connection, PgConnection, Postgres, Transaction};

use crate::backup::sweep::fence_error;
use crate::job::JobError;
use crate::ledger::leader::Fence;

/// Begins a transaction that holds the fence. What is not committed is rolled back when the
/// connection is used next.
pub(super) async fn begin<'a>(
    connection: &'a mut PgConnection,
    fence: Fence,
    operation: &str,
) -> Result<Transaction<'a, Postgres>, JobError> {
    let mut transaction = connection
        .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
        .await
        .map_err(|error| JobError::database(operation, &error.into()))?;
    fence.hold(&mut transaction).await.map_err(fence_error)?;
    Ok(transaction)
}

/// Commits it.
pub(super) async fn commit(transaction: Transaction<'_, Postgres>, operation: &str) -> Result<(), JobError> {
    let committed = transaction.commit().await;
    committed.map_err(|error| JobError::database(operation, &error.into()))
}
