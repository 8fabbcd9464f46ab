//! What a DELETE or UPDATE does beyond its own rows: foreign keys, triggers, rules, replication.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;

/// What is done to rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// They are deleted.
    Delete,
    /// They are changed.
    Update,
}

/// A foreign key of another table that points at the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingKey {
    /// The table that holds it.
    pub oid: Oid,
    /// Whether that is one of the tables it points at.
    pub own: bool,
    /// The constraint's name.
    pub constraint: String,
    /// `schema.table` that holds it.
    pub table: String,
    /// The same, quoted for statements.
    pub quoted: String,
    /// Its columns there, and the columns they point at.
    pub columns: Vec<(String, String)>,
    /// `NO ACTION`, `RESTRICT`, `CASCADE`, `SET NULL` or `SET DEFAULT`.
    pub on_delete: String,
    /// Whether an index finds the referencing rows; without one each deleted row reads the table.
    pub indexed: bool,
    /// Whether the session's role may read the referencing table.
    pub readable: bool,
}

/// The foreign keys that point at any of some tables.
pub async fn incoming_keys(connection: &mut PgConnection, tables: &[Oid]) -> Result<Vec<IncomingKey>, DatabaseError> {
    type Row = (
        Oid,
        bool,
        String,
        String,
        String,
        Vec<String>,
        Vec<String>,
        String,
        bool,
        bool,
    );
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT c.oid, c.oid = ANY($1), k.conname::text, n.nspname::text, c.relname::text,
                ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS u (attnum, place)
                      JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum ORDER BY u.place),
                ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS u (attnum, place)
                      JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.attnum ORDER BY u.place),
                CASE k.confdeltype WHEN 'a' THEN 'NO ACTION' WHEN 'r' THEN 'RESTRICT' WHEN 'c' THEN 'CASCADE'
                                   WHEN 'n' THEN 'SET NULL' ELSE 'SET DEFAULT' END,
                EXISTS (SELECT FROM pg_catalog.pg_index i
                        WHERE i.indrelid = k.conrelid AND i.indisvalid AND i.indpred IS NULL
                          AND (i.indkey::int2[])[0:array_length(k.conkey, 1) - 1] @> k.conkey),
                pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
         FROM pg_catalog.pg_constraint k
         JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE k.contype = 'f' AND k.confrelid = ANY($1)
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint p WHERE p.oid = k.conparentid AND p.confrelid = ANY($1))
         ORDER BY n.nspname, c.relname, k.conname",
    )
    .bind(tables)
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(
            |(oid, own, constraint, schema, table, from, to, on_delete, indexed, readable)| IncomingKey {
                oid,
                own,
                constraint,
                quoted: quote::qualified(&schema, &table),
                table: format!("{schema}.{table}"),
                columns: from.into_iter().zip(to).collect(),
                on_delete,
                indexed,
                readable,
            },
        )
        .collect())
}

/// Every table whose rows are deleted or changed along with rows of a table and its parts, by
/// foreign keys that cascade or set their columns, at any distance; not the table and its parts.
pub async fn carried_along(connection: &mut PgConnection, table: Oid) -> Result<Vec<Oid>, DatabaseError> {
    Ok(sqlx::query_scalar(
        "WITH RECURSIVE own AS (
             SELECT $1::oid AS oid
             UNION SELECT i.inhrelid FROM own o JOIN pg_catalog.pg_inherits i ON i.inhparent = o.oid),
         reached AS (
             SELECT oid FROM own
             UNION
             SELECT next.oid FROM reached r, LATERAL (
                 SELECT k.conrelid FROM pg_catalog.pg_constraint k
                 WHERE k.contype = 'f' AND k.confrelid = r.oid AND k.confdeltype IN ('c', 'n', 'd')
                 UNION ALL SELECT i.inhrelid FROM pg_catalog.pg_inherits i WHERE i.inhparent = r.oid
                 UNION ALL SELECT i.inhparent FROM pg_catalog.pg_inherits i
                           WHERE i.inhrelid = r.oid AND r.oid NOT IN (SELECT oid FROM own)
             ) AS next (oid))
         SELECT oid FROM reached WHERE oid NOT IN (SELECT oid FROM own)",
    )
    .bind(table)
    .fetch_all(connection)
    .await?)
}

