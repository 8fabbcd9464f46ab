//! Where the proof of erasures lies on this host, from the configuration.

use std::sync::Arc;

use futures::FutureExt;

use crate::config::{Config, JobSettings};
use crate::erasure::copies::{BackupSource, LedgerOfHost};
use crate::erasure::host::{HostSettings, ledger_dir};
use crate::erasure::objects::ObjectStores;
use crate::erasure::outbox::Recipients;
use crate::jobs::KindSettings;
use crate::values::Timezone;

/// What the proof of a job's erasures is told: where it lies, and the backups of the job's database.
#[must_use]
pub fn of(config: &Config, settings: &JobSettings) -> HostSettings {
    let beside = config.jobs.values().filter(|job| job.database == settings.database);
    let backups = beside.filter_map(|job| {
        let KindSettings::Backup(backup) = &job.kind else {
            return None;
        };
        let store = config.stores.get(&backup.store)?.clone();
        Some(BackupSource {
            job: job.name.to_string(),
            database: job.database.to_string(),
            store: backup.store.to_string(),
            open: Arc::new(move || {
                let store = store.clone();
                async move { store.open().await }.boxed()
            }),
            keep: backup.keep.as_ref().map(crate::jobs::backup::Keep::policy),
            zone: job.schedule.timezone().rules().clone(),
        })
    });
    let beside = config.jobs.values().filter(|job| job.database == settings.database);
    let archive_keeps = beside.filter_map(|job| {
        let KindSettings::Retention(retention) = &job.kind else {
            return None;
        };
        let keep = retention.archive.as_ref()?.keep?;
        let zone = retention.timezone.clone().unwrap_or_else(Timezone::utc);
        Some((job.name.to_string(), (keep, zone.rules().clone())))
    });
    HostSettings {
        archive_keeps: archive_keeps.collect(),
        state_dir: config.daemon.state_dir.clone(),
        instance: config.daemon.instance.clone(),
        backups: backups.collect(),
        stores: match &settings.kind {
            KindSettings::Erasure(rule) => (rule.objects.values())
                .filter_map(|objects| Some((objects.store.clone(), config.stores.get(&objects.store)?.clone())))
                .collect(),
            _ => ObjectStores::default(),
        },
        recipients: match &settings.kind {
            KindSettings::Erasure(rule) => rule.notify.clone(),
            _ => Recipients::default(),
        },
    }
}

/// The ledger of erasures of this host, for backups to mark.
#[must_use]
pub fn ledger(config: &Config) -> LedgerOfHost {
    LedgerOfHost {
        dir: ledger_dir(&config.daemon.state_dir),
        instance: config.daemon.instance.clone(),
    }
}
