//! The indexes of some size, and how much of each is bloat.

use std::collections::HashMap;

use sqlx::postgres::types::Oid;
use sqlx::{FromRow, PgConnection};

use super::estimate::fresh_bytes;
use super::tables::{Table, display};
use crate::ledger::index_sizes::{self, IndexSize};
use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;

/// A valid index.
#[derive(Debug, Clone)]
pub(super) struct Index {
    pub(super) oid: Oid,
    pub(super) table: Oid,
    /// The root of the table's partitions.
    pub(super) root: Oid,
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) bytes: i64,
    /// Its entries, where they are known well enough; the table's statistics must be fresh for that.
    pub(super) rows: Option<f64>,
    /// What it would take if it were fresh, where that is known.
    pub(super) fresh: Option<f64>,
    /// It keeps rows from excluding each other, so that it cannot be rebuilt beside writers.
    pub(super) excludes: bool,
}

impl Index {
    pub(super) fn quoted(&self) -> String {
        quote::qualified(&self.schema, &self.name)
    }

    pub(super) fn display(&self) -> String {
        display(&self.schema, &self.name)
    }

    /// Which part of it is bloat: 0 to 1.
    pub(super) fn bloat(&self) -> Option<f64> {
        let fresh = self.fresh?;
        (self.bytes > 0).then(|| (1.0 - fresh / float(self.bytes)).clamp(0.0, 1.0))
    }
}

/// What the size of an index depends on.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) attributes: Vec<Attribute>,
    /// Whether rows of equal keys are one entry.
    pub(super) joins_equal_keys: bool,
    /// How far its pages are filled at first: 0.1 to 1.
    pub(super) fill: f64,
}

#[derive(Debug, Clone)]
pub(super) struct Attribute {
    pub(super) statistics: Option<Statistics>,
    /// `typalign` of the catalog: `c`, `s`, `i` or `d`.
    pub(super) alignment: char,
    /// Whether its values differ in length.
    pub(super) varies: bool,
}

/// As in `pg_stats`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statistics {
    pub(super) width: f64,
    pub(super) nulls: f64,
    pub(super) distinct: f64,
}

#[derive(FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "the columns of a query")]
struct Row {
    oid: Oid,
    table_oid: Oid,
    schema: String,
    name: String,
    bytes: i64,
    rows: f64,
    is_btree: bool,
    excludes: bool,
    partial: bool,
    fill: f64,
    joins_equal_keys: bool,
    /// For each attribute whose statistics it has: the table's, or for an expression the index's own.
    relations: Vec<String>,
    columns: Vec<String>,
    alignments: Vec<String>,
    varying: Vec<bool>,
}

