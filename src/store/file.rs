//! A directory as a store: the embedded default.
//!
//! An object is a file at `DIRECTORY/KEY`. It appears in one step and never replaces another; what
//! is being written lives in `DIRECTORY/.uploads/`.

mod failure;
mod folder;
mod objects;
mod upload;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::AsyncRead;
use tokio_util::bytes::Bytes;

use self::failure::failure;
use self::folder::Folder;
use self::objects::is_absent;
use self::upload::{DATA, FileUpload};
use super::{
    Capabilities, Deleted, ObjectInfo, ObjectKey, OpenUpload, Store, StoreError, StoreErrorKind, Upload, below, probe,
};

/// Where uploads are, beside the objects.
const UPLOADS: &str = ".uploads";

/// A store in a directory.
#[derive(Debug, Clone)]
pub struct FileStore {
    root: PathBuf,
}

impl FileStore {
    /// Opens a directory as a store; makes it, for its owner only, when its parent exists.
    ///
    /// # Errors
    /// When there is no such directory and it cannot be made, or it cannot be entered.
    pub async fn open(directory: &Path) -> Result<Self, StoreError> {
        let root = directory.to_owned();
        blocking(move || {
            let made =
                match std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&root) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    made => made,
                };
            let opened = made.and_then(|()| Folder::at(&root));
            opened.map_err(|error| missing_root(&root, "open the directory", &error))?;
            Ok(Self { root })
        })
        .await
    }

    /// Runs blocking work on the store, away from the runtime's threads.
    async fn run<T: Send + 'static>(
        &self,
        operation: String,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let root = self.root.clone();
        blocking(move || {
            // Told apart from a missing object: this is a disk that is not mounted.
            Folder::at(&root).map_err(|error| missing_root(&root, &operation, &error))?;
            work(&root).map_err(|error| failure(&root, &operation, &error))
        })
        .await
    }
}

impl Store for FileStore {
    fn describe(&self) -> String {
        format!("file://{}", self.root.display())
    }

    fn probe(&self) -> BoxFuture<'_, Result<Capabilities, StoreError>> {
        async move {
            let probed = probe::probe(self).await?;
            if probed.conditional_create && probed.conditional_complete {
                return Ok(Capabilities {
                    conditional_create: true,
                    conditional_complete: true,
                    checksum: "none",
                    versioned: Some(false),
                    object_lock: Some(false),
                    clock_ahead_s: probed.clock_ahead_s,
                });
            }
            Err(StoreError::permanent(
                format!("probe {}", self.describe()),
                "the file system lets a second file take the name of the first",
            )
            .with_remedy("keep the store on a local file system"))
        }
        .boxed()
    }

    fn create<'a>(
        &'a self,
        key: &'a ObjectKey,
        body: Bytes,
        _content_type: &'static str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let object = key.clone();
        self.run(format!("create {key}"), move |root| {
            refuse_reserved(&object)?;
            let upload = FileUpload::start(root.to_owned(), object.clone())?;
            let id = upload.open_upload().id;
            let write = || {
                let folder = Folder::at(root)?.enter(UPLOADS)?.enter(&id)?;
                let mut file = folder.write(DATA)?;
                file.write_all(&body)?;
                file.sync_all()?;
                upload::publish(root, &folder, &object)
            };
            let written = write();
            let removed = upload::remove_upload(root, &id);
            written.and(removed)
        })
        .boxed()
    }

    fn start_upload<'a>(
        &'a self,
        key: &'a ObjectKey,
        _content_type: &'static str,
    ) -> BoxFuture<'a, Result<Arc<dyn Upload>, StoreError>> {
        let object = key.clone();
        self.run(format!("start the upload of {key}"), move |root| {
            refuse_reserved(&object)?;
            Ok(Arc::new(FileUpload::start(root.to_owned(), object)?) as Arc<dyn Upload>)
        })
        .boxed()
    }

    fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<ObjectInfo>, StoreError>> {
        let object = key.clone();
        self.run(format!("look at {key}"), move |root| objects::stat(root, object))
            .boxed()
    }

    fn open<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Box<dyn AsyncRead + Send + Unpin>, StoreError>> {
        let object = key.clone();
        self.run(format!("read {key}"), move |root| {
            let file = objects::read(root, &object)?;
            Ok(Box::new(tokio::fs::File::from_std(file)) as Box<dyn AsyncRead + Send + Unpin>)
        })
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        let prefix = prefix.to_owned();
        self.run(format!("list `{prefix}`"), move |root| {
            if !prefix.is_empty() {
                refuse_reserved(&ObjectKey::new(prefix.as_str()).map_err(io::Error::other)?)?;
            }
            objects::list(root, &prefix)
        })
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Deleted, StoreError>> {
        let object = key.clone();
        self.run(format!("delete {key}"), move |root| {
            refuse_reserved(&object)?;
            match objects::delete(root, &object) {
                Err(error) if is_absent(&error) => Ok(Deleted::Gone),
                deleted => deleted.map(|()| Deleted::Gone),
            }
        })
        .boxed()
    }

    fn list_uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<OpenUpload>, StoreError>> {
        let prefix = prefix.to_owned();
        self.run("list the open uploads".to_owned(), move |root| {
            let mut uploads = upload::list(root)?;
            uploads.retain(|upload| below(upload.key.as_str(), &prefix).is_some());
            Ok(uploads)
        })
        .boxed()
    }

    fn abort_upload<'a>(&'a self, upload: &'a OpenUpload) -> BoxFuture<'a, Result<(), StoreError>> {
        let id = upload.id.clone();
        self.run(format!("abort the upload of {}", upload.key), move |root| {
            upload::remove_upload(root, &id)
        })
        .boxed()
    }
}

/// Runs blocking work on a thread where it may block. It runs to its end, also when nobody waits.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(StoreError::permanent(
            "work on files",
            format!("the work was broken off: {error}"),
        ))
    })
}

fn refuse_reserved(key: &ObjectKey) -> io::Result<()> {
    if below(key.as_str(), UPLOADS).is_some() || key.as_str() == UPLOADS {
        return Err(io::Error::other(format!("keys below {UPLOADS} are the store's own")));
    }
    Ok(())
}

fn missing_root(root: &Path, operation: &str, error: &io::Error) -> StoreError {
    let failed = failure(root, operation, error);
    match failed.kind {
        StoreErrorKind::NotFound => StoreError {
            cause: "there is no such directory".to_owned(),
            // Not "no such object": nothing can be said of any object.
            kind: StoreErrorKind::Permanent,
            ..failed
        }
        .with_remedy(format!(
            "make the directory {}, or mount the disk it is on",
            root.display()
        )),
        _ => failed,
    }
}
