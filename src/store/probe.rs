//! The probe: a store must take an object, refuse a second of that name, give it back and delete it.

use tokio::io::AsyncReadExt;
use tokio_util::bytes::Bytes;
use uuid::Uuid;

use super::{ObjectKey, Store, StoreError, StoreErrorKind};

const CONTENT_TYPE: &str = "text/plain";

/// Tries a store with a small object of its own; `false` when the store let a second object take
/// the name of the first.
///
/// # Errors
/// The first thing the store did not do.
pub(super) async fn probe(store: &dyn Store) -> Result<bool, StoreError> {
    let id = Uuid::now_v7().simple().to_string();
    let key = ObjectKey::new(format!(".pgreeve-probe-{id}"))?;
    let body = Bytes::from(id);
    store.create(&key, body.clone(), CONTENT_TYPE).await?;
    let outcome = try_out(store, &key, &body).await;
    // Whatever went wrong, nothing shall stay; the first failure is the one to tell.
    let deleted = store.delete(&key).await;
    let exclusive = outcome?;
    deleted?;
    if store.head(&key).await?.is_some() {
        return Err(StoreError::permanent(
            format!("probe {}", store.describe()),
            "an object is still there after it was deleted",
        ));
    }
    Ok(exclusive)
}

async fn try_out(store: &dyn Store, key: &ObjectKey, body: &Bytes) -> Result<bool, StoreError> {
    let exclusive = match store.create(key, body.clone(), CONTENT_TYPE).await {
        Ok(()) => false,
        Err(error) if error.kind == StoreErrorKind::Exists => true,
        Err(error) => return Err(error),
    };
    let operation = format!("probe {}", store.describe());
    let mut found = Vec::new();
    let reader = store.open(key).await?;
    reader
        .take(1024)
        .read_to_end(&mut found)
        .await
        .map_err(|error| StoreError::permanent(&operation, error.to_string()))?;
    if found != *body {
        return Err(StoreError::permanent(
            operation,
            format!(
                "an object of {} bytes came back as other {} bytes",
                body.len(),
                found.len()
            ),
        ));
    }
    Ok(exclusive)
}
