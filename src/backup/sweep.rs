//! Removes what a run that died left in a store, and nothing else: the journal names the prefix of
//! each backup that was being written.

mod strangers;

use serde_json::json;
use sqlx::{Connection, PgConnection};

pub use self::strangers::sweep_strangers;
use super::manifest::{self, Manifest};
use crate::job::{JobError, Recorder};
use crate::ledger::backups::{self, Ended, Leftovers, Streaming};
use crate::ledger::leader::{Fence, FenceError};
use crate::postgres::sqlstate::DatabaseError;
use crate::store::{Deleted, ObjectKey, Store, StoreError, StoreErrorKind};

/// What became of a backup that was being written when its run died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// The backup.
    pub backup_id: String,
    /// Its job.
    pub job: String,
    /// The prefix of its keys.
    pub prefix: String,
    /// What was removed.
    pub removed: Removed,
    /// Its manifest was there, so it is a backup: only the journal had not been told.
    pub committed: bool,
    /// Why nothing was done: its manifest is there and cannot be understood. It stays in the
    /// journal; somebody has to look at it.
    pub left: Option<String>,
}

/// What was removed from a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Uploads that were aborted.
    pub uploads: usize,
    /// Objects that were deleted.
    pub objects: usize,
    /// Those of them of which the bucket keeps an older version.
    pub versions_remain: usize,
}

/// Removes what runs that died left of their backups in one store, given with its name. Each is on
/// record before the next is touched.
///
/// # Errors
/// When the ledger, the store or the audit log refuses; what was not swept stays in the journal.
pub async fn sweep_leftovers(
    connection: &mut PgConnection,
    fence: Fence,
    (store_name, store): (&str, &dyn Store),
    which: Leftovers<'_>,
    recorder: &dyn Recorder,
) -> Result<Vec<Swept>, JobError> {
    let leftovers = backups::streaming(connection, store_name, which)
        .await
        .map_err(|error| JobError::database("read the journal of backups", &error))?;
    let mut all = Vec::new();
    for leftover in leftovers {
        let swept = sweep_one(connection, fence, store, leftover).await?;
        let body = json!({
            "backup_id": swept.backup_id, "store": store_name, "prefix": swept.prefix,
            "uploads": swept.removed.uploads, "objects": swept.removed.objects, "committed": swept.committed,
            "left": swept.left,
        });
        recorder.record("backup.swept", body).await?;
        all.push(swept);
    }
    Ok(all)
}

async fn sweep_one(
    connection: &mut PgConnection,
    fence: Fence,
    store: &dyn Store,
    leftover: Streaming,
) -> Result<Swept, JobError> {
    let failed = |error| store_error(format!("sweep {}", leftover.prefix), error);
    let manifest = match committed(store, &leftover.prefix).await {
        Ok(manifest) => manifest,
        Err(error) if error.kind == StoreErrorKind::Permanent => {
            tracing::warn!(backup.id = %leftover.backup_id, %error, "an interrupted backup is left as it is");
            return Ok(Swept {
                backup_id: leftover.backup_id,
                job: leftover.job,
                prefix: leftover.prefix,
                removed: Removed::default(),
                committed: false,
                left: Some(error.to_string()),
            });
        }
        Err(error) => return Err(failed(error)),
    };
    let (ended, removed) = match &manifest {
        Some(manifest) => (Ended::Committed(manifest.bytes()), Removed::default()),
        None => (Ended::Swept, clear(store, &leftover.prefix).await.map_err(failed)?),
    };
    tracing::info!(backup.id = %leftover.backup_id, backup.uploads = removed.uploads, backup.objects = removed.objects,
        "swept what an interrupted backup left");
    finish(connection, fence, &leftover.backup_id, ended).await?;
    Ok(Swept {
        backup_id: leftover.backup_id,
        job: leftover.job,
        prefix: leftover.prefix,
        removed,
        committed: manifest.is_some(),
        left: None,
    })
}

/// The manifest below a prefix, if it is there. One that cannot be understood is an error: what it
/// speaks of must not be deleted.
async fn committed(store: &dyn Store, prefix: &str) -> Result<Option<Manifest>, StoreError> {
    let key = ObjectKey::new(format!("{prefix}/{}", manifest::NAME))?;
    match Manifest::read(store, &key).await {
        Ok(manifest) => Ok(Some(manifest)),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Deletes every object and aborts every upload below one backup's prefix, the manifest first.
///
/// # Errors
/// When the store refuses; some may be deleted by then.
pub async fn clear(store: &dyn Store, prefix: &str) -> Result<Removed, StoreError> {
    let mut removed = Removed::default();
    let mut count = |deleted| removed.versions_remain += usize::from(deleted == Deleted::VersionStays);
    let manifest = ObjectKey::new(format!("{prefix}/{}", manifest::NAME))?;
    // A versioned bucket would mark as deleted what was never there.
    if store.head(&manifest).await?.is_some() {
        count(store.delete(&manifest).await?);
        removed.objects += 1;
    }
    for upload in store.list_uploads(prefix).await? {
        store.abort_upload(&upload).await?;
        removed.uploads += 1;
    }
    for object in store.list(prefix).await? {
        count(store.delete(&object.key).await?);
        removed.objects += 1;
    }
    Ok(removed)
}

/// Notes in the journal how a backup ended, under the fence.
///
/// # Errors
/// When another pgreeve has taken over, or the database cannot be reached.
pub async fn finish(
    connection: &mut PgConnection,
    fence: Fence,
    backup_id: &str,
    ended: Ended,
) -> Result<bool, JobError> {
    let failed = |error: DatabaseError| JobError::database("write the journal of backups", &error);
    let mut transaction = connection.begin().await.map_err(|error| failed(error.into()))?;
    fence.hold(&mut transaction).await.map_err(fence_error)?;
    let known = backups::finish(&mut transaction, backup_id, ended)
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(|error| failed(error.into()))?;
    Ok(known)
}

/// A lost fence, as the job's error.
#[must_use]
pub fn fence_error(error: FenceError) -> JobError {
    JobError::database("hold the leader's row", &error.into())
}

/// A store's error, as the job's.
#[must_use]
pub fn store_error(operation: String, error: StoreError) -> JobError {
    let cause = error.to_string();
    let job = if error.kind == StoreErrorKind::Transient {
        JobError::transient(operation, cause)
    } else {
        JobError::permanent(operation, cause)
    };
    JobError {
        remedy: error.remedy,
        ..job
    }
}
