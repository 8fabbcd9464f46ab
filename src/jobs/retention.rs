//! `retention`: rows past their keep period are deleted, and that none is left is checked.

use futures::future::BoxFuture;
use serde::Serialize;
use sqlx::PgConnection;

use crate::batch::{self, Brakes, Change, Rule, Throttle};
use crate::job::{Exclusion, Job, JobContext, JobError, Kind, Plan};
use crate::postgres::grant::Grant;
use crate::values::{Period, TableName, Timezone};

/// `[jobs.NAME] retention = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RetentionSettings {
    /// Whose rows.
    pub table: TableName,
    /// The column that says how old a row is: `timestamptz`, `timestamp` (with `timezone`) or `date`.
    pub age_column: String,
    /// How long a row is kept.
    pub keep: Period,
    /// A condition of SQL that a row must meet besides its age to be deleted.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub predicate: Option<String>,
    /// The zone that a `timestamp` without zone was written in, and in which days are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<Timezone>,
    /// Columns that make a group: the newest row of each stays, whatever its age.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep_latest_per: Vec<String>,
    /// Whether rows stay that a foreign key points at.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skip_if_referenced: bool,
    /// The largest part of the table, 0 to 1, that one run may delete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_fraction: Option<f64>,
    /// The most rows that one run may delete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rows: Option<u64>,
}

/// The job that a retention policy is.
#[derive(Debug, Clone)]
pub struct RetentionJob {
    settings: RetentionSettings,
    throttle: Throttle,
}

impl RetentionJob {
    /// A job of these settings.
    #[must_use]
    pub fn new(settings: RetentionSettings) -> Self {
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
            period: settings.keep,
            predicate: settings.predicate,
            timezone: settings.timezone,
            change: Change::Delete,
            keep_latest_per: settings.keep_latest_per,
            skip_if_referenced: settings.skip_if_referenced,
            brakes: Brakes {
                max_rows: settings.max_rows,
                max_fraction: settings.max_fraction,
            },
            throttle: self.throttle.clone(),
        }
    }
}

impl Job for RetentionJob {
    fn kind(&self) -> Kind {
        Kind::Retention
    }

    fn exclusions(&self) -> Vec<Exclusion> {
        vec![Exclusion::Rows(self.settings.table.to_string())]
    }

    fn grants<'a>(&'a self, connection: &'a mut PgConnection) -> BoxFuture<'a, Result<Option<Vec<Grant>>, JobError>> {
        Box::pin(async move { batch::grants(connection, &self.rule()).await.map(Some) })
    }

    fn plan<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        Box::pin(batch::plan(self.rule(), context))
    }
}
