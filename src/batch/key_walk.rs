//! Between which keys the old rows of a leaf are.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::estimate::LIMIT_STATEMENT;
use super::statement::Statements;
use crate::job::JobError;
use crate::postgres::catalog::Relation;
use crate::postgres::sqlstate::DatabaseError;

/// How long the search may take; without an answer the whole table is walked.
const SEARCH_TIME: Duration = Duration::from_secs(30);

/// The least and the greatest key of the old rows; none when there are none. Rows that get old ages
/// under greater keys later are found by the verification.
pub(super) async fn bounds(
    connection: &mut PgConnection,
    statements: &Statements,
    leaf: &Relation,
    key: &str,
) -> Result<Option<(i64, i64)>, JobError> {
    match search(connection, statements.key_bounds(leaf, key))
        .await
        .map_err(DatabaseError::from)
    {
        Ok((Some(first), Some(last))) => Ok(Some((first, last))),
        Ok(_) => Ok(None),
        Err(error) if error.is("57014") => Ok(Some((i64::MIN, i64::MAX))),
        Err(error) => Err(JobError::database(
            format!("look for the old rows of {}", leaf.display()),
            &error,
        )),
    }
}

async fn search(connection: &mut PgConnection, sql: String) -> Result<(Option<i64>, Option<i64>), sqlx::Error> {
    let mut reading = connection.begin_with("BEGIN READ ONLY").await?;
    sqlx::query(LIMIT_STATEMENT)
        .bind(i64::try_from(SEARCH_TIME.as_millis()).unwrap_or(i64::MAX))
        .execute(&mut *reading)
        .await?;
    let bounds = sqlx::query_as(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_one(&mut *reading)
        .await;
    reading.rollback().await?;
    bounds
}
