//! `[stores.NAME]`: what a store is made of, and how it is opened.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::file::FileStore;
use super::s3::{Limits, S3Store};
use super::{Store, StoreError};

/// Where objects go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreSettings {
    /// `url = "s3://BUCKET/PREFIX"`.
    S3(Box<S3Settings>),
    /// `url = "file:///DIRECTORY"`.
    File(PathBuf),
}

impl StoreSettings {
    /// Opens the store for somebody who waits for an answer: it gives up within seconds.
    ///
    /// # Errors
    /// As [`StoreSettings::open`].
    pub async fn open_attended(&self) -> Result<Arc<dyn Store>, StoreError> {
        Ok(match self {
            Self::S3(settings) => Arc::new(S3Store::open_with(settings, Limits::attended()).await?),
            Self::File(_) => self.open().await?,
        })
    }

    /// Opens the store. Credentials are read anew each time, so that a rotated key counts from the
    /// next run on; nothing is sent to a bucket yet.
    ///
    /// # Errors
    /// When a directory is missing, or credentials or the region cannot be had.
    pub async fn open(&self) -> Result<Arc<dyn Store>, StoreError> {
        Ok(match self {
            Self::S3(settings) => Arc::new(S3Store::open(settings).await?),
            Self::File(directory) => Arc::new(FileStore::open(directory).await?),
        })
    }

    /// How large parts are, in bytes, where the settings say.
    #[must_use]
    pub fn part_bytes(&self) -> Option<usize> {
        match self {
            Self::S3(settings) => settings.part_bytes,
            Self::File(_) => None,
        }
    }

    /// How many parts an object may have, where the settings say.
    #[must_use]
    pub fn max_parts(&self) -> Option<u32> {
        match self {
            Self::S3(settings) => settings.max_parts,
            Self::File(_) => None,
        }
    }
}

/// An S3 bucket, or that of a server that speaks S3.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct S3Settings {
    /// The bucket.
    pub bucket: String,
    /// What all keys start with; may be empty, has no `/` at its ends.
    pub prefix: String,
    /// The region; the AWS environment's own when absent.
    pub region: Option<String>,
    /// `https://host:port` of a server that is not AWS.
    pub endpoint: Option<String>,
    /// `endpoint/bucket/key` instead of `bucket.endpoint/key`.
    pub path_style: bool,
    /// The profile to read from the AWS configuration.
    pub profile: Option<String>,
    /// A shared credentials file; the AWS environment's own chain when absent.
    pub credentials_file: Option<PathBuf>,
    /// What each body is compared with on its way.
    pub checksum: Checksum,
    /// How the server encrypts what it stores; as the bucket says when absent.
    pub encryption: Option<Encryption>,
    /// The storage class of objects that are uploaded in parts; as the bucket says when absent.
    pub storage_class: Option<String>,
    /// How objects are locked; as the bucket says when absent.
    pub object_lock: Option<ObjectLock>,
    /// The size of parts in bytes; AWS wants 5 MiB or more.
    pub part_bytes: Option<usize>,
    /// How many parts an object may have. AWS takes 10,000, some servers 1,000.
    pub max_parts: Option<u32>,
}

/// What a server compares each body with, so that none is stored that was changed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Checksum {
    /// SHA-256 for AWS, MD5 where an endpoint is given.
    #[default]
    ByEndpoint,
    /// `x-amz-checksum-sha256`, announced when an upload starts and repeated when it completes.
    Sha256,
    /// The same with `x-amz-checksum-crc32`.
    Crc32,
    /// `Content-MD5`, which every server that speaks S3 knows.
    Md5,
    /// Nothing, for servers that refuse all of these.
    None,
}

/// How the server encrypts what it stores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// With the server's own keys: `AES256`.
    Aes256,
    /// With a key of KMS, the account's own when none is named.
    Kms(Option<String>),
    /// The same, twice.
    KmsTwice(Option<String>),
}

/// How objects are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ObjectLock {
    /// Who may lift the lock.
    pub mode: LockMode,
    /// For how long from its creation an object is locked.
    pub period: Duration,
}

/// Who may lift a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LockMode {
    /// Whoever has the right `s3:BypassGovernanceRetention`.
    Governance,
    /// Nobody.
    Compliance,
}
