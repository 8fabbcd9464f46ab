//! The copies that outlive an erasure: backups, exports and archives in stores, and when they are gone. And
//! the copies of the ledger that lie beside them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use jiff_sqlx::Timestamp as SqlTimestamp;
use sqlx::PgConnection;
use tokio::io::AsyncReadExt;
use tokio_util::bytes::Bytes;

use super::certificate::{Copies, HoldingArchive, HoldingBackup, HoldingExport};
use super::exports;
use super::host::blocking;
use super::memory::{FILE, Memory, MemoryError};
use super::proof::Account;
use crate::audit::Digest;
use crate::backup::catalog::{self, Catalog, Filter};
use crate::backup::expiry::forecast;
use crate::backup::keep::{Dated, Policy};
use crate::backup::manifest::ErasureMark;
use crate::backup::prune::locked_until;
use crate::backup::run::ErasureLedger;
use crate::postgres::sqlstate::DatabaseError;
use crate::store::{ObjectKey, Store, StoreError, StoreErrorKind};
use crate::values::Period;

/// Opens a store; called for each run, so that credentials are read anew.
pub type OpenStore = Arc<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn Store>, StoreError>> + Send + Sync>;

/// The prefix of all copies of ledgers in a store.
const PREFIX: &str = "erasures";

/// A job that makes backups or exports of a database.
#[derive(Clone)]
pub struct Source {
    /// The job.
    pub job: String,
    /// The database's name in the configuration.
    pub database: String,
    /// The store's name in the configuration.
    pub store: String,
    /// How to open it.
    pub open: OpenStore,
    /// What is kept; everything is without.
    pub keep: Option<Policy>,
    /// The zone in which `keep` counts days.
    pub zone: TimeZone,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("job", &self.job)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// All backups and exports that were found.
#[derive(Debug, Clone, Default)]
pub struct Holdings {
    backups: Vec<HoldingBackup>,
    exports: Vec<HoldingExport>,
    unknown: Vec<String>,
}

/// Lists all backups and exports and when they are gone. A store that does not answer is part of the
/// answer.
pub async fn list(backups: &[Source], exports: &[Source]) -> Holdings {
    let mut holdings = Holdings::default();
    for source in exports {
        match exports::list(source).await {
            Ok(exports) => holdings.exports.extend(exports),
            Err(error) => holdings
                .unknown
                .push(format!("exports of {} in {}: {error}", source.job, source.store)),
        }
    }
    for source in backups {
        match list_one(source).await {
            Ok((catalog, locks_for)) => holdings.add(source, catalog, locks_for),
            Err(error) => holdings
                .unknown
                .push(format!("backups of {} in {}: {error}", source.job, source.store)),
        }
    }
    holdings
}

async fn list_one(source: &Source) -> Result<(Catalog, Option<Duration>), StoreError> {
    let store = (source.open)().await?;
    let filter = Filter {
        database: Some(&source.database),
        job: Some(&source.job),
    };
    Ok((catalog::list(store.as_ref(), filter).await?, store.locks_for()))
}

impl Holdings {
    fn add(&mut self, source: &Source, catalog: Catalog, locks_for: Option<Duration>) {
        let dated: Vec<Dated> = catalog
            .backups
            .iter()
            .map(|entry| Dated {
                id: entry.id.clone(),
                at: entry.started_at,
                verified: entry.verified_at.is_some(),
                locked_until: locked_until(entry, locks_for),
            })
            .collect();
        let ends = source
            .keep
            .as_ref()
            .map(|policy| forecast(&dated, policy, Timestamp::now(), &source.zone))
            .unwrap_or_default();
        self.backups
            .extend(catalog.backups.into_iter().map(|entry| HoldingBackup {
                gone_by: ends.get(&entry.id).copied().flatten(),
                id: entry.id,
                job: source.job.clone(),
                store: source.store.clone(),
                snapshot_at: entry.started_at,
            }));
        let unreadable = catalog.unreadable.into_iter();
        self.unknown
            .extend(unreadable.map(|manifest| format!("{} in {}: {}", manifest.key, source.store, manifest.cause)));
    }

