//! `check --connect`: the configuration against the databases and stores it names. Reads only, but
//! for the small object by which a store is tried.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Exit;
use super::run::{NothingIsRecorded, look};
use crate::config::{Config, Finding, JobSettings, Severity};
use crate::daemon;
use crate::job::{Disposition, JobError};
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
    for (database, settings) in &config.databases {
        if let Err(error) = look(database, &settings.target).await {
            passing &= error.exit == Exit::TryAgain;
            findings.push(Finding::new(
                Severity::Error,
                config.place_of_database(database),
                &error.message,
                error.remedy.as_deref(),
            ));
            unreachable.insert(database.clone());
        }
    }
    let mut reachable = config.clone();
    for store in config.used_stores() {
        let tried = match config.stores[store].open_attended().await {
            Ok(opened) => opened.probe().await.map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = tried {
            passing &= error.kind == StoreErrorKind::Transient;
            let message = format!("store {store}: {error}");
            let place = config.place_of_store(store);
            findings.push(Finding::new(Severity::Error, place, &message, error.remedy.as_deref()));
            reachable.stores.remove(store);
        }
    }
    for settings in config.jobs.values().filter(|job| !unreachable.contains(&job.database)) {
        if let Err(error) = check_job(&reachable, settings).await {
            // A store that does not answer is one problem, not one for each job that uses it.
            if lacks_store(&reachable, settings) && error.operation.starts_with("open the store") {
                continue;
            }
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

fn lacks_store(config: &Config, job: &JobSettings) -> bool {
    job.kind
        .stores()
        .iter()
        .any(|(_, store)| !config.stores.contains_key(*store))
}
