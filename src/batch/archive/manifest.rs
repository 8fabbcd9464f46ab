//! What a run's archive holds, in the store beside it.

use serde::{Deserialize, Serialize};
use tokio_util::bytes::Bytes;

use crate::backup::manifest::NAME;
use crate::batch::cutoff::rfc3339;
use crate::ledger::archives::{Archive, ArchivedObject};
use crate::store::{ObjectKey, Store, StoreError};

/// The published format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    version: u32,
    run: String,
    job: String,
    table: String,
    cutoff: String,
    format: String,
    compress: String,
    rows: u64,
    bytes: u64,
    objects: Vec<Object>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Object {
    key: String,
    relation: String,
    columns: Vec<String>,
    rows: u64,
    oldest: String,
    youngest: String,
    bytes: u64,
    sha256: String,
    bytes_raw: u64,
    sha256_raw: String,
}

impl Manifest {
    /// Of an archive and its objects, as the ledger knows them.
    pub(super) fn new(archive: &Archive, objects: &[ArchivedObject]) -> Self {
        let object = |object: &ArchivedObject| Object {
            key: object.key.clone(),
            relation: object.relation.clone(),
            columns: object.columns.clone(),
            rows: object.rows,
            oldest: rfc3339(&object.oldest),
            youngest: rfc3339(&object.youngest),
            bytes: object.bytes,
            sha256: object.sha256.clone(),
            bytes_raw: object.bytes_raw,
            sha256_raw: object.sha256_raw.clone(),
        };
        Self {
            version: 1,
            run: archive.run.to_string(),
            job: archive.job.clone(),
            table: archive.relation.clone(),
            cutoff: rfc3339(&archive.cutoff),
            format: archive.format.clone(),
            compress: archive.compress.clone(),
            rows: objects.iter().map(|object| object.rows).sum(),
            bytes: objects.iter().map(|object| object.bytes).sum(),
            objects: objects.iter().map(object).collect(),
        }
    }

    /// Writes it below the archive's prefix, in place of one that an earlier attempt wrote.
    pub(super) async fn write(&self, store: &dyn Store, prefix: &str) -> Result<(), StoreError> {
        let key = key(prefix)?;
        let body = serde_json::to_vec_pretty(self)
            .map_err(|error| StoreError::permanent(format!("write {key}"), error.to_string()))?;
        store.delete(&key).await?;
        store.create(&key, Bytes::from(body), "application/json").await
    }
}

/// The manifest's key.
pub(super) fn key(prefix: &str) -> Result<ObjectKey, StoreError> {
    ObjectKey::new(format!("{prefix}/{NAME}"))
}