    /// Those that can hold the subject of an account.
    #[must_use]
    pub fn of(&self, account: &Account, archives: &[HoldingArchive]) -> Copies {
        let in_reach = |table: &str| {
            let plain = |name: &str| name.replace('"', "");
            let steps = account.steps.iter().map(|step| &step.table);
            let mut names = steps.chain(account.kept.iter().map(|kept| &kept.table));
            names.any(|name| plain(name) == plain(table))
        };
        let is_older = |backup: &&HoldingBackup| account.finished_at.is_none_or(|end| backup.snapshot_at < end);
        let backups: Vec<HoldingBackup> = self.backups.iter().filter(is_older).cloned().collect();
        let archives: Vec<HoldingArchive> = archives
            .iter()
            .filter(|archive| in_reach(&archive.table))
            .cloned()
            .collect();
        let is_before = |export: &&HoldingExport| account.finished_at.is_none_or(|end| export.as_of < end);
        let exports = self.exports.iter().filter(is_before);
        let exports: Vec<HoldingExport> = exports
            .filter(|export| export.tables.iter().any(|table| in_reach(table)))
            .cloned()
            .collect();
        let ends = backups.iter().map(|backup| backup.gone_by);
        let ends = ends.chain(exports.iter().map(|export| export.gone_by));
        let ends: Option<Vec<Timestamp>> = ends.chain(archives.iter().map(|archive| archive.gone_by)).collect();
        Copies {
            gone_by: ends
                .filter(|_| self.unknown.is_empty())
                .and_then(|ends| ends.into_iter().max()),
            backups,
            exports,
            archives,
            unknown: self.unknown.clone(),
        }
    }

    /// Whether a backup may still hold somebody who was erased at an instant.
    #[must_use]
    pub fn may_hold(&self, erased_at: Timestamp) -> bool {
        !self.unknown.is_empty() || self.backups.iter().any(|backup| backup.snapshot_at < erased_at)
    }
}

/// The server's identity, where the role may read it.
pub async fn system_identifier(connection: &mut PgConnection) -> Result<Option<String>, DatabaseError> {
    let may_read: bool =
        sqlx::query_scalar("SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')")
            .fetch_one(&mut *connection)
            .await?;
    if !may_read {
        return Ok(None);
    }
    let identifier = sqlx::query_scalar("SELECT system_identifier::text FROM pg_catalog.pg_control_system()")
        .fetch_one(connection)
        .await?;
    Ok(Some(identifier))
}

/// How long the archives of each job are kept, and the zone in which that is counted.
pub type ArchiveKeeps = BTreeMap<String, (Period, TimeZone)>;

/// The archives of deleted rows that the ledger knows and that are not expired. An archive is as old as
/// its run.
pub async fn archives(
    connection: &mut PgConnection,
    keeps: &ArchiveKeeps,
) -> Result<Vec<HoldingArchive>, DatabaseError> {
    let exists: bool = sqlx::query_scalar("SELECT pg_catalog.to_regclass('pgreeve.archive') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    let rows: Vec<(String, String, String, i64, SqlTimestamp)> = sqlx::query_as(
        "SELECT job, store, relation, count(*), max(started_at) FROM pgreeve.archive WHERE state <> 'expired'
         GROUP BY job, store, relation ORDER BY job, store, relation",
    )
    .fetch_all(connection)
    .await?;
    let archives = rows
        .into_iter()
        .map(|(job, store, table, archives, youngest)| HoldingArchive {
            gone_by: (keeps.get(&job)).map(|(keep, zone)| keep.after(&youngest.to_jiff().to_zoned(zone.clone()))),
            job,
            store,
            table,
            archives: archives.unsigned_abs(),
        });
    Ok(archives.collect())
}

/// Copies to a store what it lacks of this host's ledger, and answers with how far it is there. One
/// object for each copy: `erasures/LEDGER/FIRST-LAST.jsonl`, lines as they stand in the file.
///
/// # Errors
/// When the ledger cannot be read, or the store refuses.
pub async fn put(memory: &Memory, store: &dyn Store) -> Result<ErasureMark, MemoryError> {
    let mark = memory.mark().await?;
    let failed = |error: StoreError| store_failed(&error);
    let there = stored(store, &mark.ledger).await.map_err(failed)?;
    let last = there.last().map_or(0, |part| part.last);
    if last >= mark.entries {
        return Ok(mark);
    }
    let path = memory.dir().join(FILE);
    let text = tokio::fs::read(&path)
        .await
        .map_err(|error| MemoryError::io("read", &path, &error))?;
    let (skip, take) = (to_usize(last), to_usize(mark.entries.saturating_sub(last)));
    let lines = text.split_inclusive(|byte| *byte == b'\n').skip(skip).take(take);
    let body: Vec<u8> = lines.flatten().copied().collect();
    let key = format!(
        "{PREFIX}/{}/{:012}-{:012}.jsonl",
        mark.ledger,
        last.saturating_add(1),
        mark.entries
    );
    let key = ObjectKey::new(key).map_err(failed)?;
    match store.create(&key, Bytes::from(body), "application/x-ndjson").await {
        // Another process was faster, with the same lines.
        Err(error) if error.kind == StoreErrorKind::Exists => Ok(mark),
        Err(error) => Err(failed(error)),
        Ok(()) => Ok(mark),
    }
}

/// The ledger of this host, as a backup sees it.
#[derive(Debug, Clone)]
pub struct LedgerOfHost {
    /// The directory it lies in; it need not exist.
    pub dir: PathBuf,
    /// The daemon's instance.
    pub instance: String,
}

impl ErasureLedger for LedgerOfHost {
    fn mark<'a>(&'a self, store: &'a dyn Store) -> BoxFuture<'a, Result<Option<ErasureMark>, String>> {
        async move {
            if !self.dir.join(FILE).exists() && !self.dir.join("keys").exists() {
                return Ok(None);
            }
            let (dir, instance) = (self.dir.clone(), self.instance.clone());
            let opened = blocking(move || Memory::open(&dir, &instance)).await;
            let memory = opened.map_err(|error| error.to_string())?;
            match put(&memory, store).await {
                Ok(mark) => Ok(Some(mark)),
                Err(error) => Err(error.to_string()),
            }
        }
        .boxed()
    }
}

/// A copy of a ledger in a store, as it was found there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLedger {
    /// The ledger.
    pub ledger: String,
    /// Where it lies.
    pub place: String,
    /// Its lines.
    pub text: Vec<u8>,
    /// How far it goes.
    pub mark: ErasureMark,
}

