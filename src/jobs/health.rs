//! `health`: figures of the database are read and compared with their limits.

use futures::future::BoxFuture;
use sqlx::PgConnection;

use crate::health::{self, Health, HealthPlan};
use crate::job::{Exclusion, Job, JobContext, JobError, Kind, Plan};
use crate::postgres::grant::Grant;

/// The job that looks how a database is.
#[derive(Debug, Clone)]
pub struct HealthJob {
    health: Health,
}

impl HealthJob {
    /// A job of these checks.
    #[must_use]
    pub fn new(health: Health) -> Self {
        Self { health }
    }
}

impl Job for HealthJob {
    fn kind(&self) -> Kind {
        Kind::Health
    }

    fn exclusions(&self) -> Vec<Exclusion> {
        Vec::new()
    }

    fn grants<'a>(&'a self, connection: &'a mut PgConnection) -> BoxFuture<'a, Result<Option<Vec<Grant>>, JobError>> {
        Box::pin(async move { health::grants(connection).await.map(Some) })
    }

    fn plan<'a>(&'a self, _context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        let plan: Box<dyn Plan> = Box::new(HealthPlan::new(self.health.clone()));
        Box::pin(std::future::ready(Ok(plan)))
    }
}
