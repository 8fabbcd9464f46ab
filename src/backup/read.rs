//! Reads a backup's dump out of its store, unpacked, and compares every byte with the manifest.

use std::io::{self, Read};
use std::sync::Arc;
use std::thread;

use flate2::read::MultiGzDecoder;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot};
use tokio_util::bytes::{Buf, Bytes, BytesMut};

use super::compress::Packing;
use super::digest::{Measure, Meter};
use super::dump::CHUNK;
use super::manifest::{Manifest, OPAQUE, Object};
use super::walker::{Walked, Walker};
use crate::job::Progress;
use crate::store::{ObjectKey, Store, StoreError};
use crate::values::ValueError;

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
}

/// Reads the whole dump. Its unpacked pieces go to `sink`, if there is one; a sink that is closed is
/// not an error, reading goes on. Only after `Ok` is it known that what went there was right.
///
/// # Errors
/// When the store does not give it, or any size or digest differs from the manifest's.
pub async fn read(
    store: Arc<dyn Store>,
    manifest: &Manifest,
    progress: Progress,
    sink: Option<mpsc::Sender<Bytes>>,
) -> Result<(), ReadError> {
    let (pieces, packed) = mpsc::channel(QUEUE);
    let packing: Packing = manifest
        .compression
        .parse()
        .map_err(|error: ValueError| ReadError::Damaged(format!("the manifest: {}", error.problem)))?;
    let (done, unpacked) = oneshot::channel();
    thread::Builder::new()
        .name("pgreeve-unpack".to_owned())
        .spawn(move || {
            let source = Pieces {
                from: packed,
                current: Bytes::new(),
                ended: false,
            };
            let result = match packing {
                Packing::Gzip(_) => unpack(MultiGzDecoder::new(source), sink),
                Packing::Zstd(_) => zstd::Decoder::new(source).and_then(|source| unpack(source, sink)),
                Packing::None => unpack(source, sink),
            };
            // The receiver is gone only when nobody waits any more.
            let _ = done.send(result);
        })
        .map_err(|error| ReadError::Damaged(format!("start a thread: {error}")))?;
    let fetched = fetch(store.as_ref(), manifest, &progress, &pieces).await;
    // An error ends the pieces without their end, which the unpacker sees as a broken stream.
    if fetched.is_ok() {
        // The unpacker is gone only if it failed, and says so below.
        let _ = pieces.send(None).await;
    }
    drop(pieces);
    let unpacked = unpacked
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the unpacking thread ended early")));
    fetched?;
    let (raw, walked) =
        unpacked.map_err(|error| ReadError::Damaged(format!("the dump cannot be unpacked: {error}")))?;
    compare(manifest, &raw, &walked)
}

async fn fetch(
    store: &dyn Store,
    manifest: &Manifest,
    progress: &Progress,
    pieces: &mpsc::Sender<Option<Bytes>>,
) -> Result<(), ReadError> {
    let total = manifest.data().map(|object| object.bytes).sum();
    let mut read = 0_u64;
    for object in manifest.data() {
        let key = ObjectKey::new(object.key.as_str())?;
        let mut source = store.open(&key).await?;
        let mut meter = Meter::new();
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
            read = read.saturating_add(length as u64);
            progress.set("bytes", read, Some(total));
            if pieces.send(Some(piece.freeze())).await.is_err() {
                // The unpacker failed, and says so.
                return Ok(());
            }
        }
        check_stored(object, &meter.finish())?;
    }
    Ok(())
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

/// The stored pieces as a blocking stream; `None` is its end.
struct Pieces {
    from: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    ended: bool,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.from.blocking_recv() {
                Some(Some(piece)) => self.current = piece,
                Some(None) => self.ended = true,
                // The reader failed: this must not look like the end.
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let length = self.current.len().min(buffer.len());
        let (target, _) = buffer.split_at_mut(length);
        self.current.copy_to_slice(target);
        Ok(length)
    }
}

fn unpack(mut source: impl Read, sink: Option<mpsc::Sender<Bytes>>) -> io::Result<(Measure, Walked)> {
    let mut sink = sink;
    let mut walker = Walker::new();
    let mut raw = Meter::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = source.read(&mut buffer)?;
        let piece = buffer.get(..length).unwrap_or_default();
        if piece.is_empty() {
            break;
        }
        raw.update(piece);
        walker.feed(piece).map_err(io::Error::other)?;
        if let Some(next) = &sink
            && next.blocking_send(Bytes::copy_from_slice(piece)).is_err()
        {
            sink = None;
        }
    }
    let archive = walker.finish().map_err(io::Error::other)?;
    Ok((raw.finish(), archive))
}

fn compare(manifest: &Manifest, raw: &Measure, walked: &Walked) -> Result<(), ReadError> {
    let damaged = |what: &str| Err(ReadError::Damaged(format!("{what} than the manifest says")));
    let wanted = manifest
        .data()
        .filter_map(|object| object.sha256_raw.as_ref())
        .next_back();
    if raw.bytes != manifest.bytes_raw() || Some(&raw.sha256) != wanted {
        return damaged("the unpacked dump is another one");
    }
    match &walked.contents {
        _ if manifest.archive_version == OPAQUE => Ok(()),
        Some(contents) if contents.tables == manifest.tables && contents.large_objects == manifest.large_objects => {
            Ok(())
        }
        _ => damaged("the dump holds other tables"),
    }
}
