//! The residual scan: what is left of erased people, anywhere in the database.
//!
//! Plans are made by people, and people forget the audit copy that a trigger makes. So after the
//! steps every text of the database is read once more, by somebody who knows nothing of the plan:
//! all columns that can hold text, of all schemas but the system's and pgreeve's own, and what the
//! planner's statistics keep of them. Reads only. What comes out are places and counts, never values.
//!
//! One pass serves any number of people: rows stream through one matcher for all their identifiers,
//! in bounded memory and within a deadline. What the deadline, a lock or a missing right kept from
//! being searched is said, and is not clean.

mod columns;
mod patterns;
mod statistics;

use std::collections::BTreeMap;
use std::time::Instant;

use futures::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row, ValueRef};

use self::columns::Searchable;
use self::patterns::Patterns;
use super::proof::{Residue, ResiduePlace, ScanScope, Search};
use crate::postgres::sqlstate::DatabaseError;

/// The time one statement may still take when the deadline is this near: a scan ends, it does not
/// hang on a last table.
const SHORTEST_STATEMENT_MS: u128 = 100;

/// How long a scan waits for a table that somebody has locked.
const LOCK_TIMEOUT: &str = "2s";

/// Searches the whole database for some people; the answers are in their order. Statistics that
/// still hold somebody are made anew (`ANALYZE`) and looked at again.
///
/// # Errors
/// When the connection is lost. A table that cannot be searched is part of the answers.
pub async fn scan(
    connection: &mut PgConnection,
    searches: &[Search],
    deadline: Instant,
) -> Result<Vec<Residue>, DatabaseError> {
    let patterns = Patterns::of(searches.iter().map(|search| &search.identifiers))?;
    let mut found = Findings::new(searches.len());
    let tables = columns::searchable(connection, patterns.has_long_number()).await?;
    for table in &tables {
        found.searched(table);
        if !patterns.is_empty() {
            search(connection, table, &patterns, deadline, &mut found).await?;
        }
    }
    let statistics = if patterns.is_empty() {
        Vec::new()
    } else {
        statistics::scan(connection, &patterns, deadline, &mut found).await?
    };
    Ok(found.residues(searches, &tables, &statistics))
}

/// What was found so far.
#[derive(Debug)]
struct Findings {
    people: usize,
    tables: u64,
    columns: u64,
    /// Rows by table (its place in the list), column and person.
    rows: BTreeMap<(u32, String, usize), u64>,
    unsearched: Vec<String>,
}

impl Findings {
    fn new(people: usize) -> Self {
        Self {
            people,
            tables: 0,
            columns: 0,
            rows: BTreeMap::new(),
            unsearched: Vec::new(),
        }
    }

    fn searched(&mut self, table: &Searchable) {
        self.tables = self.tables.saturating_add(1);
        self.columns = self.columns.saturating_add(table.columns.len() as u64);
        self.unsearched.extend(table.unreadable());
    }

    fn residues(
        &self,
        searches: &[Search],
        tables: &[Searchable],
        statistics: &[(usize, ResiduePlace)],
    ) -> Vec<Residue> {
        let people = searches.iter().enumerate().take(self.people);
        people
            .map(|(person, search)| {
                // Partitions count as the table that they are part of.
                let mut places: BTreeMap<(&str, &str), (u64, bool)> = BTreeMap::new();
                for ((oid, column, whose), count) in &self.rows {
                    let Some(table) = tables.iter().find(|table| table.oid.0 == *oid) else {
                        continue;
                    };
                    if *whose == person {
                        let place = places.entry((&table.root_name, column)).or_insert((0, true));
                        place.0 = place.0.saturating_add(*count);
                        place.1 &= is_kept(&search.scope, table, column);
                    }
                }
                let rows = places.into_iter().map(|((table, column), (count, kept))| ResiduePlace {
                    table: table.to_owned(),
                    column: column.to_owned(),
                    what: "rows".to_owned(),
                    count,
                    kept,
                    remedy: None,
                });
                let of_person = statistics.iter().filter(|(whose, _)| *whose == person);
                let telling = search.identifiers.telling().count() as u64;
                Residue {
                    places: rows.chain(of_person.map(|(_, place)| place.clone())).collect(),
                    unsearched: self.unsearched.clone(),
                    tables: self.tables,
                    columns: self.columns,
                    identifiers: telling,
                    too_short: (search.identifiers.0.len() as u64).saturating_sub(telling),
                }
            })
            .map(|mut residue| {
                keep_statistics_of_kept_columns(&mut residue);
                residue
            })
            .collect()
    }
}

