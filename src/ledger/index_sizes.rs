//! `pgreeve.index_size`: how much an index takes when it is fresh.

use sqlx::PgConnection;

use crate::postgres::sqlstate::DatabaseError;

/// What an index took for how many rows.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexSize {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// How many entries it had; more than 0.
    pub rows: f64,
    /// How many bytes; more than 0.
    pub bytes: i64,
    /// Whether that was right after a rebuild; otherwise it is the fewest bytes a row that were seen.
    pub rebuilt: bool,
}

/// All that are known; none where there is no ledger yet.
///
/// # Errors
/// When the ledger cannot be read.
pub async fn all(connection: &mut PgConnection) -> Result<Vec<IndexSize>, DatabaseError> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('pgreeve.index_size') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    let rows: Vec<(String, String, f64, i64, bool)> =
        sqlx::query_as("SELECT schema_name, index_name, rows, bytes, rebuilt FROM pgreeve.index_size")
            .fetch_all(connection)
            .await?;
    Ok(rows
        .into_iter()
        .map(|(schema, name, rows, bytes, rebuilt)| IndexSize {
            schema,
            name,
            rows,
            bytes,
            rebuilt,
        })
        .collect())
}

/// Notes what was seen. A rebuild stands until the next one; without it the fewest bytes a row do.
///
/// # Errors
/// When the ledger cannot be written.
pub async fn note(transaction: &mut PgConnection, sizes: &[IndexSize]) -> Result<(), DatabaseError> {
    let column = |text: fn(&IndexSize) -> &String| sizes.iter().map(text).collect::<Vec<_>>();
    sqlx::query(
        "INSERT INTO pgreeve.index_size AS known (schema_name, index_name, rows, bytes, rebuilt)
         SELECT * FROM unnest($1::text[], $2::text[], $3::float8[], $4::int8[], $5::bool[])
         ON CONFLICT (schema_name, index_name) DO UPDATE
         SET rows = excluded.rows, bytes = excluded.bytes, rebuilt = excluded.rebuilt,
             seen_at = pg_catalog.clock_timestamp()
         WHERE excluded.rebuilt
            OR NOT known.rebuilt AND excluded.bytes / excluded.rows < known.bytes / known.rows",
    )
    .bind(column(|size| &size.schema))
    .bind(column(|size| &size.name))
    .bind(sizes.iter().map(|size| size.rows).collect::<Vec<_>>())
    .bind(sizes.iter().map(|size| size.bytes).collect::<Vec<_>>())
    .bind(sizes.iter().map(|size| size.rebuilt).collect::<Vec<_>>())
    .execute(transaction)
    .await?;
    Ok(())
}

/// Forgets the indexes that are there no more.
///
/// # Errors
/// When the ledger cannot be written.
pub async fn forget(transaction: &mut PgConnection) -> Result<(), DatabaseError> {
    sqlx::query(
        "DELETE FROM pgreeve.index_size s WHERE NOT EXISTS (
             SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = s.schema_name AND c.relname = s.index_name AND c.relkind = 'i')",
    )
    .execute(transaction)
    .await?;
    Ok(())
}