/// All copies of ledgers in a store.
///
/// # Errors
/// When the store cannot be read, or a part of a copy is missing.
pub async fn fetch(store: &dyn Store) -> Result<Vec<StoredLedger>, MemoryError> {
    let failed = |error: StoreError| store_failed(&error);
    let objects = store.list(PREFIX).await.map_err(failed)?;
    let mut ledgers: Vec<String> = objects
        .iter()
        .filter_map(|object| Some(object.key.as_str().split('/').nth(1)?.to_owned()))
        .collect();
    ledgers.dedup();
    let mut found = Vec::new();
    for ledger in ledgers {
        let place = format!("{}/{PREFIX}/{ledger}", store.describe());
        let (mut text, mut last, mut head) = (Vec::new(), 0_u64, Digest::GENESIS);
        for part in stored(store, &ledger).await.map_err(failed)? {
            let gap = part.first.saturating_sub(last.saturating_add(1));
            if gap > 0 {
                let missing = format!(
                    "entries {} to {} are missing",
                    last.saturating_add(1),
                    part.first.saturating_sub(1)
                );
                return Err(MemoryError::damaged(&place, missing));
            }
            let mut body = Vec::new();
            let mut reader = store.open(&part.key).await.map_err(failed)?;
            reader
                .read_to_end(&mut body)
                .await
                .map_err(|error| MemoryError::damaged(&place, error.to_string()))?;
            // Two processes may have copied at once; what is there already is not taken twice.
            let known = to_usize(last.saturating_add(1).saturating_sub(part.first));
            for line in body.split_inclusive(|byte| *byte == b'\n').skip(known) {
                text.extend_from_slice(line);
                head = Digest::of(line.strip_suffix(b"\n").unwrap_or(line));
            }
            last = last.max(part.last);
        }
        let mark = ErasureMark {
            ledger: ledger.clone(),
            entries: last,
            head,
        };
        found.push(StoredLedger {
            ledger,
            place,
            text,
            mark,
        });
    }
    Ok(found)
}

struct Part {
    key: ObjectKey,
    first: u64,
    last: u64,
}

async fn stored(store: &dyn Store, ledger: &str) -> Result<Vec<Part>, StoreError> {
    let objects = store.list(&format!("{PREFIX}/{ledger}")).await?;
    let parts = objects.into_iter().filter_map(|object| {
        let name = object.key.as_str().rsplit('/').next()?.strip_suffix(".jsonl")?;
        let (first, last) = name.split_once('-')?;
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        Some(Part {
            key: object.key,
            first,
            last,
        })
    });
    let mut parts: Vec<Part> = parts.collect();
    parts.sort_by_key(|part| (part.first, part.last));
    Ok(parts)
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn store_failed(error: &StoreError) -> MemoryError {
    MemoryError::new(
        error.operation.clone(),
        error.cause.clone(),
        error.remedy.clone().unwrap_or_else(|| "check the store".to_owned()),
    )
}
