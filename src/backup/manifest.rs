//! The manifest: the object that makes a backup exist. Written last, read before anything else.
//!
//! A published format: `version` rises when a reader of the old one would misread the new one. It
//! holds names and figures, never a row's data.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio_util::bytes::Bytes;

use super::compress::Packing;
use super::digest::sha256_hex;
use super::form::Format;
use super::snapshot::{Extension, Locale};
use super::walker::{LargeObjects, TableDigest};
use crate::audit::Digest;
use crate::store::{ObjectKey, Store, StoreError, StoreErrorKind};
use crate::values::ValueError;

/// The version this program writes, and the newest it reads.
pub const VERSION: u32 = 1;

/// The manifest's name below the backup's prefix.
pub const NAME: &str = "manifest.json";

/// The name of an export's manifest. What lies beside one is no backup's, whatever the job of that name
/// makes now.
pub const OF_AN_EXPORT: &str = "export.json";

/// The archive's version when this program does not know it.
pub const OPAQUE: &str = "opaque";

/// The key of the last line: the SHA-256 of all lines before it, as `head -n -2 manifest.json | sha256sum`
/// has it.
const SEAL: &str = "manifest_sha256";

/// The largest manifest that is read; a hundred thousand tables need about 20 MiB.
const LIMIT: u64 = 256 * 1024 * 1024;

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format's version.
    pub version: u32,
    /// The backup's identity, a ULID.
    pub id: String,
    /// The job that made it.
    pub job: String,
    /// The database's name in the configuration.
    pub database: String,
    /// The daemon's instance.
    pub instance: String,
    /// The run that made it.
    pub run_id: String,
    /// pgreeve's version.
    pub pgreeve_version: String,
    /// The version of `pg_dump`.
    pub pg_dump_version: String,
    /// The server's version.
    pub server_version: String,
    /// The cluster's identity, where the role could read it.
    pub system_identifier: Option<String>,
    /// The name of the snapshot that was dumped.
    pub snapshot: String,
    /// Where the server's log stood.
    pub lsn: String,
    /// When the snapshot was taken, by the server's clock: the data is as of this instant.
    pub started_at: Timestamp,
    /// When all bytes were in the store, by the server's clock.
    pub finished_at: Timestamp,
    /// The database's size on disk.
    pub database_bytes: u64,
    /// How a new database must be made.
    pub locale: Locale,
    /// What `pg_dump` wrote.
    pub format: Format,
    /// `1.14`, or `opaque` when this program does not know the archive's version, or the dump is a
    /// script; then no table was counted.
    pub archive_version: String,
    /// `gzip:4`, `zstd:3` or `none`; several members or frames are one stream.
    pub compression: String,
    /// The age recipients that all objects but this one are encrypted to; none, if they are not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub encrypted_to: Vec<String>,
    /// Whether it is the definitions only, without rows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub schema_only: bool,
    /// Tables that are left out: `schema.table`, `schema.*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Whether the dump was taken from a standby.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_standby: bool,
    /// All objects, in the order in which they are read.
    pub objects: Vec<Object>,
    /// The tables with data in the archive.
    pub tables: Vec<TableDigest>,
    /// Its large objects.
    pub large_objects: LargeObjects,
    /// How many entries its table of contents has.
    pub toc_entries: u64,
    /// The roles that must exist for a restore with owners and grants.
    pub roles: BTreeSet<String>,
    /// The extensions a restore installs.
    pub extensions: Vec<Extension>,
    /// What was said on the way.
    pub warnings: Vec<String>,
    /// When the ledger of erasures was read, just before the snapshot was taken; `None` when the host
    /// had none.
    pub erasure_watermark: Option<Timestamp>,
    /// How far that ledger was: what it remembers as done up to here is done in this backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erasures: Option<ErasureMark>,
    /// Up to where retention was verified when the snapshot was taken, per table.
    pub retention_cutoffs: BTreeMap<String, Timestamp>,
}

/// A place in a ledger of erasures.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ErasureMark {
    /// The ledger's identity.
    pub ledger: String,
    /// How many entries it had.
    pub entries: u64,
    /// The SHA-256 of the last of them.
    pub head: Digest,
}

/// What an object holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The dump, or a part of its rows, or a segment of these.
    Data,
    /// The definitions, where the rows lie in archives of their own.
    Schema,
    /// The server's roles and tablespaces.
    Globals,
}

