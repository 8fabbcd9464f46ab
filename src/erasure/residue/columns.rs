//! Which columns can hold text, and whether we may read them.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;

/// A table, partition or materialised view with columns that can hold text.
#[derive(Debug, Clone)]
pub(super) struct Searchable {
    pub(super) oid: Oid,
    /// `schema.name`.
    pub(super) name: String,
    /// The partitioned table that it is part of, or itself.
    pub(super) root: Oid,
    /// The same, as `schema.name`.
    pub(super) root_name: String,
    quoted: String,
    is_foreign: bool,
    pub(super) columns: Vec<Column>,
}

/// A column that can hold text.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    may_read: bool,
}

impl Searchable {
    /// The columns that are read, in the order of [`Searchable::select`].
    pub(super) fn readable(&self) -> Vec<&Column> {
        let readable = self.columns.iter().filter(|column| column.may_read && !self.is_foreign);
        readable.collect()
    }

    /// What is not read, and why.
    pub(super) fn unreadable(&self) -> Vec<String> {
        if self.is_foreign {
            return vec![format!("{}: its rows lie on another server", self.name)];
        }
        let hidden = self.columns.iter().filter(|column| !column.may_read);
        hidden
            .map(|column| format!("{}.{}: the role may not read it", self.name, column.name))
            .collect()
    }

    /// The query of its texts.
    pub(super) fn select(&self) -> String {
        let columns: Vec<String> = self
            .readable()
            .iter()
            .map(|column| format!("{}::text", quote::identifier(&column.name)))
            .collect();
        format!("SELECT {} FROM ONLY {}", columns.join(", "), self.quoted)
    }
}

/// Types whose values are text or hold text: strings (also `citext` and `name`), documents, search
/// vectors, addresses and UUIDs; arrays and rows of anything; with `numbers` also those in which a
/// long number may be a key. Domains count as what they are made of.
const CATALOG: &str = "
    WITH RECURSIVE base (oid, base) AS (
        SELECT oid, oid FROM pg_catalog.pg_type WHERE typtype <> 'd'
        UNION ALL
        SELECT d.oid, b.base FROM pg_catalog.pg_type d JOIN base b ON d.typbasetype = b.oid WHERE d.typtype = 'd'
    )
    SELECT c.oid, n.nspname::text, c.relname::text, r.oid, rn.nspname::text, r.relname::text, c.relkind = 'f',
           pg_catalog.array_agg(a.attname::text ORDER BY a.attnum),
           pg_catalog.array_agg(pg_catalog.has_schema_privilege(n.oid, 'USAGE')
               AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT') ORDER BY a.attnum)
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_class r ON r.oid = coalesce(pg_catalog.pg_partition_root(c.oid), c.oid)
    JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN base b ON b.oid = a.atttypid
    JOIN pg_catalog.pg_type t ON t.oid = b.base
    LEFT JOIN base eb ON eb.oid = t.typelem AND t.typcategory = 'A'
    LEFT JOIN pg_catalog.pg_type e ON e.oid = eb.base
    WHERE c.relkind IN ('r', 'm', 'f') AND c.relpersistence <> 't'
      AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'pgreeve')
      AND (t.typcategory = 'S' OR t.typtype = 'c' OR e.typcategory = 'S' OR e.typtype = 'c'
           OR coalesce(e.typname, t.typname) IN ('json', 'jsonb', 'xml', 'tsvector', 'hstore', 'uuid', 'inet', 'cidr')
           OR ($1 AND coalesce(e.typname, t.typname) IN ('int8', 'numeric')))
    GROUP BY c.oid, n.nspname, c.relname, r.oid, rn.nspname, r.relname, c.relkind
    ORDER BY n.nspname, c.relname";

type CatalogRow = (Oid, String, String, Oid, String, String, bool, Vec<String>, Vec<bool>);

/// All of them in the database, whatever the plan says.
pub(super) async fn searchable(connection: &mut PgConnection, numbers: bool) -> Result<Vec<Searchable>, DatabaseError> {
    let rows: Vec<CatalogRow> = sqlx::query_as(CATALOG).bind(numbers).fetch_all(connection).await?;
    let tables = rows.into_iter().map(
        |(oid, schema, name, root, root_schema, root_name, is_foreign, columns, may_read)| Searchable {
            oid,
            quoted: quote::qualified(&schema, &name),
            name: format!("{schema}.{name}"),
            root,
            root_name: format!("{root_schema}.{root_name}"),
            is_foreign,
            columns: columns
                .into_iter()
                .zip(may_read)
                .map(|(name, may_read)| Column { name, may_read })
                .collect(),
        },
    );
    Ok(tables.collect())
}
