//! Whole partitions past the cutoff go in one step instead of row by row.
//!
//! Which ones is told by their bounds. A partition goes only if every row in it is due by the same
//! condition that the batches use; one with a row that is not is left to the batches, as are the rows
//! of the default partition. What a drop would bypass (foreign keys, triggers, publications) speaks
//! against it.

mod create;
mod detach;
mod grid;
mod premake;
mod remove;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

pub(super) use self::detach::finalize;
pub use self::premake::{PremakeRule, premake};
pub(super) use self::remove::Removal;
use super::cutoff::Cutoff;
use super::preflight::{Target, reading};
use super::statement::AgeType;
use crate::job::JobError;
use crate::postgres::catalog::RelationKind;
use crate::postgres::catalog::partitions::{self, BoundType, Partition};

/// What becomes of partitions all of whose rows are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartitionMode {
    /// They are dropped.
    Drop,
    /// They become tables of their own; their rows stay stored.
    Detach,
    /// They are purged row by row.
    Rows,
}

impl PartitionMode {
    /// Every mode, with its word.
    pub const WORDS: [(&'static str, Self); 3] = [("drop", Self::Drop), ("detach", Self::Detach), ("rows", Self::Rows)];
}

/// The partitions of a run's table.
#[derive(Debug, Clone, Default)]
pub(super) struct Whole {
    detach: bool,
    /// Past the cutoff, oldest first.
    due: Vec<Partition>,
    /// Whether partitions that can be dropped are dropped after the rows, once they are empty: what is
    /// done outside with each row needs the rows.
    pub(super) after_rows: bool,
    /// The leaves of default partitions.
    pub(super) defaults: Vec<Oid>,
}

/// What became of the partitions.
#[derive(Debug, Clone, Default)]
pub(super) struct Gone {
    /// The leaves that are to be walked no more.
    pub(super) leaves: Vec<Oid>,
    /// Rows of dropped partitions.
    pub(super) rows: u64,
    dropped: Vec<Value>,
    detached: Vec<String>,
    deferred: Vec<Value>,
    /// Pending detaches that are final now.
    pub(super) finalized: Vec<String>,
}

impl Gone {
    /// How many partitions were dropped.
    pub(super) fn partitions(&self) -> u64 {
        self.dropped.len() as u64
    }

    /// The published format.
    pub(super) fn body(&self, from_default: Option<u64>) -> Value {
        json!({
            "rows_from_default": from_default,
            "dropped": self.dropped,
            "detached": self.detached,
            "deferred": self.deferred,
            "finalized": self.finalized,
        })
    }

    /// What is left to do, if anything.
    pub(super) fn problem(&self) -> Option<String> {
        let first = self.deferred.first()?;
        Some(format!(
            "partitions: {} left for the next run; {}: {}",
            self.deferred.len(),
            first["partition"].as_str().unwrap_or_default(),
            first["reason"].as_str().unwrap_or_default()
        ))
    }
}

/// How a plan stands to partitions.
pub(super) struct Request<'a> {
    /// The table.
    pub(super) target: &'a Target,
    /// Its age column.
    pub(super) age_column: &'a str,
    /// The cutoff.
    pub(super) cutoff: &'a Cutoff,
    /// What the configuration says; nothing is "drop where nothing speaks against it".
    pub(super) mode: Option<PartitionMode>,
    /// Whether something is done outside the database with each row.
    pub(super) outside: bool,
}

/// Decides about whole partitions; answers with warnings too. Nothing for a table that is not divided
/// by ranges of its age.
pub(super) async fn plan(
    connection: &mut PgConnection,
    request: Request<'_>,
) -> Result<(Option<Whole>, Vec<String>), JobError> {
    let table = request.target.relation.display();
    let explicit = matches!(request.mode, Some(PartitionMode::Drop | PartitionMode::Detach));
    let refuse =
        |cause: String, remedy: &str| JobError::refused(format!("check {table}"), cause, remedy).about("partitions");
    if request.mode == Some(PartitionMode::Rows) {
        return Ok((None, Vec::new()));
    }
    let all = if request.target.relation.kind == RelationKind::Partitioned {
        let kind = bound_type(request.target.age_type);
        let (root, limit) = (request.target.relation.oid, &request.cutoff.value);
        let found = partitions::of(connection, root, request.age_column, kind, limit).await;
        found.map_err(reading(&table))?
    } else {
        Vec::new()
    };
    if all.is_empty() {
        if explicit && request.target.pending.is_empty() {
            let cause = format!("it has no partitions by ranges of {} alone", request.age_column);
            return Err(refuse(cause, "leave `partitions` out: its rows are deleted in batches"));
        }
        return Ok((None, Vec::new()));
    }
    let mut due: Vec<Partition> = all.iter().filter(|partition| partition.expired).cloned().collect();
    due.retain(|partition| !partition.is_foreign());
    // Partitions of a partition that goes as a whole go with it.
    let above: Vec<Oid> = due.iter().map(|partition| partition.oid).collect();
    due.retain(|partition| !above.contains(&partition.parent));
    let (hard, soft) = obstacles(connection, request.target, &due).await?;
    let mut warnings = Vec::new();
    if let Some(obstacle) = hard.first().filter(|_| explicit) {
        return Err(refuse(
            obstacle.clone(),
            "mend that, or write partitions = \"rows\" to delete the rows in batches",
        ));
    }
    if explicit {
        warnings.extend(soft);
    } else {
        let causes: Vec<String> = hard.into_iter().chain(soft).collect();
        if !due.is_empty() && !causes.is_empty() {
            let causes = causes.join("; ");
            warnings.push(format!("whole partitions are deleted row by row: {causes}"));
            due.clear();
        }
    }
    let detach = request.mode == Some(PartitionMode::Detach);
    if detach && !due.is_empty() {
        warnings.push("detached partitions are hidden, not erased: their rows stay stored".to_owned());
    }
    let defaults = all.iter().filter(|partition| partition.is_default());
    let whole = Whole {
        detach,
        due,
        after_rows: request.outside && !detach,
        defaults: defaults.flat_map(|partition| partition.leaves.clone()).collect(),
    };
    Ok((Some(whole), warnings))
}

impl Whole {
    /// What the plan says of them.
    pub(super) fn intent(&self) -> Value {
        let due = self.due.iter().map(|partition| {
            let mut entry = describe(partition);
            entry["estimated_rows"] = json!(partition.estimated_rows());
            entry
        });
        let due: Vec<Value> = due.collect();
        let mode = if self.detach { "detach" } else { "drop" };
        json!({ "mode": mode, "due": due, "once_empty": self.after_rows })
    }
}

/// What speaks against it: what makes it impossible, and what it would bypass.
async fn obstacles(
    connection: &mut PgConnection,
    target: &Target,
    due: &[Partition],
) -> Result<(Vec<String>, Vec<String>), JobError> {
    let (mut hard, mut soft) = (Vec::new(), Vec::new());
    if let Some(foreign) = due.iter().find(|partition| !partition.owned) {
        hard.push(format!(
            "the role owns neither or only one of {} and {}.{}",
            foreign.display(),
            foreign.parent_schema,
            foreign.parent_name
        ));
    }
    if !target.keys.is_empty() {
        let keys: Vec<String> = target
            .keys
            .iter()
            .map(|key| format!("{} of {}", key.constraint, key.table))
            .collect();
        hard.push(format!("foreign keys point at the table: {}", keys.join(", ")));
    }
    if !target.triggers.is_empty() {
        soft.push(format!(
            "triggers on DELETE would not fire: {}",
            target.triggers.join(", ")
        ));
    }
    let mut tables: Vec<Oid> = due.iter().flat_map(|partition| partition.leaves.clone()).collect();
    tables.push(target.relation.oid);
    let published = partitions::publications(connection, &tables).await;
    let published = published.map_err(reading(&target.relation.display()))?;
    if !published.is_empty() {
        soft.push(format!("subscribers would keep the rows: {}", published.join(", ")));
    }
    Ok((hard, soft))
}

fn describe(partition: &Partition) -> Value {
    json!({ "partition": partition.display(), "from": partition.lower, "to": partition.upper })
}

/// The type of a bound on the age column.
pub(super) fn bound_type(age_type: AgeType) -> BoundType {
    match age_type {
        AgeType::Timestamptz => BoundType::Timestamptz,
        AgeType::Timestamp => BoundType::Timestamp,
        AgeType::Date => BoundType::Date,
    }
}
