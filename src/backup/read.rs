//! Reads a backup's dump out of its store, unpacked, and compares every byte with the manifest.

mod unpack;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};
use tokio_util::bytes::{Bytes, BytesMut};

pub use self::unpack::Sink;
use self::unpack::{Pieces, Unpacking};
use super::digest::{Measure, Meter};
use super::dump::CHUNK;
use super::manifest::{Archive, Manifest, OPAQUE, Object, Role};
use super::seal::Identities;
use super::walker::{LargeObjects, TableDigest, Walked};
use crate::job::Progress;
use crate::store::{ObjectKey, Store, StoreError};

/// How many pieces wait between two steps.
const QUEUE: usize = 8;

/// Why a dump could not be read whole.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The store does not give it.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// What the store gives is not what was stored.
    #[error("{0}")]
    Damaged(String),
    /// It is encrypted, and no identity that opens it was given. It may be whole.
    #[error("{0}")]
    Sealed(String),
    /// This host cannot do it: it says nothing of the backup.
    #[error("{0}")]
    Local(String),
}

/// The reading of one backup. Several of its archives may be read at the same time.
pub struct Reading<'a> {
    store: &'a Arc<dyn Store>,
    manifest: &'a Manifest,
    progress: &'a Progress,
    identities: Option<&'a Identities>,
    total: u64,
    read: AtomicU64,
}

/// Reads the whole backup.
///
/// # Errors
/// When the store does not give it, any size or digest differs from the manifest's, or it is
/// encrypted and `identities` do not open it.
pub async fn read(
    store: Arc<dyn Store>,
    manifest: &Manifest,
    progress: Progress,
    identities: Option<&Identities>,
) -> Result<(), ReadError> {
    let reading = Reading {
        total: manifest.bytes(),
        ..Reading::new(&store, manifest, &progress, identities)
    };
    let mut walked = Vec::new();
    for archive in manifest.archives() {
        walked.push(reading.archive(&archive, Sink::Nowhere).await?);
    }
    // The roles are no part of the dump, and of the backup they are.
    for object in manifest.objects.iter().filter(|object| object.role == Role::Globals) {
        reading.object(object, None).await?;
    }
    reading.compare(&walked)
}

/// Reads every byte of all objects as they are stored, and compares their digests: what can be known
/// of an encrypted backup without an identity.
///
/// # Errors
/// When the store does not give an object, or its size or digest differs from the manifest's.
pub async fn read_stored(store: Arc<dyn Store>, manifest: &Manifest, progress: Progress) -> Result<(), ReadError> {
    let reading = Reading {
        total: manifest.bytes(),
        ..Reading::new(&store, manifest, &progress, None)
    };
    for object in &manifest.objects {
        reading.object(object, None).await?;
    }
    Ok(())
}

impl<'a> Reading<'a> {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(
        store: &'a Arc<dyn Store>,
        manifest: &'a Manifest,
        progress: &'a Progress,
        identities: Option<&'a Identities>,
    ) -> Self {
        Self {
            store,
            manifest,
            progress,
            identities,
            total: manifest.data().map(|object| object.bytes).sum(),
            read: AtomicU64::new(0),
        }
    }

    /// Reads one archive. Only after `Ok` is it known that what went to `sink` was right.
    ///
    /// # Errors
    /// As [`read`].
    pub async fn archive(&self, archive: &Archive<'_>, sink: Sink) -> Result<Walked, ReadError> {
        let unpacking = Unpacking {
            packing: self
                .manifest
                .packing()
                .map_err(|problem| ReadError::Damaged(format!("the manifest: {problem}")))?,
            format: self.manifest.format,
            identities: self.identities()?,
        };
        let (pieces, packed) = mpsc::channel(QUEUE);
        let (done, unpacked) = oneshot::channel();
        thread::Builder::new()
            .name("pgreeve-unpack".to_owned())
            .spawn(move || {
                // The receiver is gone only when nobody waits any more.
                let _ = done.send(unpacking.run(Pieces::new(packed), sink));
            })
            .map_err(|error| ReadError::Local(format!("start a thread: {error}")))?;
        let gone = |_| Err(ReadError::Local("the unpacking thread ended early".to_owned()));
        let fetch = self.fetch(archive, pieces);
        tokio::pin!(fetch, unpacked);
        let (fetched, unpacked) = tokio::select! {
            fetched = &mut fetch => (fetched, unpacked.await.unwrap_or_else(gone)),
            unpacked = &mut unpacked => match unpacked.unwrap_or_else(gone) {
                // The rest is not worth reading: it would not be found damaged.
                Err(error @ (ReadError::Sealed(_) | ReadError::Local(_))) => return Err(error),
                unpacked => (fetch.await, unpacked),
            },
        };
        // Which object is damaged is known from what is stored.
        fetched?;
        let (raw, walked) = unpacked?;
        if raw.bytes != archive.bytes_raw() || Some(raw.sha256.as_str()) != archive.sha256_raw() {
            return Err(ReadError::Damaged(
                "the unpacked dump is another one than the manifest says".to_owned(),
            ));
        }
        Ok(walked)
    }

