//! Removes what no journal knows: what was left by a host that never came back, by a database that was
//! restored to before it was begun, or by the removal of a backup that was cut off.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde_json::json;
use sqlx::PgConnection;
use ulid::Ulid;

use super::store_error;
use crate::backup::manifest;
use crate::job::{JobError, Recorder};
use crate::store::{ObjectInfo, ObjectKey, OpenUpload, Store, StoreError};

/// How old an upload must be: by then whoever began it has completed it or is gone.
const AGE: Duration = Duration::from_hours(24);

/// How old an object without a manifest must be: no backup takes that long, and somebody who wonders
/// where a backup went has had the time to look.
const AGE_OF_OBJECTS: Duration = Duration::from_hours(7 * 24);

/// Aborts the uploads below one job's prefix that were begun more than a day ago by the server's clock,
/// and deletes the objects that are more than a week old and whose backup has no manifest, so that it is
/// none. Keys that are not of our pattern and backups named in `known` are left alone. Answers with the
/// keys of what was removed. To be called with the job's lock held.
///
/// # Errors
/// When the database, the store or the audit log refuses.
pub async fn sweep_strangers(
    connection: &mut PgConnection,
    (store_name, store): (&str, &dyn Store),
    (database, job): (&str, &str),
    known: &[String],
    recorder: &dyn Recorder,
) -> Result<Vec<String>, JobError> {
    let prefix = manifest::prefix(database, job, "");
    let prefix = prefix.trim_end_matches('/');
    let failed = |error| store_error(format!("sweep what nobody knows below {prefix}"), error);
    let (open, objects) = found(store, prefix).await.map_err(failed)?;
    if open.is_empty() && objects.is_empty() {
        return Ok(Vec::new());
    }
    let now: SqlTimestamp = sqlx::query_scalar("SELECT pg_catalog.clock_timestamp()")
        .fetch_one(connection)
        .await
        .map_err(|error| JobError::database("read the server's clock", &error.into()))?;
    let shelf = Shelf {
        prefix,
        known,
        now: now.to_jiff(),
    };
    let mut unknown = Vec::new();
    for upload in open.into_iter().filter(|upload| shelf.is_stranger(upload)) {
        store.abort_upload(&upload).await.map_err(failed)?;
        tracing::info!(upload.key = %upload.key, "aborted an upload that no journal knows");
        unknown.push(upload.key.to_string());
    }
    let uploads = unknown.len();
    for object in shelf.orphans(&objects) {
        store.delete(&object.key).await.map_err(failed)?;
        tracing::info!(object.key = %object.key, "deleted an object of a backup that has no manifest");
        unknown.push(object.key.to_string());
    }
    if !unknown.is_empty() {
        let objects = unknown.len().saturating_sub(uploads);
        let body = json!({
            "store": store_name, "prefix": prefix, "unknown": unknown, "uploads": uploads, "objects": objects,
        });
        recorder.record("backup.swept", body).await?;
    }
    Ok(unknown)
}

async fn found(store: &dyn Store, prefix: &str) -> Result<(Vec<OpenUpload>, Vec<ObjectInfo>), StoreError> {
    Ok((store.list_uploads(prefix).await?, store.list(prefix).await?))
}

/// The place of one job's backups.
struct Shelf<'a> {
    prefix: &'a str,
    /// The backups that the journal knows as being written.
    known: &'a [String],
    now: Timestamp,
}

impl Shelf<'_> {
    /// Whether an upload is unknown and old: by its backup's name, and by when the store saw it begin,
    /// where it tells.
    fn is_stranger(&self, upload: &OpenUpload) -> bool {
        self.backup_of(&upload.key)
            .filter(|id| !self.knows(id))
            .and_then(begun_at)
            .is_some_and(|named_at| {
                let begun = upload.started.map_or(named_at, |started| started.max(named_at));
                self.is_older(begun, AGE)
            })
    }

    /// The objects of backups that have no manifest and are unknown and old: by their names, and by when
    /// the store saw the object written. An export of a job that had this name is whole by its own.
    fn orphans<'o>(&self, objects: &'o [ObjectInfo]) -> impl Iterator<Item = &'o ObjectInfo> {
        let name = |key: &'o ObjectKey| key.as_str().rsplit('/').next();
        let whole: BTreeSet<&str> = objects
            .iter()
            .filter(|object| matches!(name(&object.key), Some(manifest::NAME | manifest::OF_AN_EXPORT)))
            .filter_map(|object| self.backup_of(&object.key))
            .collect();
        objects.iter().filter(move |object| {
            self.backup_of(&object.key)
                .filter(|id| !whole.contains(id) && !self.knows(id))
                .and_then(begun_at)
                .is_some_and(|named_at| self.is_older(named_at.max(object.modified), AGE_OF_OBJECTS))
        })
    }

    /// The backup that a key belongs to, if it is of our pattern.
    fn backup_of<'k>(&self, key: &'k ObjectKey) -> Option<&'k str> {
        let rest = key.as_str().strip_prefix(self.prefix)?.strip_prefix('/')?;
        let (id, name) = rest.split_once('/')?;
        (!name.contains('/')).then_some(id)
    }

    fn knows(&self, id: &str) -> bool {
        self.known.iter().any(|known| known == id)
    }

    fn is_older(&self, at: Timestamp, age: Duration) -> bool {
        self.now.checked_sub(age).is_ok_and(|limit| at < limit)
    }
}

