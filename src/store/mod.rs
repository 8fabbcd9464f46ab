//! A place for objects: the trait, its errors, and how to open one.
//!
//! [`s3`] is the only file that names `aws_*`; [`mod@file`] is the embedded default. Both pass the same
//! conformance tests. Keys are relative to the store's own prefix.

pub mod file;
mod probe;
pub mod s3;
mod settings;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;
use tokio::io::AsyncRead;
use tokio_util::bytes::Bytes;

pub use self::settings::{Checksum, Encryption, LockMode, ObjectLock, S3Settings, StoreSettings};

/// A key below the store's prefix: `DATABASE/JOB/ULID/data.dump.gz`. Never starts or ends with `/`,
/// never holds `.` or `..` as a part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// Checks and wraps a key.
    ///
    /// # Errors
    /// When the text could leave the store's prefix or cannot be a key everywhere.
    pub fn new(text: impl Into<String>) -> Result<Self, StoreError> {
        let text = text.into();
        let part_ok = |part: &str| {
            !part.is_empty() && part != "." && part != ".." && part.chars().all(|c| c.is_ascii_graphic() && c != '\\')
        };
        if text.len() <= 900 && text.split('/').all(part_ok) {
            Ok(Self(text))
        } else {
            Err(StoreError::permanent(
                "make a key",
                format!("`{text}` cannot be an object's key"),
            ))
        }
    }

    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a store says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key.
    pub key: ObjectKey,
    /// Its size.
    pub bytes: u64,
    /// When the store last saw it change.
    pub modified: Timestamp,
}

/// A multipart upload that was begun and is neither complete nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenUpload {
    /// The key it would create.
    pub key: ObjectKey,
    /// The store's name for it.
    pub id: String,
    /// When it was begun, where the store tells.
    pub started: Option<Timestamp>,
}

/// A part the store has acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its number, from 1.
    pub number: u32,
    /// The store's tag for it.
    pub tag: String,
    /// Its size.
    pub bytes: u64,
}

/// What became of an object that was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It is not there any more.
    Gone,
    /// It is not listed any more, and an older version of it stays: the bucket keeps versions.
    VersionStays,
}

/// What a probe found out about a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Whether it refuses to create an object whose name is taken. Where it does not, pgreeve looks
    /// before it writes.
    pub conditional_create: bool,
    /// The same when an upload in parts is completed.
    pub conditional_complete: bool,
    /// What each body is compared with on its way.
    pub checksum: &'static str,
    /// Whether deleted objects stay as older versions; `None` where the store does not tell.
    pub versioned: Option<bool>,
    /// Whether objects can be locked; `None` where the store does not tell.
    pub object_lock: Option<bool>,
    /// How far the store's clock is before this host's, in seconds; less than 0 when it is behind.
    pub clock_ahead_s: i64,
}

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation}: {cause}")]
pub struct StoreError {
    /// What was tried, with its object.
    pub operation: String,
    /// What went wrong; no secrets.
    pub cause: String,
    /// What an operator can do.
    pub remedy: Option<String>,
    /// What kind of failure it is.
    pub kind: StoreErrorKind,
}

/// The kinds of failure a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// There is no such object, upload or bucket.
    NotFound,
    /// The object exists already and was to be created.
    Exists,
    /// Wrong key, wrong secret, or no right to do it.
    Denied,
    /// Another attempt may succeed.
    Transient,
    /// Another attempt would fail in the same way.
    Permanent,
}

impl StoreError {
    /// An error of a given kind.
    pub fn new(kind: StoreErrorKind, operation: impl Into<String>, cause: impl Into<String>) -> Self {
        Self {
            operation: operation.into(),
            cause: cause.into(),
            remedy: None,
            kind,
        }
    }

    /// An error that another attempt would meet again.
    pub fn permanent(operation: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Permanent, operation, cause)
    }

    /// Adds what an operator can do.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// A place for objects. Every method retries what is worth retrying within its own time limits, so
/// an error is final for the caller.
pub trait Store: Send + Sync + fmt::Debug {
    /// `s3://bucket/prefix` or `file:///path`, for messages; no secrets.
    fn describe(&self) -> String;

    /// Checks, before any work, that the place exists and takes what we will do to it: a small
    /// object is created conditionally, read back and deleted; an upload in parts must not take its
    /// name, is listed and aborted.
    fn probe(&self) -> BoxFuture<'_, Result<Capabilities, StoreError>>;

    /// For how long the store itself refuses to delete what is created in it, if it does.
    fn locks_for(&self) -> Option<Duration> {
        None
    }

    /// Creates an object in one piece; [`StoreErrorKind::Exists`] when the key is taken.
    fn create<'a>(
        &'a self,
        key: &'a ObjectKey,
        body: Bytes,
        content_type: &'static str,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Begins an upload in parts of one size.
    fn start_upload<'a>(
        &'a self,
        key: &'a ObjectKey,
        content_type: &'static str,
    ) -> BoxFuture<'a, Result<Arc<dyn Upload>, StoreError>>;

    /// What the store says of an object, `None` when there is none.
    fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<ObjectInfo>, StoreError>>;

    /// Reads an object from its first byte. A broken transfer is resumed where it broke; the reader
    /// fails if the object cannot be had whole.
    fn open<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Box<dyn AsyncRead + Send + Unpin>, StoreError>>;

    /// All objects whose key starts with `prefix` followed by `/` (all objects for an empty
    /// prefix), in the order of their keys.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<ObjectInfo>, StoreError>>;

    /// Deletes an object; no error when there is none.
    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Deleted, StoreError>>;

    /// All open uploads whose key starts with `prefix` followed by `/`.
    fn list_uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<OpenUpload>, StoreError>>;

    /// Ends an open upload and frees its parts; no error when there is none.
    fn abort_upload<'a>(&'a self, upload: &'a OpenUpload) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// An object being uploaded. Exactly one of [`Upload::complete`] and [`Upload::abort`] must be
/// called; parts may be sent at the same time.
pub trait Upload: Send + Sync + fmt::Debug {
    /// The upload as it would be listed.
    fn open_upload(&self) -> OpenUpload;

    /// Sends one part and waits for its acknowledgement. All parts but the last have one size.
    fn put_part(&self, number: u32, body: Bytes) -> BoxFuture<'_, Result<Part, StoreError>>;

    /// Makes the object exist, of these parts in this order; [`StoreErrorKind::Exists`] when the
    /// key is taken. When the answer is lost, the object itself is looked at before an error is
    /// returned.
    fn complete(&self, parts: Vec<Part>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Ends the upload and frees its parts. Works also while the caller's run is being cancelled.
    fn abort(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// What is left of a key below a prefix and its `/`; all of it for an empty prefix.
fn below<'a>(key: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() {
        Some(key)
    } else {
        key.strip_prefix(prefix)?.strip_prefix('/')
    }
}

/// Checks that parts are numbered from 1 without gaps, and adds up their bytes.
fn check_parts(operation: &str, parts: &[Part]) -> Result<u64, StoreError> {
    let mut total = 0_u64;
    for (number, part) in (1_u32..).zip(parts) {
        if part.number != number {
            let cause = format!("part {} stands where part {number} belongs", part.number);
            return Err(StoreError::permanent(operation, cause));
        }
        total = total.saturating_add(part.bytes);
    }
    if parts.is_empty() {
        return Err(StoreError::permanent(operation, "there are no parts"));
    }
    Ok(total)
}
