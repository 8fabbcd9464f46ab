//! Which backups a store holds. Only manifests count: data without a manifest is not a backup.

use jiff::Timestamp;
use serde::Serialize;

use super::manifest::{self, Manifest};
use crate::store::{ObjectInfo, ObjectKey, Store, StoreError, StoreErrorKind};

/// A backup, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its identity.
    pub id: String,
    /// The job that made it.
    pub job: String,
    /// The database's name in the configuration.
    pub database: String,
    /// When its snapshot was taken.
    pub started_at: Timestamp,
    /// When it was whole.
    pub finished_at: Timestamp,
    /// The size of all its objects.
    pub bytes: u64,
    /// When it was last proved by restoring it.
    pub verified_at: Option<Timestamp>,
    /// The manifest itself.
    #[serde(skip)]
    pub manifest: Manifest,
}

/// A manifest that cannot be used. Its backup is neither listed nor ever pruned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// The manifest's key.
    pub key: String,
    /// Why it cannot be used.
    pub cause: String,
}

/// What a store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Catalog {
    /// The backups, oldest first.
    pub backups: Vec<Entry>,
    /// Manifests that cannot be used.
    pub unreadable: Vec<Unreadable>,
}

/// Which backups are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter<'a> {
    /// Of this database only.
    pub database: Option<&'a str>,
    /// Of this job only.
    pub job: Option<&'a str>,
}

/// Reads all manifests that pass the filter.
///
/// # Errors
/// When the store cannot be listed, or a manifest cannot be had at the moment; one that is damaged
/// is reported among the [`Catalog::unreadable`].
pub async fn list(store: &dyn Store, filter: Filter<'_>) -> Result<Catalog, StoreError> {
    let prefix = match filter {
        Filter {
            database: Some(database),
            job: Some(job),
        } => format!("{database}/{job}"),
        Filter {
            database: Some(database),
            ..
        } => database.to_owned(),
        Filter { .. } => String::new(),
    };
    let objects = store.list(&prefix).await?;
    let mut catalog = Catalog::default();
    for object in &objects {
        let Some((_, job)) = place(&object.key) else { continue };
        if filter.job.is_some_and(|wanted| wanted != job) {
            continue;
        }
        match Manifest::read(store, &object.key).await {
            Ok(manifest) => catalog.backups.push(entry(manifest, &objects)),
            // Deleted since it was listed: its backup is gone.
            Err(error) if error.kind == StoreErrorKind::NotFound => {}
            Err(error) if error.kind == StoreErrorKind::Permanent => catalog.unreadable.push(Unreadable {
                key: object.key.to_string(),
                cause: error.cause,
            }),
            Err(error) => return Err(error),
        }
    }
    catalog
        .backups
        .sort_by(|a, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
    Ok(catalog)
}

/// Finds one backup by its identity.
///
/// # Errors
/// When the store cannot be read, or holds no such backup.
pub async fn find(store: &dyn Store, id: &str) -> Result<Entry, StoreError> {
    let catalog = list(store, Filter::default()).await?;
    let damaged = catalog
        .unreadable
        .into_iter()
        .find(|manifest| manifest.key.ends_with(&format!("/{id}/{}", manifest::NAME)));
    let found = catalog.backups.into_iter().find(|entry| entry.id == id);
    found.ok_or_else(|| match damaged {
        Some(Unreadable { key, cause }) => StoreError::permanent(format!("read {key}"), cause),
        None => StoreError::new(
            StoreErrorKind::NotFound,
            format!("find the backup {id} in {}", store.describe()),
            "there is no such backup",
        )
        .with_remedy("`pgreeve backup list` shows the backups"),
    })
}

/// Database and job of a manifest's key; `None` for other keys.
fn place(key: &ObjectKey) -> Option<(&str, &str)> {
    let mut parts = key.as_str().split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(database), Some(job), Some(_), Some(manifest::NAME), None) => Some((database, job)),
        _ => None,
    }
}

fn entry(manifest: Manifest, objects: &[ObjectInfo]) -> Entry {
    let start = format!("{}/{VERIFIED}-", manifest.prefix());
    let verified_at = objects
        .iter()
        .filter_map(|object| {
            let time = object.key.as_str().strip_prefix(&start)?.strip_suffix(".json")?;
            evidence_instant(time)
        })
        .max();
    Entry {
        id: manifest.id.clone(),
        job: manifest.job.clone(),
        database: manifest.database.clone(),
        started_at: manifest.started_at,
        finished_at: manifest.finished_at,
        bytes: manifest.bytes(),
        verified_at,
        manifest,
    }
}

const VERIFIED: &str = "verify";
/// As it is read: keys written before they held microseconds are known, too.
const VERIFIED_TIME: &str = "%Y%m%dT%H%M%S%.f%z";

/// The key of the evidence that a backup was proved at an instant.
///
/// It holds microseconds: evidence is never replaced, and a small backup can be proved twice
/// within a second.
///
/// # Errors
/// Never for a manifest that was read from a store.
pub fn evidence_key(manifest: &Manifest, at: Timestamp) -> Result<ObjectKey, StoreError> {
    ObjectKey::new(format!("{}/{VERIFIED}-{}.json", manifest.prefix(), evidence_time(at)))
}

fn evidence_time(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H%M%S.%6f+0000").to_string()
}

fn evidence_instant(time: &str) -> Option<Timestamp> {
    let parsed = jiff::fmt::strtime::parse(VERIFIED_TIME, time).ok()?;
    parsed.to_timestamp().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_of_one_second_has_names_of_its_own_and_older_names_are_read() {
        let first: Timestamp = "2026-03-08T03:00:00.000001Z".parse().unwrap();
        let second: Timestamp = "2026-03-08T03:00:00.000002Z".parse().unwrap();
        assert_ne!(evidence_time(first), evidence_time(second));
        assert_eq!(evidence_instant(&evidence_time(second)), Some(second));
        let whole: Timestamp = "2026-03-08T03:00:00Z".parse().unwrap();
        assert_eq!(evidence_instant("20260308T030000+0000"), Some(whole));
        assert_eq!(evidence_instant("yesterday"), None);
    }
}
