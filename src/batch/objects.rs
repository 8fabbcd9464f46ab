//! Rows that own an object in a store: the object goes first, the row last.
//!
//! Within one transaction the rows are deleted, which also locks them, and their keys come back; the
//! objects are deleted and confirmed gone; only then the transaction is committed. Whatever fails in
//! between keeps the rows, and the next run deletes objects that are gone already without harm. Keys
//! never reach a log or a report.
//!
//! A row without a key owns no object and is deleted like any other. A row whose key cannot be a key
//! below the store's prefix is kept and counted.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use super::outside::STORE_TIME;
use super::preflight::{Target, reading};
use super::report::COUNT_LIMIT;
use super::statement::Statements;
use crate::backup::sweep::store_error;
use crate::job::JobError;
use crate::postgres::quote::literal;
use crate::postgres::sqlstate::DatabaseError;
use crate::store::{ObjectKey, Store, StoreError, StoreErrorKind};

/// How many objects are deleted at the same time.
const AT_ONCE: usize = 8;

/// Which objects rows own.
#[derive(Debug, Clone)]
pub struct ObjectRule {
    /// The store's name in the configuration.
    pub store_name: String,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The column that holds the object's key below the store's prefix.
    pub key_column: String,
}

/// The objects of one run.
#[derive(Debug)]
pub(super) struct Objects {
    rule: ObjectRule,
    tally: Tally,
    /// What the transaction under way adds.
    pending: Tally,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    deleted: u64,
    without: u64,
    shared: u64,
}

/// Why a batch's objects could not be deleted.
#[derive(Debug)]
pub(super) enum RemoveError {
    /// The store took too long.
    Slow(StoreError),
    /// The store refused.
    Store(StoreError),
    /// The server refused.
    Database(DatabaseError),
}

impl ObjectRule {
    /// Checks the column, and that the store can be used; answers with warnings.
    pub(super) async fn check(&self, connection: &mut PgConnection, target: &Target) -> Result<Vec<String>, JobError> {
        let table = target.relation.display();
        let column = target
            .column(&self.key_column)
            .map_err(|error| error.about("objects"))?;
        if !matches!(column.base_type.as_str(), "text" | "character varying") {
            return Err(JobError::refused(
                format!("check {table}"),
                format!(
                    "the key column {} is of type {}, which holds no keys",
                    column.name, column.full_type
                ),
                "name a column of type text or character varying",
            )
            .about("objects"));
        }
        self.store.head(&probe_key()?).await.map_err(|error| {
            store_error(format!("use the store {}", self.store_name), plain(error)).about("objects")
        })?;
        let indexed: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_index i
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                 WHERE i.indrelid = $1 AND a.attname = $2 AND i.indisvalid)",
        )
        .bind(target.relation.oid)
        .bind(&self.key_column)
        .fetch_one(connection)
        .await
        .map_err(|error| reading(&table)(error.into()))?;
        let warning = format!(
            "no index finds the rows of {table} by {}: each batch reads the table to see whether a row that stays names \
             the same object",
            self.key_column
        );
        Ok(if indexed { Vec::new() } else { vec![warning] })
    }

    /// What a row must meet so that it can go: no key, or one that stays below the store's prefix.
    /// The same as [`ObjectKey::new`] asks.
    pub(super) fn condition(&self, statements: &Statements) -> String {
        let key = statements.column(&self.key_column);
        format!(
            "({key} IS NULL OR (octet_length({key}) <= 900 AND {key} COLLATE \"C\" ~ {graphic} AND {key} !~ {part}))",
            graphic = literal(r"^[!-\[\]-~]+$"),
            part = literal(r"(^|/)\.{0,2}(/|$)"),
        )
    }

    /// The rule as the plan shows it.
    pub(super) fn intent(&self) -> Value {
        json!({ "store": self.store_name, "place": self.store.describe(), "key_column": self.key_column })
    }
}

impl Objects {
    pub(super) fn new(rule: ObjectRule) -> Self {
        Self {
            rule,
            tally: Tally::default(),
            pending: Tally::default(),
        }
    }

    pub(super) fn rule(&self) -> &ObjectRule {
        &self.rule
    }