/// What a kept column holds, its statistics may hold.
fn keep_statistics_of_kept_columns(residue: &mut Residue) {
    let kept: Vec<(String, String)> = residue
        .places
        .iter()
        .filter(|place| place.kept)
        .map(|place| (place.table.clone(), place.column.clone()))
        .collect();
    for place in residue.places.iter_mut().filter(|place| place.what == statistics::WHAT) {
        if kept
            .iter()
            .any(|(table, column)| (table, column) == (&place.table, &place.column))
        {
            place.kept = true;
            place.remedy = None;
        }
    }
}

fn is_kept(scope: &ScanScope, table: &Searchable, column: &str) -> bool {
    scope.kept.iter().any(|(oid, only)| {
        (*oid == table.oid || *oid == table.root) && only.as_deref().is_none_or(|only| only == column)
    })
}

/// Streams one table through the matcher, in a transaction that can only read.
async fn search(
    connection: &mut PgConnection,
    table: &Searchable,
    patterns: &Patterns,
    deadline: Instant,
    found: &mut Findings,
) -> Result<(), DatabaseError> {
    let columns = table.readable();
    if columns.is_empty() {
        return Ok(());
    }
    let mut counts: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    let matched = stream(connection, &table.select(), deadline, |row| {
        for column in 0..row.len() {
            for person in patterns.people(text(row, column)) {
                let count = counts.entry((column, person)).or_default();
                *count = count.saturating_add(1);
            }
        }
    })
    .await?;
    if let Err(cause) = matched {
        found.unsearched.push(format!("{}: {cause}", table.name));
    }
    for ((column, person), count) in counts {
        if let Some(column) = columns.get(column) {
            found.rows.insert((table.oid.0, column.name.clone(), person), count);
        }
    }
    Ok(())
}

/// The bytes of a text as the server sent them; nothing is copied. Null holds nobody.
fn text(row: &PgRow, column: usize) -> &[u8] {
    match row.try_get_raw(column) {
        Ok(value) if !value.is_null() => value.as_bytes().unwrap_or_default(),
        _ => &[],
    }
}

/// Streams the rows of a query in a transaction that can only read. The inner error says why it did
/// not come to its end.
async fn stream(
    connection: &mut PgConnection,
    query: &str,
    deadline: Instant,
    mut each: impl FnMut(&PgRow),
) -> Result<Result<(), String>, DatabaseError> {
    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
    if left < SHORTEST_STATEMENT_MS {
        return Ok(Err("there was no time left".to_owned()));
    }
    let begin =
        format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {left}; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'");
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *connection).await?;
    let read = read(connection, query, &mut each).await;
    sqlx::raw_sql("ROLLBACK").execute(connection).await?;
    let Err(error) = read else { return Ok(Ok(())) };
    match error.sqlstate.as_deref() {
        Some("57014") => Ok(Err("there was no time left".to_owned())),
        Some("55P03") => Ok(Err("somebody has locked it".to_owned())),
        Some("42501") => Ok(Err("the role may not read all of it".to_owned())),
        // Dropped since it was listed: nothing is left in it.
        Some("42P01" | "42703" | "3F000") => Ok(Ok(())),
        Some(code) if !code.starts_with("08") && !code.starts_with("57") => {
            Ok(Err(format!("it cannot be read (SQLSTATE {code})")))
        }
        _ => Err(error),
    }
}

async fn read(connection: &mut PgConnection, query: &str, each: &mut impl FnMut(&PgRow)) -> Result<(), DatabaseError> {
    // Not COPY: sqlx 0.9.0 loses its place in the protocol when the server refuses a COPY. Not kept
    // as a prepared statement: there is one for each table.
    let mut rows = sqlx::query(AssertSqlSafe(query.to_owned()))
        .persistent(false)
        .fetch(connection);
    while let Some(row) = rows.try_next().await? {
        each(&row);
    }
    Ok(())
}
