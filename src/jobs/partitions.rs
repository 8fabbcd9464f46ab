//! `partitions`: partitions are made before they are needed. Nothing is ever dropped here.

use futures::future::BoxFuture;
use serde::Serialize;

use crate::batch::{self, PremakeRule};
use crate::job::{Exclusion, Job, JobContext, JobError, Kind, Plan};
use crate::values::{Period, TableName, Timezone};

/// `[jobs.NAME] partitions = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartitionsSettings {
    /// The table, divided by ranges of one column that tells the time.
    pub table: TableName,
    /// How many partitions lie ahead of the present one. 1 to 1000, default 3.
    pub premake: u32,
    /// How much one partition holds: `1mo`, `1d`, `6h`.
    pub interval: Period,
    /// The zone in which days and months begin. Default UTC for `timestamptz`; required for `timestamp`
    /// and `date`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<Timezone>,
}

/// The job that makes partitions ahead.
#[derive(Debug, Clone)]
pub struct PartitionsJob {
    settings: PartitionsSettings,
}

impl PartitionsJob {
    /// A job of these settings.
    #[must_use]
    pub fn new(settings: PartitionsSettings) -> Self {
        Self { settings }
    }
}

impl Job for PartitionsJob {
    fn kind(&self) -> Kind {
        Kind::Partitions
    }

    fn exclusions(&self) -> Vec<Exclusion> {
        vec![Exclusion::Rows(self.settings.table.to_string())]
    }

    fn plan<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        let settings = self.settings.clone();
        let rule = PremakeRule {
            table: settings.table,
            premake: settings.premake,
            interval: settings.interval,
            timezone: settings.timezone,
        };
        Box::pin(batch::premake(rule, context))
    }
}