/// The enabled triggers of applications that an event fires, as `schema.table.trigger`.
pub async fn triggers(
    connection: &mut PgConnection,
    tables: &[Oid],
    event: Event,
) -> Result<Vec<String>, DatabaseError> {
    let bit: i32 = match event {
        Event::Delete => 8,
        Event::Update => 16,
    };
    Ok(sqlx::query_scalar(
        "SELECT n.nspname || '.' || c.relname || '.' || t.tgname
         FROM pg_catalog.pg_trigger t
         JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE t.tgrelid = ANY($1) AND NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgenabled IN ('O', 'A')
           AND t.tgtype::int4 & $2 <> 0
         ORDER BY 1",
    )
    .bind(tables)
    .bind(bit)
    .fetch_all(connection)
    .await?)
}

/// The rules that rewrite an event into something else, as `schema.table.rule`.
pub async fn rules(connection: &mut PgConnection, tables: &[Oid], event: Event) -> Result<Vec<String>, DatabaseError> {
    let letter = match event {
        Event::Delete => "4",
        Event::Update => "2",
    };
    Ok(sqlx::query_scalar(
        "SELECT n.nspname || '.' || c.relname || '.' || r.rulename
         FROM pg_catalog.pg_rewrite r
         JOIN pg_catalog.pg_class c ON c.oid = r.ev_class JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE r.ev_class = ANY($1) AND r.ev_type::text = $2 AND r.ev_enabled IN ('O', 'A')
         ORDER BY 1",
    )
    .bind(tables)
    .bind(letter)
    .fetch_all(connection)
    .await?)
}

/// The tables that are published for an event without a replica identity: PostgreSQL refuses the
/// event on them. As `schema.table`.
pub async fn without_replica_identity(
    connection: &mut PgConnection,
    tables: &[Oid],
    event: Event,
) -> Result<Vec<String>, DatabaseError> {
    Ok(sqlx::query_scalar(
        "SELECT n.nspname || '.' || c.relname
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = ANY($1) AND c.relkind = 'r' AND c.relpersistence = 'p' AND c.relreplident <> 'f'
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i
                           WHERE i.indrelid = c.oid AND i.indisvalid
                             AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END)
           AND EXISTS (SELECT FROM pg_catalog.pg_publication_tables t
                       JOIN pg_catalog.pg_publication p ON p.pubname = t.pubname
                       JOIN pg_catalog.pg_namespace tn ON tn.nspname = t.schemaname
                       JOIN pg_catalog.pg_class tc ON tc.relnamespace = tn.oid AND tc.relname = t.tablename
                       WHERE CASE WHEN $2 THEN p.pubdelete ELSE p.pubupdate END
                         AND (tc.oid = c.oid OR tc.oid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors(c.oid))))
         ORDER BY 1",
    )
    .bind(tables)
    .bind(event == Event::Delete)
    .fetch_all(connection)
    .await?)
}

/// Which of some columns decide in what partition a row of a table is, at any level above or below.
pub async fn partition_keys(
    connection: &mut PgConnection,
    root: Oid,
    columns: &[String],
) -> Result<Vec<String>, DatabaseError> {
    Ok(sqlx::query_scalar(
        "WITH RECURSIVE tree AS (
             SELECT $1::oid AS oid
             UNION
             SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid)
         SELECT DISTINCT a.attname::text
         FROM (SELECT oid FROM tree UNION SELECT relid::oid FROM pg_catalog.pg_partition_ancestors($1)) AS t
         JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = t.oid
         JOIN pg_catalog.pg_attribute a ON a.attrelid = p.partrelid
         WHERE a.attname = ANY($2)
           AND (a.attnum = ANY(p.partattrs::int2[])
                OR position(quote_ident(a.attname) IN coalesce(pg_catalog.pg_get_expr(p.partexprs, p.partrelid), '')) > 0)
         ORDER BY 1",
    )
    .bind(root)
    .bind(columns)
    .fetch_all(connection)
    .await?)
}
