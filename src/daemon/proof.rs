//! Where the proof of erasures lies on this host, from the configuration.

use std::sync::Arc;

use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};

use crate::config::{Config, JobSettings};
use crate::erasure::copies::{LedgerOfHost, Source};
use crate::erasure::host::{HostSettings, ledger_dir};
use crate::erasure::objects::ObjectStores;
use crate::erasure::outbox::Recipients;
use crate::jobs::KindSettings;
use crate::jobs::backup::Keep;
use crate::schedule::cron::Schedule;
use crate::values::{Name, Timezone};

/// What the proof of a job's erasures is told: where it lies, and the backups of the job's database.
#[must_use]
pub fn of(config: &Config, settings: &JobSettings) -> HostSettings {
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
        backups: sources(config, &settings.database, |kind| match kind {
            KindSettings::Backup(backup) => Some((&backup.store, backup.keep.as_ref())),
            _ => None,
        }),
        exports: sources(config, &settings.database, |kind| match kind {
            KindSettings::Export(export) => Some((&export.store, export.keep.as_ref())),
            _ => None,
        }),
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

/// The jobs of a database that write copies of it to a store, and how long they keep them.
fn sources(
    config: &Config,
    database: &Name,
    writes: impl Fn(&KindSettings) -> Option<(&Name, Option<&Keep>)>,
) -> Vec<Source> {
    let jobs = config.jobs.values().filter(|job| job.database == *database);
    let sources = jobs.filter_map(|job| {
        let (name, keep) = writes(&job.kind)?;
        let store = config.stores.get(name)?.clone();
        Some(Source {
            job: job.name.to_string(),
            database: job.database.to_string(),
            store: name.to_string(),
            open: Arc::new(move || {
                let store = store.clone();
                async move { store.open().await }.boxed()
            }),
            // Old copies go when a new one is made: of a job that is asked for now and then nobody knows when.
            keep: keep.filter(|_| is_daily(&job.schedule)).map(Keep::policy),
            zone: job.schedule.timezone().rules().clone(),
        })
    });
    sources.collect()
}

/// Whether a schedule fires on each of the next seven days, as the forecast of copies takes for granted.
fn is_daily(schedule: &Schedule) -> bool {
    // A day may have an hour more.
    const DAY: SignedDuration = SignedDuration::from_hours(25);
    let now = Timestamp::now();
    (0..7).all(|day| {
        let from = now.saturating_add(SignedDuration::from_hours(24 * day));
        from.is_ok_and(|from| {
            schedule
                .next_after(from)
                .is_some_and(|next| next.scheduled_for.duration_since(from) <= DAY)
        })
    })
}

/// The ledger of erasures of this host, for backups to mark.
#[must_use]
pub fn ledger(config: &Config) -> LedgerOfHost {
    LedgerOfHost {
        dir: ledger_dir(&config.daemon.state_dir),
        instance: config.daemon.instance.clone(),
    }
}
