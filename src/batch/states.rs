//! Checks of a change of state: a misspelt state matches nothing, and that must not pass as "nothing
//! to do".

use sqlx::{Connection, PgConnection};

use super::preflight::{Target, did_you_mean, reading, refuse};
use super::rule::{Rule, StateChange};
use super::statement::{AgeType, typed};
use crate::job::JobError;
use crate::postgres::catalog::columns::Column;
use crate::postgres::catalog::{effects, nearest};
use crate::postgres::quote::identifier;
use crate::postgres::sqlstate::DatabaseError;

/// How many rows are looked at for a value that the statistics do not know.
const PROBED_ROWS: u32 = 100_000;

/// Checks columns and values; answers with what an operator should know.
pub(super) async fn check(
    connection: &mut PgConnection,
    target: &Target,
    change: &StateChange,
    rule: &Rule,
) -> Result<Vec<String>, JobError> {
    let table = target.relation.display();
    let state = target.column(&change.from_column)?;
    for value in &change.from_values {
        value_fits(connection, &table, state, value).await?;
    }
    for (name, value) in &change.set {
        let column = target.column(name)?;
        settable(&table, column)?;
        value_fits(connection, &table, column, value).await?;
    }
    for name in &change.stamp {
        let column = target.column(name)?;
        settable(&table, column)?;
        stampable(&table, column, rule)?;
        if change.set.contains_key(name) {
            return Err(refuse(
                &table,
                format!("the column {name} is both in `set` and in `stamp`"),
                "leave it in one of them",
            ));
        }
    }
    stays_in_its_partition(connection, target, change).await?;
    let mut warnings = leaves_its_state(&table, change, rule)?;
    if state.enum_labels.is_empty() && state.base_type != "boolean" {
        for value in &change.from_values {
            if !occurs(connection, target, state, value).await? {
                warnings.push(format!(
                    "no row is known to have {} = '{value}': is it spelt as the application spells it?",
                    state.name
                ));
            }
        }
    }
    Ok(warnings)
}

/// The values of a change as SQL: column and expression.
pub(super) fn assignments(
    target: &Target,
    change: &StateChange,
    zone: &str,
) -> Result<Vec<(String, String)>, JobError> {
    let mut assignments = Vec::new();
    for (name, value) in &change.set {
        let column = target.column(name)?;
        assignments.push((name.clone(), typed(value, &column.type_name)));
    }
    let alias = identifier(&target.relation.name);
    for name in &change.stamp {
        let column = target.column(name)?;
        // Anything else was refused by `stampable`.
        let now = AgeType::from_base_type(&column.base_type)
            .unwrap_or(AgeType::Timestamptz)
            .now(zone);
        assignments.push((name.clone(), format!("COALESCE({alias}.{}, {now})", identifier(name))));
    }
    Ok(assignments)
}

/// A row changed in its own partition cannot move to another one.
async fn stays_in_its_partition(
    connection: &mut PgConnection,
    target: &Target,
    change: &StateChange,
) -> Result<(), JobError> {
    let table = target.relation.display();
    let columns: Vec<String> = change.set.keys().chain(&change.stamp).cloned().collect();
    let keys = effects::partition_keys(connection, target.relation.oid, &columns)
        .await
        .map_err(reading(&table))?;
    if keys.is_empty() {
        return Ok(());
    }
    Err(refuse(
        &table,
        format!(
            "the table is partitioned by {}: a changed row would have to move",
            keys.join(", ")
        ),
        "leave the partition key out of `set` and `stamp`, or let the application move the rows",
    ))
}

/// Rows that are still due after the change would be changed again by every run.
fn leaves_its_state(table: &str, change: &StateChange, rule: &Rule) -> Result<Vec<String>, JobError> {
    let column = &change.from_column;
    match change.set.get(column) {
        Some(value) if change.from_values.contains(value) => Err(refuse(
            table,
            format!("`set` leaves {column} at '{value}', which is one of the states to move from"),
            "set a state that is not in `from`",
        )),
        Some(_) => Ok(Vec::new()),
        None if rule.predicate.is_none() => Err(refuse(
            table,
            format!("`set` does not change {column}, so the same rows would be due again"),
            format!("set {column} to the state that rows move to"),
        )),
        None => Ok(vec![format!(
            "`set` does not change {column}: `where` must no longer hold for a row once it is changed"
        )]),
    }
}

