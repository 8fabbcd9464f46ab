//! The probe: a store must take an object, refuse a second of that name, however it is sent, give
//! the first back and delete it.

use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio_util::bytes::Bytes;
use uuid::Uuid;

use super::{ObjectInfo, ObjectKey, Store, StoreError, StoreErrorKind};

const CONTENT_TYPE: &str = "text/plain";

/// What the key of every object of a probe starts with.
const PREFIX: &str = ".pgreeve-probe-";

/// What a probe sees of every store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probed {
    /// Whether a second object of a name is refused.
    pub(super) conditional_create: bool,
    /// Whether an upload in parts to a name that is taken is refused.
    pub(super) conditional_complete: bool,
    /// How far the store's clock is before this host's, in seconds.
    pub(super) clock_ahead_s: i64,
}

/// Whether a key belongs to a probe, which shall leave nothing behind.
pub(super) fn is_probe(key: &ObjectKey) -> bool {
    key.as_str().starts_with(PREFIX)
}

/// Tries a store with a small object of its own.
///
/// # Errors
/// The first thing the store did not do.
pub(super) async fn probe(store: &dyn Store) -> Result<Probed, StoreError> {
    let id = Uuid::now_v7().simple().to_string();
    let prefix = format!("{PREFIX}{id}");
    let key = ObjectKey::new(format!("{prefix}/object"))?;
    let body = Bytes::from(id);
    let before = Timestamp::now();
    store.create(&key, body.clone(), CONTENT_TYPE).await?;
    let outcome = try_out(store, &prefix, &key, &body).await;
    // Whatever went wrong, nothing shall stay; the first failure is the one to tell.
    let deleted = store.delete(&key).await;
    let (conditional_create, conditional_complete, made) = outcome?;
    deleted?;
    if store.head(&key).await?.is_some() {
        return Err(refused(store, "an object is still there after it was deleted"));
    }
    Ok(Probed {
        conditional_create,
        conditional_complete,
        clock_ahead_s: ahead(made.modified, before),
    })
}

/// The store's times have whole seconds, so one that is right may seem a second behind.
fn ahead(modified: Timestamp, before: Timestamp) -> i64 {
    let now = Timestamp::now();
    let difference = |from: Timestamp| modified.as_second().saturating_sub(from.as_second());
    match (difference(before), difference(now)) {
        (early, _) if early < -1 => early,
        (_, late) if late > 0 => late,
        _ => 0,
    }
}

async fn try_out(
    store: &dyn Store,
    prefix: &str,
    key: &ObjectKey,
    body: &Bytes,
) -> Result<(bool, bool, ObjectInfo), StoreError> {
    let created_again = store.create(key, body.clone(), CONTENT_TYPE).await;
    let conditional_create = is_refused(created_again)?;
    let Some(made) = store.head(key).await? else {
        return Err(refused(store, "an object that was created is not there"));
    };
    let conditional_complete = try_upload(store, prefix, key, body).await?;
    let mut found = Vec::new();
    let reader = store.open(key).await?;
    reader
        .take(1024)
        .read_to_end(&mut found)
        .await
        .map_err(|error| refused(store, error.to_string()))?;
    if found != *body {
        let (sent, came) = (body.len(), found.len());
        let cause = format!("an object of {sent} bytes came back as other {came} bytes");
        return Err(refused(store, cause));
    }
    Ok((conditional_create, conditional_complete, made))
}

/// An upload in parts to a name that is taken: it must not be completed, must be listed, and must be
/// gone once it is aborted.
async fn try_upload(store: &dyn Store, prefix: &str, key: &ObjectKey, body: &Bytes) -> Result<bool, StoreError> {
    let upload = store.start_upload(key, CONTENT_TYPE).await?;
    let tried = async {
        let part = upload.put_part(1, body.clone()).await?;
        if !store.list_uploads(prefix).await?.iter().any(|open| open.key == *key) {
            return Err(refused(store, "an upload that was begun is not listed"));
        }
        is_refused(upload.complete(vec![part]).await)
    }
    .await;
    let aborted = upload.abort().await;
    let conditional = tried?;
    aborted?;
    if store.list_uploads(prefix).await?.is_empty() {
        return Ok(conditional);
    }
    Err(refused(store, "an upload is still there after it was aborted"))
}

fn is_refused(outcome: Result<(), StoreError>) -> Result<bool, StoreError> {
    match outcome {
        Ok(()) => Ok(false),
        Err(error) if error.kind == StoreErrorKind::Exists => Ok(true),
        Err(error) => Err(error),
    }
}

fn refused(store: &dyn Store, cause: impl Into<String>) -> StoreError {
    StoreError::permanent(format!("probe {}", store.describe()), cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_of_whole_seconds_that_is_right_is_not_called_wrong() {
        let now = Timestamp::now();
        let shifted = |seconds: i64| Timestamp::from_second(now.as_second() + seconds).unwrap();
        assert_eq!(ahead(shifted(0), now), 0);
        assert_eq!(ahead(shifted(-1), now), 0);
        assert_eq!(ahead(shifted(-2), now), -2);
        assert!(ahead(shifted(100), now) >= 99);
    }
}
