//! Columns and their types.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use crate::postgres::sqlstate::DatabaseError;

/// A column as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type as a cast needs it, qualified, without a length: `character varying`; `bpchar` for
    /// `character(8)`, since `character` alone is of length 1.
    pub type_name: String,
    /// Its type with length or precision: `character varying(20)`.
    pub full_type: String,
    /// The type under all domains: `timestamp with time zone`.
    pub base_type: String,
    /// Whether it takes no null.
    pub not_null: bool,
    /// The labels of its enum in their order; empty for any other type.
    pub enum_labels: Vec<String>,
    /// Whether only the server may set it: generated, or an identity `ALWAYS`.
    pub generated: bool,
    /// Whether its value follows from other columns, so that it need not be kept.
    pub computed: bool,
}

/// The columns of a relation in their order. Type names are qualified as far as the session's
/// `search_path` makes it necessary: that must be `pg_catalog`.
pub async fn of(connection: &mut PgConnection, relation: Oid) -> Result<Vec<Column>, DatabaseError> {
    type Row = (String, String, String, String, bool, Vec<String>, bool, bool);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT a.attname::text,
                pg_catalog.format_type(a.atttypid, -1),
                pg_catalog.format_type(a.atttypid, a.atttypmod),
                pg_catalog.format_type(base.oid, NULL),
                a.attnotnull,
                ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e
                      WHERE e.enumtypid = base.oid ORDER BY e.enumsortorder),
                a.attgenerated <> '' OR a.attidentity = 'a',
                a.attgenerated <> ''
         FROM pg_catalog.pg_attribute a,
              LATERAL (WITH RECURSIVE chain AS (
                           SELECT t.oid, t.typtype, t.typbasetype FROM pg_catalog.pg_type t WHERE t.oid = a.atttypid
                           UNION ALL
                           SELECT t.oid, t.typtype, t.typbasetype
                           FROM chain c JOIN pg_catalog.pg_type t ON t.oid = c.typbasetype WHERE c.typtype = 'd')
                       SELECT oid FROM chain WHERE typtype <> 'd') base
         WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
         ORDER BY a.attnum",
    )
    .bind(relation)
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(
            |(name, type_name, full_type, base_type, not_null, enum_labels, generated, computed)| Column {
                name,
                type_name,
                full_type,
                base_type,
                not_null,
                enum_labels,
                generated,
                computed,
            },
        )
        .collect())
}
