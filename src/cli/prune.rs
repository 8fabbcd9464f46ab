//! `backup prune`: removes what `keep` does not keep, now instead of after the next backup.

use std::sync::Arc;
use std::time::Duration;

use jiff_sqlx::Timestamp as SqlTimestamp;
use serde_json::{Value, json};

use super::backup::{no_backup_job, store_failure};
use super::record::open_audit;
use super::site::{database_failure, target};
use super::{Exit, Failure, PruneArguments, actor, output};
use crate::audit::RunRecorder;
use crate::backup::catalog::{self, Catalog, Filter};
use crate::backup::keep::{Fate, Plan};
use crate::backup::prune::{self, PruneError};
use crate::config::{Config, JobSettings};
use crate::jobs::KindSettings;
use crate::jobs::backup::{BackupSettings, Keep};
use crate::ledger::{leader, locks};
use crate::postgres::connect::{Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;
use crate::store::Store;

/// How long the job's lock is waited for: the server lets go of it some moments after the session of
/// a run has ended.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// SQLSTATE of a lock that was not had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";

pub(super) async fn prune(config: &Config, arguments: &PruneArguments, as_json: bool) -> Result<Exit, Failure> {
    let only = arguments.job.as_ref();
    let jobs: Vec<(&JobSettings, &BackupSettings)> = config
        .jobs
        .values()
        .filter(|job| only.is_none_or(|only| job.name == *only))
        .filter_map(|job| match &job.kind {
            KindSettings::Backup(backup) => Some((job, backup)),
            _ => None,
        })
        .collect();
    if jobs.is_empty() {
        return Err(no_backup_job(config, only));
    }
    let (mut documents, mut worst, mut confirmed) = (Vec::new(), Exit::Green, arguments.confirm.is_none());
    for (job, backup) in jobs {
        let Some(keep) = &backup.keep else {
            output::note(&format!(
                "pgreeve: {} has no `keep`, so nothing of it is ever removed",
                job.name
            ));
            continue;
        };
        let mut work = Work::open(config, job, backup, keep).await?;
        confirmed |= arguments.confirm.as_deref() == Some(work.plan.hash().as_str());
        let done = match work.carry_out(config, arguments).await {
            Ok((document, exit)) => {
                worst = if exit == Exit::Green { worst } else { exit };
                Ok(document)
            }
            Err(failure) => Err(failure),
        };
        work.session.close().await;
        documents.push(done?);
    }
    if !confirmed {
        let failure = Failure::new(Exit::Usage, "no plan has the hash that --confirm gives");
        return Err(failure.with_remedy("there are other backups now; look at `pgreeve backup prune --dry-run` again"));
    }
    if as_json {
        output::document(&json!({ "version": 1, "prune": documents }));
    } else {
        documents.iter().for_each(print);
    }
    Ok(worst)
}

/// The pruning of one job's backups.
struct Work<'a> {
    job: &'a JobSettings,
    store_name: &'a str,
    store: Arc<dyn Store>,
    catalog: Catalog,
    plan: Plan,
    /// Holds the job's lock, so that no run of it prunes or adds meanwhile.
    session: Session,
}

impl<'a> Work<'a> {
    async fn open(
        config: &'a Config,
        job: &'a JobSettings,
        backup: &'a BackupSettings,
        keep: &Keep,
    ) -> Result<Self, Failure> {
        let failed = |error: &DatabaseError| database_failure(&format!("database {}", job.database), error);
        let failed_store = |error| store_failure(backup.store.as_str(), &error);
        let settings = SessionSettings::control(format!("pgreeve:prune:{}", job.name));
        let mut session = Session::open(target(config, &job.database)?, &settings)
            .await
            .map_err(|error| failed(&error))?;
        let key = locks::key(job.name.as_str());
        if let Err(error) = locks::lock_within(session.connection(), locks::JOB_CLASS, key, LOCK_PATIENCE).await {
            return Err(if error.sqlstate.as_deref() == Some(LOCK_NOT_AVAILABLE) {
                Failure::new(Exit::TryAgain, format!("the job {} is running", job.name))
                    .with_remedy("it prunes by itself at its end; or try again then")
            } else {
                failed(&error)
            });
        }
        // As in a run: what is old is said by the server's clock.
        let now: SqlTimestamp = sqlx::query_scalar("SELECT pg_catalog.now()")
            .fetch_one(session.connection())
            .await
            .map_err(|error| failed(&error.into()))?;
        let store = match config.stores.get(&backup.store) {
            Some(store) => store.open_attended().await.map_err(failed_store)?,
            None => {
                return Err(Failure::new(
                    Exit::Usage,
                    format!("there is no store `{}`", backup.store),
                ));
            }
        };
        let filter = Filter {
            database: Some(job.database.as_str()),
            job: Some(job.name.as_str()),
        };
        let catalog = catalog::list(store.as_ref(), filter).await.map_err(failed_store)?;
        let zone = job.schedule.timezone().rules();
        Ok(Self {
            plan: prune::plan_catalog(&catalog, &keep.policy(), now.to_jiff(), zone, store.locks_for()),
            job,
            store_name: backup.store.as_str(),
            store,
            catalog,
            session,
        })
    }

