//! The probe: a store must take an object, refuse a second of that name, however it is sent, give
//! the first back and delete it.

use jiff::{SignedDuration, Timestamp};
use tokio::io::AsyncReadExt;
use tokio_util::bytes::Bytes;
use uuid::Uuid;

use super::{ObjectInfo, ObjectKey, Store, StoreError, StoreErrorKind, below};

const CONTENT_TYPE: &str = "text/plain";

/// Below this lies every object of a probe, in a folder of its own.
const PREFIX: &str = ".pgreeve-probes";

/// How old what another probe left must be: a probe that goes on is much younger.
const AGE: SignedDuration = SignedDuration::from_hours(1);

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
    below(key.as_str(), PREFIX).is_some()
}

/// Tries a store with a small object of its own.
///
/// # Errors
/// The first thing the store did not do.
pub(super) async fn probe(store: &dyn Store) -> Result<Probed, StoreError> {
    let id = Uuid::now_v7().simple().to_string();
    let prefix = format!("{PREFIX}/{id}");
    let key = ObjectKey::new(format!("{prefix}/object"))?;
    let body = Bytes::from(id);
    let before = Timestamp::now();
    store.create(&key, body.clone(), CONTENT_TYPE).await?;
    let outcome = try_out(store, &prefix, &key, &body).await;
    let swept = sweep(store).await;
    // Whatever went wrong, nothing shall stay; the first failure is the one to tell.
    let deleted = store.delete(&key).await;
    let (conditional_create, conditional_complete, made) = outcome?;
    deleted?;
    swept?;
    if store.head(&key).await?.is_some() {
        return Err(refused(store, "an object is still there after it was deleted"));
    }
    Ok(Probed {
        conditional_create,
        conditional_complete,
        clock_ahead_s: ahead(made.modified, before),
    })
}

/// Removes what probes left whose process died.
async fn sweep(store: &dyn Store) -> Result<(), StoreError> {
    for upload in store.list_uploads(PREFIX).await? {
        if is_left(&upload.key, Timestamp::now()) {
            store.abort_upload(&upload).await?;
        }
    }
    for object in store.list(PREFIX).await? {
        if is_left(&object.key, Timestamp::now()) {
            store.delete(&object.key).await?;
        }
    }
    Ok(())
}

/// Whether an object is of a probe that was begun too long ago to go on: its folder's name tells when.
fn is_left(key: &ObjectKey, now: Timestamp) -> bool {
    let id = below(key.as_str(), PREFIX).and_then(|rest| rest.split('/').next());
    let begun = id
        .and_then(|id| Uuid::try_parse(id).ok()?.get_timestamp())
        .and_then(|time| Timestamp::from_second(i64::try_from(time.to_unix().0).ok()?).ok());
    begun.is_some_and(|begun| now.duration_since(begun) > AGE)
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
    fn only_what_a_probe_left_more_than_an_hour_ago_is_swept() {
        let now: Timestamp = "2026-03-02T12:00:00Z".parse().unwrap();
        let left = |key: String| is_left(&ObjectKey::new(key).unwrap(), now);
        let begun = |seconds_before: i64| {
            let seconds = u64::try_from(now.as_second() - seconds_before).unwrap();
            Uuid::new_v7(uuid::Timestamp::from_unix_time(seconds, 0, 0, 0))
                .simple()
                .to_string()
        };
        assert!(left(format!("{PREFIX}/{}/object", begun(3601))));
        for key in [
            format!("{PREFIX}/{}/object", begun(3600)),
            format!("{PREFIX}/notes/object"),
            format!("{PREFIX}/object"),
            format!("other/{}/object", begun(3601)),
        ] {
            assert!(!left(key.clone()), "{key}");
        }
    }

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
