//! The audit log: an append-only, hash-chained record on the host, outside every database.
//!
//! A restore or a point-in-time recovery rewinds what lives inside a database; this log stays. One
//! directory holds it:
//!
//! | file | mode | what it is |
//! |---|---|---|
//! | `audit-000000000001.jsonl` … | 0640 | a segment: one record a line, named after its first record; a new one each day (UTC) or at 64 MiB |
//! | `torn-000000000042-….bin` | 0640 | bytes of a write that a crash cut short, with a `log.recovered` record that names them |
//! | `signing.key` | 0600 | the Ed25519 private key, PKCS #8 PEM |
//! | `public.key` | 0644 | the public key, PEM; give a copy to whoever is to check the log |
//! | `lock` | 0640 | held while a record is written; carries no data |
//!
//! Each record carries in `prev` the SHA-256 of the line before it, without its newline, so that
//! `sed -n 7p FILE | tr -d '\n' | sha256sum` gives the `prev` of line 8. Numbers start at 1 and have
//! no gaps. A `segment` record opens each file and repeats where the file before it ended.
//!
//! The chain alone shows an edit only to a reader who knows its end: whoever may write the files can
//! compute a new chain. Hence the `checkpoint` records, signed, and their [`checkpoint::Anchor`]s,
//! which are kept somewhere else. [`verify()`] says which records are covered by neither.
//!
//! Records hold no personal data.

mod chain;
pub mod checkpoint;
pub mod digest;
pub(crate) mod file;
mod head;
pub mod key;
pub mod kind;
pub(crate) mod lock;
pub mod log;
pub mod record;
pub mod recorder;
pub(crate) mod recovery;
pub mod segment;
pub mod traces;
pub mod verify;
mod walk;

use std::io;
use std::path::Path;

pub use checkpoint::{Anchor, Signature};
pub use digest::Digest;
pub use key::{PublicKey, Signer};
pub use kind::RecordKind;
pub use log::{Appended, AuditLog};
pub use record::{Entry, Record};
pub use recorder::RunRecorder;
pub use segment::last_record;
pub use traces::{Trace, runs};
pub use verify::{FirstBad, Verification, verify};

/// The audit log could not be read or written. What a record was to announce must not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {cause}")]
pub struct AuditError {
    /// What was tried, with its file.
    pub operation: String,
    /// What went wrong.
    pub cause: String,
    /// What an operator can do about it.
    pub remedy: String,
}

impl AuditError {
    pub(crate) fn new(operation: impl Into<String>, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            operation: operation.into(),
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }

    /// An operating system's refusal. `verb` is what was done to `path`: `write to`.
    pub(crate) fn io(verb: &str, path: &Path, error: &io::Error) -> Self {
        let place = path.display();
        let remedy = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                format!("free space on the file system of {place}; nothing destructive runs until then")
            }
            io::ErrorKind::PermissionDenied => {
                format!("give the user that runs pgreeve the right to read and write {place}")
            }
            io::ErrorKind::ReadOnlyFilesystem => format!("mount the file system of {place} writable"),
            io::ErrorKind::FileTooLarge => "raise the limit on the size of files (LimitFSIZE=)".to_owned(),
            io::ErrorKind::NotFound => format!("check that {place} is the right path and exists"),
            _ => format!("check the device under {place} and the kernel's log"),
        };
        Self::new(format!("{verb} {place}"), error.to_string(), remedy)
    }

    /// A file that does not hold what pgreeve wrote.
    pub(crate) fn damaged(path: &Path, cause: impl Into<String>) -> Self {
        Self::new(
            format!("read the audit log {}", path.display()),
            cause,
            "run `pgreeve audit verify`; keep the directory as evidence, and move it aside to begin a new log",
        )
    }
}
