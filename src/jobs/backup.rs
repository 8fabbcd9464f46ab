//! `backup`: `pg_dump` streamed, compressed and uploaded; it exists once its manifest does.

mod settings;

use std::sync::Arc;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use sqlx::PgConnection;

pub use self::settings::{BackupSettings, Keep};
use crate::backup::catalog::{self, Filter};
use crate::backup::dump::Content;
use crate::backup::form::Form;
use crate::backup::grants::grants;
use crate::backup::keep::Policy;
use crate::backup::parts::PartSizes;
use crate::backup::preflight::{self, Ready};
use crate::backup::program::Programs;
use crate::backup::prune;
use crate::backup::run::{self, ErasureLedger, Made, Setup};
use crate::backup::selection::{self, Selection};
use crate::backup::standby;
use crate::backup::sweep;
use crate::job::{Exclusion, Job, JobContext, JobError, JobReport, Kind, Outcome, Plan, RecoveryContext};
use crate::ledger::backups::{self, Leftovers};
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::grant::Grant;
use crate::store::{Capabilities, Store, StoreError};
use crate::values::Timezone;

/// Opens the job's store; called for each run, so that credentials are read anew.
pub type OpenStore = Arc<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn Store>, StoreError>> + Send + Sync>;

/// A `backup` of the configuration, ready to run.
#[derive(Clone)]
pub struct BackupJob {
    /// Its settings.
    pub settings: BackupSettings,
    /// How to open its store.
    pub open_store: OpenStore,
    /// The daemon's instance.
    pub instance: String,
    /// The zone in which days, weeks and months are counted for `keep`.
    pub timezone: Timezone,
    /// The client programs; the newest installed when there are none given.
    pub programs: Option<Programs>,
    /// How the dump is cut.
    pub sizes: PartSizes,
    /// The ledger of erasures, where this host may have one.
    pub erasures: Option<Arc<dyn ErasureLedger>>,
}

impl Job for BackupJob {
    fn kind(&self) -> Kind {
        Kind::Backup
    }

    fn exclusions(&self) -> Vec<Exclusion> {
        vec![Exclusion::Snapshot]
    }

    fn stops_between_batches(&self) -> bool {
        false
    }

    fn clean_up(&self, context: RecoveryContext) -> BoxFuture<'_, Result<(), JobError>> {
        Box::pin(async move {
            let settings = SessionSettings::control(format!("pgreeve:sweep:{}", context.job));
            let mut session = Session::open(&context.target, &settings)
                .await
                .map_err(|error| JobError::database("open a session", &error))?;
            let swept = self.sweep(&mut session, &context).await;
            session.close().await;
            swept
        })
    }

    fn grants<'a>(&'a self, connection: &'a mut PgConnection) -> BoxFuture<'a, Result<Option<Vec<Grant>>, JobError>> {
        Box::pin(async move { grants(connection).await.map(Some) })
    }

    fn plan<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        Box::pin(async move {
            let missing =
                |cause: String| JobError::refused("find pg_dump and pg_restore", cause, "install postgresql-client");
            let programs = match &self.programs {
                Some(programs) => programs.clone(),
                None => Programs::find().map_err(|error| missing(error.to_string()))?,
            };
            let (dumped, ready) = self.preflight(context, &programs).await?;
            let store_failed = |error| sweep::store_error(format!("open the store {}", self.settings.store), error);
            let store = (self.open_store)().await.map_err(store_failed)?;
            let capabilities = store.probe().await.map_err(store_failed)?;
            let setup = Setup {
                store_name: self.settings.store.to_string(),
                store,
                programs,
                form: Form {
                    format: self.settings.format,
                    packing: self.settings.compress,
                    threads: self.settings.threads,
                    recipients: self.settings.encrypt.clone(),
                },
                content: dumped,
                globals: self.settings.globals,
                parallel: self.settings.parallel,
                standby: self.settings.standby.clone(),
                sizes: self.sizes,
                bandwidth: self.settings.bandwidth,
                max_duration: self.settings.max_duration,
                instance: self.instance.clone(),
                erasures: self.erasures.clone(),
            };
            let plan: Box<dyn Plan> = Box::new(BackupPlan {
                setup,
                ready,
                capabilities,
                keep: self.settings.keep.as_ref().map(Keep::policy),
                timezone: self.timezone.clone(),
            });
            Ok(plan)
        })
    }
}

impl BackupJob {
    /// What is dumped, and whether it can be, by the server that it is dumped from.
    async fn preflight(&self, context: &mut JobContext, programs: &Programs) -> Result<(Content, Ready), JobError> {
        let settings = &self.settings;
        let mut dumped = Content {
            format: settings.format,
            schema_only: settings.schema_only,
            selection: Selection::default(),
            on_standby: settings.standby.is_some(),
        };
        let mut other = match &settings.standby {
            Some(standby) => {
                // What it has not replayed yet could be neither selected nor warned of.
                standby::catch_up(context.session.connection(), standby).await?;
                let settings = SessionSettings::control(format!("pgreeve:preflight:{}", context.job));
                let opened = Session::open(standby, &settings).await;
                Some(opened.map_err(|error| JobError::database("connect to the standby", &error))?)
            }
            None => None,
        };
        let connection = other.as_mut().unwrap_or(&mut context.session).connection();
        dumped.selection = selection::resolve(connection, &settings.include, &settings.exclude).await?;
        let ready = preflight::check(connection, programs, &dumped).await?;
        if let Some(other) = other {
            other.close().await;
        }
        Ok((dumped, ready))
    }

