//! Files that are whole or absent, and belong to whom the directory belongs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use super::AuditError;

/// The mode of what belongs to the log: its group may read it, nobody else.
pub(crate) const MODE: u32 = 0o640;

/// The names in a directory that are text; pgreeve gives no others.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, AuditError> {
    let failed = |error: io::Error| AuditError::io("list", dir, &error);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Makes a whole, durable file, or none: its name appears only after its bytes are on the device.
/// The caller holds the lock. Returns the file, open for appending.
pub(crate) fn write_new(dir: &Path, path: &Path, mode: u32, bytes: &[u8]) -> Result<File, AuditError> {
    let file = write_unlisted(dir, path, mode, bytes)?;
    sync_directory(dir)?;
    Ok(file)
}

/// The same, but its name is durable after [`sync_directory`] only: for many files that wait once.
pub(crate) fn write_unlisted(dir: &Path, path: &Path, mode: u32, bytes: &[u8]) -> Result<File, AuditError> {
    let mut unnamed = path.as_os_str().to_owned();
    unnamed.push(".new");
    let unnamed = PathBuf::from(unnamed);
    let failed = |error: io::Error| AuditError::io("write", &unnamed, &error);
    // What a crash may have left.
    match fs::remove_file(&unnamed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .append(true)
        .read(true)
        .create_new(true)
        .mode(mode)
        .open(&unnamed)
        .map_err(failed)?;
    let written = give_to_owner(dir, &file, &unnamed)
        .and_then(|()| file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed))
        .and_then(|()| fs::hard_link(&unnamed, path).map_err(|error| AuditError::io("create", path, &error)));
    // Its bytes are either under the right name by now, or of no use.
    let removed = fs::remove_file(&unnamed).map_err(failed);
    written?;
    removed?;
    Ok(file)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(dir: &Path) -> Result<(), AuditError> {
    File::open(dir)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| AuditError::io("sync the directory", dir, &error))
}

/// A file that root makes in a directory of the daemon's user belongs to that user; otherwise one
/// command of an administrator would lock the daemon out of its own log.
pub(crate) fn give_to_owner(dir: &Path, file: &File, path: &Path) -> Result<(), AuditError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(dir).map_err(|error| AuditError::io("read the owner of", dir, &error))?;
    fchown(file, Some(owner.uid()), Some(owner.gid())).map_err(|error| AuditError::io("set the owner of", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_exists_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_new(dir.path(), &path, MODE, b"first").unwrap();
        assert!(write_new(dir.path(), &path, MODE, b"second").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(dir.path()).unwrap(), ["x"]);
    }

    #[test]
    fn what_a_crash_left_of_a_new_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(dir.path().join("x.new"), "half").unwrap();
        write_new(dir.path(), &path, MODE, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(names(dir.path()).unwrap(), ["x"]);
    }
}
