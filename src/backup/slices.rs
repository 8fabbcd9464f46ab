//! Several dumps of one database under one snapshot, each its own archive: so one database is dumped
//! by several processes at once, and restored by several, without a local disk.
//!
//! One archive holds the definitions (before and after the data), one the rows of all tables that no
//! other has, the large objects and the sequences, the others the rows of large tables.

use sqlx::{PgConnection, Row};

use super::manifest::Role;
use super::preflight::RELATIONS;
use super::selection::Selection;
use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;

/// How many tables are dealt out one by one, the largest; the others are small beside them.
const DEALT: i64 = 500;

/// What one `pg_dump` writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// What its objects' names start with.
    pub stem: String,
    /// What its objects hold.
    pub role: Role,
    /// The arguments of `pg_dump` that make it this slice.
    pub arguments: Vec<String>,
}

impl Slice {
    /// Everything in one.
    #[must_use]
    pub fn whole() -> Self {
        Self {
            stem: "data".to_owned(),
            role: Role::Data,
            arguments: Vec::new(),
        }
    }
}

/// Divides a database among `parallel` dumps of rows, by the tables' sizes, and one of definitions.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn divide(
    connection: &mut PgConnection,
    parallel: u32,
    selection: &Selection,
) -> Result<Vec<Slice>, DatabaseError> {
    if parallel < 2 {
        return Ok(vec![Slice::whole()]);
    }
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text, coalesce(pg_catalog.pg_table_size(c.oid), 0)
         FROM {RELATIONS} AND c.relkind = 'r' AND c.oid <> ALL (SELECT pg_catalog.unnest($1::int8[])::oid)
         ORDER BY 3 DESC, 1, 2 LIMIT {DEALT}"
    );
    let tables: Vec<(String, u64)> = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(selection.oids())
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| {
            let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            Ok((
                quote::qualified(&schema, &name),
                row.try_get::<i64, _>(2)?.unsigned_abs(),
            ))
        })
        .collect::<Result<_, sqlx::Error>>()?;
    Ok(slices(deal(&tables, parallel)))
}

/// Each table, the largest first, to the dump that has least so far.
fn deal(tables: &[(String, u64)], parallel: u32) -> Vec<Vec<String>> {
    let mut hands: Vec<(u64, Vec<String>)> = (0..parallel).map(|_| (0, Vec::new())).collect();
    for (name, bytes) in tables {
        if let Some((sum, hand)) = hands.iter_mut().min_by_key(|(sum, _)| *sum) {
            *sum = sum.saturating_add((*bytes).max(1));
            hand.push(name.clone());
        }
    }
    hands.into_iter().map(|(_, hand)| hand).collect()
}

/// The first hand's tables are dumped with all that was not dealt out.
fn slices(hands: Vec<Vec<String>>) -> Vec<Slice> {
    let others: Vec<Vec<String>> = hands.into_iter().skip(1).filter(|hand| !hand.is_empty()).collect();
    let sections =
        |sections: &[&str]| -> Vec<String> { sections.iter().map(|section| format!("--section={section}")).collect() };
    let mut rest = sections(&["data"]);
    // The rows only: the values of the sequences stay.
    rest.extend(
        others
            .iter()
            .flatten()
            .map(|table| format!("--exclude-table-data={table}")),
    );
    let mut all = vec![
        Slice {
            stem: "schema".to_owned(),
            role: Role::Schema,
            // Not --schema-only, which leaves out what it takes to restore large objects and
            // materialized views.
            arguments: sections(&["pre-data", "post-data"]),
        },
        Slice {
            stem: "data".to_owned(),
            role: Role::Data,
            arguments: rest,
        },
    ];
    for (number, tables) in (1..).zip(others) {
        let mut arguments = sections(&["data"]);
        arguments.extend(tables.iter().map(|table| format!("--table={table}")));
        all.push(Slice {
            stem: format!("tables-{number:02}"),
            role: Role::Data,
            arguments,
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_table_is_dumped_once_and_no_dump_has_more_than_one_table_too_much(
            sizes in proptest::collection::vec(0_u64..1000, 0..40),
            parallel in 2_u32..6,
        ) {
            let mut tables: Vec<(String, u64)> =
                sizes.iter().enumerate().map(|(n, size)| (format!("\"t{n}\""), *size)).collect();
            tables.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
            let hands = deal(&tables, parallel);
            let mut dealt: Vec<&String> = hands.iter().flatten().collect();
            dealt.sort();
            let mut all: Vec<&String> = tables.iter().map(|(name, _)| name).collect();
            all.sort();
            prop_assert_eq!(dealt, all);
            let size = |hand: &Vec<String>| -> u64 {
                tables.iter().filter(|(name, _)| hand.contains(name)).map(|(_, size)| (*size).max(1)).sum()
            };
            let sizes: Vec<u64> = hands.iter().map(size).collect();
            let largest = tables.first().map_or(0, |(_, size)| (*size).max(1));
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= largest);

            let slices = slices(hands);
            let excluded: Vec<&String> =
                slices[1].arguments.iter().filter(|argument| argument.starts_with("--exclude")).collect();
            let own = slices[2..].iter().flat_map(|slice| &slice.arguments).filter(|argument| argument.starts_with("--table"));
            prop_assert_eq!(own.count(), excluded.len());
        }
    }
}
