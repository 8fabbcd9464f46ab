//! Archives have a keep period of their own: copies of personal data must not outlive it.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{ArchiveRule, fenced, home, run_of};
use crate::backup::sweep::{clear, store_error};
use crate::batch::cutoff;
use crate::batch::statement::AgeType;
use crate::job::{JobContext, JobError};
use crate::ledger::archives;
use crate::postgres::sqlstate::DatabaseError;
use crate::store::ObjectInfo;
use crate::values::RunId;

/// Removes the job's archives that are older than `keep`, the manifest first. An archive is as old
/// as the ledger says, else as its youngest object. The store is what counts: it also knows the
/// archives that a restored database has forgotten.
pub(super) async fn enforce(context: &mut JobContext, rule: &ArchiveRule, this: RunId) -> Result<Value, JobError> {
    let Some(keep) = &rule.keep else { return Ok(Value::Null) };
    let operation = "expire archives";
    let database = |error: DatabaseError| JobError::database(operation, &error);
    let home = home(context);
    let objects = rule
        .store
        .list(&home)
        .await
        .map_err(|error| store_error(operation.to_owned(), error))?;
    let connection = context.session.connection();
    let limit = cutoff::fix(connection, keep, &rule.zone, AgeType::Timestamptz).await?;
    let limit: Timestamp = limit
        .instant
        .parse()
        .map_err(|error: jiff::Error| JobError::permanent(operation, error.to_string()))?;
    let begun = archives::begun(connection, context.job.as_str(), &rule.store_name)
        .await
        .map_err(database)?;
    let begun: HashMap<RunId, Timestamp> = begun.into_iter().collect();
    let due: Vec<(RunId, usize, u64)> = by_run(&objects, &home)
        .into_iter()
        .filter(|(run, held)| *run != this && begun.get(run).copied().unwrap_or(held.youngest) < limit)
        .map(|(run, held)| (run, held.objects, held.bytes))
        .collect();
    if due.is_empty() {
        return Ok(json!({ "archives": 0, "objects": 0, "bytes": 0 }));
    }
    let runs: Vec<RunId> = due.iter().map(|(run, _, _)| *run).collect();
    let sums = json!({
        "archives": due.len(),
        "objects": due.iter().map(|(_, objects, _)| objects).sum::<usize>(),
        "bytes": due.iter().map(|(_, _, bytes)| bytes).sum::<u64>(),
    });
    let record = |phase: &str| json!({ "phase": phase, "store": rule.store_name, "runs": runs, "sums": sums });
    context.recorder.record("archive.expired", record("intent")).await?;
    for run in &runs {
        clear(rule.store.as_ref(), &format!("{home}/{run}"))
            .await
            .map_err(|error| store_error(operation.to_owned(), error))?;
    }
    context.recorder.record("archive.expired", record("done")).await?;
    let fence = context.fence;
    let mut transaction = fenced::begin(context.session.connection(), fence, operation).await?;
    archives::expire(&mut transaction, &runs).await.map_err(database)?;
    fenced::commit(transaction, operation).await?;
    Ok(sums)
}

/// What the store holds of one archive.
struct Held {
    objects: usize,
    bytes: u64,
    youngest: Timestamp,
}

fn by_run(objects: &[ObjectInfo], home: &str) -> BTreeMap<RunId, Held> {
    let mut runs: BTreeMap<RunId, Held> = BTreeMap::new();
    for object in objects {
        let Some(run) = run_of(object.key.as_str(), home) else {
            tracing::warn!(archive.key = %object.key, "an object among the archives belongs to none and is left as it is");
            continue;
        };
        let held = runs.entry(run).or_insert(Held {
            objects: 0,
            bytes: 0,
            youngest: object.modified,
        });
        held.objects += 1;
        held.bytes = held.bytes.saturating_add(object.bytes);
        held.youngest = held.youngest.max(object.modified);
    }
    runs
}
