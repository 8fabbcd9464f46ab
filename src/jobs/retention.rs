//! `retention`: rows past their keep period are deleted, and that none is left is checked.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::Serialize;
use sqlx::PgConnection;

use super::backup::OpenStore;
use crate::backup::compress::Packing;
use crate::backup::sweep::store_error;
use crate::batch::{
    self, ArchiveFormat, ArchiveRule, Beside, Brakes, Change, ObjectRule, PartitionMode, Rule, Throttle,
};
use crate::job::{Exclusion, Job, JobContext, JobError, Kind, Plan};
use crate::postgres::grant::Grant;
use crate::store::Store;
use crate::values::{JobName, Name, Period, TableName, Timezone};

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
    /// Rollups that must have sealed what is deleted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<JobName>,
    /// The largest part of the table, 0 to 1, that one run may delete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_fraction: Option<f64>,
    /// The most rows that one run may delete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rows: Option<u64>,
    /// Where rows are kept when they are deleted here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveSettings>,
    /// Which objects go with the rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects: Option<ObjectSettings>,
    /// What becomes of whole partitions past the cutoff; they are dropped where nothing speaks against
    /// it, and purged row by row elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<PartitionMode>,
}

/// `archive = { … }`: rows are copied into a store before they are deleted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArchiveSettings {
    /// The store's name in the configuration.
    pub store: Name,
    /// How rows are written. Default `jsonl`.
    pub format: ArchiveFormat,
    /// How objects are packed. Default `gzip:4`.
    pub compress: Packing,
    /// How long an archive is kept; for ever without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<Period>,
}

/// `objects = { … }`: rows own objects, which are deleted before them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ObjectSettings {
    /// The store's name in the configuration.
    pub store: Name,
    /// The column that holds the object's key below the store's prefix.
    pub key_column: String,
}

impl RetentionSettings {
    /// The stores it uses, each with the key that names it.
    #[must_use]
    pub fn stores(&self) -> Vec<(&'static str, &Name)> {
        let archive = self.archive.as_ref().map(|archive| ("archive", &archive.store));
        let objects = self.objects.as_ref().map(|objects| ("objects", &objects.store));
        archive.into_iter().chain(objects).collect()
    }
}

/// The job that a retention policy is.
#[derive(Clone)]
pub struct RetentionJob {
    settings: RetentionSettings,
    stores: BTreeMap<Name, OpenStore>,
    throttle: Throttle,
}

impl RetentionJob {
    /// A job of these settings.
    #[must_use]
    pub fn new(settings: RetentionSettings) -> Self {
        Self {
            settings,
            stores: BTreeMap::new(),
            throttle: Throttle::default(),
        }
    }

    /// The same with ways to open the stores that its settings name.
    #[must_use]
    pub fn with_stores(self, stores: BTreeMap<Name, OpenStore>) -> Self {
        Self { stores, ..self }
    }

    /// The same job, which yields when these say so.
    #[must_use]
    pub fn with_throttle(self, throttle: Throttle) -> Self {
        Self { throttle, ..self }
    }

    async fn open(&self, name: &Name) -> Result<Arc<dyn Store>, JobError> {
        let operation = format!("open the store {name}");
        let Some(open) = self.stores.get(name) else {
            return Err(JobError::permanent(operation, "there is no such store"));
        };
        open().await.map_err(|error| store_error(operation, error))
    }

    async fn beside(&self) -> Result<Beside, JobError> {
        let mut beside = Beside {
            partitions: self.settings.partitions,
            ..Beside::default()
        };
        if let Some(archive) = &self.settings.archive {
            let store = self
                .open(&archive.store)
                .await
                .map_err(|error| error.about("archive"))?;
            beside.archive = Some(ArchiveRule {
                store_name: archive.store.to_string(),
                store,
                format: archive.format,
                packing: archive.compress,
                keep: archive.keep,
                zone: self.rule().zone(),
            });
        }
        if let Some(objects) = &self.settings.objects {
            let store = self
                .open(&objects.store)
                .await
                .map_err(|error| error.about("objects"))?;
            beside.objects = Some(ObjectRule {
                store_name: objects.store.to_string(),
                store,
                key_column: objects.key_column.clone(),
            });
        }
        Ok(beside)
    }

    fn rule(&self) -> Rule {
        let settings = self.settings.clone();
        Rule {
            table: settings.table,
            age_column: settings.age_column,
            age_fallback: None,
            period: settings.keep,
            predicate: settings.predicate,
            timezone: settings.timezone,
            change: Change::Delete,
            keep_latest_per: settings.keep_latest_per,
            skip_if_referenced: settings.skip_if_referenced,
            after: settings.after,
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
        Box::pin(async move {
            batch::grants(connection, &self.rule(), self.settings.partitions)
                .await
                .map(Some)
        })
    }

    fn plan<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        Box::pin(async move {
            let beside = self.beside().await?;
            batch::plan_beside(self.rule(), beside, context).await
        })
    }
}
