//! A file for what has to be read more than once, or by several processes. It has no name: nobody finds
//! it, and whatever ends this process and those that read it, `kill -9` too, ends the file with them.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::job::JobError;

/// How much more than the data itself there must be room for.
const MARGIN: u64 = 16 * 1024 * 1024;

/// Makes an empty file without a name in a directory that has room for so many bytes.
///
/// # Errors
/// Names the directory and how much room it has.
pub(super) fn make(operation: &str, directory: &Path, bytes: u64) -> Result<File, JobError> {
    let failed =
        |error: io::Error| JobError::permanent(operation, format!("make a file in {}: {error}", directory.display()));
    if let Some(free) = lacking(directory, bytes) {
        return Err(JobError::refused(
            operation,
            format!(
                "{} has {free} bytes left, and the dump needs {bytes} there",
                directory.display()
            ),
            "set TMPDIR to a directory with more room",
        ));
    }
    tempfile::tempfile_in(directory).map_err(failed)
}

/// Whether a directory has room for so many bytes.
pub(super) fn has_room(directory: &Path, bytes: u64) -> bool {
    lacking(directory, bytes).is_none()
}

/// How much room a directory has, if that is too little. One that does not tell is tried.
fn lacking(directory: &Path, bytes: u64) -> Option<u64> {
    let space = rustix::fs::statvfs(directory).ok()?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    (free < bytes.saturating_add(MARGIN)).then_some(free)
}
