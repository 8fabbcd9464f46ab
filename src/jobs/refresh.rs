//! `refresh`: materialized views are brought up to date.

use futures::future::BoxFuture;
use sqlx::PgConnection;

use crate::job::{Exclusion, Job, JobContext, JobError, Kind, Plan};
use crate::postgres::grant::Grant;
use crate::rollup::views::{self, Views};

/// The job that refreshes views.
#[derive(Debug, Clone)]
pub struct RefreshJob {
    views: Views,
}

impl RefreshJob {
    /// A job of these views.
    #[must_use]
    pub fn new(views: Views) -> Self {
        Self { views }
    }
}

impl Job for RefreshJob {
    fn kind(&self) -> Kind {
        Kind::Refresh
    }

    /// Backups only while a view is refreshed that keeps its readers out: see the engine.
    fn exclusions(&self) -> Vec<Exclusion> {
        self.views
            .views
            .iter()
            .map(|view| Exclusion::Rows(view.to_string()))
            .collect()
    }

    fn grants<'a>(&'a self, connection: &'a mut PgConnection) -> BoxFuture<'a, Result<Option<Vec<Grant>>, JobError>> {
        Box::pin(async move { views::grants(connection, &self.views).await.map(Some) })
    }

    fn plan<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        Box::pin(views::plan(self.views.clone(), context))
    }
}
