//! `export`: the rows of one tenant or one subject, out of several tables, to a store.

use std::time::Instant;

use futures::future::BoxFuture;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::backup::{Keep, OpenStore};
use crate::backup::compress::Packing;
use crate::backup::parts::PartSizes;
use crate::backup::sweep::store_error;
use crate::batch::ArchiveFormat;
use crate::export::{self, Kept, Manifest, Scope, Setup};
use crate::job::{Exclusion, Job, JobContext, JobError, JobReport, Kind, Outcome, Plan};
use crate::values::{Name, TableName, Timezone};

/// `[jobs.NAME] export = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExportSettings {
    /// The store's name in the configuration.
    pub store: Name,
    /// How rows are written. Default `jsonl`.
    pub format: ArchiveFormat,
    /// The tables, in the order in which they are exported.
    pub tables: Vec<TableName>,
    /// Whose rows.
    pub scope: Scope,
    /// How objects are packed. Default `gzip:4`.
    pub compress: Packing,
    /// What is kept; nothing is ever removed without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

/// An `export` of the configuration, ready to run.
#[derive(Clone)]
pub struct ExportJob {
    /// Its settings.
    pub settings: ExportSettings,
    /// How to open its store.
    pub open_store: OpenStore,
    /// The daemon's instance.
    pub instance: String,
    /// The zone in which days, weeks and months are counted for `keep`.
    pub timezone: Timezone,
    /// How objects are cut.
    pub sizes: PartSizes,
}

impl Job for ExportJob {
    fn kind(&self) -> Kind {
        Kind::Export
    }

    /// As a dump it holds a snapshot, for as long as its store takes.
    fn exclusions(&self) -> Vec<Exclusion> {
        vec![Exclusion::Snapshot]
    }

    fn stops_between_batches(&self) -> bool {
        false
    }

    fn plan<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        Box::pin(async move {
            let settings = &self.settings;
            let tables = export::resolve(context.session.connection(), &settings.tables, &settings.scope).await?;
            let failed = |error| store_error(format!("open the store {}", settings.store), error);
            let store = (self.open_store)().await.map_err(failed)?;
            store.probe().await.map_err(failed)?;
            let plan: Box<dyn Plan> = Box::new(ExportPlan {
                setup: Setup {
                    store_name: settings.store.to_string(),
                    store,
                    tables,
                    scope: settings.scope.clone(),
                    format: settings.format,
                    packing: settings.compress,
                    sizes: self.sizes,
                    instance: self.instance.clone(),
                },
                keep: settings.keep.clone(),
                timezone: self.timezone.clone(),
            });
            Ok(plan)
        })
    }
}

struct ExportPlan {
    setup: Setup,
    keep: Option<Keep>,
    timezone: Timezone,
}

impl Plan for ExportPlan {
    /// Without the scope's values: they may be about a person.
    fn intent(&self) -> Value {
        let tables = self.setup.tables.iter().map(|table| table.relation.display());
        json!({
            "store": self.setup.store_name,
            "place": self.setup.store.describe(),
            "format": self.setup.format,
            "compress": self.setup.packing.to_string(),
            "tables": tables.collect::<Vec<_>>(),
            "column": self.setup.scope.column,
            "values": self.setup.scope.values.len(),
            "prunes": self.keep.is_some(),
        })
    }

    fn execute<'a>(self: Box<Self>, context: &'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>>
    where
        Self: 'a,
    {
        Box::pin(async move {
            let begun = Instant::now();
            let swept = self.sweep(context).await?;
            let made = export::export(context, &self.setup).await?;
            let prune = match &self.keep {
                Some(keep) => {
                    let kept = Kept {
                        store_name: &self.setup.store_name,
                        database: &context.database,
                        job: context.job.as_str(),
                        policy: &keep.policy(),
                        zone: self.timezone.rules(),
                        now: made.finished_at,
                    };
                    export::prune(self.setup.store.as_ref(), &kept, context.recorder.as_ref()).await?
                }
                None => Value::Null,
            };
            Ok(JobReport {
                outcome: Outcome::Succeeded,
                reason: None,
                body: report(&self.setup, &made, begun, &swept, &prune),
            })
        })
    }
}

impl ExportPlan {
    /// Removes what died runs have left. The run holds the job's lock, so none of it is being written.
    async fn sweep(&self, context: &mut JobContext) -> Result<Vec<String>, JobError> {
        let now: SqlTimestamp = sqlx::query_scalar("SELECT pg_catalog.clock_timestamp()")
            .fetch_one(context.session.connection())
            .await
            .map_err(|error| JobError::database("read the server's clock", &error.into()))?;
        let (database, job) = (context.database.as_str(), context.job.as_str());
        export::sweep(self.setup.store.as_ref(), database, job, now.to_jiff())
            .await
            .map_err(|error| store_error("sweep what earlier exports left".to_owned(), error))
    }
}

fn report(setup: &Setup, made: &Manifest, begun: Instant, swept: &[String], prune: &Value) -> Value {
    let tables = made.tables.iter().map(|table| {
        json!({ "table": format!("{}.{}", table.schema, table.name), "rows": table.rows, "bytes_raw": table.bytes_raw })
    });
    json!({
        "export_id": made.id,
        "store": setup.store_name,
        "as_of": made.as_of,
        "rows": made.rows(),
        "bytes": made.bytes(),
        "tables": tables.collect::<Vec<_>>(),
        "duration_ms": u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        "swept": swept,
        "prune": prune,
    })
}
