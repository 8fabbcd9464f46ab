//! Masks as SQL.

use std::fmt::Write;

use super::scope::{Scope, token_source};
use super::{Statements, alias};
use crate::erasure::mask::Mask;
use crate::erasure::reach::Node;
use crate::postgres::catalog::columns::Column;
use crate::postgres::quote::{identifier, literal};

impl Statements<'_> {
    /// A mask on at most two rows, to see whether the table takes it. Values are wanted rather than
    /// nulls, which no mask changes.
    pub(in crate::erasure) fn try_mask(self, place: usize, column: &str, mask: &Mask, wanted: bool) -> Option<String> {
        let node = self.node(place)?;
        let (alias, name) = (alias(node), identifier(column));
        let condition = if wanted {
            format!("{alias}.{name} IS NOT NULL")
        } else {
            "true".to_owned()
        };
        let table = Self::from(node);
        Some(format!(
            "UPDATE {table} SET {name} = {} WHERE ({alias}.tableoid, {alias}.ctid) IN (
                 SELECT {alias}.tableoid, {alias}.ctid FROM {table} WHERE {condition} LIMIT 2)",
            expression(self.scope, node, column, mask)?
        ))
    }
}

/// An UPDATE that masks, and remembers the tokens it made, by which a masked row is known.
pub(super) fn masked(scope: Scope, node: &Node, set: &[(String, Mask)], table: &str, due: &str, name: &str) -> String {
    let assignments: Vec<String> = set
        .iter()
        .filter_map(|(column, mask)| {
            Some(format!(
                "{} = {}",
                identifier(column),
                expression(scope, node, column, mask)?
            ))
        })
        .collect();
    let tokens: Vec<&String> = set
        .iter()
        .filter(|(_, mask)| !mask.is_idempotent())
        .map(|(column, _)| column)
        .collect();
    let returning: Vec<String> = (tokens.iter().enumerate())
        .map(|(at, column)| format!("{}.{}::text AS token_{at}", alias(node), identifier(column)))
        .collect();
    let returning = if returning.is_empty() {
        "1".to_owned()
    } else {
        returning.join(", ")
    };
    let mut text = format!(
        "{name} AS (UPDATE {table} SET {} WHERE {due} RETURNING {returning})",
        assignments.join(", ")
    );
    for (at, column) in tokens.iter().enumerate() {
        let (request, source) = (scope.0, literal(&token_source(node, column)));
        let _ = write!(
            text,
            ", {name}_{at} AS (INSERT INTO pgreeve.erasure_scope (request_id, source, value)
                 SELECT DISTINCT {request}::uuid, {source}, ARRAY[token_{at}] FROM {name} WHERE token_{at} IS NOT NULL)"
        );
    }
    text
}

/// Whether a value is not masked yet.
pub(super) fn unmasked(scope: Scope, node: &Node, name: &str, mask: &Mask) -> Option<String> {
    let column = node.column(name)?;
    let value = format!("{}.{}", alias(node), identifier(name));
    Some(match mask {
        Mask::Null => format!("{value} IS NOT NULL"),
        Mask::Hmac(_) | Mask::EmailToken => {
            let known = scope.values(&token_source(node, name), 1, "text");
            format!("({value} IS NOT NULL AND {value}::text <> ALL ({known}))")
        }
        _ => {
            let masked = expression(scope, node, name, mask)?;
            if column.base_type == "json" {
                format!("({masked})::jsonb IS DISTINCT FROM {value}::jsonb")
            } else {
                format!("({masked}) IS DISTINCT FROM {value}")
            }
        }
    })
}

/// What takes the place of a value.
fn expression(scope: Scope, node: &Node, name: &str, mask: &Mask) -> Option<String> {
    let column = node.column(name)?;
    let value = format!("{}.{}", alias(node), identifier(name));
    let of_type = &column.type_name;
    let (pads, pattern, identifiers) = (scope.pads(), scope.pattern(), scope.identifiers());
    let token = format!(
        "encode(sha256(substring({pads} FROM 65) || sha256(substring({pads} FOR 64) || convert_to({value}::text, 'UTF8'))), 'hex')"
    );
    let array = |names: &[String]| {
        let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
        format!("ARRAY[{}]::text[]", names.join(", "))
    };
    Some(match mask {
        Mask::Null => "NULL".to_owned(),
        Mask::Constant(text) => format!("CASE WHEN {value} IS NULL THEN NULL ELSE {}::text::{of_type} END", literal(text)),
        Mask::Hmac(length) => format!("left({token}, {length})::{of_type}"),
        Mask::EmailToken => format!("('erased+' || left({token}, 16) || '@invalid.invalid')::{of_type}"),
        Mask::TruncateDate(unit) => format!("date_trunc({}, {value})::{of_type}", literal(unit)),
        Mask::JsonRemove(path) => format!("({value}::jsonb #- {})::{of_type}", array(path)),
        Mask::JsonScrub(keys) => {
            format!("pgreeve.erasure_json_scrub({value}::jsonb, {}, NULL)::{of_type}", array(keys))
        }
        Mask::JsonScrubOwn(keys) => {
            format!("pgreeve.erasure_json_scrub({value}::jsonb, {}, {identifiers})::{of_type}", array(keys))
        }
        Mask::TextReplace if is_json(column) => {
            format!("pgreeve.erasure_json_replace({value}::jsonb, {pattern}, {identifiers})::{of_type}")
        }
        Mask::TextReplace => format!("regexp_replace({value}::text, {pattern}, '[erased]', 'gi')::{of_type}"),
        Mask::ArrayRemove => format!(
            "CASE WHEN {value} IS NULL THEN NULL ELSE ARRAY(SELECT e.item FROM unnest({value}) WITH ORDINALITY AS e (item, place)
             WHERE (lower(e.item::text) = ANY (SELECT lower(i) FROM unnest({identifiers}) AS i)) IS NOT TRUE ORDER BY e.place) END"
        ),
    })
}

fn is_json(column: &Column) -> bool {
    matches!(column.base_type.as_str(), "json" | "jsonb")
}
