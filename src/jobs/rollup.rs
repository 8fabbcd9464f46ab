//! `rollup`: measures of a table's rows by buckets of time are brought up to date.

use futures::future::BoxFuture;
use sqlx::PgConnection;

use crate::job::{Exclusion, Job, JobContext, JobError, Kind, Plan};
use crate::postgres::grant::Grant;
use crate::rollup::{self, Rollup, Task};

/// The job that a rollup is.
#[derive(Debug, Clone)]
pub struct RollupJob {
    rollup: Rollup,
    task: Task,
}

impl RollupJob {
    /// The job that brings a rollup up to date.
    #[must_use]
    pub fn new(rollup: Rollup) -> Self {
        Self {
            rollup,
            task: Task::Refresh,
        }
    }

    /// The same rollup with something else to do.
    #[must_use]
    pub fn with_task(self, task: Task) -> Self {
        Self { task, ..self }
    }
}

impl Job for RollupJob {
    fn kind(&self) -> Kind {
        Kind::Rollup
    }

    fn exclusions(&self) -> Vec<Exclusion> {
        vec![Exclusion::Rows(self.rollup.target.to_string())]
    }

    fn grants<'a>(&'a self, connection: &'a mut PgConnection) -> BoxFuture<'a, Result<Option<Vec<Grant>>, JobError>> {
        Box::pin(async move { rollup::grants(connection, &self.rollup).await.map(Some) })
    }

    fn plan<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        Box::pin(rollup::plan(self.rollup.clone(), self.task, context))
    }
}
