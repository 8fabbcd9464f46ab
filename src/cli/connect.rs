//! `check --connect`: the configuration against the databases and stores it names. Reads only, but
//! for the small object by which a store is tried.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Exit;
use super::run::{NothingIsRecorded, look};
use crate::config::{Config, Finding, JobSettings, Place, Severity};
use crate::daemon;
use crate::job::{Disposition, JobError};
use crate::jobs::KindSettings;
use crate::runner;
use crate::store::StoreErrorKind;
use crate::values::Name;

/// What the check met.
pub(super) struct Met {
    /// Every finding, over all databases, stores and jobs.
    pub(super) findings: Vec<Finding>,
    /// Whether each of them may pass by itself: trying again is worth it.
    pub(super) passing: bool,
}

/// Checks everything; one that is down does not hide the others.
pub(super) async fn check(config: &Config) -> Met {
    let (mut findings, mut passing) = (Vec::new(), true);
    let mut unreachable: BTreeSet<Name> = BTreeSet::new();
    for (database, jobs) in by_database(config) {
        let place = jobs
            .first()
            .map_or_else(|| whole(config), |job| job.place_of("database").clone());
        let settings = &config.databases[database];
        if let Err(error) = look(database, &settings.target).await {
            passing &= error.exit == Exit::TryAgain;
            findings.push(Finding::new(
                Severity::Error,
                place,
                &error.message,
                error.remedy.as_deref(),
            ));
            unreachable.insert(database.clone());
        }
    }
    for (store, place) in used_stores(config) {
        let tried = match config.stores[store].open().await {
            Ok(opened) => opened.probe().await,
            Err(error) => Err(error),
        };
        if let Err(error) = tried {
            passing &= error.kind == StoreErrorKind::Transient;
            let message = format!("store {store}: {error}");
            findings.push(Finding::new(Severity::Error, place, &message, error.remedy.as_deref()));
        }
    }
    for settings in config.jobs.values().filter(|job| !unreachable.contains(&job.database)) {
        if let Err(error) = check_job(config, settings).await {
            let place = settings.place_of(error.setting.unwrap_or_default()).clone();
            passing &= error.disposition == Disposition::Transient;
            let message = format!("job {}: {error}", settings.name);
            findings.push(Finding::new(Severity::Error, place, &message, error.remedy.as_deref()));
        }
    }
    Met { findings, passing }
}

async fn check_job(config: &Config, settings: &JobSettings) -> Result<(), JobError> {
    let target = &config.databases[&settings.database].target;
    let site = look(&settings.database, target)
        .await
        .map_err(|failure| JobError::transient("reach the database", failure.message))?;
    runner::plan_only(&daemon::runnable(config, settings), &site, Arc::new(NothingIsRecorded))
        .await
        .map(|_| ())
}

fn by_database(config: &Config) -> BTreeMap<&Name, Vec<&JobSettings>> {
    let mut jobs: BTreeMap<&Name, Vec<&JobSettings>> = config.databases.keys().map(|name| (name, Vec::new())).collect();
    for job in config.jobs.values() {
        jobs.entry(&job.database).or_default().push(job);
    }
    jobs
}

/// Each store that a job uses, with the place of its first use.
fn used_stores(config: &Config) -> BTreeMap<&Name, Place> {
    let mut stores = BTreeMap::new();
    for job in config.jobs.values() {
        if let KindSettings::Backup(backup) = &job.kind {
            stores
                .entry(&backup.store)
                .or_insert_with(|| job.place_of("store").clone());
        }
    }
    stores
}

fn whole(config: &Config) -> Place {
    Place::whole(
        config
            .files
            .first()
            .map(|file| file.display().to_string())
            .unwrap_or_default(),
    )
}
