//! A backup and a restore by pgreeve's own engine, through the plan as the daemon runs it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use pgreeve::backup::catalog::{self, Filter};
use pgreeve::backup::compress::Packing;
use pgreeve::backup::form::Format;
use pgreeve::backup::parts::PartSizes;
use pgreeve::backup::program::Programs;
use pgreeve::backup::restore::{Restore, restore};
use pgreeve::job::{Job, JobContext, Progress, RecordError, Recorder};
use pgreeve::jobs::backup::{BackupJob, BackupSettings};
use pgreeve::ledger::leader::Fence;
use pgreeve::postgres::connect::{ConnectTarget, Session, SessionSettings};
use pgreeve::store::{S3Settings, StoreSettings};
use pgreeve::values::{RunId, Timezone};
use serde_json::Value;
use sqlx::{Connection, Executor};
use tokio_util::sync::CancellationToken;

/// The new database's name.
const RESTORED: &str = "restored";

/// How a backup is made.
#[derive(Clone, Copy)]
pub(crate) struct How {
    pub(crate) packing: Packing,
    pub(crate) threads: u32,
    pub(crate) parallel: u32,
}

pub(crate) struct Ours {
    target: ConnectTarget,
    admin: ConnectTarget,
    store: StoreSettings,
    pub(crate) job: BackupJob,
}

struct Nowhere;

impl Recorder for Nowhere {
    fn record<'a>(&'a self, _: &'static str, _: Value) -> BoxFuture<'a, Result<(), RecordError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Ours {
    pub(crate) fn new(target: ConnectTarget, admin: ConnectTarget, settings: S3Settings, how: How) -> Self {
        let store = StoreSettings::S3(Box::new(settings));
        let opened = store.clone();
        let job = BackupJob {
            settings: BackupSettings {
                store: "bench".parse().unwrap(),
                format: Format::Custom,
                schema_only: false,
                globals: true,
                include: Vec::new(),
                exclude: Vec::new(),
                standby: None,
                compress: how.packing,
                threads: how.threads,
                parallel: how.parallel,
                bandwidth: None,
                max_duration: None,
                encrypt: Vec::new(),
                keep: None,
            },
            erasures: None,
            open_store: Arc::new(move || {
                let store = opened.clone();
                async move { store.open().await }.boxed()
            }),
            instance: "bench".to_owned(),
            timezone: Timezone::utc(),
            programs: None,
            sizes: PartSizes::default(),
        };
        Self {
            target,
            admin,
            store,
            job,
        }
    }

    /// Plan, dump, upload, manifest.
    pub(crate) async fn back_up(&self) -> Value {
        let mut context = JobContext {
            run: RunId::new(),
            attempt: 1,
            job: "bench".parse().unwrap(),
            database: "app".to_owned(),
            target: self.target.clone(),
            session: Session::open(&self.target, &SessionSettings::control("pgreeve:bench"))
                .await
                .unwrap(),
            fence: Fence { epoch: 0 },
            stop: CancellationToken::new(),
            deadline: Instant::now() + Duration::from_hours(4),
            recorder: Arc::new(Nowhere),
            progress: Progress::new(),
        };
        let plan = self.job.plan(&mut context).await.unwrap();
        let report = plan.execute(&mut context).await.unwrap();
        context.session.close().await;
        report.body
    }

    /// Restores a backup, every digest compared.
    pub(crate) async fn restore(&self, id: &str, jobs: u32) {
        let store = self.store.open().await.unwrap();
        let catalog = catalog::list(store.as_ref(), Filter::default()).await.unwrap();
        let backup = catalog.backups.iter().find(|backup| backup.manifest.id == id);
        restore(Restore {
            store,
            manifest: &backup.unwrap().manifest,
            programs: &Programs::find().unwrap(),
            admin: &self.admin,
            into: RESTORED,
            no_owner: false,
            before_open: None,
            create_roles: false,
            jobs,
            spool_directory: std::env::temp_dir(),
            identities: None,
            progress: Progress::new(),
            stop: CancellationToken::new(),
        })
        .await
        .unwrap();
    }
}

pub(crate) async fn drop_database(admin: &ConnectTarget) {
    let mut connection = admin.connect("bench").await.unwrap();
    connection.execute("DROP DATABASE IF EXISTS restored").await.unwrap();
    connection.execute("CHECKPOINT").await.unwrap();
    connection.close().await.unwrap();
}
