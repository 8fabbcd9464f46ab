//! What the configuration asks for: whose data, where requests come from, what happens to each table.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::mask::Mask;
use super::objects::RowObjects;
use super::outbox::Recipients;
use crate::values::{Period, TableName, ValueError};

/// `[jobs.NAME.erasure]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// The application's table of requests; none when only operators ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
    /// Who is erased.
    pub subject: SubjectRule,
    /// References that no foreign key declares.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub edges: Vec<Edge>,
    /// What happens to the rows of each table in reach.
    pub tables: BTreeMap<TableName, TableRule>,
    /// Objects in stores that rows own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub objects: BTreeMap<TableName, RowObjects>,
    /// Who is told of each erasure (Art. 19).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub notify: Recipients,
}

/// How the application asks for erasures, and is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Its table.
    pub table: TableName,
    /// The column that tells its requests apart.
    pub id: String,
    /// The column that holds the subject's key.
    pub subject: String,
    /// The column that says how far a request is.
    pub status: String,
    /// The word for a request that waits.
    pub pending: String,
    /// The word for one whose steps have begun; the row is left as it is without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processing: Option<String>,
    /// The word for one that is done.
    pub done: String,
    /// The word for one that cannot be done.
    pub failed: String,
    /// The word for one that was refused; `failed` without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// The word for one whose sender is not known for sure; it is received, and waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub awaiting_identity: Option<String>,
    /// Words that mean nothing to pgreeve.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
    /// The column that says when a request was received.
    pub received_at: String,
    /// The column that takes the time when it was finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

impl Requests {
    /// Every word that a request's status may be.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        let optional = [&self.processing, &self.rejected, &self.awaiting_identity];
        [&self.pending, &self.done, &self.failed]
            .into_iter()
            .chain(optional.into_iter().flatten())
            .chain(&self.ignored)
            .map(String::as_str)
    }
}

/// Who is erased: a row of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SubjectRule {
    /// The table.
    pub table: TableName,
    /// The column that tells its rows apart.
    pub key: String,
    /// Further columns that are the person wherever they stand: `email`, or `leads.phone` of another
    /// table in reach.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identifiers: Vec<ColumnName>,
}

/// A column, of the subject's table where none is named.
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

/// A reference that no foreign key declares: `events.payload->>'user_id' = users.id`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// The table whose rows reference.
    pub child: TableName,
    /// The column that holds the reference.
    pub column: String,
    /// Where it stands inside a JSON document; empty for a plain column.
    pub path: Vec<PathStep>,
    /// The table that is referenced.
    pub parent: TableName,
    /// Its column.
    pub key: String,
}

/// One step into a JSON document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathStep {
    /// The member of an object.
    Member(String),
    /// Every element of an array.
    Each,
}

impl Edge {
    /// Whether it looks at every element of an array.
    #[must_use]
    pub fn has_each(&self) -> bool {
        self.path.contains(&PathStep::Each)
    }
}

impl FromStr for Edge {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || {
            ValueError {
            problem: format!("`{text}` is not an edge"),
            help: "write \"table.column = table.key\", or \"table.document->'a'->>'b' = table.key\" for a reference inside \
                   JSON ([*] stands for every element of an array)"
                .to_owned(),
        }
        };
        let (left, right) = split_outside_quotes(text, '=').ok_or_else(bad)?;
        let (reference, path) = split_path(left.trim()).ok_or_else(bad)?;
        let column = reference.parse::<ColumnName>().map_err(|_| bad())?;
        let key = right.trim().parse::<ColumnName>().map_err(|_| bad())?;
        Ok(Self {
            child: column.table.ok_or_else(bad)?,
            column: column.column,
            path,
            parent: key.table.ok_or_else(bad)?,
            key: key.column,
        })
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", plain_table(&self.child), plain(&self.column))?;
        let last = self.path.iter().rposition(|step| matches!(step, PathStep::Member(_)));
        for (place, step) in self.path.iter().enumerate() {
            match step {
                PathStep::Each => f.write_str("[*]")?,
                PathStep::Member(name) => {
                    let arrow = if Some(place) == last { "->>" } else { "->" };
                    write!(f, "{arrow}'{}'", name.replace('\'', "''"))?;
                }
            }
        }
        write!(f, " = {}.{}", plain_table(&self.parent), plain(&self.key))
    }
}

