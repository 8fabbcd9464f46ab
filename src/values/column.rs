//! The name of a column, with that of its table or without.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::table::names;
use super::{TableName, ValueError};

/// A column, and its table where one is named: `email`, `leads.phone`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ColumnName {
    /// The table.
    pub table: Option<TableName>,
    /// The column.
    pub column: String,
}

impl FromStr for ColumnName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = names(text).ok_or_else(|| bad_column(text))?;
        let column = parts.pop().ok_or_else(|| bad_column(text))?;
        let table = table_of(parts).map_err(|()| bad_column(text))?;
        Ok(Self { table, column })
    }
}

impl fmt::Display for ColumnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(table) = &self.table {
            write!(f, "{}.", plain_table(table))?;
        }
        f.write_str(&plain(&self.column))
    }
}

impl Serialize for ColumnName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn bad_column(text: &str) -> ValueError {
    ValueError {
        problem: format!("`{text}` is not a column's name"),
        help:
            "write \"column\", \"table.column\" or \"schema.table.column\", as the catalog has it; put double quotes \
               around a name with a dot"
                .to_owned(),
    }
}

/// A name as it is read again: in double quotes where it holds more than letters, digits, `_`.
pub(super) fn plain(name: &str) -> String {
    if name.chars().all(|c| c.is_alphanumeric() || c == '_') {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// A table's name as it is read again beside other signs.
pub(super) fn plain_table(table: &TableName) -> String {
    let schema = table.schema.iter().map(|schema| plain(schema) + ".");
    schema.chain([plain(&table.name)]).collect()
}

fn table_of(mut parts: Vec<String>) -> Result<Option<TableName>, ()> {
    match (parts.pop(), parts.pop(), parts.is_empty()) {
        (None, _, _) => Ok(None),
        (Some(name), schema, true) => Ok(Some(TableName { schema, name })),
        _ => Err(()),
    }
}