/// Sizes are those of the last ANALYZE, as the entries are: to ask for others would wait for whoever has
/// the index locked.
///
/// A btree joins rows of equal keys unless it is told not to, is unique, has columns beside its keys, or
/// equal keys may look different (`equalimage`, its fourth support function, says that they do not).
const INDEXES: &str = "
    SELECT i.indexrelid AS oid, i.indrelid AS table_oid, n.nspname::text AS schema, x.relname::text AS name,
           x.relpages * current_setting('block_size')::int8 AS bytes, x.reltuples::float8 AS rows,
           m.amname = 'btree' AS is_btree, i.indisexclusion AS excludes, i.indpred IS NOT NULL AS partial,
           coalesce((SELECT option_value::float8 FROM pg_options_to_table(x.reloptions)
                     WHERE option_name = 'fillfactor'), 90) / 100 AS fill,
           NOT i.indisunique AND i.indnatts = i.indnkeyatts
               AND NOT EXISTS (SELECT FROM pg_options_to_table(x.reloptions)
                               WHERE option_name = 'deduplicate_items' AND NOT option_value::bool)
               AND NOT EXISTS (
                   SELECT FROM unnest(i.indclass::oid[]) AS k (class) JOIN pg_catalog.pg_opclass o ON o.oid = k.class
                   WHERE NOT EXISTS (
                       SELECT FROM pg_catalog.pg_amproc p
                       WHERE p.amprocfamily = o.opcfamily AND p.amproclefttype = o.opcintype
                         AND p.amprocrighttype = o.opcintype AND p.amprocnum = 4)) AS joins_equal_keys,
           a.relations, a.columns, a.alignments, a.varying
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
    JOIN pg_catalog.pg_am m ON m.oid = x.relam
    JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
    JOIN pg_catalog.pg_class t ON t.oid = i.indrelid
    CROSS JOIN LATERAL (
        SELECT array_agg(CASE WHEN c.attname IS NULL THEN x.relname ELSE t.relname END::text ORDER BY a.attnum) AS relations,
               array_agg(coalesce(c.attname, a.attname)::text ORDER BY a.attnum) AS columns,
               array_agg(a.attalign::text ORDER BY a.attnum) AS alignments,
               array_agg(a.attlen < 0 ORDER BY a.attnum) AS varying
        FROM pg_catalog.pg_attribute a
        LEFT JOIN pg_catalog.pg_attribute c ON c.attrelid = i.indrelid AND c.attnum = i.indkey[a.attnum - 1] AND c.attnum > 0
        WHERE a.attrelid = x.oid AND a.attnum > 0) AS a
    WHERE i.indrelid = ANY($1) AND x.relkind = 'i' AND i.indisvalid AND i.indisready AND i.indislive
      AND x.relpages * current_setting('block_size')::int8 >= $2
    ORDER BY 3, 4";

/// The indexes of some tables that are not smaller than this, with what is known of a fresh one.
pub(super) async fn survey(
    connection: &mut PgConnection,
    tables: &[Table],
    smallest: u64,
) -> Result<Vec<Index>, DatabaseError> {
    let oids: Vec<Oid> = tables.iter().map(|table| table.oid).collect();
    let rows: Vec<Row> = sqlx::query_as(INDEXES)
        .bind(&oids)
        .bind(i64::try_from(smallest).unwrap_or(i64::MAX))
        .fetch_all(&mut *connection)
        .await?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let block: i32 = sqlx::query_scalar("SELECT current_setting('block_size')::int4")
        .fetch_one(&mut *connection)
        .await?;
    let statistics = statistics(connection, &rows).await?;
    let known = index_sizes::all(connection).await?;
    let known: HashMap<(&str, &str), &IndexSize> = known
        .iter()
        .map(|size| ((size.schema.as_str(), size.name.as_str()), size))
        .collect();
    let tables: HashMap<Oid, &Table> = tables.iter().map(|table| (table.oid, table)).collect();
    let judged = rows.iter().filter_map(|row| {
        let table = tables.get(&row.table_oid)?;
        let entries = entries(row, table);
        let known = known.get(&(row.schema.as_str(), row.name.as_str())).copied();
        let shape = row.is_btree.then(|| shape(row, &statistics));
        let estimate = entries.and_then(|entries| fresh_bytes(shape.as_ref()?, entries, f64::from(block)));
        Some(Index {
            oid: row.oid,
            table: row.table_oid,
            root: table.root,
            schema: row.schema.clone(),
            name: row.name.clone(),
            bytes: row.bytes,
            rows: entries,
            fresh: entries.and_then(|entries| fresh(entries, estimate, known)),
            excludes: row.excludes,
        })
    });
    Ok(judged.collect())
}

/// The entries of an index. They are counted with the table's statistics, so those must be fresh.
fn entries(row: &Row, table: &Table) -> Option<f64> {
    let is_recent = table.analyzed.is_some() && float(table.changed) <= 0.2 * float(table.live) + 50.0;
    if !is_recent || row.rows < 0.0 {
        return None;
    }
    match (row.is_btree, row.partial) {
        // Of an index that holds every row the higher number is the safe one.
        (true, false) => Some(row.rows.max(float(table.live))),
        (true, true) => Some(row.rows),
        // Others may count keys after they are built, and rows after an ANALYZE.
        (false, false) => Some(float(table.live)),
        (false, true) => None,
    }
}