/// One object of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its key below the store's prefix.
    pub key: String,
    /// What it holds.
    pub role: Role,
    /// Which archive it belongs to, where there are several: the start of its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
    /// Its size.
    pub bytes: u64,
    /// The SHA-256 of its bytes as stored.
    pub sha256: String,
    /// How many parts it was sent in; 0 for one piece.
    pub parts: u32,
    /// The size, unpacked, of all objects of this archive joined in their order: on the last of them. In a
    /// packed dump chunks are longer than `pg_dump` made them, so it is less than that wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_raw: Option<u64>,
    /// The SHA-256 of the same, unpacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256_raw: Option<String>,
}

/// An archive: what one `pg_dump` wrote, in one object or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive<'a> {
    /// What it holds.
    pub role: Role,
    /// Its objects, in the order in which they are joined; never none.
    pub objects: Vec<&'a Object>,
}

impl Archive<'_> {
    /// Its size, unpacked.
    #[must_use]
    pub fn bytes_raw(&self) -> u64 {
        self.objects.last().and_then(|object| object.bytes_raw).unwrap_or(0)
    }

    /// Its SHA-256, unpacked.
    #[must_use]
    pub fn sha256_raw(&self) -> Option<&str> {
        self.objects.last()?.sha256_raw.as_deref()
    }
}

impl Manifest {
    /// The prefix of all keys of this backup.
    #[must_use]
    pub fn prefix(&self) -> String {
        prefix(&self.database, &self.job, &self.id)
    }

    /// The objects that hold the dump, in the order in which they are joined.
    #[must_use]
    pub fn data(&self) -> impl DoubleEndedIterator<Item = &Object> {
        self.objects.iter().filter(|object| object.role != Role::Globals)
    }

    /// The archives of the dump, in their order; one, unless it was made in parallel.
    #[must_use]
    pub fn archives(&self) -> Vec<Archive<'_>> {
        let mut archives: Vec<Archive<'_>> = Vec::new();
        for object in self.data() {
            match archives.last_mut() {
                Some(Archive { objects, .. }) if objects.iter().all(|other| other.archive == object.archive) => {
                    objects.push(object);
                }
                _ => archives.push(Archive {
                    role: object.role,
                    objects: vec![object],
                }),
            }
        }
        archives
    }

    /// How the dump is packed.
    ///
    /// # Errors
    /// When this program does not know that packing.
    pub fn packing(&self) -> Result<Packing, String> {
        self.compression.parse().map_err(|error: ValueError| error.problem)
    }

    /// The size of all objects together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.objects
            .iter()
            .fold(0, |sum, object| sum.saturating_add(object.bytes))
    }

    /// The dump's size, unpacked.
    #[must_use]
    pub fn bytes_raw(&self) -> u64 {
        self.archives()
            .iter()
            .fold(0, |sum, archive| sum.saturating_add(archive.bytes_raw()))
    }

    /// How many rows all tables have.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.tables.iter().fold(0, |sum, table| sum.saturating_add(table.rows))
    }

    /// As it is stored: JSON whose last line is the digest of the lines before, so that no byte can change
    /// unseen.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn to_bytes(&self) -> Result<Bytes, StoreError> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| StoreError::permanent("write the manifest", error.to_string()))?;
        let fields = text.strip_suffix("\n}").map_or(0, str::len);
        text.truncate(fields);
        text.push_str(",\n");
        let seal = seal(text.as_bytes());
        text.push_str(&seal);
        Ok(text.into())
    }

    /// Reads one from a store.
    ///
    /// # Errors
    /// When it is not there, cannot be read, is not a manifest, was written by a newer pgreeve, or
    /// speaks of another place than the one it lies in.
    pub async fn read(store: &dyn Store, key: &ObjectKey) -> Result<Self, StoreError> {
        let operation = || format!("read {key}");
        let bad = |cause: String| StoreError::permanent(operation(), cause);
        let mut bytes = Vec::new();
        store
            .open(key)
            .await?
            .take(LIMIT)
            .read_to_end(&mut bytes)
            .await
            .map_err(|error| StoreError::new(StoreErrorKind::Transient, operation(), error.to_string()))?;
        let manifest = Self::parse(&bytes).map_err(bad)?;
        if key.as_str() != format!("{}/{NAME}", manifest.prefix()) {
            return Err(bad(format!(
                "it is the manifest of {}, which does not belong here",
                manifest.prefix()
            )));
        }
        Ok(manifest)
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        // The version first: a newer manifest must not be called damaged.
        let Versioned { version } =
            serde_json::from_slice(bytes).map_err(|error| format!("it is not a manifest: {error}"))?;
        if version > VERSION {
            return Err(format!("it has version {version} and was written by a newer pgreeve"));
        }
        let manifest = serde_json::from_slice(bytes).map_err(|error| format!("it is not a manifest: {error}"))?;
        let length = seal(b"").len();
        match bytes.split_at_checked(bytes.len().saturating_sub(length)) {
            Some((text, end)) if seal(text).as_bytes() == end => Ok(manifest),
            _ => Err(format!("it was changed: its text has not the {SEAL} at its end")),
        }
    }
}

