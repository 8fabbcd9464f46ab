//! The tables, and what the server's statistics say of them.

use sqlx::postgres::types::Oid;
use sqlx::{FromRow, PgConnection};

use super::Upkeep;
use super::survey::reading;
use crate::job::JobError;
use crate::postgres::catalog::{self, RelationKind, ResolveError};
use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::TableName;

/// One table, and what is known of it.
#[derive(Debug, Clone, FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "the columns of a query")]
pub(super) struct Table {
    pub(super) oid: Oid,
    /// The root of its partitions; itself where it is none.
    pub(super) root: Oid,
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) owner: String,
    /// Whether it is only divided into partitions, and holds no rows.
    pub(super) divided: bool,
    pub(super) live: i64,
    pub(super) dead: i64,
    /// Rows that were added, changed or removed since its statistics were gathered.
    pub(super) changed: i64,
    /// Rows that were added since it was vacuumed.
    pub(super) added: i64,
    pub(super) vacuumed: bool,
    /// When its statistics were gathered, in seconds.
    pub(super) analyzed: Option<f64>,
    /// When autovacuum gathered them last, in seconds.
    pub(super) auto_analyzed: Option<f64>,
    /// How old its oldest row that is not frozen may be, as a part of what makes autovacuum freeze it.
    pub(super) freeze_age: f64,
    /// Whether it has any block, as far as is known: to ask for its size would wait for whoever has it locked.
    pub(super) stored: bool,
    pub(super) may_vacuum: bool,
    pub(super) may_reindex: bool,
    /// A superuser owns it.
    pub(super) owned_by_superuser: bool,
}

impl Table {
    pub(super) fn quoted(&self) -> String {
        quote::qualified(&self.schema, &self.name)
    }

    pub(super) fn display(&self) -> String {
        display(&self.schema, &self.name)
    }
}

pub(super) fn display(schema: &str, name: &str) -> String {
    TableName {
        schema: Some(schema.to_owned()),
        name: name.to_owned(),
    }
    .to_string()
}

/// The first server where a privilege stands for ownership.
pub(super) const MAINTAIN_SINCE: i32 = 170_000;

/// Refuses a server that counts nothing: nothing would ever seem to be needed.
pub(super) async fn check_counting(connection: &mut PgConnection) -> Result<(), JobError> {
    let counts: bool = sqlx::query_scalar("SELECT current_setting('track_counts')::bool")
        .fetch_one(connection)
        .await
        .map_err(|error| reading(error.into()))?;
    if counts {
        return Ok(());
    }
    Err(JobError::refused(
        "check the server's statistics",
        "track_counts is off, so that the server does not count dead and changed rows, and autovacuum never runs",
        "set track_counts = on in postgresql.conf, and reload",
    ))
}

/// All tables of the job, with their partitions and heirs, in the order of their names. What belongs to an
/// extension is not meant by "all".
pub(super) async fn survey(connection: &mut PgConnection, upkeep: &Upkeep) -> Result<Vec<Table>, JobError> {
    let mut roots = Vec::new();
    for name in &upkeep.tables {
        roots.push(find(connection, name).await?);
    }
    all(connection, &roots).await.map_err(reading)
}

/// The tables below some roots, or all where there are none.
pub(super) async fn all(connection: &mut PgConnection, roots: &[Oid]) -> Result<Vec<Table>, DatabaseError> {
    let version: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::int4")
        .fetch_one(&mut *connection)
        .await?;
    let maintains = if version >= MAINTAIN_SINCE {
        "has_table_privilege(c.oid, 'MAINTAIN')"
    } else {
        "false"
    };
    let sql = format!(
        "WITH RECURSIVE tree AS (
             SELECT c.oid FROM pg_catalog.pg_class c
             WHERE c.oid = ANY($2)
                OR $1 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                                      WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
             UNION
             SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid),
         right_of AS (SELECT pg_has_role(d.datdba, 'USAGE') AS database
                      FROM pg_catalog.pg_database d WHERE d.datname = current_database())
         SELECT c.oid, coalesce(pg_partition_root(c.oid)::oid, c.oid) AS root,
                n.nspname::text AS schema, c.relname::text AS name, o.rolname::text AS owner,
                c.relkind = 'p' AS divided,
                coalesce(s.n_live_tup, 0) AS live, coalesce(s.n_dead_tup, 0) AS dead,
                coalesce(s.n_mod_since_analyze, 0) AS changed, coalesce(s.n_ins_since_vacuum, 0) AS added,
                greatest(s.last_vacuum, s.last_autovacuum) IS NOT NULL AS vacuumed,
                extract(epoch FROM greatest(s.last_analyze, s.last_autoanalyze))::float8 AS analyzed,
                extract(epoch FROM s.last_autoanalyze)::float8 AS auto_analyzed,
                CASE WHEN c.relfrozenxid = '0' THEN 0
                     ELSE age(c.relfrozenxid) / current_setting('autovacuum_freeze_max_age')::float8 END AS freeze_age,
                c.relkind = 'p' OR c.relpages > 0 OR s.n_live_tup > 0 OR s.n_dead_tup > 0 AS stored,
                pg_has_role(c.relowner, 'USAGE') OR r.database OR {maintains} AS may_vacuum,
                pg_has_role(c.relowner, 'USAGE') OR {maintains} AS may_reindex,
                o.rolsuper AS owned_by_superuser
         FROM tree JOIN pg_catalog.pg_class c USING (oid)
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_roles o ON o.oid = c.relowner
         CROSS JOIN right_of r
         LEFT JOIN pg_catalog.pg_stat_all_tables s ON s.relid = c.oid
         WHERE c.relkind IN ('r', 'm', 'p') AND c.relpersistence <> 't'
           AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
         ORDER BY 3, 4"
    );
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(roots.is_empty())
        .bind(roots)
        .fetch_all(connection)
        .await?)
}

async fn find(connection: &mut PgConnection, name: &TableName) -> Result<Oid, JobError> {
    let refuse =
        |cause: String, remedy: &str| Err(JobError::refused(format!("check {name}"), cause, remedy).about("tables"));
    match catalog::resolve(connection, name).await {
        Ok(relation) => match relation.kind {
            RelationKind::Table | RelationKind::Partitioned | RelationKind::MaterializedView => Ok(relation.oid),
            kind => refuse(format!("it is a {}", kind.as_str()), "name a table that is stored here"),
        },
        Err(ResolveError::Database(error)) => Err(reading(error)),
        Err(error @ ResolveError::Ambiguous(_)) => refuse(error.to_string(), "write the table with its schema"),
        Err(ResolveError::Missing { near }) => refuse(
            "there is no table of this name".to_owned(),
            &match near.as_slice() {
                [] => "write the name as the catalog has it, letter case included".to_owned(),
                near => format!("did you mean {}?", near.join(" or ")),
            },
        ),
    }
}
