//! `call`: a function of the application is called under the limits of a run.

use futures::future::BoxFuture;
use sqlx::PgConnection;

use crate::call::{self, Call};
use crate::job::{Exclusion, Job, JobContext, JobError, Kind, Plan};
use crate::postgres::grant::Grant;

/// The job that calls a function.
#[derive(Debug, Clone)]
pub struct CallJob {
    call: Call,
}

impl CallJob {
    /// A job of this call.
    #[must_use]
    pub fn new(call: Call) -> Self {
        Self { call }
    }
}

impl Job for CallJob {
    fn kind(&self) -> Kind {
        Kind::Call
    }

    /// Nobody knows what it touches; `groups` can say it.
    fn exclusions(&self) -> Vec<Exclusion> {
        Vec::new()
    }

    fn grants<'a>(&'a self, connection: &'a mut PgConnection) -> BoxFuture<'a, Result<Option<Vec<Grant>>, JobError>> {
        Box::pin(async move { call::grants(connection, &self.call).await.map(Some) })
    }

    fn plan<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        Box::pin(call::plan(self.call.clone(), context))
    }
}
