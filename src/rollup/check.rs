//! What must hold before a bucket is computed: tables, columns, types, rights, and that the server
//! understands every expression. Reads only.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::bucket::Width;
use super::spec::{Form, Query, Rollup, Source};
use super::statement::{BucketType, Fresh, TimeType};
use super::{metric, rights, target};
use crate::job::JobError;
use crate::postgres::catalog::columns::{self, Column};
use crate::postgres::catalog::{self, Relation, RelationKind, ResolveError, leaves, nearest};
use crate::postgres::quote::identifier;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::{TableName, Timezone};

/// Leaves of fewer blocks are read whole as quickly as by an index.
const SMALL: i32 = 128;

/// A rollup, found fit.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    /// How long a bucket is.
    pub(super) width: Width,
    /// In whose calendar.
    pub(super) zone: Timezone,
    /// What is computed.
    pub(super) subject: Subject,
    /// Where it is kept; none where `rollup init` has still to make it.
    pub(super) target: Option<Relation>,
    /// What an operator should know.
    pub(super) warnings: Vec<String>,
}

/// What is computed, found fit.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one of it a run")]
pub(super) enum Subject {
    /// Measures of a table's rows.
    Source {
        /// The table.
        relation: Relation,
        /// The tables that hold its rows, and itself.
        tree: Vec<Oid>,
        /// Whether buckets are found without reading the whole table.
        indexed: bool,
        /// The statements.
        fresh: Fresh,
    },
    /// A query.
    Query(metric::Metric),
}

impl Checked {
    /// The zone's rules.
    pub(super) fn rules(&self) -> &TimeZone {
        self.zone.rules()
    }

    /// The tables that are read.
    pub(super) fn tree(&self) -> &[Oid] {
        match &self.subject {
            Subject::Source { tree, .. } => tree,
            Subject::Query(metric) => &metric.sources,
        }
    }

    /// The target, in a plan of a rollup that was initialised.
    pub(super) fn target(&self) -> Result<&Relation, JobError> {
        self.target
            .as_ref()
            .ok_or_else(|| JobError::permanent("look for the target", "it is gone"))
    }
}

/// Checks all of it; that the target is not there yet is no mistake here.
pub(super) async fn check(connection: &mut PgConnection, rollup: &Rollup) -> Result<Checked, JobError> {
    let mut checked = look_up(connection, rollup).await?;
    rights::check(connection, rollup, &checked).await?;
    fits(connection, rollup, &mut checked).await?;
    Ok(checked)
}

/// Finds tables, columns and types.
pub(super) async fn look_up(connection: &mut PgConnection, rollup: &Rollup) -> Result<Checked, JobError> {
    let zone = rollup.zone();
    known_zone(connection, &zone, "timezone").await?;
    let target = target::find(connection, &rollup.target).await?;
    let (subject, warnings) = match &rollup.form {
        Form::Source(source) => check_source(connection, rollup, source, &zone, target.as_ref()).await?,
        Form::Query(query) => (
            check_query(connection, query, rollup, target.as_ref()).await?,
            Vec::new(),
        ),
    };
    Ok(Checked {
        width: rollup.bucket,
        zone,
        subject,
        target,
        warnings,
    })
}

async fn check_source(
    connection: &mut PgConnection,
    rollup: &Rollup,
    source: &Source,
    zone: &Timezone,
    target: Option<&Relation>,
) -> Result<(Subject, Vec<String>), JobError> {
    let relation = find(connection, &source.source, "source").await?;
    let name = relation.display();
    if relation.schema == "pgreeve" || !matches!(relation.kind, RelationKind::Table | RelationKind::Partitioned) {
        let cause = format!(
            "it is a {}, whose writers are not seen from here",
            relation.kind.as_str()
        );
        return Err(refuse("source", &name, cause, "name the table that stores the rows"));
    }
    if target.is_some_and(|target| target.oid == relation.oid) {
        let remedy = "name another table, or one that does not exist yet";
        return Err(refuse("target", &name, "it is the source too", remedy));
    }
    let columns = columns::of(connection, relation.oid).await.map_err(reading(&name))?;
    let time = column(&relation, &columns, &source.time_column, "time_column")?;
    let time_type = time_type(&name, time, rollup)?;
    let column_zone = source.column_timezone.clone().unwrap_or_else(|| zone.clone());
    known_zone(connection, &column_zone, "column_timezone").await?;
    for group in &source.group_by {
        column(&relation, &columns, group, "group_by")?;
    }
    let leaves = leaves::of(connection, relation.oid, &source.time_column)
        .await
        .map_err(reading(&name))?;
    let indexed = leaves
        .iter()
        .all(|leaf| leaf.age_index.is_some() || leaf.relation.pages < SMALL);
    let mut warnings = Vec::new();
    if !indexed {
        warnings.push(format!(
            "no index of {name} leads with {}, so each run reads the whole table: CREATE INDEX CONCURRENTLY ON {} ({})",
            time.name,
            relation.quoted(),
            identifier(&time.name)
        ));
    }
    let bucket_type = match target {
        Some(target) => target::bucket_type(connection, target, source, rollup.bucket).await?,
        None => BucketType::Instant,
    };
    let mut tree: Vec<Oid> = leaves.iter().map(|leaf| leaf.relation.oid).collect();
    if !tree.contains(&relation.oid) {
        tree.push(relation.oid);
    }
    let fresh = Fresh::new(source, &relation, time_type, &column_zone, zone, bucket_type);
    Ok((
        Subject::Source {
            relation,
            tree,
            indexed,
            fresh,
        },
        warnings,
    ))
}

