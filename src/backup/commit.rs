//! Makes a streamed dump a backup: objects complete, sizes agree, then the manifest.

use sqlx::{Connection, PgConnection};

use super::digest::Measure;
use super::form::Form;
use super::manifest::{self, Manifest, Object, Role};
use super::pipeline::{Open, PipelineError, Stage};
use crate::ledger::backups::{self, Ended};
use crate::ledger::leader::Fence;
use crate::postgres::sqlstate::DatabaseError;
use crate::store::{ObjectKey, Store, StoreError, StoreErrorKind};

/// The objects of an open archive, as the manifest lists them. `archive` is its name where there are
/// several.
#[must_use]
pub fn objects(open: &Open, role: Role, archive: Option<&str>, raw: &Measure) -> Vec<Object> {
    let last = open.objects().len().saturating_sub(1);
    let describe = |(index, object): (usize, &super::pipeline::OpenObject)| Object {
        key: object.key.to_string(),
        role,
        archive: archive.map(str::to_owned),
        bytes: object.measure.bytes,
        sha256: object.measure.sha256.clone(),
        parts: object.parts,
        bytes_raw: (index == last).then_some(raw.bytes),
        sha256_raw: (index == last).then(|| raw.sha256.clone()),
    };
    open.objects().iter().enumerate().map(describe).collect()
}

/// Completes the objects of one archive.
///
/// # Errors
/// When the store refuses.
pub async fn complete(store: &dyn Store, open: &mut Open, form: &Form) -> Result<(), PipelineError> {
    open.complete(store, form.content_type())
        .await
        .map_err(|error| PipelineError::store(Stage::Commit, error))
}

/// Compares what the store says of every object of the manifest.
///
/// # Errors
/// When the store refuses, or has another size than was sent.
pub async fn check(store: &dyn Store, manifest: &Manifest) -> Result<(), PipelineError> {
    let failed = |error| PipelineError::store(Stage::Commit, error);
    abort_strays(store, manifest).await;
    for object in &manifest.objects {
        check_size(store, object).await.map_err(failed)?;
    }
    Ok(())
}

/// Every upload of the backup is complete by now. One that is open still was begun by an attempt
/// whose answer was lost: nobody knows it, and its parts would be paid for for ever.
async fn abort_strays(store: &dyn Store, manifest: &Manifest) {
    let aborted = async {
        for upload in store.list_uploads(&manifest.prefix()).await? {
            store.abort_upload(&upload).await?;
        }
        Ok::<_, StoreError>(())
    };
    if let Err(error) = aborted.await {
        tracing::warn!(backup.id = %manifest.id, %error, "an upload that was begun twice may be open still");
    }
}

/// Compares an object's size with the manifest's.
///
/// # Errors
/// When they differ, or there is no such object.
pub async fn check_size(store: &dyn Store, object: &Object) -> Result<(), StoreError> {
    let key = ObjectKey::new(object.key.as_str())?;
    let held = store.head(&key).await?.map(|info| info.bytes);
    if held == Some(object.bytes) {
        return Ok(());
    }
    let cause = match held {
        Some(bytes) => format!("the store holds {bytes} bytes instead of {}", object.bytes),
        None => "the store does not hold it".to_owned(),
    };
    Err(StoreError::permanent(format!("check {key}"), cause))
}

/// Writes the manifest, at which the backup exists, and tells the ledger. Until the manifest is
/// there the leader's row is held, so that no other pgreeve can sweep the objects meanwhile.
///
/// Answers with a warning when the backup exists and the ledger could not be told: the manifest is
/// the truth, and the next sweep tells the ledger.
///
/// # Errors
/// When there is no backup: the fence is lost, another process swept it, or the store refuses.
pub async fn publish(
    connection: &mut PgConnection,
    fence: Fence,
    store: &dyn Store,
    manifest: &mut Manifest,
) -> Result<Option<String>, PipelineError> {
    let database = |error: DatabaseError| PipelineError::stage(Stage::Commit, error.is_transient(), error);
    let permanent = |cause: String| PipelineError::stage(Stage::Commit, false, cause);
    let mut transaction = connection.begin().await.map_err(|error| database(error.into()))?;
    fence
        .hold(&mut transaction)
        .await
        .map_err(|error| permanent(error.to_string()))?;
    // The store may take long to answer, and the row must be held meanwhile.
    sqlx::query("SET LOCAL idle_in_transaction_session_timeout = 0")
        .execute(&mut *transaction)
        .await
        .map_err(|error| database(error.into()))?;
    manifest.finished_at = backups::lock_streaming(&mut transaction, &manifest.id)
        .await
        .map_err(database)?
        .ok_or_else(|| permanent(format!("the journal says that {} was given up", manifest.id)))?;
    create(store, manifest)
        .await
        .map_err(|error| PipelineError::store(Stage::Commit, error))?;
    let ended = Ended::Committed(manifest.bytes());
    let told: Result<(), DatabaseError> = async {
        backups::finish(&mut transaction, &manifest.id, ended).await?;
        transaction.commit().await?;
        Ok(())
    }
    .await;
    Ok(told
        .err()
        .map(|error| format!("the ledger does not know the backup yet: {error}")))
}

async fn create(store: &dyn Store, manifest: &Manifest) -> Result<(), StoreError> {
    let key = ObjectKey::new(format!("{}/{}", manifest.prefix(), manifest::NAME))?;
    match store.create(&key, manifest.to_bytes()?, "application/json").await {
        // The answer to an earlier attempt was lost: only we write below this prefix.
        Err(error) if error.kind == StoreErrorKind::Exists && Manifest::read(store, &key).await? == *manifest => Ok(()),
        result => result,
    }
}
