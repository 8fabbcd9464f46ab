//! Tables that are not what they seem: kept by an extension, or by another server.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use crate::postgres::sqlstate::DatabaseError;

/// The extension that keeps a table's rows elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// `TimescaleDB`: a hypertable, or a chunk of one.
    Timescale,
    /// Citus: a distributed or reference table.
    Citus,
}

/// A table, what it is a part of, and its parts.
const FAMILY: &str = "
    WITH RECURSIVE above AS (
        SELECT $1::oid AS oid UNION SELECT i.inhparent FROM above a JOIN pg_catalog.pg_inherits i ON i.inhrelid = a.oid),
    below AS (
        SELECT $1::oid AS oid UNION SELECT i.inhrelid FROM below b JOIN pg_catalog.pg_inherits i ON i.inhparent = b.oid),
    family AS (SELECT oid FROM above UNION SELECT oid FROM below)";

/// The extension that keeps a table, by the extension's own catalog.
pub async fn manager(connection: &mut PgConnection, table: Oid) -> Result<Option<Manager>, DatabaseError> {
    let installed = |extension: &str, catalog: &str| {
        format!(
            "EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = '{extension}')
             AND pg_catalog.to_regclass('{catalog}') IS NOT NULL"
        )
    };
    let (timescale, citus): (bool, bool) = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT {}, {}",
        installed("timescaledb", "_timescaledb_catalog.hypertable"),
        installed("citus", "pg_catalog.pg_dist_partition")
    )))
    .fetch_one(&mut *connection)
    .await?;
    let asked = [
        (
            timescale,
            Manager::Timescale,
            "SELECT EXISTS (SELECT FROM family JOIN pg_catalog.pg_class c USING (oid)
                            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                            JOIN _timescaledb_catalog.hypertable h
                                ON h.schema_name::text = n.nspname::text AND h.table_name::text = c.relname::text)",
        ),
        (
            citus,
            Manager::Citus,
            "SELECT EXISTS (SELECT FROM family JOIN pg_catalog.pg_dist_partition d ON d.logicalrelid::oid = family.oid)",
        ),
    ];
    for (_, manager, sql) in asked.into_iter().filter(|(installed, ..)| *installed) {
        let managed: bool = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("{FAMILY} {sql}")))
            .bind(table)
            .fetch_one(&mut *connection)
            .await?;
        if managed {
            return Ok(Some(manager));
        }
    }
    Ok(None)
}

/// Which of some foreign tables are `postgres_fdw`'s and take a DELETE, and an UPDATE.
pub async fn writable_foreign(
    connection: &mut PgConnection,
    tables: &[Oid],
) -> Result<Vec<(Oid, bool, bool)>, DatabaseError> {
    Ok(sqlx::query_as(
        "SELECT oid, events & 16 <> 0, events & 4 <> 0
         FROM (SELECT t.ftrelid AS oid,
                      CASE WHEN p.prosrc = 'postgres_fdw_handler'
                           THEN pg_catalog.pg_relation_is_updatable(t.ftrelid, false) ELSE 0 END AS events
               FROM pg_catalog.pg_foreign_table t
               JOIN pg_catalog.pg_foreign_server s ON s.oid = t.ftserver
               JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
               LEFT JOIN pg_catalog.pg_proc p ON p.oid = w.fdwhandler
               WHERE t.ftrelid = ANY($1)) AS found",
    )
    .bind(tables)
    .fetch_all(connection)
    .await?)
}
