//! References that no foreign key declares.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::column::{plain, plain_table};
use super::{ColumnName, TableName, ValueError};

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
