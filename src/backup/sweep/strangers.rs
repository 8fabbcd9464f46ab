//! Aborts uploads that no journal knows: those of a host that never came back, or of a database that was
//! restored to before they were begun.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde_json::json;
use sqlx::PgConnection;
use ulid::Ulid;

use super::store_error;
use crate::backup::manifest;
use crate::job::{JobError, Recorder};
use crate::store::{OpenUpload, Store};

/// How old an upload must be: by then whoever began it has completed it or is gone.
const AGE: Duration = Duration::from_hours(24);

/// Aborts the uploads below one job's prefix whose keys are of our pattern, which were begun more than
/// a day ago by the server's clock, and which are not of a backup named in `known`. Answers with their
/// keys. To be called with the job's lock held.
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
    let failed = |error| store_error(format!("sweep the unknown uploads below {prefix}"), error);
    let open = store.list_uploads(prefix).await.map_err(failed)?;
    if open.is_empty() {
        return Ok(Vec::new());
    }
    let now: SqlTimestamp = sqlx::query_scalar("SELECT pg_catalog.clock_timestamp()")
        .fetch_one(connection)
        .await
        .map_err(|error| JobError::database("read the server's clock", &error.into()))?;
    let mut aborted = Vec::new();
    for upload in open {
        if !is_stranger(&upload, prefix, known, now.to_jiff()) {
            continue;
        }
        store.abort_upload(&upload).await.map_err(failed)?;
        tracing::info!(upload.key = %upload.key, "aborted an upload that no journal knows");
        aborted.push(upload.key.to_string());
    }
    if !aborted.is_empty() {
        let body = json!({ "store": store_name, "prefix": prefix, "unknown": aborted, "uploads": aborted.len() });
        recorder.record("backup.swept", body).await?;
    }
    Ok(aborted)
}

/// Whether an upload is ours by its key, unknown, and old: by the time in its backup's name, and by
/// when the store saw it begin, where it tells.
fn is_stranger(upload: &OpenUpload, prefix: &str, known: &[String], now: Timestamp) -> bool {
    let key = upload.key.as_str();
    let rest = key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/'));
    let Some((id, name)) = rest.and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    let Some(named_at) = Ulid::from_string(id).ok().and_then(|ulid| instant(ulid.datetime())) else {
        return false;
    };
    let begun = upload.started.map_or(named_at, |started| started.max(named_at));
    let old = now.checked_sub(AGE).is_ok_and(|limit| begun < limit);
    old && !name.contains('/') && !known.iter().any(|known| known == id)
}

fn instant(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ObjectKey;

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
        let stranger = |upload: &OpenUpload, known: &[String]| is_stranger(upload, "main/nightly", known, now);
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
}
