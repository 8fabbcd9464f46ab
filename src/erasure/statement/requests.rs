//! Statements on the application's table of requests.

use std::fmt::Write;

use crate::erasure::plan::ErasurePlan;
use crate::erasure::reach::Node;
use crate::erasure::rule::{Requests, Rule};
use crate::postgres::catalog::columns::Column;
use crate::postgres::quote::{identifier, literal};

/// Builds the statements on the application's table of requests.
#[derive(Debug, Clone)]
pub(in crate::erasure) struct RequestTable<'a> {
    node: &'a Node,
    rule: &'a Requests,
    id: &'a Column,
    status: &'a Column,
    received_at: &'a Column,
}

impl<'a> RequestTable<'a> {
    /// The statements of a plan; none when only operators ask.
    pub(in crate::erasure) fn new(plan: &'a ErasurePlan, rule: &'a Rule) -> Option<Self> {
        let requests = rule.requests.as_ref()?;
        let node = plan.reach.nodes.get(plan.reach.requests?)?;
        Some(Self {
            id: node.column(&requests.id)?,
            status: node.column(&requests.status)?,
            received_at: node.column(&requests.received_at)?,
            node,
            rule: requests,
        })
    }

    /// What it is called.
    pub(in crate::erasure) fn display(&self) -> String {
        self.node.relation.display()
    }

    fn word(&self, word: &str) -> String {
        format!("{}::{}", literal(word), self.status.type_name)
    }

    fn status(&self) -> String {
        identifier(&self.status.name)
    }

    /// Requests that are not known yet: id, subject, when received, whether the sender is known. `$1`
    /// is the job.
    pub(in crate::erasure) fn new_ones(&self, limit: u32) -> String {
        let waiting = [Some(&self.rule.pending), self.rule.awaiting_identity.as_ref()];
        let words: Vec<String> = waiting.into_iter().flatten().map(|word| self.word(word)).collect();
        let (id, received) = (identifier(&self.id.name), identifier(&self.received_at.name));
        format!(
            "SELECT {id}::text, {subject}::text, least({received}::timestamptz, pg_catalog.clock_timestamp()), {status} = {pending}
             FROM {table} AS request
             WHERE {status} IN ({words}) AND {id} IS NOT NULL
               AND NOT EXISTS (SELECT FROM pgreeve.erasure_request AS r
                               WHERE r.job = $1 AND r.source_id = request.{id}::text AND r.finished_at IS NULL)
             ORDER BY {received}, {id} LIMIT {limit}",
            subject = identifier(&self.rule.subject),
            status = self.status(),
            pending = self.word(&self.rule.pending),
            table = self.node.relation.quoted(),
            words = words.join(", "),
        )
    }

    /// Requests whose sender was not known and is now: their ids. `$1` is the job.
    pub(in crate::erasure) fn identified(&self) -> Option<String> {
        self.rule.awaiting_identity.as_ref()?;
        let id = identifier(&self.id.name);
        Some(format!(
            "SELECT {id}::text FROM {} AS request JOIN pgreeve.erasure_request AS r ON r.source_id = request.{id}::text
             WHERE r.job = $1 AND r.state = 'awaiting_identity' AND {} = {}",
            self.node.relation.quoted(),
            self.status(),
            self.word(&self.rule.pending),
        ))
    }

    /// How many requests wait.
    pub(in crate::erasure) fn waiting(&self) -> String {
        format!(
            "SELECT count(*) FROM {} WHERE {} = {}",
            self.node.relation.quoted(),
            self.status(),
            self.word(&self.rule.pending),
        )
    }

    /// Status words that the rule does not know, with how many requests have each. `$1` are the
    /// known ones.
    pub(in crate::erasure) fn unknown_words(&self) -> String {
        let status = self.status();
        format!(
            "SELECT {status}::text, count(*) FROM {} WHERE {status}::text <> ALL ($1) OR {status} IS NULL
             GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 10",
            self.node.relation.quoted(),
        )
    }

    /// Writes a status: `$1` are the requests' ids, `$2` the word.
    pub(in crate::erasure) fn write_status(&self, finished: bool) -> String {
        let mut set = format!("{} = $2::text::{}", self.status(), self.status.type_name);
        let column = self.rule.finished_at.as_deref().and_then(|name| self.node.column(name));
        if let (true, Some(column)) = (finished, column) {
            let _ = write!(
                set,
                ", {} = pg_catalog.clock_timestamp()::{}",
                identifier(&column.name),
                column.type_name
            );
        }
        format!(
            "UPDATE {} SET {set} WHERE {} = ANY ($1::text[]::{}[])",
            self.node.relation.quoted(),
            identifier(&self.id.name),
            self.id.type_name,
        )
    }

    /// The columns that pgreeve writes.
    pub(in crate::erasure) fn written(&self) -> Vec<String> {
        let mut columns = vec![self.status.name.clone()];
        columns.extend(self.rule.finished_at.clone());
        columns
    }

    /// Words that the status column cannot hold, because its type does not know them.
    pub(in crate::erasure) fn impossible_words(&self) -> Vec<&'a str> {
        if self.status.enum_labels.is_empty() {
            return Vec::new();
        }
        let words = self.rule.words();
        words
            .filter(|word| !self.status.enum_labels.iter().any(|label| label == word))
            .collect()
    }
}