/// What an index would take if it were fresh. What it took after a rebuild is known best; before the first
/// one the least of what is estimated and what was seen.
fn fresh(entries: f64, estimate: Option<f64>, known: Option<&IndexSize>) -> Option<f64> {
    let seen = known.map(|size| float(size.bytes) / size.rows * entries);
    match (estimate, seen) {
        (_, Some(seen)) if known.is_some_and(|size| size.rebuilt) => Some(seen),
        (Some(estimate), Some(seen)) => Some(estimate.min(seen)),
        (estimate, seen) => estimate.or(seen),
    }
}

fn shape(row: &Row, statistics: &HashMap<[String; 3], Statistics>) -> Shape {
    let columns = row.relations.iter().zip(&row.columns);
    let kinds = row.alignments.iter().zip(&row.varying);
    Shape {
        attributes: columns
            .zip(kinds)
            .map(|((relation, column), (alignment, varies))| Attribute {
                statistics: statistics
                    .get(&[row.schema.clone(), relation.clone(), column.clone()])
                    .copied(),
                alignment: alignment.chars().next().unwrap_or('d'),
                varies: *varies,
            })
            .collect(),
        joins_equal_keys: row.joins_equal_keys,
        fill: row.fill,
    }
}

/// The statistics of all columns, by schema, relation and column. An index lies in its table's schema.
async fn statistics(
    connection: &mut PgConnection,
    rows: &[Row],
) -> Result<HashMap<[String; 3], Statistics>, DatabaseError> {
    let relations: Vec<&String> = rows.iter().flat_map(|row| &row.relations).collect();
    let schemas: Vec<&String> = rows.iter().map(|row| &row.schema).collect();
    let found: Vec<(String, String, String, i32, f32, f32)> = sqlx::query_as(
        "SELECT schemaname::text, tablename::text, attname::text, avg_width, null_frac, n_distinct
         FROM pg_catalog.pg_stats WHERE NOT inherited AND schemaname = ANY($1) AND tablename = ANY($2)",
    )
    .bind(schemas)
    .bind(relations)
    .fetch_all(connection)
    .await?;
    Ok(found
        .into_iter()
        .map(|(schema, relation, column, width, nulls, distinct)| {
            let statistics = Statistics {
                width: f64::from(width),
                nulls: f64::from(nulls),
                distinct: f64::from(distinct),
            };
            ([schema, relation, column], statistics)
        })
        .collect())
}

/// How many of the unjudged are named.
const NAMED: usize = 5;

/// Says of which indexes it is not known how many entries they have.
pub(super) fn unjudged(indexes: &[Index]) -> Option<String> {
    let mut names: Vec<String> = indexes
        .iter()
        .filter(|index| index.rows.is_none())
        .map(Index::display)
        .collect();
    if names.len() > NAMED {
        let more = names.split_off(NAMED).len();
        names.push(format!("{more} more"));
    }
    (!names.is_empty()).then(|| {
        format!(
            "{}: the statistics of the table are too old to tell how much of it is bloat; the run after the next ANALYZE will",
            names.join(", ")
        )
    })
}

/// The sizes as they are now, to be remembered.
pub(super) fn seen(indexes: &[Index]) -> Vec<IndexSize> {
    let sizes = indexes.iter().filter_map(|index| {
        let rows = index.rows.filter(|rows| *rows > 0.0)?;
        (index.bytes > 0).then(|| IndexSize {
            schema: index.schema.clone(),
            name: index.name.clone(),
            rows,
            bytes: index.bytes,
            rebuilt: false,
        })
    });
    sizes.collect()
}

#[expect(clippy::cast_precision_loss, reason = "sizes and numbers of rows, for a comparison")]
pub(super) fn float(number: i64) -> f64 {
    number as f64
}