    /// Removes what runs that are closed have left in the store. A run that goes on keeps its own.
    async fn sweep(&self, session: &mut Session, context: &RecoveryContext) -> Result<(), JobError> {
        let connection = session.connection();
        let store_name = self.settings.store.to_string();
        let leftovers = Leftovers::OfClosedRuns(context.job.as_str());
        let found = backups::streaming(connection, &store_name, leftovers)
            .await
            .map_err(|error| JobError::database("read the journal of backups", &error))?;
        if found.is_empty() {
            return Ok(());
        }
        let store = (self.open_store)()
            .await
            .map_err(|error| sweep::store_error(format!("open the store {store_name}"), error))?;
        let store = (store_name.as_str(), store.as_ref());
        sweep::sweep_leftovers(connection, context.fence, store, leftovers, context.recorder.as_ref())
            .await
            .map(|_| ())
    }
}

struct BackupPlan {
    setup: Setup,
    ready: Ready,
    capabilities: Capabilities,
    keep: Option<Policy>,
    timezone: Timezone,
}

impl Plan for BackupPlan {
    fn intent(&self) -> Value {
        json!({
            "store": self.setup.store_name,
            "place": self.setup.store.describe(),
            "capabilities": self.capabilities,
            "format": self.setup.form.format,
            "compress": self.setup.form.packing.to_string(),
            "threads": self.setup.form.threads,
            "parallel": self.setup.parallel,
            "bandwidth": self.setup.bandwidth,
            "max_duration_s": self.setup.max_duration.map(|longest| longest.as_secs()),
            "encrypt": self.setup.form.recipients,
            "schema_only": self.setup.content.schema_only,
            "left_out": self.setup.content.selection.left_out,
            "standby": self.setup.standby.as_ref().map(ConnectTarget::describe),
            "pg_dump_version": self.ready.client.text,
            "server_version": self.ready.server.text,
            "tables": self.ready.tables,
            "database_bytes": self.ready.database_bytes,
            "prunes": self.keep.is_some(),
            "warnings": self.ready.warnings,
        })
    }

    fn execute<'a>(self: Box<Self>, context: &'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>>
    where
        Self: 'a,
    {
        Box::pin(async move {
            let made = run::backup(context, &self.setup, &self.ready).await?;
            let prune = match &self.keep {
                Some(policy) => self.prune(context, policy, &made).await?,
                None => Value::Null,
            };
            Ok(JobReport {
                outcome: Outcome::Succeeded,
                reason: None,
                body: report(&self.setup, &made, &prune),
            })
        })
    }
}

impl BackupPlan {
    /// Prunes after the backup exists. That it exists stays true whatever happens here, so nothing
    /// but an audit log that cannot be written is an error.
    async fn prune(&self, context: &mut JobContext, policy: &Policy, made: &Made) -> Result<Value, JobError> {
        let store = self.setup.store.as_ref();
        let filter = Filter {
            database: Some(&context.database),
            job: Some(context.job.as_str()),
        };
        let catalog = match catalog::list(store, filter).await {
            Ok(catalog) => catalog,
            Err(error) => return Ok(json!({ "failed": error.to_string() })),
        };
        // "Now" is the server's clock, read when the backup was published.
        let now = made.manifest.finished_at;
        let plan = prune::plan_catalog(&catalog, policy, now, self.timezone.rules(), store.locks_for());
        let unreadable: Vec<&str> = catalog
            .unreadable
            .iter()
            .map(|manifest| manifest.key.as_str())
            .collect();
        if let Err(error) = prune::check(&plan, None) {
            return Ok(json!({ "refused": error.to_string(), "unreadable": unreadable }));
        }
        let (pruned, problem) = prune::recorded(
            (&self.setup.store_name, store),
            &catalog,
            &plan,
            None,
            context.recorder.as_ref(),
        )
        .await?;
        let body = json!({
            "removed": pruned.removed, "bytes": pruned.bytes, "versions_remain": pruned.versions_remain, "kept": plan.fates.len() - plan.removals().count(),
            "failed": problem, "unreadable": unreadable,
        });
        Ok(body)
    }
}

fn report(setup: &Setup, made: &Made, prune: &Value) -> Value {
    let manifest = &made.manifest;
    json!({
        "backup_id": manifest.id,
        "store": setup.store_name,
        "bytes": manifest.bytes(),
        "bytes_raw": manifest.bytes_raw(),
        "rows": manifest.rows(),
        "tables": manifest.tables.len(),
        "objects": manifest.objects.len(),
        "parts": manifest.objects.iter().map(|object| u64::from(object.parts)).sum::<u64>(),
        "duration_ms": u64::try_from(made.elapsed.as_millis()).unwrap_or(u64::MAX),
        "warnings": made.warnings,
        "prune": prune,
    })
}
