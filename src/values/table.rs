//! A table as the configuration names it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ValueError;

/// A table as the configuration names it: `events`, `onboarding.sessions`, `"Odd.Name"`.
///
/// Names are taken exactly as the catalog has them (`User` is Prisma's table, not `user`); double
/// quotes are needed only around a name that holds a dot or a quote.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TableName {
    /// The schema, where one is given.
    pub schema: Option<String>,
    /// The table's own name.
    pub name: String,
}

impl FromStr for TableName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || {
            ValueError::new(
                format!("`{text}` is not a table's name"),
                "write \"table\" or \"schema.table\", as the catalog has it; put double quotes around a name with a dot",
            )
        };
        let mut parts = names(text).ok_or_else(bad)?;
        match (parts.pop(), parts.pop(), parts.is_empty()) {
            (Some(name), schema, true) => Ok(Self { schema, name }),
            _ => Err(bad()),
        }
    }
}

impl TryFrom<String> for TableName {
    type Error = ValueError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TableName> for String {
    fn from(table: TableName) -> Self {
        table.to_string()
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |part: &str| {
            if part.contains(['.', '"']) {
                format!("\"{}\"", part.replace('"', "\"\""))
            } else {
                part.to_owned()
            }
        };
        if let Some(schema) = &self.schema {
            write!(f, "{}.", plain(schema))?;
        }
        f.write_str(&plain(&self.name))
    }
}

/// The names of a dotted text; each may stand in double quotes.
pub(super) fn names(text: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        let mut part = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next()? {
                    '"' if chars.next_if_eq(&'"').is_some() => part.push('"'),
                    '"' => break,
                    c => part.push(c),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| *c != '.' && *c != '"') {
                part.push(c);
            }
        }
        if part.is_empty() || part.len() > 63 || part.contains('\0') || part.trim() != part {
            return None;
        }
        parts.push(part);
        match chars.next() {
            None => return Some(parts),
            Some('.') => {}
            Some(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_named_as_the_catalog_has_it() {
        let plain: TableName = "onboarding.sessions".parse().unwrap();
        assert_eq!(
            (plain.schema.as_deref(), plain.name.as_str()),
            (Some("onboarding"), "sessions")
        );
        let odd: TableName = "\"a.b\".\"say \"\"x\"\"\"".parse().unwrap();
        assert_eq!((odd.schema.as_deref(), odd.name.as_str()), (Some("a.b"), "say \"x\""));
        assert_eq!(odd.to_string().parse::<TableName>().unwrap(), odd);
        for text in ["", ".", "a.", ".a", "a.b.c", "\"a", "\"a\"b", " a"] {
            assert!(text.parse::<TableName>().is_err(), "{text}");
        }
    }
}
