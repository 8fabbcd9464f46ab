//! What finds the rows of a subject goes into the scope.

use super::scope::{identifier_source, source};
use super::{Statements, alias};
use crate::postgres::quote::{identifier, literal};

impl Statements<'_> {
    /// Puts the values that a node's rows are referred to by into the scope; answers with nothing.
    pub(in crate::erasure) fn collect(self, place: usize, keys: &[String]) -> Option<String> {
        let node = self.node(place)?;
        let columns: Vec<String> = keys
            .iter()
            .map(|key| format!("{}.{}", alias(node), identifier(key)))
            .collect();
        let texts: Vec<String> = columns.iter().map(|column| format!("{column}::text")).collect();
        let present: Vec<String> = columns.iter().map(|column| format!("{column} IS NOT NULL")).collect();
        let source = source(node, keys);
        Some(format!(
            "INSERT INTO pgreeve.erasure_scope (request_id, source, value)
             SELECT DISTINCT {request}::uuid, {name}, ARRAY[{texts}] FROM {from} WHERE {owned} AND {present}
             EXCEPT SELECT v.request_id, v.source, v.value FROM {scope}",
            name = literal(&source),
            texts = texts.join(", "),
            from = Self::from(node),
            owned = self.owned(place),
            present = present.join(" AND "),
            request = self.scope.0,
            scope = self.scope.of(&source),
        ))
    }

    /// Puts the values of an identifying column into the scope.
    pub(in crate::erasure) fn collect_identifiers(self, place: usize, column: &str) -> Option<String> {
        let node = self.node(place)?;
        let value = format!("{}.{}::text", alias(node), identifier(column));
        let source = identifier_source(node, column);
        Some(format!(
            "INSERT INTO pgreeve.erasure_scope (request_id, source, value)
             SELECT DISTINCT {request}::uuid, {name}, ARRAY[{value}] FROM {from} WHERE {owned} AND {value} <> ''
             EXCEPT SELECT v.request_id, v.source, v.value FROM {scope}",
            name = literal(&source),
            from = Self::from(node),
            owned = self.owned(place),
            request = self.scope.0,
            scope = self.scope.of(&source),
        ))
    }
}
