//! What makes an export exist.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use crate::store::{ObjectKey, Store, StoreError};

/// The name of the manifest. Not that of a backup's, so that nobody takes the one for the other.
pub const NAME: &str = crate::backup::manifest::OF_AN_EXPORT;

/// The version of the format.
pub(super) const VERSION: u32 = 1;

/// An export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this format.
    pub version: u32,
    /// The export.
    pub id: String,
    /// Its job.
    pub job: String,
    /// The database, as the configuration calls it.
    pub database: String,
    /// The instance of the daemon.
    pub instance: String,
    /// The run that made it.
    pub run_id: String,
    /// The pgreeve that made it.
    pub pgreeve_version: String,
    /// The server's version.
    pub server_version: String,
    /// When the snapshot of all tables was taken, by the server's clock.
    pub as_of: Timestamp,
    /// When it was published, by the server's clock.
    pub finished_at: Timestamp,
    /// `jsonl` or `csv`.
    pub format: String,
    /// How the objects are packed.
    pub compression: String,
    /// The column of the scope.
    pub column: String,
    /// Its values.
    pub values: Vec<String>,
    /// The tables, in the order of the configuration; also those without a row.
    pub tables: Vec<Exported>,
}

/// The rows of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// How many rows.
    pub rows: u64,
    /// How long its text is, before it was packed.
    pub bytes_raw: u64,
    /// The SHA-256 of that text.
    pub sha256_raw: String,
    /// Its objects, whose contents follow each other.
    pub objects: Vec<ExportedObject>,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedObject {
    /// Its key.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

impl Manifest {
    /// Reads one of a store.
    ///
    /// # Errors
    /// When the store does not give it, or it is not one.
    pub async fn read(store: &dyn Store, key: &ObjectKey) -> Result<Self, StoreError> {
        let damaged = |cause: String| StoreError::permanent(format!("read {key}"), cause);
        let mut bytes = Vec::new();
        let mut reader = store.open(key).await?;
        reader
            .read_to_end(&mut bytes)
            .await
            .map_err(|error| damaged(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| damaged(format!("it is not a manifest: {error}")))
    }

    /// How many rows all tables have.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }

    /// The size of all objects.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let objects = self.tables.iter().flat_map(|table| &table.objects);
        objects.map(|object| object.bytes).sum()
    }
}
