//! What the planner's statistics keep: most common values and histograms are copies of rows, and
//! stay after the rows are gone until the table is analysed again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use sqlx::{AssertSqlSafe, PgConnection};

use super::patterns::Patterns;
use super::{Findings, stream, text};
use crate::erasure::proof::ResiduePlace;
use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;

/// The word of a place in the statistics.
pub(super) const WHAT: &str = "statistics";

/// A column whose statistics hold somebody.
type Place = (String, String, String);

/// Each set of statistics as schema, table, column and all its values. Of the views that show what
/// the role may read, those that the server has.
const VIEWS: [(&str, &str); 3] = [
    (
        "pg_stats",
        "SELECT schemaname::text, tablename::text, attname::text,
                pg_catalog.concat_ws(' ', most_common_vals::text, histogram_bounds::text, most_common_elems::text)
         FROM pg_catalog.pg_stats",
    ),
    (
        "pg_stats_ext",
        "SELECT schemaname::text, tablename::text, statistics_name::text, most_common_vals::text
         FROM pg_catalog.pg_stats_ext",
    ),
    (
        "pg_stats_ext_exprs",
        "SELECT schemaname::text, tablename::text, expr::text,
                pg_catalog.concat_ws(' ', most_common_vals::text, histogram_bounds::text, most_common_elems::text)
         FROM pg_catalog.pg_stats_ext_exprs",
    ),
];

/// Searches the statistics. Those that hold somebody are made anew and searched again; what then
/// remains comes with its remedy.
pub(super) async fn scan(
    connection: &mut PgConnection,
    patterns: &Patterns,
    deadline: Instant,
    found: &mut Findings,
) -> Result<Vec<(usize, ResiduePlace)>, DatabaseError> {
    let before = search(connection, patterns, deadline, found).await?;
    if before.is_empty() {
        return Ok(Vec::new());
    }
    let tables: BTreeSet<(&str, &str)> = before.keys().map(|(schema, table, _)| (&**schema, &**table)).collect();
    for (schema, table) in tables {
        // Without the right to, the server warns and goes on; the second search then finds it again.
        let analyze = format!("ANALYZE {}", quote::qualified(schema, table));
        if let Err(error) = sqlx::raw_sql(AssertSqlSafe(analyze)).execute(&mut *connection).await {
            let error = DatabaseError::from(error);
            if error.sqlstate.is_none() {
                return Err(error);
            }
            tracing::warn!(table = format!("{schema}.{table}"), %error, "statistics cannot be made anew");
        }
    }
    let mut places = Vec::new();
    for ((schema, table, column), people) in search(connection, patterns, deadline, found).await? {
        let remedy = remedy(connection, (&schema, &table, &column)).await?;
        for (person, count) in people {
            let place = ResiduePlace {
                table: format!("{schema}.{table}"),
                column: column.clone(),
                what: WHAT.to_owned(),
                count,
                kept: false,
                remedy: Some(remedy.clone()),
            };
            places.push((person, place));
        }
    }
    Ok(places)
}

async fn search(
    connection: &mut PgConnection,
    patterns: &Patterns,
    deadline: Instant,
    found: &mut Findings,
) -> Result<BTreeMap<Place, BTreeMap<usize, u64>>, DatabaseError> {
    let mut places: BTreeMap<Place, BTreeMap<usize, u64>> = BTreeMap::new();
    for (view, query) in VIEWS {
        let exists: bool = sqlx::query_scalar("SELECT pg_catalog.to_regclass('pg_catalog.' || $1) IS NOT NULL")
            .bind(view)
            .fetch_one(&mut *connection)
            .await?;
        if !exists {
            continue;
        }
        let query = format!("{query} WHERE schemaname NOT IN ('pg_catalog', 'information_schema', 'pgreeve')");
        let searched = stream(connection, &query, deadline, |row| {
            for person in patterns.people(text(row, 3)) {
                let name = |column| String::from_utf8_lossy(text(row, column)).into_owned();
                let people = places.entry((name(0), name(1), name(2))).or_default();
                let count = people.entry(person).or_default();
                *count = count.saturating_add(1);
            }
        })
        .await?;
        if let Err(cause) = searched {
            found.unsearched.push(format!("{view}: {cause}"));
        }
    }
    Ok(places)
}

/// What clears statistics that `ANALYZE` did not clear.
async fn remedy(
    connection: &mut PgConnection,
    (schema, table, column): (&str, &str, &str),
) -> Result<String, DatabaseError> {
    let qualified = quote::qualified(schema, table);
    let found: Option<(Option<String>, bool)> = sqlx::query_as(
        "SELECT (SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
                 WHERE a.attrelid = c.oid AND a.attname = $3 AND NOT a.attisdropped),
                pg_catalog.pg_has_role(c.relowner, 'USAGE')
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = $1 AND c.relname = $2",
    )
    .bind(schema)
    .bind(table)
    .bind(column)
    .fetch_optional(&mut *connection)
    .await?;
    let empty = format!("SELECT NOT EXISTS (SELECT FROM {qualified})");
    // A table that cannot be read is not known to be empty.
    let is_empty: bool = sqlx::query_scalar(AssertSqlSafe(empty))
        .fetch_one(connection)
        .await
        .unwrap_or(false);
    Ok(match found {
        // Neither VACUUM ANALYZE nor TRUNCATE clears the statistics of an empty table; a change to the
        // same type does, and takes a moment where there are no rows.
        Some((Some(kind), true)) if is_empty => format!(
            "the table is empty, and ANALYZE keeps the statistics of an empty table: ALTER TABLE {qualified} ALTER COLUMN {} TYPE {kind};",
            quote::identifier(column)
        ),
        Some((_, false)) => format!("run ANALYZE {qualified}; as the table's owner or a superuser"),
        _ => format!("run ANALYZE {qualified};"),
    })
}
