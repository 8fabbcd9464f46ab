//! From settings to a job that can run.

use std::sync::Arc;

use futures::FutureExt;

use super::KindSettings;
use super::backup::{BackupJob, BackupSettings, OpenStore};
use super::retention::RetentionJob;
use super::transition::TransitionJob;
use crate::backup::parts::PartSizes;
use crate::batch::Throttle;
use crate::job::Job;
use crate::store::{StoreError, StoreSettings};
use crate::values::Timezone;

/// What a job is told about its surroundings.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The daemon's instance.
    pub instance: String,
    /// The zone of the job's schedule.
    pub timezone: Timezone,
    /// The store of a backup; the configuration has checked that it exists.
    pub store: Option<StoreSettings>,
    /// When a job that works on rows yields.
    pub throttle: Throttle,
}

/// Builds the job that its settings describe.
#[must_use]
pub fn build(kind: &KindSettings, surroundings: &Surroundings) -> Arc<dyn Job> {
    match kind {
        KindSettings::Retention(settings) => {
            Arc::new(RetentionJob::new(settings.clone()).with_throttle(surroundings.throttle.clone()))
        }
        KindSettings::Transition(settings) => {
            Arc::new(TransitionJob::new(settings.clone()).with_throttle(surroundings.throttle.clone()))
        }
        KindSettings::Backup(settings) => Arc::new(backup(settings, surroundings)),
    }
}

fn backup(settings: &BackupSettings, surroundings: &Surroundings) -> BackupJob {
    let store = surroundings.store.clone();
    let name = settings.store.clone();
    let open_store: OpenStore = Arc::new(move || {
        let (store, name) = (store.clone(), name.clone());
        async move {
            match store {
                Some(store) => store.open().await,
                None => Err(StoreError::permanent(
                    "open the store",
                    format!("there is no store `{name}`"),
                )),
            }
        }
        .boxed()
    });
    BackupJob {
        settings: settings.clone(),
        open_store,
        instance: surroundings.instance.clone(),
        timezone: surroundings.timezone.clone(),
        programs: None,
        sizes: PartSizes::default(),
    }
}
