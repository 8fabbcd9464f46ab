//! Which rows of which table are in the scope, as the catalog has them.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::batch::ArchiveFormat;
use crate::job::JobError;
use crate::postgres::catalog::columns::{self, Column};
use crate::postgres::catalog::{self, Relation, ResolveError};
use crate::postgres::quote::{identifier, literal};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::{Edge, TableName};

/// SQLSTATE of a role that may not read, or from whom row security would hide rows.
const DENIED: &str = "42501";

/// Whose rows are exported.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Scope {
    /// The column that says whose a row is, by the same name in each table that has it.
    pub column: String,
    /// Its values; a row with any of them is exported.
    pub values: Vec<String>,
    /// How a table without the column refers to one that is in the scope.
    pub edges: Vec<Edge>,
}

/// A table, and the condition that its exported rows meet.
#[derive(Debug, Clone)]
pub struct ScopedTable {
    /// The table.
    pub relation: Relation,
    columns: Vec<Column>,
    condition: String,
}

impl ScopedTable {
    /// The statement that writes the rows, each in one line and one message of the protocol.
    #[must_use]
    pub fn copy(&self, format: ArchiveFormat) -> String {
        let list: Vec<String> = self.columns.iter().map(|column| identifier(&column.name)).collect();
        let rows = format!(
            "SELECT {} FROM {} WHERE {}",
            list.join(", "),
            self.relation.quoted(),
            self.condition
        );
        match format {
            ArchiveFormat::Csv => format!("COPY ({rows}) TO STDOUT (FORMAT csv, ENCODING 'UTF8')"),
            // The text of jsonb has no control characters, so with these as its marks CSV leaves each line
            // as it is; the text format would double backslashes.
            ArchiveFormat::Jsonl => format!(
                "COPY (SELECT to_jsonb(pgreeve_row)::text FROM ({rows}) AS pgreeve_row) TO STDOUT \
                 (FORMAT csv, DELIMITER E'\\x02', QUOTE E'\\x01', ENCODING 'UTF8')"
            ),
        }
    }

    /// The first line of CSV; nothing for JSON lines.
    #[must_use]
    pub fn header(&self, format: ArchiveFormat) -> String {
        match format {
            ArchiveFormat::Jsonl => String::new(),
            ArchiveFormat::Csv => {
                let names: Vec<String> = self.columns.iter().map(|column| identifier(&column.name)).collect();
                format!("{}\n", names.join(","))
            }
        }
    }
}

/// Finds the tables and what puts their rows into the scope, and asks the server for none of each, so
/// that what cannot be read is known before anything is written.
///
/// # Errors
/// Names the table that is missing, is not tied to the scope, or may not be read.
pub async fn resolve(
    connection: &mut PgConnection,
    tables: &[TableName],
    scope: &Scope,
) -> Result<Vec<ScopedTable>, JobError> {
    let mut resolved: Vec<ScopedTable> = Vec::new();
    for table in tables {
        let found = scoped(connection, table, scope).await?;
        if resolved.iter().any(|other| other.relation.oid == found.relation.oid) {
            let cause = format!("{} is named twice", found.relation.display());
            return Err(refused(cause, "name each table once").about("tables"));
        }
        try_out(connection, &found, scope).await?;
        resolved.push(found);
    }
    Ok(resolved)
}

