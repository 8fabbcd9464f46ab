//! `upkeep`: tables are vacuumed and analyzed, and indexes rebuilt, where that is needed.

use futures::future::BoxFuture;
use sqlx::PgConnection;

use crate::job::{Exclusion, Job, JobContext, JobError, Kind, Plan, RecoveryContext};
use crate::postgres::grant::Grant;
use crate::upkeep::{self, Upkeep};

/// The job that keeps tables and indexes in order.
#[derive(Debug, Clone)]
pub struct UpkeepJob {
    upkeep: Upkeep,
}

impl UpkeepJob {
    /// A job of these tables.
    #[must_use]
    pub fn new(upkeep: Upkeep) -> Self {
        Self { upkeep }
    }
}

impl Job for UpkeepJob {
    fn kind(&self) -> Kind {
        Kind::Upkeep
    }

    /// Nothing for the whole run: backups, and runs on the rows of a table, are kept out step by step, so
    /// that none waits for more than one of them.
    fn exclusions(&self) -> Vec<Exclusion> {
        Vec::new()
    }

    fn clean_up(&self, context: RecoveryContext) -> BoxFuture<'_, Result<(), JobError>> {
        Box::pin(upkeep::clean_up(context))
    }

    fn grants<'a>(&'a self, connection: &'a mut PgConnection) -> BoxFuture<'a, Result<Option<Vec<Grant>>, JobError>> {
        Box::pin(async move { upkeep::grants(connection, &self.upkeep).await.map(Some) })
    }

    fn plan<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        Box::pin(upkeep::plan(self.upkeep.clone(), context))
    }
}
