//! The configuration's identity: what it means, not how it is written, and never a secret.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::Config;
use super::database::DatabaseSettings;
use super::job::JobSettings;
use crate::store::StoreSettings;
use crate::values::{Name, fingerprint};

/// `sha256:` and 64 hexadecimal digits over the canonical JSON of all settings, defaults filled in.
pub(super) fn of(config: &Config) -> String {
    let canonical = json!({
        "daemon": config.daemon,
        "databases": by_name(&config.databases, database),
        "stores": by_name(&config.stores, store),
        "jobs": by_name(&config.jobs, job),
    });
    fingerprint(&canonical.to_string())
}

/// The identity of each job's settings, those of its store included.
pub(super) fn of_jobs(config: &Config) -> BTreeMap<Name, String> {
    let stores = by_name(&config.stores, store);
    let digest = |settings: &JobSettings| {
        let named = settings.kind.stores().into_iter();
        let places: BTreeMap<_, _> = named.map(|(key, name)| (key, stores.get(name.as_str()))).collect();
        fingerprint(&json!({ "job": job(settings), "stores": places }).to_string())
    };
    let jobs = config.jobs.iter();
    jobs.map(|(name, settings)| (name.clone(), digest(settings))).collect()
}

fn by_name<T>(entries: &BTreeMap<Name, T>, value: fn(&T) -> Value) -> Value {
    entries
        .iter()
        .map(|(name, entry)| (name.as_str().to_owned(), value(entry)))
        .collect()
}

/// Not the password: a changed one is the same configuration.
fn database(settings: &DatabaseSettings) -> Value {
    let target = &settings.target;
    json!({
        "at": target.describe(),
        "max_runs": settings.max_runs,
        "sslmode": target.sslmode,
        "sslrootcert": target.sslrootcert,
        "sslcert": target.sslcert,
        "sslkey": target.sslkey,
        "connect_timeout": millis(target.connect_timeout),
        "password_file": target.password_file.as_deref().map(Path::to_string_lossy),
    })
}

fn store(settings: &StoreSettings) -> Value {
    match settings {
        StoreSettings::File(directory) => json!({ "directory": directory.to_string_lossy() }),
        StoreSettings::S3(s3) => json!(s3),
    }
}

fn job(settings: &JobSettings) -> Value {
    json!({
        "database": settings.database,
        "schedule": settings.schedule.to_string(),
        "timezone": settings.schedule.timezone(),
        "missed": settings.missed,
        "catch_up_window": millis(settings.catch_up_window),
        "overlap": settings.overlap,
        "groups": settings.groups,
        "start_deadline": millis(settings.start_deadline),
        "jitter": millis(settings.jitter),
        "approval": settings.approval,
        "run_timeout": millis(settings.run_timeout),
        "lock_timeout": millis(settings.lock_timeout),
        "retries": settings.retries,
        "throttle": settings.throttle,
        "kind": settings.kind,
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
