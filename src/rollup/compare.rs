//! Sealed buckets against their source: every group and every measure.

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::{AssertSqlSafe, PgConnection};

use super::statement::{BucketType, Fresh};
use crate::postgres::catalog::{Relation, columns};
use crate::postgres::quote::identifier;
use crate::postgres::sqlstate::DatabaseError;

/// The buckets between some bounds whose rows in the target are not what the source says, in order.
pub(super) async fn differing(
    connection: &mut PgConnection,
    fresh: &Fresh,
    target: &Relation,
    bounds: &[Timestamp],
) -> Result<Vec<Timestamp>, DatabaseError> {
    let (Some(low), Some(high)) = (bounds.first(), bounds.last()) else {
        return Ok(Vec::new());
    };
    let types: Vec<(String, String, String)> = columns::of(connection, target.oid)
        .await?
        .into_iter()
        .map(|column| (identifier(&column.name), column.full_type, column.base_type))
        .collect();
    // Both sides as the target's column keeps it. A sum of fractions depends on its order in the last
    // digits; types without an equality are compared as text.
    let same = |expression: &str, name: &str| match types.iter().find(|(column, ..)| column == name) {
        Some((_, full, base)) if base == "double precision" || base == "real" => {
            format!("to_char(({expression})::{full}::float8, '9.99999999999EEEE')")
        }
        Some((_, full, base)) if base == "json" || base == "xml" => format!("({expression})::{full}::text"),
        Some((_, full, _)) => format!("({expression})::{full}"),
        None => expression.to_owned(),
    };
    let names = fresh.columns();
    let kept: Vec<String> = names
        .iter()
        .map(|name| format!("{} AS {name}", same(name, name)))
        .collect();
    let bucket = names.first().copied().unwrap_or_default();
    let begin = match fresh.bucket_type() {
        BucketType::Instant => bucket.to_owned(),
        BucketType::Date => format!("({bucket}::timestamp AT TIME ZONE 'UTC')"),
    };
    let sql = format!(
        "WITH fresh AS MATERIALIZED ({}), kept AS MATERIALIZED (SELECT {} FROM {} WHERE {}),
         differing AS ((TABLE fresh EXCEPT ALL TABLE kept) UNION ALL (TABLE kept EXCEPT ALL TABLE fresh))
         SELECT DISTINCT {begin} FROM differing",
        fresh.select_as(bounds, same),
        kept.join(", "),
        target.quoted(),
        fresh.kept_within(*low, *high),
    );
    let found: Vec<SqlTimestamp> = sqlx::query_scalar(AssertSqlSafe(sql))
        .persistent(false)
        .fetch_all(connection)
        .await?;
    let found: Vec<Timestamp> = found.into_iter().map(SqlTimestamp::to_jiff).collect();
    // What the target has between the beginnings belongs to the bucket that covers it.
    let mut buckets: Vec<Timestamp> = bounds
        .windows(2)
        .filter(|pair| found.iter().any(|at| fresh.is_of(*at, pair)))
        .filter_map(|pair| pair.first().copied())
        .collect();
    buckets.sort();
    Ok(buckets)
}