    async fn carry_out(&mut self, config: &Config, arguments: &PruneArguments) -> Result<(Value, Exit), Failure> {
        for manifest in &self.catalog.unreadable {
            let (key, cause) = (&manifest.key, &manifest.cause);
            output::note(&format!(
                "pgreeve: the manifest {key} cannot be used, so its backup stays: {cause}"
            ));
        }
        if arguments.dry_run {
            return Ok((self.document(true, None, None), Exit::Green));
        }
        if let Err(error @ PruneError::Drastic { .. }) = prune::check(&self.plan, arguments.confirm.as_deref()) {
            return Err(Failure::new(Exit::NotGreen, format!("{}: {error}", self.job.name))
                .with_remedy("look at `pgreeve backup prune --dry-run` first"));
        }
        let identifier = leader::identify(self.session.connection())
            .await
            .map_err(|error| database_failure("identify the server", &error))?;
        let recorder = RunRecorder {
            log: open_audit(config)?,
            run: None,
            job: self.job.name.clone(),
            database: Some(identifier),
            policy: Some(self.job.kind.fingerprint()),
            actor: Some(actor()),
        };
        let confirm = arguments.confirm.as_deref();
        let place = (self.store_name, self.store.as_ref());
        let (pruned, problem) = prune::recorded(place, &self.catalog, &self.plan, confirm, &recorder)
            .await
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        let exit = if problem.is_some() { Exit::Failed } else { Exit::Green };
        Ok((self.document(false, Some(&pruned.removed), problem.as_deref()), exit))
    }

    fn document(&self, dry_run: bool, removed: Option<&[String]>, failed: Option<&str>) -> Value {
        let backups: Vec<Value> = self
            .plan
            .fates
            .iter()
            .map(|(backup, fate)| {
                let kept_for = match fate {
                    Fate::Keep(reasons) => json!(reasons),
                    Fate::Remove => json!([]),
                };
                json!({ "id": backup.id, "started_at": backup.at, "keep": *fate != Fate::Remove, "kept_for": kept_for })
            })
            .collect();
        json!({
            "job": self.job.name, "store": self.store_name, "dry_run": dry_run, "hash": self.plan.hash(),
            "needs_confirm": self.plan.is_drastic(), "backups": backups, "removed": removed.unwrap_or_default(), "failed": failed,
        })
    }
}

fn print(document: &Value) {
    let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
    let removed = |id: &Value| document["removed"].as_array().is_some_and(|ids| ids.contains(id));
    let rows: Vec<Vec<String>> = document["backups"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|backup| {
            let reasons = backup["kept_for"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str);
            let fate = match (backup["keep"] == true, removed(&backup["id"])) {
                (true, _) => format!("kept: {}", reasons.collect::<Vec<_>>().join(", ")),
                (false, true) => "removed".to_owned(),
                (false, false) if document["dry_run"] == true => "would be removed".to_owned(),
                (false, false) => "NOT REMOVED".to_owned(),
            };
            let word = |key: &str| backup[key].as_str().unwrap_or_default().to_owned();
            vec![text("job"), word("id"), word("started_at"), fate]
        })
        .collect();
    output::table(&["JOB", "BACKUP", "SNAPSHOT", "FATE"], &rows);
    if document["needs_confirm"] == true && document["dry_run"] == true {
        output::line(&format!(
            "more than half would go: `pgreeve backup prune --confirm {}` does it",
            text("hash")
        ));
    }
    if let Some(problem) = document["failed"].as_str() {
        output::error(problem, None);
    }
}
