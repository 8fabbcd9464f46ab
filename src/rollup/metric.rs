//! The query form: whatever a SELECT answers for a bucket becomes rows of a table of the application,
//! in place of the rows with the same key.
//!
//! The query sees the bucket as a table of one row, so that no text is ever pasted into it. Removal
//! and insertion are one statement, so both see the same answer: running it again replaces rows and
//! never doubles them, with or without a unique key.

use jiff::Timestamp;
use serde_json::Value;
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Column as _, Connection, Executor, PgConnection, SqlSafeStr, Statement};

use super::check::{column, probe, reading, refuse, refused_by_server};
use super::spec::Query;
use super::target;
use crate::job::JobError;
use crate::postgres::catalog::{Relation, columns};
use crate::postgres::quote::identifier;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::Timezone;

/// A query, found fit.
#[derive(Debug, Clone)]
pub(super) struct Metric {
    query: String,
    key: Vec<String>,
    /// The target's columns that it fills.
    columns: Vec<String>,
    /// The tables that it reads.
    pub(super) sources: Vec<Oid>,
    /// The same as `schema.table`.
    pub(super) source_names: Vec<String>,
}

/// Has the server read the query, and compares its columns with the target's.
pub(super) async fn check(connection: &mut PgConnection, query: &Query, target: &Relation) -> Result<Metric, JobError> {
    let name = target.display();
    let mut metric = Metric {
        query: query.query.clone(),
        key: query.key.clone(),
        columns: Vec::new(),
        sources: Vec::new(),
        source_names: Vec::new(),
    };
    let bounds = [Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH];
    let utc = Timezone::utc();
    let select = format!("WITH {} SELECT * FROM fresh", metric.fresh(&bounds, &utc));
    metric.columns = names(connection, &select).await?;
    let known = columns::of(connection, target.oid).await.map_err(reading(&name))?;
    for produced in &metric.columns {
        if column(target, &known, produced, "query")?.generated {
            let cause = format!("the column {produced} is generated, and cannot be written");
            return Err(refuse("query", &name, cause, "leave it out of the query"));
        }
    }
    target::nothing_else_required(connection, target, &metric.columns).await?;
    (metric.sources, metric.source_names) = sources(connection, &select, target).await?;
    Ok(metric)
}

/// The names of a query's columns. It is prepared, not run.
async fn names(connection: &mut PgConnection, select: &str) -> Result<Vec<String>, JobError> {
    let mut savepoint = connection
        .begin()
        .await
        .map_err(|error| reading("the query")(error.into()))?;
    let prepared = (&mut *savepoint)
        .prepare(AssertSqlSafe(select.to_owned()).into_sql_str())
        .await
        .map(|statement| {
            statement
                .columns()
                .iter()
                .map(|column| column.name().to_owned())
                .collect()
        });
    savepoint
        .rollback()
        .await
        .map_err(|error| reading("the query")(error.into()))?;
    prepared.map_err(|error| refused_by_server(error, "query", "the query", "the query"))
}

/// The tables that a query's plan reads.
async fn sources(
    connection: &mut PgConnection,
    select: &str,
    target: &Relation,
) -> Result<(Vec<Oid>, Vec<String>), JobError> {
    let failed = |error: sqlx::Error| refused_by_server(error, "query", "the query", "the query");
    let plan: Value = sqlx::query_scalar(AssertSqlSafe(format!("EXPLAIN (VERBOSE, FORMAT JSON) {select}")))
        .persistent(false)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    let mut names = Vec::new();
    relations(&plan, &mut names);
    names.sort();
    names.dedup();
    let oids: Vec<(Oid, String)> = sqlx::query_as(
        "SELECT c.oid, n.nspname || '.' || c.relname FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname || '.' || c.relname = ANY ($1) AND c.oid <> $2",
    )
    .bind(&names)
    .bind(target.oid)
    .fetch_all(connection)
    .await
    .map_err(|error| reading("the query")(error.into()))?;
    Ok(oids.into_iter().unzip())
}

