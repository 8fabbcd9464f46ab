//! What the configuration asks for: whose data, where requests come from, what happens to each table.

use std::collections::BTreeMap;

use serde::Serialize;

use super::mask::Mask;
use super::objects::RowObjects;
use super::outbox::Recipients;
use crate::values::{ColumnName, Edge, Period, TableName};

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