impl Serialize for Edge {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What happens to the rows of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableRule {
    /// What.
    pub action: Action,
    /// The masks of a masked table, by column.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, Mask>,
    /// On which ground rows are kept or masked instead of deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basis: Option<String>,
    /// For how long kept rows stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Period>,
    /// The columns whose reference makes a row the subject's own. Others of its references are only
    /// unlinked. Every reference without.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<String>,
}

/// What happens to rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// They are deleted.
    Delete,
    /// Some of their columns are masked.
    Mask,
    /// They stay, on a ground.
    Keep,
    /// They are not the subject's: their references to what is deleted become null.
    Unlink,
}

impl Action {
    /// Every action, with its word.
    pub const WORDS: [(&'static str, Self); 4] = [
        ("delete", Self::Delete),
        ("mask", Self::Mask),
        ("keep", Self::Keep),
        ("unlink", Self::Unlink),
    ];

    /// The action's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Mask => "mask",
            Self::Keep => "keep",
            Self::Unlink => "unlink",
        }
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
fn plain(name: &str) -> String {
    if name.chars().all(|c| c.is_alphanumeric() || c == '_') {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// A table's name as it is read again beside other signs.
fn plain_table(table: &TableName) -> String {
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

/// The names of a dotted text; each may stand in double quotes.
fn names(text: &str) -> Option<Vec<String>> {
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

/// The two sides of the one separator that stands outside of quotes.
fn split_outside_quotes(text: &str, separator: char) -> Option<(&str, &str)> {
    let mut quote = None;
    let mut found = None;
    for (at, c) in text.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c == separator && found.replace(at).is_some() => return None,
            _ => {}
        }
    }
    let at = found?;
    Some((text.get(..at)?, text.get(at + separator.len_utf8()..)?))
}

/// A column, and the path into its document.
fn split_path(text: &str) -> Option<(&str, Vec<PathStep>)> {
    let mut quoted = false;
    let start = text.char_indices().find_map(|(at, c)| {
        quoted ^= c == '"';
        let begins = text
            .get(at..)
            .is_some_and(|rest| rest.starts_with("->") || rest.starts_with("[*]"));
        (!quoted && begins).then_some(at)
    });
    let Some(start) = start else {
        return Some((text, Vec::new()));
    };
    let (column, mut rest) = text.split_at_checked(start)?;
    let mut path = Vec::new();
    let mut ended = false;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("[*]") {
            path.push(PathStep::Each);
            rest = after;
            continue;
        }
        if ended {
            return None;
        }
        let after = rest.strip_prefix("->")?;
        let (after, last) = after.strip_prefix('>').map_or((after, false), |after| (after, true));
        ended = last;
        let (member, after) = quoted_member(after.trim_start())?;
        path.push(PathStep::Member(member));
        rest = after.trim_start();
    }
    // Only `->>` yields a text, and only an element of an array may be one by itself.
    let whole = ended || path.last() == Some(&PathStep::Each);
    whole.then_some((column.trim_end(), path))
}

fn quoted_member(text: &str) -> Option<(String, &str)> {
    let mut member = String::new();
    let mut chars = text.strip_prefix('\'')?.char_indices().peekable();
    while let Some((_, c)) = chars.next() {
        if c != '\'' {
            member.push(c);
        } else if chars.next_if(|(_, next)| *next == '\'').is_some() {
            member.push('\'');
        } else {
            let rest = chars
                .peek()
                .map_or("", |(at, _)| text.get(at + 1..).unwrap_or_default());
            return (!member.is_empty() && !member.contains('\0')).then_some((member, rest));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_is_read_and_written_the_same() {
        for text in [
            "events.payload->>'user_id' = users.id",
            "app.events.payload->'user'->>'it''s' = app.users.id",
            "draws.winners[*]->>'userId' = \"User\".id".replace('"', "").as_str(),
            "posts.tags[*] = users.name",
            "\"odd.table\".\"a=b\" = users.id",
            "messages.conversation_id = conversations.id",
        ] {
            let edge: Edge = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(edge.to_string().replace('"', ""), text.replace('"', ""));
            assert_eq!(edge.to_string().parse::<Edge>().as_ref(), Ok(&edge));
        }
    }

    #[test]
    fn what_is_no_edge_is_refused() {
        for text in [
            "",
            "events",
            "user_id = users.id",
            "events.user_id = id",
            "a.b = c.d = e.f",
            "a.b->'x' = c.d",
            "a.b->>'x'->>'y' = c.d",
            "a.b->>x = c.d",
            "a.b->>'' = c.d",
            "a.b->>'x = c.d",
            "a.b; DROP TABLE users = c.",
            "w.x.y.z = a.b",
        ] {
            assert!(text.parse::<Edge>().is_err(), "{text}");
        }
    }
}