fn settable(table: &str, column: &Column) -> Result<(), JobError> {
    if column.generated {
        return Err(refuse(
            table,
            format!("the column {} is generated; only the server sets it", column.name),
            "set the columns that it is generated from",
        ));
    }
    Ok(())
}

fn stampable(table: &str, column: &Column, rule: &Rule) -> Result<(), JobError> {
    match AgeType::from_base_type(&column.base_type) {
        None => Err(refuse(
            table,
            format!(
                "the column {} of `stamp` is of type {}, which tells no time",
                column.name, column.full_type
            ),
            "stamp a column of type timestamptz, timestamp or date",
        )),
        Some(AgeType::Timestamptz) => Ok(()),
        Some(_) if rule.timezone.is_some() => Ok(()),
        Some(_) => Err(refuse(
            table,
            format!(
                "the column {} of `stamp` is of type {}, which has no time zone",
                column.name, column.full_type
            ),
            "set `timezone` to the zone its values are written in",
        )),
    }
}

/// A value must be one of the enum's labels, or something the type reads and stores as it is.
async fn value_fits(connection: &mut PgConnection, table: &str, column: &Column, value: &str) -> Result<(), JobError> {
    if !column.enum_labels.is_empty() {
        if column.enum_labels.iter().any(|label| label == value) {
            return Ok(());
        }
        let labels = column.enum_labels.iter().map(String::as_str);
        return Err(refuse(
            table,
            format!("'{value}' is not a value of {} ({})", column.name, column.full_type),
            did_you_mean(
                &nearest(value, labels, 1),
                &format!("its values are {}", column.enum_labels.join(", ")),
            ),
        ));
    }
    let fits = if column.full_type == column.type_name {
        format!("SELECT {} IS NOT NULL", typed(value, &column.type_name))
    } else {
        let (cut, whole) = (typed(value, &column.full_type), typed(value, &column.type_name));
        format!("SELECT {cut} = {whole}")
    };
    let mut savepoint = connection.begin().await.map_err(|error| reading(table)(error.into()))?;
    let answer: Result<Option<bool>, sqlx::Error> = sqlx::query_scalar(sqlx::AssertSqlSafe(fits))
        .persistent(false)
        .fetch_one(&mut *savepoint)
        .await;
    savepoint
        .rollback()
        .await
        .map_err(|error| reading(table)(error.into()))?;
    let cause = match answer.map_err(DatabaseError::from) {
        Ok(Some(true)) => return Ok(()),
        Ok(_) => format!("'{value}' does not fit {} ({})", column.name, column.full_type),
        Err(error)
            if error
                .sqlstate
                .as_deref()
                .is_some_and(|code| code.starts_with("22") || code.starts_with("23")) =>
        {
            format!("'{value}' is not a value of {} ({})", column.name, column.full_type)
        }
        Err(error) => return Err(reading(table)(error)),
    };
    Err(refuse(
        table,
        cause,
        format!("write a value that {} takes as it is", column.full_type),
    ))
}

/// Whether a value is among the most common ones, or in the first rows that are read. A value that
/// is neither may still occur.
async fn occurs(
    connection: &mut PgConnection,
    target: &Target,
    column: &Column,
    value: &str,
) -> Result<bool, JobError> {
    let table = target.relation.display();
    let common: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_stats
                        WHERE schemaname = $1 AND tablename = $2 AND attname = $3
                          AND $4 = ANY(most_common_vals::text::text[]))",
    )
    .bind(&target.relation.schema)
    .bind(&target.relation.name)
    .bind(&column.name)
    .bind(value)
    .fetch_one(&mut *connection)
    .await
    .map_err(|error| reading(&table)(error.into()))?;
    if common {
        return Ok(true);
    }
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM (SELECT {0} AS state FROM {1} LIMIT {PROBED_ROWS}) AS probed WHERE state = {2})",
        identifier(&column.name),
        target.relation.quoted(),
        typed(value, &column.type_name)
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .persistent(false)
        .fetch_one(connection)
        .await
        .map_err(|error| reading(&table)(error.into()))
}
