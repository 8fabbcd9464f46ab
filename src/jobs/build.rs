//! From settings to a job that can run.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;

use super::KindSettings;
use super::backup::{BackupJob, BackupSettings, OpenStore};
use super::call::CallJob;
use super::erasure::{ErasureJob, OpenProof};
use super::export::ExportJob;
use super::health::HealthJob;
use super::partitions::PartitionsJob;
use super::refresh::RefreshJob;
use super::restore_check::RestoreCheckJob;
use super::retention::{RetentionJob, RetentionSettings};
use super::rollup::RollupJob;
use super::transition::TransitionJob;
use super::upkeep::UpkeepJob;
use crate::backup::parts::PartSizes;
use crate::backup::run::ErasureLedger;
use crate::batch::Throttle;
use crate::erasure::Proof;
use crate::erasure::copies::LedgerOfHost;
use crate::erasure::host::{self, HostProof, HostSettings};
use crate::erasure::memory::MemoryError;
use crate::erasure::rule::Rule;
use crate::job::Job;
use crate::store::{StoreError, StoreSettings};
use crate::values::{Name, Timezone};

/// What a job is told about its surroundings.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The daemon's instance.
    pub instance: String,
    /// The zone of the job's schedule.
    pub timezone: Timezone,
    /// The stores of the job; the configuration has checked that they exist.
    pub stores: BTreeMap<Name, StoreSettings>,
    /// When a job that works on rows yields.
    pub throttle: Throttle,
    /// The ledger of erasures of this host; only a job that makes backups has it.
    pub erasures: Option<LedgerOfHost>,
    /// Where the proof of erasures lies; only a job that erases has it.
    pub proof: Option<HostSettings>,
}

/// How a dump is cut for a store.
fn sizes(store: Option<&StoreSettings>) -> PartSizes {
    let default = PartSizes::default();
    PartSizes {
        part_bytes: store.and_then(StoreSettings::part_bytes).unwrap_or(default.part_bytes),
        max_parts: store.and_then(StoreSettings::max_parts).unwrap_or(default.max_parts),
    }
}

/// Builds the job that its settings describe.
#[must_use]
pub fn build(kind: &KindSettings, surroundings: &Surroundings) -> Arc<dyn Job> {
    match kind {
        KindSettings::Retention(settings) => Arc::new(retention(settings, surroundings)),
        KindSettings::Transition(settings) => {
            Arc::new(TransitionJob::new(settings.clone()).with_throttle(surroundings.throttle.clone()))
        }
        KindSettings::Rollup(rollup) => Arc::new(RollupJob::new(rollup.clone())),
        KindSettings::Refresh(views) => Arc::new(RefreshJob::new(views.clone())),
        KindSettings::Backup(settings) => Arc::new(backup(settings, surroundings)),
        KindSettings::Export(settings) => Arc::new(ExportJob {
            settings: settings.clone(),
            open_store: opening(&settings.store, surroundings),
            instance: surroundings.instance.clone(),
            timezone: surroundings.timezone.clone(),
            sizes: sizes(surroundings.stores.get(&settings.store)),
        }),
        KindSettings::Erasure(rule) => Arc::new(erasure(rule, surroundings)),
        KindSettings::Partitions(settings) => Arc::new(PartitionsJob::new(settings.clone())),
        KindSettings::Upkeep(upkeep) => Arc::new(UpkeepJob::new(upkeep.clone())),
        KindSettings::Health(health) => Arc::new(HealthJob::new(health.clone())),
        KindSettings::Call(call) => Arc::new(CallJob::new(call.clone())),
        KindSettings::RestoreCheck(settings) => Arc::new(RestoreCheckJob {
            settings: settings.clone(),
            open_store: opening(&settings.store, surroundings),
        }),
    }
}

fn erasure(rule: &Rule, surroundings: &Surroundings) -> ErasureJob {
    let settings = surroundings.proof.clone();
    let open_proof: OpenProof = Arc::new(move || {
        let settings = settings.clone();
        async move {
            let settings = settings.ok_or_else(|| MemoryError {
                operation: "open the ledger of erasures".to_owned(),
                cause: "nobody said where it lies".to_owned(),
                remedy: "this is a fault of pgreeve, please report it".to_owned(),
            })?;
            let proof = host::blocking(move || HostProof::open(settings)).await?;
            Ok(Arc::new(proof) as Arc<dyn Proof>)
        }
        .boxed()
    });
    ErasureJob::new(rule.clone(), surroundings.timezone.clone(), open_proof)
}

fn retention(settings: &RetentionSettings, surroundings: &Surroundings) -> RetentionJob {
    let stores = settings.stores().into_iter();
    let stores = stores.map(|(_, name)| (name.clone(), opening(name, surroundings)));
    RetentionJob::new(settings.clone())
        .with_stores(stores.collect())
        .with_throttle(surroundings.throttle.clone())
}

fn backup(settings: &BackupSettings, surroundings: &Surroundings) -> BackupJob {
    BackupJob {
        settings: settings.clone(),
        open_store: opening(&settings.store, surroundings),
        instance: surroundings.instance.clone(),
        timezone: surroundings.timezone.clone(),
        programs: None,
        sizes: sizes(surroundings.stores.get(&settings.store)),
        erasures: surroundings
            .erasures
            .clone()
            .map(|ledger| Arc::new(ledger) as Arc<dyn ErasureLedger>),
    }
}

/// Opens a store anew each time.
fn opening(name: &Name, surroundings: &Surroundings) -> OpenStore {
    let store = surroundings.stores.get(name).cloned();
    let name = name.clone();
    Arc::new(move || {
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
    })
}
