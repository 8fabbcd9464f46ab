//! Removes the backups that the plan does not keep, each manifest before its objects: a backup that
//! was half removed is none, and what is left of it is swept when it is a week old.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;

use super::catalog::{Catalog, Entry};
use super::keep::{Dated, Plan, Policy, plan};
use super::sweep;
use crate::job::{RecordError, Recorder};
use crate::store::{Store, StoreError};

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The removed backups, oldest first.
    pub removed: Vec<String>,
    /// The size of their objects.
    pub bytes: u64,
    /// How many objects the bucket keeps as older versions, which count and can be read until a
    /// lifecycle rule of the bucket ends them.
    pub versions_remain: usize,
}

/// Why nothing, or not all, was removed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PruneError {
    /// More than half would go, and nobody confirmed that.
    #[error("the policy would remove {plan}; `pgreeve backup prune --confirm {hash}` does it")]
    Drastic {
        /// How many of how many.
        plan: String,
        /// What to confirm it with.
        hash: String,
    },
    /// The store refused.
    #[error("{error}")]
    Store {
        /// What was removed before.
        pruned: Pruned,
        /// Why no more.
        error: StoreError,
    },
}

/// Plans over a catalog of one job's backups, in a store that locks what is created in it for so long.
#[must_use]
pub fn plan_catalog(
    catalog: &Catalog,
    policy: &Policy,
    now: Timestamp,
    zone: &TimeZone,
    locks_for: Option<Duration>,
) -> Plan {
    let backups: Vec<Dated> = catalog
        .backups
        .iter()
        .map(|entry| Dated {
            id: entry.id.clone(),
            at: entry.started_at,
            verified: entry.verified_at.is_some(),
            locked_until: locked_until(entry, locks_for),
        })
        .collect();
    plan(&backups, policy, now, zone)
}

/// Until when the store refuses to delete a backup: its manifest is its last object, and evidence that
/// came later is locked for longer.
#[must_use]
pub fn locked_until(entry: &Entry, locks_for: Option<Duration>) -> Option<Timestamp> {
    let written = entry
        .verified_at
        .map_or(entry.finished_at, |at| at.max(entry.finished_at));
    // Past the end of time is never.
    locks_for.map(|period| written.checked_add(period).unwrap_or(Timestamp::MAX))
}

/// Refuses a drastic plan unless `confirm` is its hash.
///
/// # Errors
/// The refusal.
pub fn check(plan: &Plan, confirm: Option<&str>) -> Result<(), PruneError> {
    let hash = plan.hash();
    if plan.is_drastic() && confirm != Some(hash.as_str()) {
        return Err(PruneError::Drastic {
            plan: plan.to_string(),
            hash,
        });
    }
    Ok(())
}

/// Carries out a plan. A drastic one is refused unless `confirm` is its hash.
///
/// # Errors
/// A refusal, or the store's error with what was removed before it.
pub async fn prune(
    store: &dyn Store,
    catalog: &Catalog,
    plan: &Plan,
    confirm: Option<&str>,
) -> Result<Pruned, PruneError> {
    check(plan, confirm)?;
    let mut pruned = Pruned::default();
    for backup in plan.removals() {
        let Some(entry) = catalog.backups.iter().find(|entry| entry.id == backup.id) else {
            continue;
        };
        match sweep::clear(store, &entry.manifest.prefix()).await {
            Ok(removed) => pruned.versions_remain += removed.versions_remain,
            Err(error) => return Err(PruneError::Store { pruned, error }),
        }
        pruned.removed.push(backup.id.clone());
        pruned.bytes = pruned.bytes.saturating_add(entry.bytes);
    }
    Ok(pruned)
}

/// Carries out a plan between two records: what is about to go, and what went. Answers with the
/// problem that ended it, if any.
///
/// # Errors
/// When the audit log cannot be written; what was not announced was not removed.
pub async fn recorded(
    (store_name, store): (&str, &dyn Store),
    catalog: &Catalog,
    plan: &Plan,
    confirm: Option<&str>,
    recorder: &dyn Recorder,
) -> Result<(Pruned, Option<String>), RecordError> {
    let doomed: Vec<&str> = plan.removals().map(|backup| backup.id.as_str()).collect();
    if !doomed.is_empty() {
        let intent = json!({ "phase": "intent", "store": store_name, "backups": doomed });
        recorder.record("backup.pruned", intent).await?;
    }
    let (pruned, problem) = match prune(store, catalog, plan, confirm).await {
        Ok(pruned) => (pruned, None),
        Err(PruneError::Store { pruned, error }) => (pruned, Some(error.to_string())),
        Err(error @ PruneError::Drastic { .. }) => (Pruned::default(), Some(error.to_string())),
    };
    if pruned.versions_remain > 0 {
        tracing::warn!(
            store = store_name,
            objects = pruned.versions_remain,
            "the bucket keeps what was pruned as older versions: only a lifecycle rule for noncurrent versions ends them"
        );
    }
    if !doomed.is_empty() {
        let done = json!({ "phase": "done", "store": store_name, "backups": pruned.removed,
            "versions_remain": pruned.versions_remain, "failed": problem });
        recorder.record("backup.pruned", done).await?;
    }
    Ok((pruned, problem))
}
