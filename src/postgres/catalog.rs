//! Reads of the system catalog, by OID. Names come from here and nowhere else; a name in the
//! configuration is only ever looked up.

pub mod access;
pub mod columns;
pub mod effects;
pub mod keys;
pub mod leaves;
pub mod managed;
mod nearest;
pub mod partitions;
pub mod references;

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

pub use nearest::nearest;

use super::quote;
use super::sqlstate::DatabaseError;
use crate::values::TableName;

/// How many near names a message offers.
const SUGGESTIONS: usize = 3;

/// What kind of relation a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelationKind {
    /// An ordinary table.
    Table,
    /// A table divided into partitions; it holds no rows itself.
    Partitioned,
    /// A view.
    View,
    /// A materialised view.
    MaterializedView,
    /// A table of another server.
    Foreign,
}

impl RelationKind {
    fn from_catalog(letter: &str) -> Option<Self> {
        Some(match letter {
            "r" => Self::Table,
            "p" => Self::Partitioned,
            "v" => Self::View,
            "m" => Self::MaterializedView,
            "f" => Self::Foreign,
            _ => return None,
        })
    }

    /// The kind in words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Partitioned => "partitioned table",
            Self::View => "view",
            Self::MaterializedView => "materialized view",
            Self::Foreign => "foreign table",
        }
    }
}

/// A relation as the catalog has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Relation {
    /// Its identity, whatever it is called later.
    pub oid: Oid,
    /// Its schema.
    pub schema: String,
    /// Its own name.
    pub name: String,
    /// What it is.
    pub kind: RelationKind,
    /// The role that owns it.
    pub owner: String,
    /// Whether it is written to the WAL and survives a crash.
    pub permanent: bool,
    /// Live rows as of the last VACUUM or ANALYZE; negative when there was none.
    pub rows: f32,
    /// Blocks as of then.
    pub pages: i32,
}

impl Relation {
    /// `"schema"."name"`, for statements.
    #[must_use]
    pub fn quoted(&self) -> String {
        quote::qualified(&self.schema, &self.name)
    }

    /// `schema.name` as the catalog's own texts put together, for comparisons in SQL.
    #[must_use]
    pub fn plain(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// `schema.name`, for people and records.
    #[must_use]
    pub fn display(&self) -> String {
        TableName {
            schema: Some(self.schema.clone()),
            name: self.name.clone(),
        }
        .to_string()
    }
}

/// Why a name stands for no single relation.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// There is none; these are called nearly so.
    #[error("there is no table of this name")]
    Missing {
        /// Near names, nearest first, qualified.
        near: Vec<String>,
    },
    /// Several schemas have one.
    #[error("several schemas have a table of this name: {}", .0.join(", "))]
    Ambiguous(Vec<String>),
    /// The catalog could not be read.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<sqlx::Error> for ResolveError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

/// One row of [`RELATION`].
type RelationRow = (Oid, String, String, String, String, bool, f32, i32);

/// The columns of [`RelationRow`], of `pg_class c` and `pg_namespace n`.
const RELATION: &str = "c.oid, n.nspname::text, c.relname::text, c.relkind::text, pg_get_userbyid(c.relowner)::text, \
                        c.relpersistence = 'p', c.reltuples, c.relpages";

fn relation(row: RelationRow) -> Option<Relation> {
    let (oid, schema, name, kind, owner, permanent, rows, pages) = row;
    Some(Relation {
        oid,
        schema,
        name,
        kind: RelationKind::from_catalog(&kind)?,
        owner,
        permanent,
        rows,
        pages,
    })
}

/// Finds the relation that a configured name stands for. Without a schema that is the one in
/// `public`, else the only one of this name outside the system's schemas.
pub async fn resolve(connection: &mut PgConnection, table: &TableName) -> Result<Relation, ResolveError> {
    let sql = format!(
        "SELECT {RELATION}
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relname = $1 AND ($2::text IS NULL OR n.nspname = $2) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
           AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
         ORDER BY n.nspname"
    );
    let rows: Vec<RelationRow> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(&table.name)
        .bind(&table.schema)
        .fetch_all(&mut *connection)
        .await?;
    let mut found: Vec<Relation> = rows.into_iter().filter_map(relation).collect();
    if let Some(public) = found.iter().position(|relation| relation.schema == "public") {
        return Ok(found.swap_remove(public));
    }
    match (found.pop(), found.is_empty()) {
        (None, _) => Err(ResolveError::Missing {
            near: near(connection, table).await?,
        }),
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            found.push(last);
            Err(ResolveError::Ambiguous(found.iter().map(Relation::display).collect()))
        }
    }
}

/// Tables whose name is like the wanted one, or that have the same name elsewhere.
async fn near(connection: &mut PgConnection, table: &TableName) -> Result<Vec<String>, sqlx::Error> {
    let all: Vec<(String, String)> = sqlx::query_as(
        "SELECT n.nspname::text, c.relname::text
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgreeve')
         ORDER BY (n.nspname = 'public') DESC, 1, 2 LIMIT 20000",
    )
    .fetch_all(connection)
    .await?;
    let names = all.iter().map(|(_, name)| name.as_str());
    let near_names = nearest(&table.name, names, SUGGESTIONS);
    let qualified = all.iter().filter(|(_, name)| near_names.contains(&name.as_str()));
    let mut tables: Vec<(&String, String)> = qualified
        .map(|(schema, name)| {
            let full = TableName {
                schema: Some(schema.clone()),
                name: name.clone(),
            };
            (name, full.to_string())
        })
        .collect();
    tables.sort_by_key(|(name, _)| near_names.iter().position(|near| near == name));
    tables.truncate(SUGGESTIONS);
    Ok(tables.into_iter().map(|(_, full)| full).collect())
}
