//! All foreign keys of a database, as a graph between tables.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::{RELATION, Relation, RelationRow, relation};
use crate::postgres::sqlstate::DatabaseError;

/// A foreign key. Both ends are whole tables: of a partition, the table it is a part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The constraint's name.
    pub name: String,
    /// The table that holds it.
    pub child: Oid,
    /// The table that it points at.
    pub parent: Oid,
    /// Its columns there, and the columns they point at.
    pub columns: Vec<(String, String)>,
    /// `NO ACTION`, `RESTRICT`, `CASCADE`, `SET NULL` or `SET DEFAULT`.
    pub on_delete: String,
    /// Whether a reference with some columns null is none (`MATCH SIMPLE`), or needs all of them null.
    pub match_simple: bool,
    /// Whether an index finds the referencing rows.
    pub indexed: bool,
}

/// Every foreign key of the database, but those between a table and its own partitions' copies.
pub async fn all(connection: &mut PgConnection) -> Result<Vec<Reference>, DatabaseError> {
    type Row = (String, Oid, Oid, Vec<String>, Vec<String>, String, bool, bool);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT k.conname::text,
                coalesce(pg_catalog.pg_partition_root(k.conrelid), k.conrelid)::oid,
                coalesce(pg_catalog.pg_partition_root(k.confrelid), k.confrelid)::oid,
                ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS u (attnum, place)
                      JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum ORDER BY u.place),
                ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS u (attnum, place)
                      JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.attnum ORDER BY u.place),
                CASE k.confdeltype WHEN 'a' THEN 'NO ACTION' WHEN 'r' THEN 'RESTRICT' WHEN 'c' THEN 'CASCADE'
                                   WHEN 'n' THEN 'SET NULL' ELSE 'SET DEFAULT' END,
                k.confmatchtype = 's',
                EXISTS (SELECT FROM pg_catalog.pg_index i
                        WHERE i.indrelid = k.conrelid AND i.indisvalid AND i.indpred IS NULL
                          AND (i.indkey::int2[])[0:array_length(k.conkey, 1) - 1] @> k.conkey)
         FROM pg_catalog.pg_constraint k
         WHERE k.contype = 'f' AND k.conparentid = 0
         ORDER BY 2, 3, 1",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(
            |(name, child, parent, from, to, on_delete, match_simple, indexed)| Reference {
                name,
                child,
                parent,
                columns: from.into_iter().zip(to).collect(),
                on_delete,
                match_simple,
                indexed,
            },
        )
        .collect())
}

/// A relation by its identity; none when it was dropped meanwhile.
pub async fn relation_of(connection: &mut PgConnection, oid: Oid) -> Result<Option<Relation>, DatabaseError> {
    let sql = format!(
        "SELECT {RELATION} FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = $1"
    );
    let row: Option<RelationRow> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(oid)
        .fetch_optional(connection)
        .await?;
    Ok(row.and_then(relation))
}
