//! Objects as files: found, read, listed and deleted. All of it blocks.

use std::fs::File;
use std::io;
use std::path::Path;

use jiff::Timestamp;

use super::UPLOADS;
use super::folder::{Entry, Folder};
use crate::store::{ObjectInfo, ObjectKey};

/// What there is at a key.
pub(super) fn stat(root: &Path, key: ObjectKey) -> io::Result<Option<ObjectInfo>> {
    let (parents, name) = split(&key);
    match folders(root, &parents).and_then(|folder| folder.stat(name)) {
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
        Ok(entry) => Ok(entry.is_file().then(|| info(key, &entry))),
    }
}

/// Opens an object for reading.
pub(super) fn read(root: &Path, key: &ObjectKey) -> io::Result<File> {
    let (parents, name) = split(key);
    folders(root, &parents)?.read(name)
}

/// All objects below a prefix, in the order of their keys.
pub(super) fn list(root: &Path, prefix: &str) -> io::Result<Vec<ObjectInfo>> {
    let names: Vec<&str> = prefix.split('/').filter(|name| !name.is_empty()).collect();
    let start = match folders(root, &names) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        start => start?,
    };
    let mut found = Vec::new();
    let mut open = vec![(prefix.to_owned(), start)];
    while let Some((path, folder)) = open.pop() {
        for entry in folder.entries()? {
            let key = if path.is_empty() {
                entry.name.clone()
            } else {
                format!("{path}/{}", entry.name)
            };
            if entry.is_folder() && key != UPLOADS {
                match folder.enter(&entry.name) {
                    Err(error) if is_absent(&error) => {}
                    entered => open.push((key, entered?)),
                }
            } else if entry.is_file()
                && let Ok(key) = ObjectKey::new(key)
            {
                found.push(info(key, &entry));
            }
        }
    }
    found.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(found)
}

/// The directories of a key, and the name in the last of them.
pub(super) fn split(key: &ObjectKey) -> (Vec<&str>, &str) {
    let mut parts: Vec<&str> = key.as_str().split('/').collect();
    let name = parts.pop().unwrap_or_default();
    (parts, name)
}

fn folders(root: &Path, names: &[&str]) -> io::Result<Folder> {
    names
        .iter()
        .try_fold(Folder::at(root)?, |folder, name| folder.enter(name))
}

/// Opens the directories of a key, and makes those that are missing.
pub(super) fn create_folders(root: &Path, names: &[&str]) -> io::Result<Folder> {
    names
        .iter()
        .try_fold(Folder::at(root)?, |folder, name| folder.enter_or_make(name))
}

/// Deletes an object, then the directories that are empty without it.
pub(super) fn delete(root: &Path, key: &ObjectKey) -> io::Result<()> {
    let (parents, name) = split(key);
    let mut chain = vec![Folder::at(root)?];
    for parent in &parents {
        let next = chain.last().map(|folder| folder.enter(parent)).transpose()?;
        chain.extend(next);
    }
    if let Some(folder) = chain.last() {
        if !folder.stat(name)?.is_file() {
            return Ok(());
        }
        folder.remove(name)?;
        folder.sync()?;
    }
    for (folder, name) in chain.iter().zip(&parents).rev() {
        if folder.remove_folder(name).is_err() {
            break;
        }
    }
    Ok(())
}

fn info(key: ObjectKey, entry: &Entry) -> ObjectInfo {
    let nanoseconds = i32::try_from(entry.stat.st_mtime_nsec).unwrap_or_default();
    ObjectInfo {
        key,
        bytes: u64::try_from(entry.stat.st_size).unwrap_or_default(),
        modified: Timestamp::new(entry.stat.st_mtime, nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH),
    }
}

/// There is nothing at the key: no name, or a file (or a link) where a directory would be.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