/// When a backup was begun, by its name.
fn begun_at(id: &str) -> Option<Timestamp> {
    let time: SystemTime = Ulid::from_string(id).ok()?.datetime();
    Timestamp::try_from(time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_unknown_uploads_of_the_jobs_own_pattern_are_strangers() {
        let now: Timestamp = "2026-03-02T12:00:00Z".parse().unwrap();
        let ulid = |seconds_before: u64| {
            let at = u64::try_from(now.as_millisecond()).unwrap() - seconds_before * 1000;
            Ulid::from_parts(at, 1).to_string()
        };
        let (old, young) = (ulid(24 * 3600 + 1), ulid(24 * 3600));
        let upload = |key: String, started: Option<&str>| OpenUpload {
            key: ObjectKey::new(key).unwrap(),
            id: "1".to_owned(),
            started: started.map(|at| at.parse().unwrap()),
        };
        let stranger = |upload: &OpenUpload, known: &[String]| {
            let prefix = "main/nightly";
            Shelf { prefix, known, now }.is_stranger(upload)
        };
        let ours = upload(format!("main/nightly/{old}/data.dump.gz"), None);
        assert!(stranger(&ours, &[]));
        assert!(!stranger(&ours, std::slice::from_ref(&old)));
        for (key, started) in [
            (format!("main/nightly/{young}/data.dump.gz"), None),
            (format!("main/nightly/{old}/data.dump.gz"), Some("2026-03-01T12:00:00Z")),
            (format!("main/nightly-2/{old}/data.dump.gz"), None),
            (format!("main/nightly/{old}"), None),
            (format!("main/nightly/{old}/more/data.dump.gz"), None),
            ("main/nightly/not-one-of-ours/data.dump.gz".to_owned(), None),
        ] {
            assert!(!stranger(&upload(key.clone(), started), &[]), "{key} {started:?}");
        }
    }

    #[test]
    fn only_old_unknown_objects_without_a_manifest_are_orphans() {
        const WEEK: u64 = 7 * 24 * 3600;
        let now: Timestamp = "2026-03-12T12:00:00Z".parse().unwrap();
        let before = |seconds: u64| now - Duration::from_secs(seconds);
        let ulid = |seconds: u64, salt: u128| {
            let at = u64::try_from(before(seconds).as_millisecond()).unwrap();
            Ulid::from_parts(at, salt).to_string()
        };
        let (gone, whole, mine) = (ulid(WEEK + 1, 1), ulid(WEEK + 1, 2), ulid(WEEK + 1, 3));
        let (young, copied, export) = (ulid(WEEK, 4), ulid(WEEK + 1, 5), ulid(WEEK + 1, 6));
        let objects: Vec<ObjectInfo> = [
            (format!("{gone}/data.dump.gz"), WEEK + 1),
            (format!("{gone}/verify-20260305T120000Z.json"), WEEK + 1),
            (format!("{gone}/more/data.dump.gz"), WEEK + 1),
            (format!("{whole}/data.dump.gz"), WEEK + 1),
            (format!("{whole}/manifest.json"), WEEK + 1),
            (format!("{mine}/data.dump.gz"), WEEK + 1),
            (format!("{young}/data.dump.gz"), WEEK),
            (format!("{copied}/data.dump.gz"), 60),
            (format!("{export}/public.users.csv.gz"), WEEK + 1),
            (format!("{export}/export.json"), WEEK + 1),
            ("notes/data.dump.gz".to_owned(), WEEK + 1),
        ]
        .into_iter()
        .map(|(name, age)| ObjectInfo {
            key: ObjectKey::new(format!("main/nightly/{name}")).unwrap(),
            bytes: 1,
            modified: before(age),
        })
        .collect();
        let shelf = Shelf {
            prefix: "main/nightly",
            known: &[mine],
            now,
        };
        let orphans: Vec<&str> = shelf.orphans(&objects).map(|object| object.key.as_str()).collect();
        assert_eq!(
            orphans,
            [
                format!("main/nightly/{gone}/data.dump.gz"),
                format!("main/nightly/{gone}/verify-20260305T120000Z.json")
            ]
        );
    }
}
