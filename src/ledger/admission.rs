//! The first statement of a transaction that deletes or changes rows of a user's table.

use std::time::Duration;

use sqlx::PgConnection;

use super::leader::{Fence, FenceError};
use super::locks::HOLD_CLASS;
use crate::postgres::sqlstate::DatabaseError;

/// What a transaction asks for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The right to write.
    pub fence: Fence,
    /// Whether new holds are to be kept out, as by [`share`](super::holds::share).
    pub share_holds: bool,
    /// Settings for the transaction alone, by name.
    pub settings: &'a [(&'a str, &'a str)],
    /// How long a statement may run; the session's limit counts where that is shorter.
    pub statement_timeout: Duration,
}

/// What it was told.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// How long a statement may run.
    pub statement_timeout: Duration,
    /// Where the WAL stood.
    pub wal: String,
}

/// Holds the fence ([`Fence::hold`]), keeps new holds out and makes the settings, in one exchange:
/// short transactions feel each one. The holds themselves are to be read in a statement after it.
///
/// # Errors
/// [`FenceError::Superseded`] when the epoch is over: roll back.
pub async fn admit(transaction: &mut PgConnection, request: &Request<'_>) -> Result<Admitted, FenceError> {
    let (names, values): (Vec<&str>, Vec<&str>) = request.settings.iter().copied().unzip();
    let milliseconds = i64::try_from(request.statement_timeout.as_millis()).unwrap_or(i64::MAX);
    // What is selected is evaluated before the row is locked, and once more if it was being changed.
    let row: Option<(String, i64, Vec<String>, Option<String>)> = sqlx::query_as(
        "SELECT pg_catalog.pg_current_wal_insert_lsn()::text, timeout.ms,
                ARRAY(SELECT pg_catalog.set_config(s.name, s.value, true)
                      FROM unnest($4::text[] || '{statement_timeout}'::text[], $5::text[] || timeout.ms::text) AS s (name, value)),
                CASE WHEN $3 THEN pg_catalog.pg_advisory_xact_lock_shared($2, 1)::text END
         FROM pgreeve.leader AS leader,
              (SELECT least($6, nullif((extract(epoch FROM current_setting('statement_timeout')::interval) * 1000)::int8, 0)) AS ms
               OFFSET 0) AS timeout
         WHERE leader.epoch = $1 FOR SHARE OF leader",
    )
    .bind(request.fence.epoch)
    .bind(HOLD_CLASS)
    .bind(request.share_holds)
    .bind(&names)
    .bind(&values)
    .bind(milliseconds)
    .fetch_optional(transaction)
    .await
    .map_err(|error| FenceError::Database(DatabaseError::from(error)))?;
    let (wal, limit, _, _) = row.ok_or(FenceError::Superseded(request.fence.epoch))?;
    Ok(Admitted {
        statement_timeout: Duration::from_millis(limit.unsigned_abs()),
        wal,
    })
}