fn relations(plan: &Value, names: &mut Vec<String>) {
    match plan {
        Value::Array(parts) => parts.iter().for_each(|part| relations(part, names)),
        Value::Object(parts) => {
            let text = |key: &str| parts.get(key).and_then(Value::as_str);
            if let (Some(schema), Some(name)) = (text("Schema"), text("Relation Name")) {
                names.push(format!("{schema}.{name}"));
            }
            parts.values().for_each(|part| relations(part, names));
        }
        _ => {}
    }
}

impl Metric {
    /// The bucket and the query's answer for it, as common table expressions.
    fn fresh(&self, bounds: &[Timestamp], zone: &Timezone) -> String {
        let (starts, ends) = match bounds {
            [starts, .., ends] => (*starts, *ends),
            _ => (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH),
        };
        let day = zone.rules().to_datetime(starts).date();
        format!(
            "bucket (starts, ends, day) AS (SELECT '{starts}'::timestamptz, '{ends}'::timestamptz, '{day}'::date), \
             fresh AS MATERIALIZED (\n{}\n)",
            self.query
        )
    }

    /// Replaces the rows of one bucket.
    pub(super) fn replace(&self, target: &Relation, bounds: &[Timestamp], zone: &Timezone) -> String {
        let alias = identifier(&target.name);
        let columns: Vec<String> = self.columns.iter().map(|column| identifier(column)).collect();
        let keys: Vec<String> = (1..=self.key.len())
            .map(|place| format!("pgreeve_key_{place}"))
            .collect();
        let named: Vec<String> = self
            .key
            .iter()
            .zip(&keys)
            .map(|(key, name)| format!("(\n{key}\n) AS {name}"))
            .collect();
        let same: Vec<String> = self
            .key
            .iter()
            .zip(&keys)
            .map(|(key, name)| format!("(\n{key}\n) IS NOT DISTINCT FROM pgreeve_keys.{name}"))
            .collect();
        format!(
            "WITH {}, pgreeve_keys AS MATERIALIZED (SELECT DISTINCT {} FROM fresh AS {alias}), \
             gone AS (DELETE FROM {} AS {alias} WHERE EXISTS (SELECT FROM pgreeve_keys WHERE {}) RETURNING 1) \
             INSERT INTO {} ({}) SELECT {} FROM fresh WHERE (SELECT count(*) FROM gone) >= 0",
            self.fresh(bounds, zone),
            named.join(", "),
            target.quoted(),
            same.join(" AND "),
            target.quoted(),
            columns.join(", "),
            columns.join(", "),
        )
    }

    /// Has the server plan key and replacement.
    pub(super) async fn try_it(
        &self,
        connection: &mut PgConnection,
        target: &Relation,
        bounds: &[Timestamp],
        zone: &Timezone,
    ) -> Result<(), JobError> {
        let name = target.display();
        let alias = identifier(&target.name);
        for key in &self.key {
            let what = format!("the key {key}");
            let of_target = format!("SELECT (\n{key}\n) FROM {} AS {alias}", target.quoted());
            probe(connection, &of_target, "key", &name, &what).await?;
            let fresh = self.fresh(bounds, zone);
            let of_query = format!("WITH {fresh} SELECT (\n{key}\n) FROM fresh AS {alias}");
            probe(connection, &of_query, "key", "the query's answer", &what).await?;
        }
        probe(
            connection,
            &self.replace(target, bounds, zone),
            "query",
            &name,
            "the result",
        )
        .await
    }
}

/// Runs the replacement of one bucket; answers how many rows it has now.
pub(super) async fn replace(transaction: &mut PgConnection, sql: String) -> Result<u64, DatabaseError> {
    let done = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .execute(transaction)
        .await?;
    Ok(done.rows_affected())
}