    /// Deletes the objects of rows that were deleted in the transaction under way, and makes sure that
    /// they are gone. An object that a row which stays names too is left to that row.
    pub(super) async fn remove(
        &mut self,
        transaction: &mut PgConnection,
        statements: &Statements,
        keys: Vec<Option<String>>,
    ) -> Result<(), RemoveError> {
        let rows = keys.len() as u64;
        let mut keys: Vec<String> = keys.into_iter().flatten().collect();
        self.pending = Tally {
            without: rows.saturating_sub(keys.len() as u64),
            ..Tally::default()
        };
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return Ok(());
        }
        let named: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statements.values_among(&self.rule.key_column)))
            .persistent(false)
            .bind(&keys)
            .fetch_all(transaction)
            .await
            .map_err(|error| RemoveError::Database(error.into()))?;
        keys.retain(|key| !named.contains(key));
        self.pending.shared = named.len() as u64;
        let store = &self.rule.store;
        let gone = futures::stream::iter(keys.into_iter().map(|key| delete(Arc::clone(store), key)))
            .buffer_unordered(AT_ONCE)
            .try_fold(0_u64, |gone, ()| std::future::ready(Ok(gone + 1)));
        let gone = tokio::time::timeout(STORE_TIME, gone).await.map_err(|_| {
            RemoveError::Slow(StoreError::new(
                StoreErrorKind::Transient,
                "delete the objects of rows",
                format!("they were not gone after {} s", STORE_TIME.as_secs()),
            ))
        })?;
        self.pending.deleted = gone.map_err(|error| RemoveError::Store(plain(error)))?;
        Ok(())
    }

    /// The transaction is committed.
    pub(super) fn committed(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        self.tally.deleted += pending.deleted;
        self.tally.without += pending.without;
        self.tally.shared += pending.shared;
    }

    /// The transaction is rolled back; what is gone from the store is gone.
    pub(super) fn rolled_back(&mut self) {
        self.pending = Tally::default();
    }

    /// The report, and what is wrong, if anything: rows that are due and kept because of their keys.
    pub(super) async fn finish(
        &self,
        connection: &mut PgConnection,
        statements: &Statements,
    ) -> (Value, Option<String>) {
        let Some(sql) = statements.unusable() else {
            return (self.body(None), None);
        };
        let kept: Result<i64, DatabaseError> = sqlx::query_scalar(AssertSqlSafe(sql))
            .persistent(false)
            .fetch_one(connection)
            .await
            .map_err(DatabaseError::from);
        let (kept, problem) = match kept {
            Ok(0) => (Some(0), None),
            Ok(kept) => {
                let many = kept.unsigned_abs() >= COUNT_LIMIT;
                let count = if many {
                    "more than 10000".to_owned()
                } else {
                    kept.to_string()
                };
                let text = format!(
                    "objects: rows are kept because `{}` holds no key below the store's prefix: {count}; correct or clear them",
                    self.rule.key_column
                );
                (Some(kept), Some(text))
            }
            Err(error) => (
                None,
                Some(format!(
                    "objects: rows with unusable keys could not be counted: {error}"
                )),
            ),
        };
        (self.body(kept), problem)
    }

    fn body(&self, unusable: Option<i64>) -> Value {
        json!({
            "store": self.rule.store_name,
            "deleted": self.tally.deleted,
            "rows_without_key": self.tally.without,
            "kept_for_other_rows": self.tally.shared,
            "rows_with_unusable_key": unusable,
        })
    }
}

async fn delete(store: Arc<dyn Store>, key: String) -> Result<(), StoreError> {
    let key = ObjectKey::new(key)?;
    store.delete(&key).await?;
    match store.head(&key).await? {
        None => Ok(()),
        Some(_) => Err(StoreError::permanent("", "the store still holds it")),
    }
}

/// A key that nothing has, to see whether the store answers.
fn probe_key() -> Result<ObjectKey, JobError> {
    ObjectKey::new(".pgreeve-probe").map_err(|error| store_error("make a key".to_owned(), error))
}

/// The error without its object: the keys of users' objects may tell who they are.
fn plain(error: StoreError) -> StoreError {
    StoreError {
        operation: "delete a row's object".to_owned(),
        cause: match error.kind {
            StoreErrorKind::Permanent => "the store refused, or still holds it".to_owned(),
            StoreErrorKind::NotFound => "there is no such bucket".to_owned(),
            StoreErrorKind::Exists => "the store refused".to_owned(),
            StoreErrorKind::Denied => "access denied".to_owned(),
            StoreErrorKind::Transient => "the store did not answer in time".to_owned(),
        },
        ..error
    }
}
