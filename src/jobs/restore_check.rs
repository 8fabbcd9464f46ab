//! `restore_check`: restores the newest backup of a job into a throwaway server and proves it.

use futures::future::BoxFuture;
use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::backup::OpenStore;
use crate::backup::catalog::{self, Filter};
use crate::backup::manifest::Manifest;
use crate::backup::prove::{Assertion, Proof, Proving, prove};
use crate::backup::seal::Identities;
use crate::backup::sweep::store_error;
use crate::backup::verify;
use crate::job::{Exclusion, Job, JobContext, JobError, JobReport, Kind, Outcome, Plan};
use crate::store::Store;
use crate::values::{JobName, Name};

/// `[jobs.NAME] restore_check = { … }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreCheckSettings {
    /// The backup job whose newest backup is checked.
    pub backup: JobName,
    /// The database of that job.
    pub database: Name,
    /// The store of that job.
    pub store: Name,
    /// 0: sizes. 1: every byte. 2: every row of a restored database. 3: the assertions too.
    pub level: u8,
    /// The file whose identity opens an encrypted backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_file: Option<PathBuf>,
    /// What must be true in the restored database.
    #[serde(rename = "assert", skip_serializing_if = "Vec::is_empty")]
    pub assertions: Vec<Assertion>,
}

/// A `restore_check` of the configuration, ready to run.
#[derive(Clone)]
pub struct RestoreCheckJob {
    /// Its settings.
    pub settings: RestoreCheckSettings,
    /// How to open the backup's store.
    pub open_store: OpenStore,
}

impl Job for RestoreCheckJob {
    fn kind(&self) -> Kind {
        Kind::RestoreCheck
    }

    /// It works on a server of its own.
    fn exclusions(&self) -> Vec<Exclusion> {
        Vec::new()
    }

    fn stops_between_batches(&self) -> bool {
        false
    }

    fn plan<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        Box::pin(async move {
            let store_name = &self.settings.store;
            let failed = |error| store_error(format!("open the store {store_name}"), error);
            let store = (self.open_store)().await.map_err(failed)?;
            let filter = Filter {
                database: Some(self.settings.database.as_str()),
                job: Some(self.settings.backup.as_str()),
            };
            let catalog = catalog::list(store.as_ref(), filter)
                .await
                .map_err(|error| store_error(format!("list the backups in {store_name}"), error))?;
            let unreadable = catalog.unreadable.into_iter().map(|manifest| manifest.key).collect();
            let Some(newest) = catalog.backups.into_iter().next_back() else {
                let remedy = format!("run it once: pgreeve run {}", self.settings.backup);
                let cause = format!("{} has made no backup yet", self.settings.backup);
                return Err(JobError::refused("find the newest backup", cause, remedy).about("backup"));
            };
            let identities = self.identities(&newest.manifest)?;
            let now: SqlTimestamp = sqlx::query_scalar("SELECT pg_catalog.now()")
                .fetch_one(context.session.connection())
                .await
                .map_err(|error| JobError::database("read the server's clock", &error.into()))?;
            let plan: Box<dyn Plan> = Box::new(CheckPlan {
                store,
                manifest: newest.manifest,
                now: now.to_jiff(),
                unreadable,
                identities,
                settings: self.settings.clone(),
            });
            Ok(plan)
        })
    }
}

impl RestoreCheckJob {
    /// What opens the backup, read anew for each run.
    fn identities(&self, manifest: &Manifest) -> Result<Option<Identities>, JobError> {
        let operation = format!("open the backup {}", manifest.id);
        match &self.settings.identity_file {
            Some(file) => match Identities::read(file) {
                Ok(identities) => Ok(Some(identities)),
                Err(error) => Err(JobError::refused(operation, error.problem, error.help).about("identity_file")),
            },
            None if manifest.encrypted_to.is_empty() || self.settings.level == 0 => Ok(None),
            None => {
                let cause = format!(
                    "it is encrypted to {}, and level {} reads it",
                    manifest.encrypted_to.join(", "),
                    self.settings.level
                );
                let remedy = "name the file of one of their identities in `identity_file`, or take level = 0";
                Err(JobError::refused(operation, cause, remedy).about("identity_file"))
            }
        }
    }
}

struct CheckPlan {
    store: Arc<dyn Store>,
    manifest: Manifest,
    identities: Option<Identities>,
    now: Timestamp,
    unreadable: Vec<String>,
    settings: RestoreCheckSettings,
}

impl CheckPlan {
    /// How old the backup is, in seconds.
    fn age(&self) -> i64 {
        self.now
            .as_second()
            .saturating_sub(self.manifest.started_at.as_second())
    }

    fn report(&self, proof: &Proof, begun: Instant, evidence: Option<&str>) -> Value {
        let mut body = proof.body(&self.manifest, self.settings.level);
        if let Some(fields) = body.as_object_mut() {
            let more = [
                ("backup", json!(self.settings.backup)),
                ("store", json!(self.settings.store)),
                ("as_of", json!(self.manifest.started_at)),
                ("age_s", json!(self.age())),
                ("assertions", json!(self.settings.assertions.len())),
                ("evidence", json!(evidence)),
                ("unreadable", json!(self.unreadable)),
                (
                    "duration_ms",
                    json!(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)),
                ),
            ];
            fields.extend(more.map(|(key, value)| (key.to_owned(), value)));
        }
        body
    }
}

impl Plan for CheckPlan {
    fn intent(&self) -> Value {
        json!({
            "backup": self.settings.backup,
            "backup_id": self.manifest.id,
            "store": self.settings.store,
            "as_of": self.manifest.started_at,
            "age_s": self.age(),
            "level": self.settings.level,
            "assertions": self.settings.assertions.len(),
            "tables": self.manifest.tables.len(),
            "bytes": self.manifest.bytes(),
            "unreadable": self.unreadable,
        })
    }

    fn execute<'a>(self: Box<Self>, context: &'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>>
    where
        Self: 'a,
    {
        Box::pin(async move {
            let begun = Instant::now();
            let proof = prove(&Proving {
                store: &self.store,
                manifest: &self.manifest,
                level: self.settings.level,
                assertions: &self.settings.assertions,
                identities: self.identities.clone(),
                progress: context.progress.clone(),
                stop: context.stop.clone(),
            })
            .await?;
            let record = proof.body(&self.manifest, self.settings.level);
            context.recorder.record("backup.verified", record).await?;
            let operation = format!("prove the backup {}", self.manifest.id);
            if let Some(problem) = &proof.problem {
                let failed = JobError::permanent(operation, problem.as_str())
                    .with_remedy("make a new backup now: pgreeve run the backup's job; keep this one to find out why");
                return Err(failed.with_partial(self.report(&proof, begun, None)));
            }
            let mut evidence = None;
            if let Some(verified) = &proof.verified {
                let at = Timestamp::now();
                verify::record_proof(self.store.as_ref(), &self.manifest, at, self.settings.level, verified)
                    .await
                    .map_err(|error| store_error(operation, error))?;
                evidence = catalog::evidence_key(&self.manifest, at)
                    .ok()
                    .map(|key| key.to_string());
            }
            Ok(JobReport {
                outcome: Outcome::Succeeded,
                reason: None,
                body: self.report(&proof, begun, evidence.as_deref()),
            })
        })
    }
}
