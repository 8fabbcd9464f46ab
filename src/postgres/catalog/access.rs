//! What the session's role may do, and which rows it would not see.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use crate::postgres::sqlstate::DatabaseError;

/// What a role needs on a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// Read and delete rows.
    Delete,
    /// Read rows and change these columns.
    Update(Vec<String>),
}

/// What the session's role may do on one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The table.
    pub table: Oid,
    /// Whether row security would hide rows from the role, so that "nothing left" would mean
    /// nothing.
    pub rows_hidden: bool,
    /// The privileges that are missing: `USAGE`, `SELECT`, `DELETE`, `UPDATE`.
    pub missing: Vec<String>,
    /// Whether the role may lock rows one by one (`FOR UPDATE` needs `UPDATE` on some column).
    pub may_lock: bool,
}

/// The session's role.
pub async fn current_role(connection: &mut PgConnection) -> Result<String, DatabaseError> {
    Ok(sqlx::query_scalar("SELECT current_user::text")
        .fetch_one(connection)
        .await?)
}

/// Who owns a partitioned table and its partitions, and whether the session's role acts for them; nobody
/// for a table that is not divided.
pub async fn owners(connection: &mut PgConnection, table: Oid) -> Result<Vec<(String, bool)>, DatabaseError> {
    Ok(sqlx::query_as(
        "SELECT DISTINCT pg_catalog.pg_get_userbyid(c.relowner)::text, pg_catalog.pg_has_role(c.relowner, 'USAGE')
         FROM pg_catalog.pg_partition_tree($1) t JOIN pg_catalog.pg_class c ON c.oid = t.relid ORDER BY 1",
    )
    .bind(table)
    .fetch_all(connection)
    .await?)
}

/// Whether any of some tables has row security, whoever it filters.
pub async fn with_row_security(connection: &mut PgConnection, tables: &[Oid]) -> Result<bool, DatabaseError> {
    Ok(
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = ANY($1) AND relrowsecurity)")
            .bind(tables)
            .fetch_one(connection)
            .await?,
    )
}

/// What the session's role may do on each of some tables.
pub async fn of(connection: &mut PgConnection, tables: &[Oid], need: &Need) -> Result<Vec<Access>, DatabaseError> {
    let (delete, columns) = match need {
        Need::Delete => (true, &[][..]),
        Need::Update(columns) => (false, columns.as_slice()),
    };
    let rows: Vec<(Oid, bool, Vec<String>, bool)> = sqlx::query_as(
        "SELECT c.oid,
                pg_catalog.row_security_active(c.oid),
                ARRAY(SELECT p.word FROM (VALUES
                    ('USAGE', pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE')),
                    ('SELECT', pg_catalog.has_table_privilege(c.oid, 'SELECT')),
                    ('DELETE', NOT $2 OR pg_catalog.has_table_privilege(c.oid, 'DELETE')),
                    ('UPDATE', pg_catalog.has_table_privilege(c.oid, 'UPDATE')
                        OR NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                                       WHERE a.attrelid = c.oid AND a.attname = ANY($3)
                                         AND NOT pg_catalog.has_column_privilege(c.oid, a.attnum, 'UPDATE')))
                    ) AS p (word, held) WHERE NOT p.held),
                pg_catalog.has_any_column_privilege(c.oid, 'UPDATE')
         FROM pg_catalog.pg_class c WHERE c.oid = ANY($1)",
    )
    .bind(tables)
    .bind(delete)
    .bind(columns)
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(table, rows_hidden, missing, may_lock)| Access {
            table,
            rows_hidden,
            missing,
            may_lock,
        })
        .collect())
}