fn time_type(table: &str, time: &Column, rollup: &Rollup) -> Result<TimeType, JobError> {
    let Some(time_type) = TimeType::from_base_type(&time.base_type) else {
        let cause = format!(
            "the time column {} is of type {}, which tells no time",
            time.name, time.full_type
        );
        let remedy = "name a column of type timestamptz, timestamp or date";
        return Err(refuse("time_column", table, cause, remedy));
    };
    let zoned = rollup.timezone.is_some() || rollup.source().is_some_and(|source| source.column_timezone.is_some());
    if time_type != TimeType::Timestamptz && !zoned {
        let cause = format!(
            "the time column {} is of type {}, which has no time zone",
            time.name, time.full_type
        );
        let remedy = "set `timezone` to the zone its values were written in, such as \"UTC\" or \"Europe/Berlin\"";
        return Err(refuse("time_column", table, cause, remedy));
    }
    if time_type == TimeType::Date && rollup.bucket.is_short() {
        let cause = format!(
            "the time column {} is a date, and a bucket of {} is shorter",
            time.name, rollup.bucket
        );
        return Err(refuse("bucket", table, cause, "write \"1d\" or more"));
    }
    Ok(time_type)
}

async fn check_query(
    connection: &mut PgConnection,
    query: &Query,
    rollup: &Rollup,
    target: Option<&Relation>,
) -> Result<Subject, JobError> {
    let Some(target) = target else {
        return Err(refuse(
            "target",
            &rollup.target.to_string(),
            "there is no such table",
            "make the table; only a rollup with a `source` makes its own",
        ));
    };
    metric::check(connection, query, target).await.map(Subject::Query)
}

/// Has the server plan what a run will send.
async fn fits(connection: &mut PgConnection, rollup: &Rollup, checked: &mut Checked) -> Result<(), JobError> {
    let now = now(connection).await?;
    let bounds = checked
        .width
        .bounds(checked.width.floor(now, checked.rules()), now, 1, checked.rules());
    match (&checked.subject, rollup.source()) {
        (Subject::Source { relation, fresh, .. }, Some(source)) => {
            let name = relation.display();
            if source.predicate.is_some() {
                probe(connection, &fresh.try_condition(), "where", &name, "the condition").await?;
            }
            for measure in &source.measures {
                for (_, expression) in measure.columns() {
                    let what = format!("the measure {}", measure.name);
                    probe(
                        connection,
                        &fresh.try_measure(&bounds, &expression),
                        "measures",
                        &name,
                        &what,
                    )
                    .await?;
                }
            }
            if let Some(relation) = checked.target.clone() {
                let warnings = target::fits(connection, &relation, source).await?;
                let insert = fresh.insert(&relation, &bounds);
                probe(connection, &insert, "target", &relation.display(), "the result").await?;
                checked.warnings.extend(warnings);
            }
        }
        (Subject::Query(metric), _) => {
            metric
                .try_it(connection, checked.target()?, &bounds, &checked.zone)
                .await?;
        }
        (Subject::Source { .. }, None) => {}
    }
    Ok(())
}

