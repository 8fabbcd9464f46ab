//! Which exports stay, by the same policy as backups.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use ulid::Ulid;

use super::manifest::NAME;
use crate::backup::keep::{Dated, Policy, plan};
use crate::backup::manifest;
use crate::backup::sweep;
use crate::job::{RecordError, Recorder};
use crate::store::{ObjectKey, Store, StoreError};

/// Whose exports, by which policy, and when.
pub struct Kept<'a> {
    /// The store's name in the configuration.
    pub store_name: &'a str,
    /// The database's name in the configuration.
    pub database: &'a str,
    /// The job.
    pub job: &'a str,
    /// What stays.
    pub policy: &'a Policy,
    /// The zone of days, weeks and months.
    pub zone: &'a TimeZone,
    /// The server's time.
    pub now: Timestamp,
}

/// Removes the exports of a job that its policy does not keep, each manifest first. Answers with what a
/// report says of it; a store that refuses is named there, because the new export exists all the same.
///
/// # Errors
/// When the audit log cannot be written.
pub async fn prune(store: &dyn Store, kept: &Kept<'_>, recorder: &dyn Recorder) -> Result<Value, RecordError> {
    let prefix = format!("{}/{}", kept.database, kept.job);
    let exports = match dated(store, &prefix).await {
        Ok(exports) => exports,
        Err(error) => return Ok(json!({ "failed": error.to_string() })),
    };
    let plan = plan(&exports, kept.policy, kept.now, kept.zone);
    let doomed: Vec<&str> = plan.removals().map(|export| export.id.as_str()).collect();
    if plan.is_drastic() {
        return Ok(
            json!({ "refused": format!("the policy would remove {} of {} exports", doomed.len(), exports.len()) }),
        );
    }
    if doomed.is_empty() {
        return Ok(json!({ "removed": [], "kept": exports.len() }));
    }
    let record = |phase: &str, exports: &[&str], failed: Option<&str>| json!({ "phase": phase, "store": kept.store_name, "exports": exports, "failed": failed });
    recorder
        .record("export.pruned", record("intent", &doomed, None))
        .await?;
    let (mut removed, mut problem) = (Vec::new(), None);
    for id in &doomed {
        if let Err(error) = remove(store, &manifest::prefix(kept.database, kept.job, id)).await {
            problem = Some(error.to_string());
            break;
        }
        removed.push(*id);
    }
    recorder
        .record("export.pruned", record("done", &removed, problem.as_deref()))
        .await?;
    Ok(json!({ "removed": removed, "kept": exports.len() - removed.len(), "failed": problem }))
}

/// Removes an export, whole or not: its manifest first, so that what is left in between is none.
pub(super) async fn remove(store: &dyn Store, prefix: &str) -> Result<(), StoreError> {
    let manifest = ObjectKey::new(format!("{prefix}/{NAME}"))?;
    // A versioned bucket would mark as deleted what was never there.
    if store.head(&manifest).await?.is_some() {
        store.delete(&manifest).await?;
    }
    sweep::clear(store, prefix).await.map(|_| ())
}

/// The exports below a prefix, by their manifests. Keys of another pattern are nobody's business here.
///
/// # Errors
/// When the store cannot be listed.
pub async fn dated(store: &dyn Store, prefix: &str) -> Result<Vec<Dated>, StoreError> {
    let locks_for = store.locks_for();
    let objects = store.list(prefix).await?;
    let ids: BTreeSet<&str> = objects
        .iter()
        .filter_map(|object| {
            object
                .key
                .as_str()
                .strip_prefix(prefix)?
                .strip_prefix('/')?
                .strip_suffix(NAME)?
                .strip_suffix('/')
        })
        .collect();
    let dated = ids.into_iter().filter_map(|id| {
        let at = Timestamp::try_from(Ulid::from_string(id).ok()?.datetime()).ok()?;
        Some(Dated {
            id: id.to_owned(),
            at,
            verified: false,
            locked_until: locks_for.map(|period| at.checked_add(period).unwrap_or(Timestamp::MAX)),
        })
    });
    Ok(dated.collect())
}
