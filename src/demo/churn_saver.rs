//! The Churn Saver sample database: its schema, and as many rows of realistic shape as wanted.
//!
//! Everything is generated on the server. The rows follow from [`Size`] and the second at which the
//! build starts, which they are dated from; nothing else is random.

use std::ops::Range;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, PgConnection};

use super::churn_saver_rows::{self as rows, Step};
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;

/// Roles, tables, row security, grants.
const SCHEMA: &str = include_str!("churn_saver.sql");

/// Keys between tables, and indexes.
const KEYS: &str = include_str!("churn_saver_keys.sql");

/// How many rows one statement makes: about half a second's work.
const CHUNK: u64 = 50_000;

/// How much to generate. What is not listed follows from these: about 3 consents for 2 users, an
/// export for every 5th user, a recovery case for every 10th failed payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// Tenants. At least 1.
    pub companies: u32,
    /// Customers, each with a membership, spread evenly over the tenants. At least 1.
    pub users: u32,
    /// Webhook events of 150 days, about 40 % of them older than 90 days.
    pub events: u32,
    /// Onboarding sessions.
    pub sessions: u32,
    /// Another number, other rows.
    pub seed: u32,
}

impl Default for Size {
    /// The demonstration's size: about 800 MB.
    fn default() -> Self {
        Self {
            companies: 40,
            users: 60_000,
            events: 1_000_000,
            sessions: 60_000,
            seed: 1,
        }
    }
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The instant that all rows are dated from. Rows stand close around every policy's cutoff as
    /// it is from then on until some minutes later.
    pub anchor: Timestamp,
    /// Each table and its number of rows, in the order of their making.
    pub rows: Vec<(&'static str, u64)>,
    /// The database's size on disk.
    pub bytes: u64,
}

impl Summary {
    /// How many rows a table has; 0 for a table that is not of this schema.
    #[must_use]
    pub fn rows_of(&self, table: &str) -> u64 {
        self.rows
            .iter()
            .find(|(name, _)| *name == table)
            .map_or(0, |(_, rows)| *rows)
    }
}

/// Builds the sample in an empty database, as its superuser, and analyses it. `progress` is told
/// what is being made, how much of it is done, and how much there is in all (0: not known before).
///
/// Each statement commits on its own: a build that was given up leaves a part of the sample behind.
///
/// # Errors
/// When the database already holds a table of the sample: nothing is changed then. When the role may
/// not create roles.
pub async fn build(
    target: &ConnectTarget,
    size: &Size,
    mut progress: impl FnMut(&str, u64, u64) + Send,
) -> Result<Summary, DatabaseError> {
    if size.companies == 0 || size.users == 0 {
        return Err(DatabaseError::local(
            "the sample needs at least one company and one user",
        ));
    }
    let settings = SessionSettings {
        lock_timeout: std::time::Duration::ZERO,
        statement_timeout: std::time::Duration::ZERO,
        ..SessionSettings::control("pgreeve:sample")
    };
    // Two: making a row is work for the server's processor, and each session has one.
    let mut first = Session::open(target, &settings).await?;
    let mut second = Session::open(target, &settings).await?;
    let summary = build_in([first.connection(), second.connection()], size, &mut progress).await;
    first.close().await;
    second.close().await;
    summary
}

async fn build_in(
    [first, second]: [&mut PgConnection; 2],
    size: &Size,
    progress: &mut (impl FnMut(&str, u64, u64) + Send),
) -> Result<Summary, DatabaseError> {
    let anchor: jiff_sqlx::Timestamp = sqlx::query_scalar("SELECT date_trunc('second', now())")
        .fetch_one(&mut *first)
        .await?;
    let anchor = anchor.to_jiff();
    for connection in [&mut *first, &mut *second] {
        execute(
            connection,
            "SET search_path = public; SET maintenance_work_mem = '256MB'",
        )
        .await?;
        execute(connection, &rows::functions(anchor, size)).await?;
    }
    execute(first, SCHEMA).await?;

    let mut made = Vec::new();
    for step in &rows::STEPS {
        let rows = fill([&mut *first, &mut *second], step, size, progress).await?;
        made.push((step.table, rows));
    }

    let keys: Vec<&str> = KEYS.split_inclusive(";\n").collect();
    let total = keys.len() as u64 + 1;
    for (done, statement) in keys.into_iter().enumerate() {
        progress("keys", done as u64, total);
        execute(first, statement).await?;
    }
    progress("keys", total - 1, total);
    // Also sets the visibility map, as autovacuum would have done in a database that has lived.
    execute(first, "VACUUM (ANALYZE)").await?;
    progress("keys", total, total);

    let bytes: i64 = sqlx::query_scalar("SELECT pg_database_size(current_database())")
        .fetch_one(first)
        .await?;
    Ok(Summary {
        anchor,
        rows: made,
        bytes: bytes.unsigned_abs(),
    })
}

/// Makes the rows of one table, two chunks at a time. Returns their number.
async fn fill(
    [first, second]: [&mut PgConnection; 2],
    step: &Step,
    size: &Size,
    progress: &mut (impl FnMut(&str, u64, u64) + Send),
) -> Result<u64, DatabaseError> {
    let Some(rows) = step.rows else {
        progress(step.table, 0, 0);
        let made = sqlx::query(step.insert).execute(first).await?.rows_affected();
        progress(step.table, made, made);
        return Ok(made);
    };
    let total = rows(size);
    let mut done = 0;
    progress(step.table, done, total);
    while done < total {
        let middle = (done + CHUNK).min(total);
        let end = (middle + CHUNK).min(total);
        let (one, two) = futures::try_join!(
            insert(first, step, done..middle, total),
            insert(second, step, middle..end, total)
        )?;
        done += one + two;
        progress(step.table, done, total);
    }
    Ok(done)
}

/// Makes a range of a table's rows. Returns their number.
async fn insert(
    connection: &mut PgConnection,
    step: &Step,
    range: Range<u64>,
    total: u64,
) -> Result<u64, DatabaseError> {
    let result = sqlx::query(step.insert)
        .bind(range.start.cast_signed())
        .bind(range.end.cast_signed() - 1)
        .bind(total.cast_signed())
        .execute(connection)
        .await?;
    Ok(result.rows_affected())
}

async fn execute(connection: &mut PgConnection, sql: &str) -> Result<(), DatabaseError> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await?;
    Ok(())
}
