//! Upkeep of tables and indexes: vacuum, analyze and reindex where they are needed, and where they are
//! not, nothing.
//!
//! Autovacuum looks after most tables. What it leaves is done here, at an hour that was chosen: large
//! tables whose dead rows stay below its limit, the statistics of partitioned tables, which it never
//! gathers, freezing before it comes due at noon, and indexes that have grown, which it never rebuilds.
//! A rebuild is `CONCURRENTLY` always: what `REINDEX DATABASE` does keeps everybody out.

mod act;
mod estimate;
mod indexes;
mod leftovers;
mod need;
mod rights;
mod run;
mod survey;
mod tables;

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

pub use self::leftovers::clean_up;
use self::need::Step;
use self::survey::Survey;
use crate::job::{JobContext, JobError, JobReport, Plan};
use crate::ledger::index_sizes::IndexSize;
use crate::postgres::grant::Grant;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::{Period, TableName};

/// Something that is done to a table or its indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Dead rows are removed, and old ones frozen.
    Vacuum,
    /// The planner's statistics are gathered.
    Analyze,
    /// Indexes that have grown are rebuilt, and what interrupted rebuilds left is dropped.
    Reindex,
}

impl Action {
    /// Every action, with its word.
    pub const WORDS: [(&'static str, Self); 3] = [
        ("vacuum", Self::Vacuum),
        ("analyze", Self::Analyze),
        ("reindex", Self::Reindex),
    ];
}

/// `[jobs.NAME] upkeep = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Upkeep {
    /// The tables, with all their partitions; none for all that the role may maintain.
    pub tables: Vec<TableName>,
    /// What may be done.
    pub actions: BTreeSet<Action>,
    /// The part of a table's rows that may be dead, or changed since its statistics were gathered. Above
    /// 0, at most 1.
    pub dead_fraction: f64,
    /// The part of an index that may be bloat. Above 0, at most 1.
    pub bloat_fraction: f64,
    /// Indexes smaller than this are not rebuilt. In bytes.
    pub min_index_size: u64,
    /// How long after the run began something may still be begun; the whole run where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Period>,
}

impl Upkeep {
    /// [`Upkeep::dead_fraction`] where none is given.
    pub const DEAD_FRACTION: f64 = 0.05;
    /// [`Upkeep::bloat_fraction`] where none is given. An index that grows by random keys is some 20 %
    /// larger than a fresh one however often it is rebuilt.
    pub const BLOAT_FRACTION: f64 = 0.3;
    /// [`Upkeep::min_index_size`] where none is given.
    pub const MIN_INDEX_SIZE: u64 = 16 * 1024 * 1024;

    fn window(&self) -> Option<Duration> {
        self.window.and_then(|window| window.to_duration())
    }
}

/// Looks at tables and indexes and decides what is needed, within one read-only transaction.
///
/// # Errors
/// Refused, with cause and remedy, when a table is not there or the role may not maintain it.
pub async fn plan(upkeep: Upkeep, context: &mut JobContext) -> Result<Box<dyn Plan>, JobError> {
    let mut reading = context
        .session
        .connection()
        .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
        .await
        .map_err(|error| JobError::database("plan the upkeep", &error.into()))?;
    let result = survey::survey(&mut reading, &upkeep).await;
    if let Err(error) = reading.rollback().await {
        tracing::debug!(error = %DatabaseError::from(error), "the plan's transaction did not end in good order");
    }
    let survey = result?;
    Ok(Box::new(UpkeepPlan {
        steps: need::steps(&upkeep, &survey),
        seen: indexes::seen(&survey.indexes),
        upkeep,
        survey,
    }))
}

/// The rights that the tables need, each with whether the session's role has it; nothing where the role
/// maintains what it may.
///
/// # Errors
/// Refused when a table is not there.
pub async fn grants(connection: &mut PgConnection, upkeep: &Upkeep) -> Result<Vec<Grant>, JobError> {
    if upkeep.tables.is_empty() {
        return Ok(Vec::new());
    }
    let tables = tables::survey(connection, upkeep).await?;
    let role = rights::Role::read(connection).await?;
    Ok(rights::needed(&role, &tables))
}

/// The part of each index of this size or more that is bloat, as far as it is known, the largest first.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn bloated(
    connection: &mut PgConnection,
    smallest: u64,
) -> Result<Vec<(Option<f64>, Option<String>)>, DatabaseError> {
    let tables = tables::all(connection, &[]).await?;
    let indexes = indexes::survey(connection, &tables, smallest).await?;
    let bloat = |index: &indexes::Index| Some((Some(index.bloat()?), Some(index.display())));
    let mut found: Vec<_> = indexes.iter().filter_map(bloat).collect();
    found.sort_by(|(one, _): &(Option<f64>, _), (other, _)| {
        other.unwrap_or_default().total_cmp(&one.unwrap_or_default())
    });
    Ok(found)
}

/// What is needed.
struct UpkeepPlan {
    upkeep: Upkeep,
    survey: Survey,
    steps: Vec<Step>,
    /// The sizes of the indexes as they are now.
    seen: Vec<IndexSize>,
}

impl Plan for UpkeepPlan {
    fn intent(&self) -> Value {
        json!({
            "tables": self.survey.tables.len(),
            "indexes": self.survey.indexes.len(),
            "steps": self.steps.iter().map(Step::describe).collect::<Vec<_>>(),
            "warnings": self.survey.warnings,
        })
    }

    fn execute<'a>(self: Box<Self>, context: &'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>>
    where
        Self: 'a,
    {
        Box::pin(async move { run::run(&self, context).await })
    }
}
