//! An upload into a directory: `.uploads/ID/` holds a description and one file that grows into the
//! object. Parts are written where they belong in it, so completing it copies nothing.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::bytes::Bytes;
use uuid::Uuid;

use super::failure::failure;
use super::folder::{Entry, Folder};
use super::objects::{create_folders, split};
use super::{UPLOADS, blocking};
use crate::store::{ObjectKey, OpenUpload, Part, StoreError, Upload, check_parts};

/// The object to be.
pub(super) const DATA: &str = "data";
/// What the upload is.
const DESCRIPTION: &str = "upload.json";

#[derive(Debug, Serialize, Deserialize)]
struct Description {
    key: String,
    started: Timestamp,
}

/// An upload in progress.
#[derive(Debug)]
pub(super) struct FileUpload {
    root: PathBuf,
    open: OpenUpload,
    written: Arc<Mutex<Written>>,
}

/// What was written so far.
#[derive(Debug, Default)]
struct Written {
    /// The size of the first part, hence where the others belong. A part that comes before it
    /// waits in a file of its own.
    part_bytes: Option<u64>,
    parts: BTreeMap<u32, WrittenPart>,
    revision: u64,
}

#[derive(Debug)]
struct WrittenPart {
    tag: String,
    bytes: u64,
    waiting: bool,
}

impl FileUpload {
    /// Begins an upload. Blocks.
    pub(super) fn start(root: PathBuf, key: ObjectKey) -> io::Result<Self> {
        let id = Uuid::now_v7().simple().to_string();
        let started = Timestamp::now();
        let description = Description {
            key: key.as_str().to_owned(),
            started,
        };
        let describe = || {
            let folder = Folder::at(&root)?.enter_or_make(UPLOADS)?.enter_or_make(&id)?;
            let mut file = folder.write(DESCRIPTION)?;
            file.write_all(&serde_json::to_vec(&description)?)?;
            // What is written from here on must be found after a crash, to be removed.
            file.sync_all()?;
            folder.write(DATA)?;
            folder.sync()
        };
        if let Err(error) = describe() {
            // The first failure is the one to tell; a full disk is no reason to keep the rest.
            let _ = remove_upload(&root, &id);
            return Err(error);
        }
        let started = Some(started);
        Ok(Self {
            root,
            open: OpenUpload { key, id, started },
            written: Arc::default(),
        })
    }

    fn operation(&self, what: &str) -> String {
        format!("{what} of {}", self.open.key)
    }
}

impl Upload for FileUpload {
    fn open_upload(&self) -> OpenUpload {
        self.open.clone()
    }

    fn put_part(&self, number: u32, body: Bytes) -> BoxFuture<'_, Result<Part, StoreError>> {
        let operation = self.operation(&format!("write part {number}"));
        let (root, id) = (self.root.clone(), self.open.id.clone());
        let written = Arc::clone(&self.written);
        blocking(move || {
            let failed = |error: &io::Error| failure(&root, &operation, error);
            let bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
            let offset =
                place(&written, number, bytes).map_err(|problem| StoreError::permanent(&operation, problem))?;
            let folder = upload_folder(&root, &id).map_err(|error| failed(&error))?;
            let name = if offset.is_some() {
                DATA.to_owned()
            } else {
                waiting(number)
            };
            let write = || {
                let file = folder.write(&name)?;
                file.write_all_at(&body, offset.unwrap_or(0))?;
                // Acknowledged means safe; and the last step need not wait for all of it at once.
                file.sync_data()
            };
            write().map_err(|error| failed(&error))?;
            let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
            written.revision = written.revision.saturating_add(1);
            let tag = format!("{number}.{}", written.revision);
            let part = WrittenPart {
                tag: tag.clone(),
                bytes,
                waiting: offset.is_none(),
            };
            written.parts.insert(number, part);
            Ok(Part { number, tag, bytes })
        })
        .boxed()
    }

    fn complete(&self, parts: Vec<Part>) -> BoxFuture<'_, Result<(), StoreError>> {
        let operation = self.operation("complete the upload");
        let (root, open) = (self.root.clone(), self.open.clone());
        let written = Arc::clone(&self.written);
        blocking(move || {
            let total = check_parts(&operation, &parts)?;
            let late = check_written(&written, &parts).map_err(|problem| StoreError::permanent(&operation, problem))?;
            let finish = || {
                let folder = upload_folder(&root, &open.id)?;
                let mut data = folder.write(DATA)?;
                for (number, offset) in late {
                    io::Seek::seek(&mut data, io::SeekFrom::Start(offset))?;
                    io::copy(&mut folder.read(&waiting(number))?, &mut data)?;
                }
                data.set_len(total)?;
                data.sync_all()?;
                publish(&root, &folder, &open.key)?;
                remove_upload(&root, &open.id)
            };
            finish().map_err(|error| failure(&root, &operation, &error))
        })
        .boxed()
    }

    fn abort(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let operation = self.operation("abort the upload");
        let (root, id) = (self.root.clone(), self.open.id.clone());
        blocking(move || remove_upload(&root, &id).map_err(|error| failure(&root, &operation, &error))).boxed()
    }
}