/// Has a statement planned in a savepoint. Planning reads no row: what a refusal quotes is the
/// operator's own text.
pub(super) async fn probe(
    connection: &mut PgConnection,
    sql: &str,
    setting: &'static str,
    table: &str,
    what: &str,
) -> Result<(), JobError> {
    let mut savepoint = connection.begin().await.map_err(|error| reading(table)(error.into()))?;
    let sql = format!("EXPLAIN (FORMAT JSON) {sql}");
    let result = sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .execute(&mut *savepoint)
        .await;
    savepoint
        .rollback()
        .await
        .map_err(|error| reading(table)(error.into()))?;
    let Err(error) = result else { return Ok(()) };
    Err(refused_by_server(error, setting, table, what))
}

/// The server's refusal of an expression.
pub(super) fn refused_by_server(error: sqlx::Error, setting: &'static str, table: &str, what: &str) -> JobError {
    let passing = ["08", "53", "55", "57", "58", "XX"];
    let code = match &error {
        sqlx::Error::Database(refusal) => refusal.code().unwrap_or_default().into_owned(),
        _ => return reading(table)(error.into()),
    };
    if passing.iter().any(|class| code.starts_with(class)) {
        return reading(table)(error.into());
    }
    let message = error
        .as_database_error()
        .map(|refusal| refusal.message().to_owned())
        .unwrap_or_default();
    let cause = format!("{what} is refused: {message} (SQLSTATE {code})");
    let correct = format!("correct `{setting}`; names outside of pg_catalog need their schema");
    let remedy = DatabaseError::from(error).remedy().unwrap_or(correct);
    JobError {
        sqlstate: Some(code),
        ..refuse(setting, table, cause, remedy)
    }
}

/// The database's clock.
pub(super) async fn now(connection: &mut PgConnection) -> Result<Timestamp, JobError> {
    let now: Result<SqlTimestamp, sqlx::Error> = sqlx::query_scalar("SELECT pg_catalog.clock_timestamp()")
        .fetch_one(connection)
        .await;
    now.map(SqlTimestamp::to_jiff)
        .map_err(|error| JobError::database("ask for the time", &error.into()))
}

/// A refusal about a setting of the rollup.
pub(super) fn refuse(
    setting: &'static str,
    table: &str,
    cause: impl Into<String>,
    remedy: impl Into<String>,
) -> JobError {
    JobError::refused(format!("check {table}"), cause, remedy).about(setting)
}

/// An error of the database while the catalog is read.
pub(super) fn reading(table: &str) -> impl Fn(DatabaseError) -> JobError + use<> {
    let operation = format!("read the catalog about {table}");
    move |error| JobError::database(operation.clone(), &error)
}

/// A table, as the catalog has it.
pub(super) async fn find(
    connection: &mut PgConnection,
    table: &TableName,
    setting: &'static str,
) -> Result<Relation, JobError> {
    let name = table.to_string();
    catalog::resolve(connection, table).await.map_err(|error| match error {
        ResolveError::Database(error) => reading(&name)(error),
        ResolveError::Missing { ref near } => {
            let near: Vec<&str> = near.iter().map(String::as_str).collect();
            refuse(setting, &name, error.to_string(), did_you_mean(&near))
        }
        ResolveError::Ambiguous(_) => refuse(setting, &name, error.to_string(), "write the table with its schema"),
    })
}

/// A column by its exact name.
pub(super) fn column<'a>(
    relation: &Relation,
    columns: &'a [Column],
    name: &str,
    setting: &'static str,
) -> Result<&'a Column, JobError> {
    columns.iter().find(|column| column.name == name).ok_or_else(|| {
        let near = nearest(name, columns.iter().map(|column| column.name.as_str()), 3);
        let cause = format!("there is no column {name}");
        refuse(setting, &relation.display(), cause, did_you_mean(&near))
    })
}

fn did_you_mean(near: &[&str]) -> String {
    if near.is_empty() {
        "write the name as the catalog has it, letter case included".to_owned()
    } else {
        format!("did you mean {}?", near.join(" or "))
    }
}

async fn known_zone(connection: &mut PgConnection, zone: &Timezone, setting: &'static str) -> Result<(), JobError> {
    let known: bool =
        sqlx::query_scalar("SELECT $1 = 'UTC' OR EXISTS (SELECT FROM pg_catalog.pg_timezone_names WHERE name = $1)")
            .bind(zone.name())
            .fetch_one(connection)
            .await
            .map_err(|error| reading("time zones")(error.into()))?;
    if known {
        return Ok(());
    }
    Err(refuse(
        setting,
        "the time zone",
        format!("the server does not know the time zone {}", zone.name()),
        "write a zone of the server's view pg_timezone_names",
    ))
}