    fn identities(&self) -> Result<Option<Identities>, ReadError> {
        match (self.manifest.encrypted_to.as_slice(), self.identities) {
            ([], _) => Ok(None),
            (_, Some(identities)) => Ok(Some(identities.clone())),
            (recipients, None) => Err(ReadError::Sealed(format!(
                "it is encrypted to {}: give the identity of one of them with --identity FILE",
                recipients.join(", ")
            ))),
        }
    }

    /// Reads all objects of an archive to their ends, also when nobody takes the pieces any more:
    /// what could not be unpacked is named by its object.
    async fn fetch(&self, archive: &Archive<'_>, pieces: mpsc::Sender<Option<Bytes>>) -> Result<(), ReadError> {
        for object in &archive.objects {
            self.object(object, Some(&pieces)).await?;
        }
        // An error ends the pieces without their end, which the unpacker sees as a broken stream.
        let _ = pieces.send(None).await;
        Ok(())
    }

    async fn object(&self, object: &Object, pieces: Option<&mpsc::Sender<Option<Bytes>>>) -> Result<(), ReadError> {
        let key = ObjectKey::new(object.key.as_str())?;
        let mut source = self.store.open(&key).await?;
        let mut meter = Meter::new();
        let mut pieces = pieces;
        loop {
            let mut piece = BytesMut::with_capacity(CHUNK);
            let length = source
                .read_buf(&mut piece)
                .await
                .map_err(|error| ReadError::Damaged(format!("read {key}: {error}")))?;
            if length == 0 {
                break;
            }
            meter.update(&piece);
            let read = self.read.fetch_add(length as u64, Ordering::Relaxed);
            self.progress
                .set("bytes", read.saturating_add(length as u64), Some(self.total));
            if let Some(next) = pieces
                && next.send(Some(piece.freeze())).await.is_err()
            {
                pieces = None;
            }
        }
        check_stored(object, &meter.finish())
    }

    /// Compares what all archives held with the manifest.
    ///
    /// # Errors
    /// When the manifest says otherwise.
    pub fn compare(&self, walked: &[Walked]) -> Result<(), ReadError> {
        if self.manifest.archive_version == OPAQUE {
            return Ok(());
        }
        let mut tables: Vec<&TableDigest> = Vec::new();
        let mut large_objects = LargeObjects::default();
        for contents in walked.iter().filter_map(|walked| walked.contents.as_ref()) {
            tables.extend(&contents.tables);
            large_objects = large_objects.and(contents.large_objects);
        }
        if tables.into_iter().eq(&self.manifest.tables) && large_objects == self.manifest.large_objects {
            return Ok(());
        }
        Err(ReadError::Damaged(
            "the dump holds other tables than the manifest says".to_owned(),
        ))
    }
}

fn check_stored(object: &Object, stored: &Measure) -> Result<(), ReadError> {
    if stored.bytes != object.bytes {
        return Err(ReadError::Damaged(format!(
            "{} has {} bytes instead of {}",
            object.key, stored.bytes, object.bytes
        )));
    }
    if stored.sha256 != object.sha256 {
        return Err(ReadError::Damaged(format!(
            "{} has the SHA-256 {} instead of {}",
            object.key, stored.sha256, object.sha256
        )));
    }
    Ok(())
}