/// Where a part belongs; nowhere yet while the first part's size is not known.
fn place(written: &Mutex<Written>, number: u32, bytes: u64) -> Result<Option<u64>, String> {
    let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
    let before = u64::from(number)
        .checked_sub(1)
        .ok_or("parts are numbered from 1".to_owned())?;
    if number == 1 && written.part_bytes.is_none() {
        written.part_bytes = Some(bytes);
    }
    let Some(each) = written.part_bytes else {
        return Ok(None);
    };
    if bytes > each || number == 1 && bytes != each {
        return Err(format!("part {number} has {bytes} bytes, but parts have {each}"));
    }
    let offset = before
        .checked_mul(each)
        .ok_or("the object would be too large".to_owned())?;
    Ok(Some(offset))
}

/// Compares what shall be completed with what was written, and says which parts still wait in
/// files of their own, and where they belong.
fn check_written(written: &Mutex<Written>, parts: &[Part]) -> Result<Vec<(u32, u64)>, String> {
    let written = written.lock().unwrap_or_else(PoisonError::into_inner);
    let each = written.part_bytes.ok_or("part 1 was not written".to_owned())?;
    let mut late = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let known = written
            .parts
            .get(&part.number)
            .filter(|known| known.tag == part.tag && known.bytes == part.bytes)
            .ok_or_else(|| format!("part {} is not the one that was written", part.number))?;
        let last = index + 1 == parts.len();
        if part.bytes > each || !last && part.bytes != each {
            return Err(format!(
                "part {} has {} bytes, but parts have {each}",
                part.number, part.bytes
            ));
        }
        if known.waiting {
            late.push((
                part.number,
                u64::from(part.number.saturating_sub(1)).saturating_mul(each),
            ));
        }
    }
    Ok(late)
}

/// Gives the upload's file the object's name, or fails with `EEXIST`. Blocks.
pub(super) fn publish(root: &Path, folder: &Folder, key: &ObjectKey) -> io::Result<()> {
    let (parents, name) = split(key);
    let mut attempts = 0;
    loop {
        let published = create_folders(root, &parents).and_then(|to| folder.publish(DATA, &to, name));
        match published {
            // A delete took the directory away because it was empty for a moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < 8 => attempts += 1,
            published => return published,
        }
    }
}

/// The open uploads below the store's root. Blocks.
pub(super) fn list(root: &Path) -> io::Result<Vec<OpenUpload>> {
    let uploads = match Folder::at(root)?.enter(UPLOADS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entered => entered?,
    };
    let mut found = Vec::new();
    for entry in uploads.entries()?.into_iter().filter(Entry::is_folder) {
        let text = uploads
            .enter(&entry.name)
            .and_then(|folder| io::read_to_string(folder.read(DESCRIPTION)?));
        let description = text
            .ok()
            .and_then(|text| serde_json::from_str::<Description>(&text).ok());
        let parsed = description.and_then(|d| Some((ObjectKey::new(d.key).ok()?, d.started)));
        if let Some((key, started)) = parsed {
            found.push(OpenUpload {
                key,
                id: entry.name,
                started: Some(started),
            });
        } else {
            // Just begun, just ended, or left by a crash between two system calls.
            tracing::warn!(
                "{}/{UPLOADS}/{} does not describe an upload; if it is still there in an hour, remove it",
                root.display(),
                entry.name
            );
        }
    }
    found.sort_by(|a, b| (&a.key, &a.id).cmp(&(&b.key, &b.id)));
    Ok(found)
}

/// Removes an upload and what was written of it; no error when there is none. Blocks.
pub(super) fn remove_upload(root: &Path, id: &str) -> io::Result<()> {
    if Uuid::try_parse(id).is_err() {
        return Ok(());
    }
    let gone_is_fine = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    let remove = || {
        let uploads = Folder::at(root)?.enter(UPLOADS)?;
        let folder = uploads.enter(id)?;
        // A part that is being written may add its file after the directory was read.
        for attempt in 0.. {
            // The description goes last: until then the upload can be listed and removed.
            let mut entries = folder.entries()?;
            entries.sort_by_key(|entry| entry.name == DESCRIPTION);
            for entry in entries {
                gone_is_fine(folder.remove(&entry.name))?;
            }
            match uploads.remove_folder(id) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && attempt < 8 => {}
                removed => return removed,
            }
        }
        Ok(())
    };
    gone_is_fine(remove())
}

fn upload_folder(root: &Path, id: &str) -> io::Result<Folder> {
    Folder::at(root)?.enter(UPLOADS)?.enter(id)
}

fn waiting(number: u32) -> String {
    format!("part-{number}")
}
