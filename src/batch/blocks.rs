//! Where the rows of a leaf are stored.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::estimate::LIMIT_STATEMENT;
use super::statement::Statements;
use crate::job::JobError;
use crate::postgres::catalog::Relation;
use crate::postgres::sqlstate::DatabaseError;

/// How long the search for the blocks of some rows may take.
const SEARCH_TIME: Duration = Duration::from_secs(30);

/// How many blocks a leaf has now. Rows that come later are not older than the cutoff.
pub(super) async fn of(connection: &mut PgConnection, leaf: &Relation) -> Result<u32, JobError> {
    let blocks: i64 =
        sqlx::query_scalar("SELECT pg_catalog.pg_relation_size($1) / pg_catalog.current_setting('block_size')::int8")
            .bind(leaf.oid)
            .fetch_one(connection)
            .await
            .map_err(|error| failed(leaf, &error.into()))?;
    Ok(u32::try_from(blocks).unwrap_or(u32::MAX))
}

/// From which block to before which the old rows beyond an age are stored; all blocks when that
/// takes too long to find.
pub(super) async fn of_rows(
    connection: &mut PgConnection,
    statements: &Statements,
    leaf: &Relation,
    after: Option<&str>,
) -> Result<(u32, u32), JobError> {
    let all = of(connection, leaf).await?;
    let block = |block: Option<i64>| block.and_then(|block| u32::try_from(block).ok());
    match search(connection, statements.block_bounds(leaf, after))
        .await
        .map_err(DatabaseError::from)
    {
        Ok((first, last)) => {
            let until = block(last).map_or(0, |last| last.saturating_add(1).min(all));
            Ok((block(first).unwrap_or(0), until))
        }
        Err(error) if error.is("57014") => Ok((0, all)),
        Err(error) => Err(failed(leaf, &error)),
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

/// About as many blocks as hold so many rows.
pub(super) fn holding(leaf: &Relation, rows: u64) -> u64 {
    const UNKNOWN: u64 = 32;
    let all = f64::from(leaf.rows);
    if leaf.pages < 1 || all < 1.0 {
        return UNKNOWN;
    }
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rough, positive number of blocks"
    )]
    let blocks = (rows as f64 * f64::from(leaf.pages) / all).ceil() as u64;
    blocks.max(1)
}

fn failed(leaf: &Relation, error: &DatabaseError) -> JobError {
    JobError::database(format!("read the storage of {}", leaf.display()), error)
}
