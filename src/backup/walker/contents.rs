//! What a walker tells of a whole archive.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// One table's rows in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDigest {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// How many rows.
    pub rows: u64,
    /// How long they are as the text of `COPY`.
    pub bytes: u64,
    /// The SHA-256 of that text: of `COPY table TO STDOUT`.
    pub sha256: String,
}

/// The large objects in an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeObjects {
    /// How many.
    pub count: u64,
    /// Their size in all.
    pub bytes: u64,
}

impl LargeObjects {
    /// Those of two archives.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            count: self.count.saturating_add(other.count),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// A whole archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walked {
    /// The archive format's version, such as `1.14`.
    pub version: String,
    /// What is in it; `None` when the version is not known.
    pub contents: Option<Contents>,
}

/// What is in an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// How many entries its table of contents has.
    pub toc_entries: u64,
    /// The tables that have rows in it, in the archive's order; empty ones too.
    pub tables: Vec<TableDigest>,
    /// Its large objects.
    pub large_objects: LargeObjects,
    /// The roles that own something in it.
    pub owners: BTreeSet<String>,
}

impl Contents {
    /// Adds those of another archive of the same backup.
    pub fn add(&mut self, other: Self) {
        self.toc_entries = self.toc_entries.saturating_add(other.toc_entries);
        self.tables.extend(other.tables);
        self.large_objects = self.large_objects.and(other.large_objects);
        self.owners.extend(other.owners);
    }
}
