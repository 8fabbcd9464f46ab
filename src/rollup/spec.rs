//! What a rollup is, in the words of the configuration.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use super::bucket::Width;
use super::measure::Measure;
use crate::values::{Period, TableName, Timezone, fingerprint};

/// `[jobs.NAME] rollup = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rollup {
    /// How long a bucket is.
    pub bucket: Width,
    /// In whose calendar buckets begin; UTC where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<Timezone>,
    /// Where the result is kept.
    pub target: TableName,
    /// How long after its end a bucket stays open for rows that are late.
    pub lateness: Period,
    /// What is computed.
    #[serde(flatten)]
    pub form: Form,
}

/// What a rollup computes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Form {
    /// Measures of the rows of one table.
    Source(Source),
    /// Whatever a query answers for a bucket.
    Query(Query),
}

/// Measures of the rows of one table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Source {
    /// Whose rows.
    pub source: TableName,
    /// The column that says in which bucket a row is.
    pub time_column: String,
    /// The zone that a column without one was written in; `timezone` if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column_timezone: Option<Timezone>,
    /// The column of the target that takes the bucket's beginning.
    pub bucket_column: String,
    /// Columns of the source by which rows are kept apart.
    pub group_by: Vec<String>,
    /// What is computed of each group.
    pub measures: Vec<Measure>,
    /// A condition of SQL that rows must meet.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub predicate: Option<String>,
    /// How changes are found.
    pub mode: Mode,
}

/// A query for a bucket.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Query {
    /// One SELECT. It sees the bucket as the table `bucket (starts, ends, day)`.
    pub query: String,
    /// Expressions over the target's columns that tell a result's rows from all others.
    pub key: Vec<String>,
}

/// How a rollup finds what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Every bucket that is not final yet is computed again.
    Recompute,
    /// Triggers on the source note which buckets writers touch.
    Exact,
}

impl Mode {
    /// Every choice, with its word.
    pub const WORDS: [(&'static str, Self); 2] = [("recompute", Self::Recompute), ("exact", Self::Exact)];
}

/// What a run is to do about a rollup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Bring it up to date.
    Refresh,
    /// Compute the buckets of a range again, as far as the source still has them.
    Backfill {
        /// From the bucket with this instant,
        from: Timestamp,
        /// to before this instant.
        to: Timestamp,
    },
    /// Compare the last sealed buckets with the source.
    Reconcile {
        /// How many.
        buckets: u32,
    },
}

impl Rollup {
    /// The zone in whose calendar buckets begin.
    #[must_use]
    pub fn zone(&self) -> Timezone {
        self.timezone.clone().unwrap_or_else(Timezone::utc)
    }

    /// How long a bucket stays open after its end.
    #[must_use]
    pub fn lateness(&self) -> Duration {
        self.lateness.to_duration().unwrap_or(Duration::ZERO)
    }

    /// The source form's part.
    #[must_use]
    pub fn source(&self) -> Option<&Source> {
        match &self.form {
            Form::Source(source) => Some(source),
            Form::Query(_) => None,
        }
    }

    /// The word of the ledger for how it works.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        match &self.form {
            Form::Source(Source {
                mode: Mode::Recompute, ..
            }) => "recompute",
            Form::Source(Source { mode: Mode::Exact, .. }) => "exact",
            Form::Query(_) => "query",
        }
    }

    /// The digest of all that decides what a bucket holds: two rollups with the same one may share a
    /// target's history. How long buckets stay open is no part of it.
    #[must_use]
    pub fn definition(&self) -> String {
        let mut value = json!(self);
        if let Some(object) = value.as_object_mut() {
            object.remove("lateness");
            object.remove("mode");
        }
        fingerprint(&value.to_string())
    }
}
