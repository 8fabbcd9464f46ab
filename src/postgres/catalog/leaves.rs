//! Where the rows of a table really are: its leaves, and the partitions on their way out.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::{RELATION, Relation, RelationRow, keys, relation};
use crate::postgres::sqlstate::DatabaseError;

/// A table that holds rows itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaf {
    /// The table.
    pub relation: Relation,
    /// An index that finds its rows by age: a valid, non-partial btree whose first column is the
    /// age column.
    pub age_index: Option<String>,
    /// A primary key of one integer column that counts up by itself.
    pub key: Option<String>,
    /// How many bytes a row takes on average, its large values included; unknown where nobody has
    /// analyzed the table.
    pub row_bytes: Option<u64>,
}

/// The tables that hold a table's rows: itself, or all its partitions and heirs at every level,
/// by name. Each is to be addressed with `ONLY`: a `ctid` is not unique across them. Partitions
/// whose detach is pending are not among them.
pub async fn of(connection: &mut PgConnection, root: Oid, age_column: &str) -> Result<Vec<Leaf>, DatabaseError> {
    let sql = format!(
        "WITH RECURSIVE tree AS (
             SELECT $1::oid AS oid
             UNION
             SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
             WHERE NOT i.inhdetachpending)
         SELECT {RELATION}
         FROM tree JOIN pg_catalog.pg_class c USING (oid) JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'f')
         ORDER BY n.nspname, c.relname"
    );
    let rows: Vec<RelationRow> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(root)
        .fetch_all(&mut *connection)
        .await?;
    let relations: Vec<Relation> = rows.into_iter().filter_map(relation).collect();
    let oids: Vec<Oid> = relations.iter().map(|relation| relation.oid).collect();
    let indexes = age_indexes(connection, &oids, age_column).await?;
    let counting = keys::counting(connection, &oids).await?;
    let sizes = row_bytes(connection, &oids).await?;
    let key = |oid: Oid| {
        let found = counting.iter().find(|(leaf, _)| *leaf == oid);
        found.map(|(_, column)| column.clone())
    };
    let age_index = |oid: Oid| {
        let found = indexes.iter().find(|(leaf, _)| *leaf == oid);
        found.map(|(_, index)| index.clone())
    };
    let row_bytes = |oid: Oid| {
        let found = sizes.iter().find(|(leaf, _)| *leaf == oid);
        found.map(|(_, bytes)| bytes.unsigned_abs())
    };
    Ok(relations
        .into_iter()
        .map(|relation| Leaf {
            age_index: age_index(relation.oid),
            key: key(relation.oid),
            row_bytes: row_bytes(relation.oid),
            relation,
        })
        .collect())
}

/// The bytes of an average row of each table that was analyzed, with what is stored out of line.
async fn row_bytes(connection: &mut PgConnection, tables: &[Oid]) -> Result<Vec<(Oid, i64)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT c.oid, ((c.relpages::int8 + coalesce(t.relpages, 0)) * current_setting('block_size')::int8 / c.reltuples)::int8
         FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid
         WHERE c.oid = ANY($1) AND c.reltuples > 0",
    )
    .bind(tables)
    .fetch_all(connection)
    .await
}

/// For each table the smallest index that can walk it by age.
async fn age_indexes(
    connection: &mut PgConnection,
    tables: &[Oid],
    age_column: &str,
) -> Result<Vec<(Oid, String)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT DISTINCT ON (i.indrelid) i.indrelid, x.relname::text
         FROM pg_catalog.pg_index i
         JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
         JOIN pg_catalog.pg_am m ON m.oid = x.relam
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
         JOIN pg_catalog.pg_opclass o ON o.oid = i.indclass[0]
         WHERE i.indrelid = ANY($1) AND a.attname = $2 AND m.amname = 'btree' AND o.opcdefault
           AND i.indisvalid AND i.indisready AND i.indislive AND i.indpred IS NULL
         ORDER BY i.indrelid, x.relpages, x.relname",
    )
    .bind(tables)
    .bind(age_column)
    .fetch_all(connection)
    .await
}

/// A partition whose `DETACH … CONCURRENTLY` was interrupted: its rows are stored, and no longer
/// seen through the parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingDetach {
    /// `schema.partition`.
    pub partition: String,
    /// The statement that ends the detach.
    pub remedy: String,
}

/// The pending detaches at every level below a table.
pub async fn pending_detaches(connection: &mut PgConnection, root: Oid) -> Result<Vec<PendingDetach>, DatabaseError> {
    let rows: Vec<(String, String, String, String)> = sqlx::query_as(
        "WITH RECURSIVE tree AS (
             SELECT $1::oid AS oid
             UNION
             SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid)
         SELECT pn.nspname::text, p.relname::text, n.nspname::text, c.relname::text
         FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid
         JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
         JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE i.inhdetachpending
         ORDER BY 3, 4",
    )
    .bind(root)
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(parent_schema, parent, schema, name)| PendingDetach {
            remedy: format!(
                "ALTER TABLE {} DETACH PARTITION {} FINALIZE",
                crate::postgres::quote::qualified(&parent_schema, &parent),
                crate::postgres::quote::qualified(&schema, &name),
            ),
            partition: format!("{schema}.{name}"),
        })
        .collect())
}
