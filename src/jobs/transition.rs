//! `transition`: rows in listed states that are old enough move to another state.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use serde::Serialize;
use sqlx::PgConnection;

use crate::batch::{self, Brakes, Change, Rule, StateChange, Throttle};
use crate::job::{Exclusion, Job, JobContext, JobError, Kind, Plan};
use crate::postgres::grant::Grant;
use crate::values::{Period, TableName, Timezone};

/// `[jobs.NAME] transition = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TransitionSettings {
    /// Whose rows.
    pub table: TableName,
    /// The column that says how long a row has been as it is.
    pub age_column: String,
    /// The column that says it where that one is null, such as when the row was begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_fallback: Option<String>,
    /// After how long it moves.
    pub after: Period,
    /// The states it moves from: a column and its values.
    pub from: FromState,
    /// The values it moves to, by column.
    pub set: BTreeMap<String, String>,
    /// Columns that take the time of the move where they are still null.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stamp: Vec<String>,
    /// A condition of SQL that a row must meet besides.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub predicate: Option<String>,
    /// The zone that a `timestamp` without zone was written in, and in which days are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<Timezone>,
}

/// `from = { COLUMN = [VALUES] }`: exactly one column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FromState {
    /// The state's column.
    pub column: String,
    /// The values a row may move from; at least one.
    pub values: Vec<String>,
}

/// The job that a transition is.
#[derive(Debug, Clone)]
pub struct TransitionJob {
    settings: TransitionSettings,
    throttle: Throttle,
}

impl TransitionJob {
    /// A job of these settings.
    #[must_use]
    pub fn new(settings: TransitionSettings) -> Self {
        Self {
            settings,
            throttle: Throttle::default(),
        }
    }

    /// The same job, which yields when these say so.
    #[must_use]
    pub fn with_throttle(self, throttle: Throttle) -> Self {
        Self { throttle, ..self }
    }

    fn rule(&self) -> Rule {
        let settings = self.settings.clone();
        Rule {
            table: settings.table,
            age_column: settings.age_column,
            age_fallback: settings.age_fallback,
            period: settings.after,
            predicate: settings.predicate,
            timezone: settings.timezone,
            change: Change::Update(StateChange {
                from_column: settings.from.column,
                from_values: settings.from.values,
                set: settings.set,
                stamp: settings.stamp,
            }),
            keep_latest_per: Vec::new(),
            skip_if_referenced: false,
            after: Vec::new(),
            brakes: Brakes::default(),
            throttle: self.throttle.clone(),
        }
    }
}

impl Job for TransitionJob {
    fn kind(&self) -> Kind {
        Kind::Transition
    }

    fn exclusions(&self) -> Vec<Exclusion> {
        vec![Exclusion::Rows(self.settings.table.to_string())]
    }

    fn grants<'a>(&'a self, connection: &'a mut PgConnection) -> BoxFuture<'a, Result<Option<Vec<Grant>>, JobError>> {
        Box::pin(async move { batch::grants(connection, &self.rule(), None).await.map(Some) })
    }

    fn plan<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        Box::pin(batch::plan(self.rule(), context))
    }
}
