//! Partitions by range, by their bounds. Names say nothing here.

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::postgres::quote::qualified;
use crate::postgres::sqlstate::DatabaseError;

/// The types that a bound can be read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoundType {
    /// `timestamptz`
    Timestamptz,
    /// `timestamp`
    Timestamp,
    /// `date`
    Date,
}

impl BoundType {
    /// The type's name, for casts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Timestamptz => "timestamptz",
            Self::Timestamp => "timestamp",
            Self::Date => "date",
        }
    }
}

/// A partition of a table that is divided by ranges of one column.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Partition {
    /// The partition.
    pub oid: Oid,
    /// The table it is a partition of.
    pub parent: Oid,
    /// Its schema.
    pub schema: String,
    /// Its own name.
    pub name: String,
    /// The schema of the table it is a partition of.
    pub parent_schema: String,
    /// That table's own name.
    pub parent_name: String,
    /// `FOR VALUES …` or `DEFAULT`.
    pub bound: String,
    /// Where its values begin; nothing for `MINVALUE` and for the default partition.
    pub lower: Option<String>,
    /// Before which its values end; nothing for `MAXVALUE` and for the default partition.
    pub upper: Option<String>,
    /// Whether its values end before or at the limit that was asked about.
    pub expired: bool,
    /// What kind of relation it is, as the catalog writes it.
    pub kind: String,
    /// Whether the session's role owns it and the table above it.
    pub owned: bool,
    /// Live rows of it and of all below it, as of the last VACUUM or ANALYZE.
    pub rows: f64,
    /// The tables that hold its rows.
    pub leaves: Vec<Oid>,
}

impl Partition {
    /// `schema.partition`, for people and records.
    #[must_use]
    pub fn display(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Quoted, for statements.
    #[must_use]
    pub fn quoted(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// The table above it, quoted.
    #[must_use]
    pub fn quoted_parent(&self) -> String {
        qualified(&self.parent_schema, &self.parent_name)
    }

    /// Whether it is divided into partitions itself.
    #[must_use]
    pub fn is_divided(&self) -> bool {
        self.kind == "p"
    }

    /// Whether it is a table of another server.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.kind == "f"
    }

    /// How many rows it holds, as of the last VACUUM or ANALYZE.
    #[must_use]
    pub fn estimated_rows(&self) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an estimate of rows, which the catalog keeps as a float"
        )]
        let rows = self.rows.max(0.0) as u64;
        rows
    }

    /// Whether it takes what no other partition takes.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.bound == "DEFAULT"
    }
}

/// All partitions, at every level below a table, of tables that are divided by ranges of the column
/// alone; in the order of their ends, the default partition last. `limit` is a text of the column's
/// type; the session's zone must be UTC. Pending detaches are left out.
pub async fn of(
    connection: &mut PgConnection,
    root: Oid,
    column: &str,
    bound_type: BoundType,
    limit: &str,
) -> Result<Vec<Partition>, DatabaseError> {
    let kind = bound_type.name();
    // The server writes bounds as literals of the column's type; each is read back as one.
    let sql = format!(
        "WITH RECURSIVE tree AS (
             SELECT $1::oid AS oid
             UNION
             SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
             WHERE NOT i.inhdetachpending),
         ranged AS (
             SELECT t.oid FROM tree t
             JOIN pg_catalog.pg_partitioned_table k ON k.partrelid = t.oid
             JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.partattrs[0]
             JOIN pg_catalog.pg_opclass o ON o.oid = k.partclass[0]
             WHERE k.partstrat = 'r' AND k.partnatts = 1 AND a.attname = $2 AND o.opcdefault),
         bound AS (
             SELECT c.oid, i.inhparent AS parent, c.relkind, pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS text
             FROM ranged r JOIN pg_catalog.pg_inherits i ON i.inhparent = r.oid AND NOT i.inhdetachpending
             JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid),
         ends AS (
             SELECT b.*, regexp_match(b.text, '^FOR VALUES FROM \\((.+)\\) TO \\((.+)\\)$') AS ends FROM bound b),
         typed AS (
             SELECT e.*,
                    CASE WHEN e.ends[1] LIKE '''%' THEN btrim(e.ends[1], '''')::{kind} END AS lower,
                    CASE WHEN e.ends[2] LIKE '''%' THEN btrim(e.ends[2], '''')::{kind} END AS upper
             FROM ends e)
         SELECT t.oid, t.parent, n.nspname::text AS schema, c.relname::text AS name,
                pn.nspname::text AS parent_schema, p.relname::text AS parent_name, t.text AS bound,
                t.lower::text AS lower, t.upper::text AS upper,
                coalesce(t.upper <= $3::{kind}, false) AS expired,
                t.relkind::text AS kind,
                pg_catalog.pg_has_role(c.relowner, 'USAGE') AND pg_catalog.pg_has_role(p.relowner, 'USAGE') AS owned,
                (SELECT coalesce(sum(greatest(l.reltuples, 0)), 0)::float8
                 FROM pg_catalog.pg_partition_tree(t.oid) d JOIN pg_catalog.pg_class l ON l.oid = d.relid
                 WHERE d.isleaf) AS rows,
                ARRAY(SELECT d.relid::oid FROM pg_catalog.pg_partition_tree(t.oid) d WHERE d.isleaf) AS leaves
         FROM typed t
         JOIN pg_catalog.pg_class c ON c.oid = t.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_class p ON p.oid = t.parent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
         ORDER BY t.text = 'DEFAULT', t.upper NULLS LAST, t.lower NULLS FIRST, 3, 4"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(root)
        .bind(column)
        .bind(limit)
        .fetch_all(connection)
        .await?)
}