/// The end of a manifest's text.
fn seal(text: &[u8]) -> String {
    format!("  \"{SEAL}\": \"{}\"\n}}\n", sha256_hex(text))
}

/// `DATABASE/JOB/ID`, the prefix of all keys of a backup.
#[must_use]
pub fn prefix(database: &str, job: &str, id: &str) -> String {
    format!("{database}/{job}/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Manifest {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        Manifest {
            version: 1,
            id: "01JDQ0000000000000000000AB".to_owned(),
            job: "nightly-backup".to_owned(),
            database: "churn_saver".to_owned(),
            instance: "db1".to_owned(),
            run_id: "01936f3e-0000-7000-8000-000000000000".to_owned(),
            pgreeve_version: "0.1.0".to_owned(),
            pg_dump_version: "15.18".to_owned(),
            server_version: "15.18".to_owned(),
            system_identifier: Some("7439000000000000000".to_owned()),
            snapshot: "00000003-0000001B-1".to_owned(),
            lsn: "0/1949D60".to_owned(),
            started_at: at("2026-11-21T03:30:00Z"),
            finished_at: at("2026-11-21T03:31:00.5Z"),
            database_bytes: 1_000_000,
            locale: Locale {
                encoding: "UTF8".to_owned(),
                collate: "C".to_owned(),
                ctype: "C".to_owned(),
                provider: "libc".to_owned(),
                provider_locale: None,
            },
            format: Format::Custom,
            archive_version: "1.14".to_owned(),
            compression: "gzip:4".to_owned(),
            encrypted_to: Vec::new(),
            schema_only: false,
            left_out: Vec::new(),
            from_standby: false,
            objects: vec![Object {
                key: "churn_saver/nightly-backup/01JDQ0000000000000000000AB/data.dump.gz".to_owned(),
                role: Role::Data,
                archive: None,
                bytes: 10,
                sha256: "aa".to_owned(),
                parts: 1,
                bytes_raw: Some(20),
                sha256_raw: Some("bb".to_owned()),
            }],
            tables: vec![TableDigest {
                schema: "public".to_owned(),
                name: "events".to_owned(),
                rows: 2,
                bytes: 12,
                sha256: "cc".to_owned(),
            }],
            large_objects: LargeObjects { count: 1, bytes: 5 },
            toc_entries: 9,
            roles: ["app".to_owned()].into(),
            extensions: vec![Extension {
                name: "plpgsql".to_owned(),
                version: "1.0".to_owned(),
            }],
            warnings: Vec::new(),
            erasure_watermark: None,
            erasures: None,
            retention_cutoffs: [("public.events".to_owned(), at("2026-08-23T00:00:00Z"))].into(),
        }
    }

    #[test]
    fn the_stored_form_is_the_published_one() {
        let text = String::from_utf8(example().to_bytes().unwrap().to_vec()).unwrap();
        assert_eq!(text, include_str!("manifest_v1.json"));
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), example());
    }

    #[test]
    fn no_byte_of_a_manifest_can_change_unseen() {
        let whole = example().to_bytes().unwrap();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut changed = whole.to_vec();
                changed[at] ^= 1 << bit;
                assert!(Manifest::parse(&changed).is_err(), "bit {bit} of byte {at}");
            }
        }
        assert!(Manifest::parse(&whole[..whole.len() - 1]).is_err());
    }

    #[test]
    fn a_newer_manifest_is_named_as_such() {
        let error = Manifest::parse(b"{\"version\": 2, \"shape\": \"unknown\"}").unwrap_err();
        assert!(error.contains("newer pgreeve"), "{error}");
        assert!(
            Manifest::parse(b"{\"version\": 1}")
                .unwrap_err()
                .contains("not a manifest")
        );
    }
}
