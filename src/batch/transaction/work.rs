//! The work itself: which rows a batch covers, and what is done to them.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::batch::attempt::{Part, Patience, Slice};
use crate::batch::outside::{Outside, Trouble};
use crate::batch::statement::{Range, Statements};
use crate::batch::stride::End;
use crate::postgres::catalog::{Relation, RelationKind};

/// The part of the table that a slice covers; `None` when too many rows share the age at its end.
pub(super) async fn range(
    transaction: &mut PgConnection,
    statements: &Statements,
    leaf: &Relation,
    slice: &Slice,
) -> Result<Option<Range>, sqlx::Error> {
    let (after, rows) = match slice {
        Slice::Blocks { from, until } => {
            return Ok(Some(Range::Blocks {
                from: *from,
                until: *until,
            }));
        }
        Slice::Keys {
            column,
            after,
            last,
            rows,
        } => {
            let through: Option<i64> =
                sqlx::query_scalar(AssertSqlSafe(statements.upper_key(leaf, column, *after, *last, *rows)))
                    .persistent(false)
                    .fetch_optional(transaction)
                    .await?;
            return Ok(Some(Range::Keys {
                column: column.clone(),
                after: *after,
                through: through.unwrap_or(*last),
            }));
        }
        Slice::Ages { after, end } => match end {
            End::Guessed(through) => {
                return Ok(Some(Range::Ages {
                    after: after.clone(),
                    through: through.clone(),
                }));
            }
            End::Searched { rows } => (after, *rows),
        },
    };
    let limit = rows.saturating_mul(4).saturating_add(1);
    let upper: Option<(String, i64)> = sqlx::query_as(AssertSqlSafe(statements.upper_bound(
        leaf,
        after.as_deref(),
        rows,
        limit,
    )))
    .persistent(false)
    .fetch_optional(transaction)
    .await?;
    let crowded = upper.as_ref().is_some_and(|(_, crowd)| crowd.unsigned_abs() >= limit);
    // Only where rows can be walked block by block instead.
    if crowded && leaf.kind == RelationKind::Table {
        return Ok(None);
    }
    Ok(Some(Range::Ages {
        after: after.clone(),
        through: upper.map(|(age, _)| age),
    }))
}

/// Deletes or changes the rows, or has it done with what is outside the database; answers how many.
pub(super) async fn apply(
    transaction: &mut PgConnection,
    part: &Part<'_>,
    range: &Range,
    outside: &mut Outside,
) -> Result<u64, Trouble> {
    let Part {
        statements,
        leaf,
        patience,
        ..
    } = *part;
    if outside.is_busy() && patience != Patience::Count {
        return outside.apply(transaction, part, range).await;
    }
    if statements.keeps_referenced() && patience != Patience::Count {
        return Ok(apply_locked(transaction, statements, leaf, range, patience == Patience::Wait).await?);
    }
    let sql = match patience {
        Patience::Wait => statements.apply(leaf, range),
        Patience::Leave => statements.apply_unlocked(leaf, range),
        Patience::Count => return Ok(0),
    };
    // Without values to bind, one exchange is enough.
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(transaction).await?;
    Ok(done.rows_affected())
}

/// In two statements: a row that is locked gets no new reference, so what the second one does not see
/// then cannot be lost to a cascade.
async fn apply_locked(
    transaction: &mut PgConnection,
    statements: &Statements,
    leaf: &Relation,
    range: &Range,
    waiting: bool,
) -> Result<u64, sqlx::Error> {
    let places: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statements.lock(leaf, range, waiting)))
        .persistent(false)
        .fetch_all(&mut *transaction)
        .await?;
    if places.is_empty() {
        return Ok(0);
    }
    let done = sqlx::query(AssertSqlSafe(statements.apply_locked(leaf)))
        .bind(places)
        .persistent(false)
        .execute(transaction)
        .await?;
    Ok(done.rows_affected())
}

/// How many due rows of a range other sessions hold.
pub(super) async fn left(
    transaction: &mut PgConnection,
    statements: &Statements,
    leaf: &Relation,
    range: &Range,
) -> Result<u64, sqlx::Error> {
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(statements.count_within(leaf, range)))
        .persistent(false)
        .fetch_one(transaction)
        .await?;
    Ok(rows.unsigned_abs())
}
