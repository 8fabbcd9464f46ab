//! Keys that tell rows apart, and indexes that find groups of them.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use crate::postgres::sqlstate::DatabaseError;

/// The columns of a table's primary key in their order; none without one.
pub async fn primary_key(connection: &mut PgConnection, table: Oid) -> Result<Vec<String>, DatabaseError> {
    Ok(sqlx::query_scalar(
        "SELECT a.attname::text
         FROM pg_catalog.pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS u (attnum, place),
              pg_catalog.pg_attribute a
         WHERE i.indrelid = $1 AND i.indisprimary AND u.place <= i.indnkeyatts
           AND a.attrelid = i.indrelid AND a.attnum = u.attnum
         ORDER BY u.place",
    )
    .bind(table)
    .fetch_all(connection)
    .await?)
}

/// For each table a primary key of one integer column that counts up by itself: an identity, or the
/// next value of a sequence.
pub async fn counting(connection: &mut PgConnection, tables: &[Oid]) -> Result<Vec<(Oid, String)>, DatabaseError> {
    Ok(sqlx::query_as(
        "SELECT i.indrelid, a.attname::text
         FROM pg_catalog.pg_index i
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
         LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE i.indrelid = ANY($1) AND i.indisprimary AND i.indisvalid AND i.indnkeyatts = 1
           AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
           AND (a.attidentity <> '' OR pg_catalog.pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%')",
    )
    .bind(tables)
    .fetch_all(connection)
    .await?)
}

/// The tables that have no index whose first columns are these, in any order, as `schema.table`.
pub async fn without_index_on(
    connection: &mut PgConnection,
    tables: &[Oid],
    columns: &[String],
) -> Result<Vec<String>, DatabaseError> {
    Ok(sqlx::query_scalar(
        "SELECT n.nspname || '.' || c.relname
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = ANY($1) AND NOT EXISTS (
             SELECT FROM pg_catalog.pg_index i
             WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts >= cardinality($2::text[])
               AND $2::text[] <@ ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                                       WHERE a.attrelid = c.oid
                                         AND a.attnum = ANY((i.indkey::int2[])[0:cardinality($2::text[]) - 1])))
         ORDER BY 1",
    )
    .bind(tables)
    .bind(columns)
    .fetch_all(connection)
    .await?)
}