/// Whether a partition still is what it was when it was looked up, and is not the last one of its
/// table beside the default partition. To be asked while the parent is locked.
pub async fn is_unchanged(connection: &mut PgConnection, partition: &Partition) -> Result<(bool, bool), DatabaseError> {
    let row: Option<(bool, i64)> = sqlx::query_as(
        "SELECT n.nspname = $3 AND c.relname = $4 AND pn.nspname = $5 AND p.relname = $6 AND NOT i.inhdetachpending
                    AND pg_catalog.pg_get_expr(c.relpartbound, c.oid) = $7,
                (SELECT count(*) FROM pg_catalog.pg_inherits o JOIN pg_catalog.pg_class s ON s.oid = o.inhrelid
                 WHERE o.inhparent = $2 AND o.inhrelid <> $1 AND NOT o.inhdetachpending
                   AND pg_catalog.pg_get_expr(s.relpartbound, s.oid) <> 'DEFAULT')
         FROM pg_catalog.pg_inherits i
         JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
         WHERE i.inhrelid = $1 AND i.inhparent = $2",
    )
    .bind(partition.oid)
    .bind(partition.parent)
    .bind(&partition.schema)
    .bind(&partition.name)
    .bind(&partition.parent_schema)
    .bind(&partition.parent_name)
    .bind(&partition.bound)
    .fetch_optional(connection)
    .await?;
    Ok(row.map_or((false, false), |(same, others)| (same, others == 0)))
}

/// Which of some tables are published with their deletions, by the publications' names.
pub async fn publications(connection: &mut PgConnection, tables: &[Oid]) -> Result<Vec<String>, DatabaseError> {
    Ok(sqlx::query_scalar(
        "SELECT DISTINCT t.pubname::text
         FROM pg_catalog.pg_publication_tables t
         JOIN pg_catalog.pg_publication u ON u.pubname = t.pubname
         JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname
         JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
         WHERE c.oid = ANY($1) AND u.pubdelete ORDER BY 1",
    )
    .bind(tables)
    .fetch_all(connection)
    .await?)
}

/// By what a table is divided, and who may divide it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct RangeKey {
    /// The one column of its ranges.
    pub column: String,
    /// The table's owner.
    pub owner: String,
    /// Whether the session's role owns it, and may make tables beside it.
    pub owned: bool,
    /// Where it wants its partitions stored, if not in the default place.
    pub tablespace: Option<String>,
}

/// The key of a table that is divided by ranges of one column alone.
pub async fn range_key(connection: &mut PgConnection, table: Oid) -> Result<Option<RangeKey>, DatabaseError> {
    Ok(sqlx::query_as(
        "SELECT a.attname::text AS column, pg_catalog.pg_get_userbyid(c.relowner)::text AS owner,
                pg_catalog.pg_has_role(c.relowner, 'USAGE')
                    AND pg_catalog.has_schema_privilege(c.relnamespace, 'CREATE') AS owned,
                s.spcname::text AS tablespace
         FROM pg_catalog.pg_partitioned_table k
         JOIN pg_catalog.pg_class c ON c.oid = k.partrelid
         JOIN pg_catalog.pg_attribute a ON a.attrelid = k.partrelid AND a.attnum = k.partattrs[0]
         JOIN pg_catalog.pg_opclass o ON o.oid = k.partclass[0]
         LEFT JOIN pg_catalog.pg_tablespace s ON s.oid = c.reltablespace
         WHERE k.partrelid = $1 AND k.partstrat = 'r' AND k.partnatts = 1 AND o.opcdefault",
    )
    .bind(table)
    .fetch_optional(connection)
    .await?)
}