/// Follows edges from a table to one that has the scope's column.
async fn scoped(connection: &mut PgConnection, table: &TableName, scope: &Scope) -> Result<ScopedTable, JobError> {
    let (relation, columns) = look_up(connection, table, "tables").await?;
    let shown = relation.display();
    let mut way: Vec<(Relation, String, String)> = Vec::new();
    let (mut at, mut at_columns) = (relation.clone(), columns.clone());
    while !has(&at_columns, &scope.column) {
        let Some((edge, parent, parent_columns)) = step(connection, &at, scope).await? else {
            let cause = format!(
                "{} has no column {}, and no edge leads from it",
                at.display(),
                scope.column
            );
            let remedy = format!(
                "add an edge such as \"{}.… = …\" to `scope.edges`, or leave {shown} out",
                at.name
            );
            return Err(refused(cause, &remedy).about("scope"));
        };
        for (columns, column, of) in [(&at_columns, &edge.column, &at), (&parent_columns, &edge.key, &parent)] {
            if !has(columns, column) {
                let cause = format!("{} has no column {column}, which an edge names", of.display());
                return Err(refused(cause, "correct the edge").about("scope"));
            }
        }
        if way.iter().any(|(seen, ..)| seen.oid == parent.oid) || parent.oid == relation.oid {
            let cause = format!("the edges from {shown} lead in a circle");
            return Err(refused(cause, "lead them to a table with the scope's column").about("scope"));
        }
        way.push((parent.clone(), edge.column.clone(), edge.key.clone()));
        (at, at_columns) = (parent, parent_columns);
    }
    let values: Vec<String> = scope.values.iter().map(|value| literal(value)).collect();
    let mut condition = format!("{} IN ({})", identifier(&scope.column), values.join(", "));
    for (parent, column, key) in way.iter().rev() {
        condition = format!(
            "{} IN (SELECT {} FROM {} WHERE {condition})",
            identifier(column),
            identifier(key),
            parent.quoted()
        );
    }
    Ok(ScopedTable {
        relation,
        columns,
        condition,
    })
}

/// The edge that leads from a relation, and where to.
async fn step<'a>(
    connection: &mut PgConnection,
    from: &Relation,
    scope: &'a Scope,
) -> Result<Option<(&'a Edge, Relation, Vec<Column>)>, JobError> {
    for edge in &scope.edges {
        let (child, _) = look_up(connection, &edge.child, "scope").await?;
        if child.oid == from.oid {
            let (parent, columns) = look_up(connection, &edge.parent, "scope").await?;
            return Ok(Some((edge, parent, columns)));
        }
    }
    Ok(None)
}

fn has(columns: &[Column], name: &str) -> bool {
    columns.iter().any(|column| column.name == name)
}

async fn look_up(
    connection: &mut PgConnection,
    table: &TableName,
    setting: &'static str,
) -> Result<(Relation, Vec<Column>), JobError> {
    let relation = match catalog::resolve(connection, table).await {
        Ok(relation) => relation,
        Err(ResolveError::Database(error)) => return Err(JobError::database("look up the tables", &error)),
        Err(error) => return Err(refused(error.to_string(), "correct the name").about(setting)),
    };
    let columns = columns::of(connection, relation.oid)
        .await
        .map_err(|error| JobError::database("look up the columns", &error))?;
    Ok((relation, columns))
}

/// Has the server read none of the rows: types, rights and row security are looked at.
async fn try_out(connection: &mut PgConnection, table: &ScopedTable, scope: &Scope) -> Result<(), JobError> {
    let list: Vec<String> = table.columns.iter().map(|column| identifier(&column.name)).collect();
    let sql = format!(
        "SELECT {} FROM {} WHERE {} LIMIT 0",
        list.join(", "),
        table.relation.quoted(),
        table.condition
    );
    let Err(error) = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .execute(connection)
        .await
    else {
        return Ok(());
    };
    let error = DatabaseError::from(error);
    let shown = table.relation.display();
    if error.is(DENIED) {
        let remedy =
            "GRANT SELECT on it, and on the tables that edges lead through, and BYPASSRLS where it has row security";
        return Err(refused(format!("{shown} may not be read: {error}"), remedy).about("tables"));
    }
    // The message of bad text names the value, which may be about a person.
    if error.sqlstate.as_deref().is_some_and(|state| state.starts_with("22")) {
        let cause = format!("a value of `scope.values` is none of the type of {}", scope.column);
        return Err(refused(cause, "write the values as the column has them").about("scope"));
    }
    Err(JobError::database(format!("try to read {shown}"), &error))
}

fn refused(cause: impl Into<String>, remedy: &str) -> JobError {
    JobError::refused("find what is in the scope", cause, remedy)
}
