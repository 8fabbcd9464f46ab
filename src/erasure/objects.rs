//! Objects in stores that the subject's rows own: each goes before its row.
//!
//! The step that deletes the rows writes their keys into the request's scope, in its own transaction.
//! The objects are deleted and confirmed gone, and only then the transaction is committed. Whatever
//! fails in between keeps the rows, and the next attempt deletes objects that are gone already without
//! harm. Keys are read from the scope and never reach a parameter, a log or a report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection};

use super::execute::Trouble;
use super::plan::{ErasurePlan, Step};
use super::proof::{Proof, ProofError};
use super::reach::{Node, Reach, find_column, refuse};
use super::rule::{Action, Rule};
use super::statement::Statements;
use crate::job::JobError;
use crate::ledger::erasures::{self, Request};
use crate::store::{Deleted, ObjectKey, Store, StoreError, StoreErrorKind, StoreSettings};
use crate::values::Name;

/// How many objects are deleted at the same time.
const AT_ONCE: usize = 8;

/// How long the objects of one transaction may take: locks are held meanwhile.
const STORE_TIME: Duration = Duration::from_secs(40);

/// Which objects the rows of a table own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RowObjects {
    /// The store's name in the configuration.
    pub store: Name,
    /// The column that holds an object's key below the store's prefix.
    pub key_column: String,
}

/// What became of objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many are gone.
    pub gone: u64,
    /// Of how many of them the store keeps an older version.
    pub versions: u64,
}

/// The stores of a job's objects; opened for each use, so that credentials are read anew.
pub type ObjectStores = BTreeMap<Name, StoreSettings>;

/// The objects of each node, or why they cannot be deleted with its rows.
pub(super) fn of(rule: &Rule, reach: &Reach) -> Result<BTreeMap<usize, RowObjects>, JobError> {
    let mut found = BTreeMap::new();
    for (table, objects) in &rule.objects {
        let is_it = |node: &Node| {
            node.relation.name == table.name
                && table
                    .schema
                    .as_ref()
                    .is_none_or(|schema| *schema == node.relation.schema)
        };
        let Some(place) = reach.nodes.iter().position(is_it) else {
            return Err(refuse(
                format!("{table} is not in reach of the subject, and its objects are none of theirs"),
                "take it out of `objects`, or add the edge that leads to it",
            )
            .about("objects"));
        };
        let Some(node) = reach.nodes.get(place) else { continue };
        if node.action() != Action::Delete {
            return Err(refuse(
                format!("the rows of {table} stay, and so would the keys of their objects"),
                "objects go with rows that are deleted: give the table that action, or take it out of `objects`",
            )
            .about("objects"));
        }
        let column = find_column(node, &objects.key_column).map_err(|error| error.about("objects"))?;
        if !matches!(column.base_type.as_str(), "text" | "character varying") {
            return Err(refuse(
                format!(
                    "{table}.{} is of type {}, which holds no keys",
                    column.name, column.full_type
                ),
                "name a column of type text or character varying",
            )
            .about("objects"));
        }
        found.insert(place, objects.clone());
    }
    Ok(found)
}

/// Refuses objects of tables that refer to each other in a circle: their rows go in one statement.
pub(super) fn apart(plan: &ErasurePlan) -> Result<(), JobError> {
    let circles = plan.stages.iter().filter(|stage| stage.len() > 1).flatten();
    let mut owning = circles.filter(|step| plan.objects.contains_key(&step.node));
    let Some(node) = owning.find_map(|step| plan.reach.nodes.get(step.node)) else {
        return Ok(());
    };
    Err(refuse(
        format!(
            "{} refers to itself through other tables, and rows of a circle go together without their objects",
            node.relation.display()
        ),
        "unlink the reference that closes the circle, or keep the keys in a table of their own",
    )
    .about("objects"))
}

/// Deletes the objects of the rows that a step has deleted in the transaction under way, and makes sure
/// that they are gone. An object that a row which stays names too is left to that row.
pub(super) async fn remove(
    transaction: &mut PgConnection,
    proof: &dyn Proof,
    plan: &ErasurePlan,
    step: &Step,
    request: &Request,
) -> Result<Removed, Trouble> {
    let (Some(objects), Some(sql)) = (plan.objects.get(&step.node), Statements::new(plan).object_keys(step)) else {
        return Ok(Removed::default());
    };
    let operation = "delete the objects of rows";
    let keys: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(request.id.0)
        .fetch_all(&mut *transaction)
        .await
        .map_err(Trouble::sql(operation))?;
    if keys.is_empty() {
        return Ok(Removed::default());
    }
    let keys: Result<Vec<ObjectKey>, StoreError> = keys.into_iter().map(ObjectKey::new).collect();
    let keys = keys.map_err(|_| {
        Trouble::Permanent(format!(
            "{operation}: {} of a row holds no key below the prefix of the store {}; correct or clear it, and ask again",
            objects.key_column, objects.store
        ))
    })?;
    let removed = proof.remove(&objects.store, keys).await.map_err(|error| {
        let text = format!("{error}; {}", error.remedy);
        if error.transient {
            Trouble::Transient(text)
        } else {
            Trouble::Run(super::execute::unproven(error))
        }
    })?;
    erasures::clear(transaction, &[request.id.0], OBJECTS)
        .await
        .map_err(|error| Trouble::of(operation, &error))?;
    Ok(removed)
}

/// The source of keys in a request's scope.
pub(super) const OBJECTS: &str = "objects";

/// Deletes objects of a store, each confirmed.
pub(super) async fn delete(stores: &ObjectStores, name: &Name, keys: Vec<ObjectKey>) -> Result<Removed, ProofError> {
    let failed = |error: StoreError| ProofError {
        operation: format!("delete objects in the store {name}"),
        remedy: error
            .remedy
            .clone()
            .unwrap_or_else(|| "check the store, its rights and its locks".to_owned()),
        transient: matches!(error.kind, StoreErrorKind::Transient),
        cause: plain(&error).to_owned(),
    };
    let settings = stores.get(name).ok_or_else(|| failed(StoreError::permanent("", "")))?;
    let store = settings.open().await.map_err(failed)?;
    let deleted = futures::stream::iter(keys.into_iter().map(|key| delete_one(Arc::clone(&store), key)))
        .buffer_unordered(AT_ONCE)
        .try_fold(Removed::default(), |sum, deleted| {
            std::future::ready(Ok(Removed {
                gone: sum.gone.saturating_add(1),
                versions: sum.versions.saturating_add(u64::from(deleted == Deleted::VersionStays)),
            }))
        });
    match tokio::time::timeout(STORE_TIME, deleted).await {
        Ok(deleted) => deleted.map_err(failed),
        Err(_) => Err(failed(StoreError::new(StoreErrorKind::Transient, "", ""))),
    }
}

async fn delete_one(store: Arc<dyn Store>, key: ObjectKey) -> Result<Deleted, StoreError> {
    let deleted = store.delete(&key).await?;
    match store.head(&key).await? {
        None => Ok(deleted),
        Some(_) => Err(StoreError::permanent("", "the store still holds it")),
    }
}

/// The cause without its object: keys may tell who people are.
fn plain(error: &StoreError) -> &'static str {
    match error.kind {
        StoreErrorKind::Permanent => "the store refused, still holds one, or is not in the configuration",
        StoreErrorKind::NotFound => "there is no such bucket",
        StoreErrorKind::Exists => "the store refused",
        StoreErrorKind::Denied => "access denied",
        StoreErrorKind::Transient => "the store did not answer in time",
    }
}
