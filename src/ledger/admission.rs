//! The first statement of a transaction that deletes or changes rows of a user's table.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::leader::{Fence, FenceError};
use super::locks::HOLD_CLASS;
use crate::postgres::quote::{array, literal};
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

impl Request<'_> {
    /// The statement, without values to bind: to be sent together with what follows it. Holds the fence
    /// ([`Fence::hold`]), keeps new holds out and makes the settings. The holds themselves are to be
    /// read in a statement after it. Answers with one row, for [`Admitted::read`]; fails with a code
    /// that [`refused`] knows when the epoch is over.
    #[must_use]
    pub fn statement(&self) -> String {
        let (names, values): (Vec<&str>, Vec<&str>) = self.settings.iter().copied().unzip();
        let class = self.share_holds.then(|| HOLD_CLASS.to_string());
        format!(
            "SELECT wal, timeout_ms FROM pgreeve.admit('{}', {}, {}, {}::text[], {}::text[])",
            self.fence.epoch,
            class.as_deref().unwrap_or("NULL"),
            self.statement_timeout.as_millis(),
            literal(&array(&names)),
            literal(&array(&values)),
        )
    }
}

impl Admitted {
    /// From the row that [`Request::statement`] answers with.
    ///
    /// # Errors
    /// When it is another row.
    pub fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let limit: i64 = row.try_get("timeout_ms")?;
        Ok(Self {
            statement_timeout: Duration::from_millis(limit.unsigned_abs()),
            wal: row.try_get("wal")?,
        })
    }
}

/// Whether an error says that the epoch is over.
#[must_use]
pub fn refused(error: &DatabaseError) -> bool {
    error.is("PGR01")
}

/// Sends [`Request::statement`] by itself.
///
/// # Errors
/// [`FenceError::Superseded`] when the epoch is over: roll back.
pub async fn admit(transaction: &mut PgConnection, request: &Request<'_>) -> Result<Admitted, FenceError> {
    let row = sqlx::raw_sql(AssertSqlSafe(request.statement()))
        .fetch_one(transaction)
        .await;
    row.and_then(|row| Admitted::read(&row)).map_err(|error| {
        let error = DatabaseError::from(error);
        if refused(&error) {
            FenceError::Superseded(request.fence.epoch)
        } else {
            FenceError::Database(error)
        }
    })
}
