//! Proves a backup, at three levels: sizes, every byte, every row of a restored database.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use super::catalog;
use super::commit;
use super::dump;
use super::manifest::{Manifest, OPAQUE};
use super::program::Programs;
use super::read::{self, ReadError};
use super::seal::Identities;
use super::walker::{Contents, TableDigest};
use crate::job::{JobError, Progress};
use crate::postgres::connect::ConnectTarget;
use crate::store::{ObjectKey, Store, StoreError};

/// What a comparison of a database with a manifest found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// How many tables were compared; never 0.
    pub compared: usize,
    /// How many rows the manifest's tables have.
    pub rows: u64,
    /// What differs; none, if the backup is proved.
    pub mismatches: Vec<Mismatch>,
}

/// A table that is not what the manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// `schema.table`, or `large objects`.
    pub object: String,
    /// How it differs.
    pub difference: Difference,
}

/// How something differs from the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// It is not there.
    Missing,
    /// The manifest does not know it.
    Unexpected,
    /// It has another number of rows.
    Rows,
    /// It has as many rows, and others.
    Content,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let difference = match self.difference {
            Difference::Missing => "is missing",
            Difference::Unexpected => "is not in the manifest",
            Difference::Rows => "has another number of rows",
            Difference::Content => "has other rows",
        };
        write!(f, "{} {difference}", self.object)
    }
}

/// Level 0: every object is there and has its size.
///
/// # Errors
/// Names the first object that is not.
pub async fn check_sizes(store: &dyn Store, manifest: &Manifest) -> Result<(), StoreError> {
    for object in &manifest.objects {
        commit::check_size(store, object).await?;
    }
    Ok(())
}

/// As [`check_sizes`], but tells damage, which is an answer, from a store that cannot be asked.
///
/// # Errors
/// When the store refuses or is not there.
pub async fn find_damage(store: &dyn Store, manifest: &Manifest) -> Result<Option<String>, StoreError> {
    for object in &manifest.objects {
        let key = ObjectKey::new(object.key.as_str())?;
        match store.head(&key).await?.map(|info| info.bytes) {
            Some(bytes) if bytes == object.bytes => {}
            Some(bytes) => return Ok(Some(format!("{key} has {bytes} bytes instead of {}", object.bytes))),
            None => return Ok(Some(format!("{key} is missing"))),
        }
    }
    Ok(None)
}

/// Level 1: every byte of the dump is read, unpacked and walked, and agrees with the manifest.
///
/// # Errors
/// Says what does not agree.
pub async fn read_through(
    store: Arc<dyn Store>,
    manifest: &Manifest,
    progress: Progress,
    identities: Option<&Identities>,
) -> Result<(), ReadError> {
    read::read(store, manifest, progress, identities).await
}

/// Level 2: dumps a restored database through the walker and compares every table's rows with the
/// manifest. To be done before anything is written to it.
///
/// # Errors
/// When it cannot be dumped, or when there was nothing to compare: a check that compares nothing
/// has failed.
pub async fn verify_against(
    programs: &Programs,
    manifest: &Manifest,
    target: &ConnectTarget,
) -> Result<Verified, JobError> {
    let operation = format!("compare {} with the backup {}", target.dbname, manifest.id);
    if manifest.archive_version == OPAQUE || manifest.tables.is_empty() {
        return Err(JobError::refused(
            operation,
            "the manifest counts no table, so there is nothing to compare",
            "back up with a pg_dump whose archives this pgreeve knows",
        ));
    }
    let walked = dump::walk(programs, target, "pgreeve:verify")
        .await
        .map_err(|error| JobError::permanent(operation.as_str(), error.to_string()))?;
    let Some(contents) = walked.contents else {
        return Err(JobError::permanent(
            operation,
            format!("the archive's version {} is not known", walked.version),
        ));
    };
    let verified = compare(manifest, &contents);
    if verified.compared == 0 {
        return Err(JobError::permanent(operation, "no table of the manifest is there").with_partial(json!(verified)));
    }
    Ok(verified)
}

/// Keeps the evidence beside a backup that it was proved at an instant; the catalog shows it, and
/// pruning never removes the newest backup that has some.
///
/// # Errors
/// When the comparison found a difference, or the store refuses.
pub async fn record_proof(
    store: &dyn Store,
    manifest: &Manifest,
    at: Timestamp,
    level: u8,
    verified: &Verified,
) -> Result<(), StoreError> {
    let key = catalog::evidence_key(manifest, at)?;
    let failed = |cause: String| StoreError::permanent(format!("write {key}"), cause);
    if let Some(mismatch) = verified.mismatches.first() {
        return Err(failed(format!("the backup is not proved: {mismatch}")));
    }
    let evidence = json!({
        "version": 1, "backup_id": manifest.id, "verified_at": at, "level": level,
        "tables": verified.compared, "rows": verified.rows,
    });
    let mut body = serde_json::to_vec_pretty(&evidence).map_err(|error| failed(error.to_string()))?;
    body.push(b'\n');
    store.create(&key, body.into(), "application/json").await
}

fn compare(manifest: &Manifest, found: &Contents) -> Verified {
    let by_name = |tables: &[TableDigest]| -> BTreeMap<(String, String), TableDigest> {
        tables
            .iter()
            .map(|table| ((table.schema.clone(), table.name.clone()), table.clone()))
            .collect()
    };
    let (wanted, mut found_tables) = (by_name(&manifest.tables), by_name(&found.tables));
    let mut compared = 0;
    let mut mismatches = Vec::new();
    let mut differs = |object: String, difference| mismatches.push(Mismatch { object, difference });
    for (name, table) in &wanted {
        let object = format!("{}.{}", name.0, name.1);
        match found_tables.remove(name) {
            None => differs(object, Difference::Missing),
            Some(found) => {
                compared += 1;
                if found.rows != table.rows {
                    differs(object, Difference::Rows);
                } else if found != *table {
                    differs(object, Difference::Content);
                }
            }
        }
    }
    for (schema, name) in found_tables.into_keys() {
        differs(format!("{schema}.{name}"), Difference::Unexpected);
    }
    if found.large_objects.count != manifest.large_objects.count {
        differs("large objects".to_owned(), Difference::Rows);
    } else if found.large_objects != manifest.large_objects {
        differs("large objects".to_owned(), Difference::Content);
    }
    Verified {
        compared,
        rows: manifest.rows(),
        mismatches,
    }
}
