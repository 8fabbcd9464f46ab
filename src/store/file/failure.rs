//! What an error of the operating system means for a store in a directory.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::store::{StoreError, StoreErrorKind};

/// An error of an operation in the store at `root`.
pub(super) fn failure(root: &Path, operation: &str, error: &io::Error) -> StoreError {
    let operation = format!("{operation} in file://{}", root.display());
    let errno = Errno::from_io_error(error);
    let (kind, remedy) = match errno {
        Some(Errno::NOENT) => (StoreErrorKind::NotFound, None),
        Some(Errno::EXIST) => {
            return StoreError::new(
                StoreErrorKind::Exists,
                operation,
                "an object with this key exists already",
            );
        }
        Some(Errno::ACCESS | Errno::PERM) => (
            StoreErrorKind::Denied,
            Some(format!(
                "let the user with id {} read and write {} and all below it",
                rustix::process::geteuid().as_raw(),
                root.display()
            )),
        ),
        Some(Errno::ROFS) => (
            StoreErrorKind::Denied,
            Some("mount the file system for writing; under systemd, name it in ReadWritePaths=".to_owned()),
        ),
        Some(Errno::NOSPC | Errno::DQUOT) => (
            StoreErrorKind::Permanent,
            Some("make room on this file system, or keep fewer backups".to_owned()),
        ),
        Some(Errno::FBIG) => (
            StoreErrorKind::Permanent,
            Some("use a file system without this limit, and raise LimitFSIZE= of the service".to_owned()),
        ),
        Some(Errno::NOTDIR | Errno::LOOP | Errno::ISDIR) => (
            StoreErrorKind::Permanent,
            Some("remove the file or link that stands in the way of the key; a store follows no links".to_owned()),
        ),
        Some(Errno::INTR | Errno::AGAIN | Errno::MFILE | Errno::NFILE | Errno::STALE | Errno::BUSY) => {
            (StoreErrorKind::Transient, None)
        }
        _ => (StoreErrorKind::Permanent, None),
    };
    StoreError {
        remedy,
        ..StoreError::new(kind, operation, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_kind_and_known_ones_a_remedy() {
        use StoreErrorKind::{Denied, Exists, NotFound, Permanent, Transient};
        for (errno, kind, remedy) in [
            (Errno::NOENT, NotFound, ""),
            (Errno::EXIST, Exists, ""),
            (Errno::ACCESS, Denied, "read and write /srv/store"),
            (Errno::ROFS, Denied, "ReadWritePaths="),
            (Errno::NOSPC, Permanent, "make room"),
            (Errno::DQUOT, Permanent, "make room"),
            (Errno::FBIG, Permanent, "LimitFSIZE="),
            (Errno::LOOP, Permanent, "link"),
            (Errno::MFILE, Transient, ""),
            (Errno::IO, Permanent, ""),
        ] {
            let error = failure(Path::new("/srv/store"), "create x", &errno.into());
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.remedy.clone().unwrap_or_default().contains(remedy), "{error:?}");
            assert!(
                error.to_string().starts_with("create x in file:///srv/store: "),
                "{error}"
            );
        }
    }
}
