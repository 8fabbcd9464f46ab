//! Makes a streamed dump a backup: objects complete, sizes agree, then the manifest.

use sqlx::{Connection, PgConnection};

use super::compress::Packing;
use super::manifest::{self, Manifest, Object, Role};
use super::pipeline::{Open, PipelineError, Stage};
use crate::ledger::backups::{self, Ended};
use crate::ledger::leader::Fence;
use crate::postgres::sqlstate::DatabaseError;
use crate::store::{ObjectKey, Store, StoreError, StoreErrorKind};

/// The objects of an open dump, as the manifest lists them.
#[must_use]
pub fn objects(open: &Open, bytes_raw: u64, sha256_raw: &str) -> Vec<Object> {
    let last = open.objects().len().saturating_sub(1);
    let describe = |(index, object): (usize, &super::pipeline::OpenObject)| Object {
        key: object.key.to_string(),
        role: Role::Data,
        bytes: object.measure.bytes,
        sha256: object.measure.sha256.clone(),
        parts: object.parts,
        bytes_raw: (index == last).then_some(bytes_raw),
        sha256_raw: (index == last).then(|| sha256_raw.to_owned()),
    };
    open.objects().iter().enumerate().map(describe).collect()
}

/// Completes the objects and compares what the store says of every object of the manifest.
///
/// # Errors
/// When the store refuses, or has another size than was sent.
pub async fn complete(
    store: &dyn Store,
    open: &mut Open,
    packing: Packing,
    manifest: &Manifest,
) -> Result<(), PipelineError> {
    let failed = |error| PipelineError::store(Stage::Commit, error);
    open.complete(store, packing.content_type()).await.map_err(failed)?;
    for object in &manifest.objects {
        check_size(store, object).await.map_err(failed)?;
    }
    Ok(())
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
