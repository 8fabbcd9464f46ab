//! The rows of one table on their way into the store: packed, cut into parts, sent.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::manifest::ExportedObject;
use crate::backup::compress::{Encoder, Packing};
use crate::backup::digest::{Measure, Meter};
use crate::backup::parts::{Cut, Cutter, PartSizes};
use crate::job::JobError;
use crate::store::{ObjectKey, Part, Store, StoreError, Upload};

/// How much is packed at once, away from the threads that wait for the network.
const PIECE: usize = 256 * 1024;

/// The end of the encoder: parts that wait to be sent.
struct Cutting {
    cutter: Cutter,
    cuts: Arc<Mutex<Vec<Cut>>>,
}

impl Write for Cutting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let cut = self.cutter.cut(&mut rest);
            self.cuts.lock().unwrap_or_else(PoisonError::into_inner).extend(cut);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes one table.
pub(super) struct Writer {
    store: Arc<dyn Store>,
    /// The key of the first object, up to its suffix.
    stem: String,
    packing: Packing,
    encoder: Option<Encoder<Cutting>>,
    cuts: Arc<Mutex<Vec<Cut>>>,
    piece: Vec<u8>,
    raw: Meter,
    upload: Option<(Arc<dyn Upload>, Vec<Part>)>,
    objects: Vec<ExportedObject>,
}

/// What was written.
pub(super) struct Written {
    pub(super) raw: Measure,
    pub(super) objects: Vec<ExportedObject>,
}

impl Writer {
    pub(super) fn new(
        store: Arc<dyn Store>,
        stem: String,
        packing: Packing,
        sizes: PartSizes,
    ) -> Result<Self, JobError> {
        let cuts = Arc::default();
        let cutting = Cutting {
            cutter: Cutter::new(sizes),
            cuts: Arc::clone(&cuts),
        };
        Ok(Self {
            store,
            stem,
            packing,
            encoder: Some(Encoder::new(packing, 1, cutting).map_err(|error| unpackable(&error))?),
            cuts,
            piece: Vec::with_capacity(PIECE),
            raw: Meter::new(),
            upload: None,
            objects: Vec::new(),
        })
    }

    pub(super) async fn write(&mut self, row: &[u8]) -> Result<(), JobError> {
        self.raw.update(row);
        self.piece.extend_from_slice(row);
        if self.piece.len() >= PIECE {
            self.pack().await?;
        }
        Ok(())
    }

    async fn pack(&mut self) -> Result<(), JobError> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        let mut encoder = self.encoder.take().ok_or_else(gone)?;
        let packed = tokio::task::spawn_blocking(move || encoder.write_all(&piece).map(|()| encoder));
        let encoder = packed.await.map_err(|_| gone())?.map_err(|error| unpackable(&error))?;
        self.encoder = Some(encoder);
        self.send().await
    }

    /// Sends what is cut, one part after the other.
    async fn send(&mut self) -> Result<(), JobError> {
        let cuts = std::mem::take(&mut *self.cuts.lock().unwrap_or_else(PoisonError::into_inner));
        for cut in cuts {
            let key = self.key(cut.segment).map_err(failed)?;
            self.send_one(&key, cut).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn send_one(&mut self, key: &ObjectKey, cut: Cut) -> Result<(), StoreError> {
        let content_type = self.packing.content_type();
        match (&cut.segment_end, self.upload.take()) {
            (Some(_), None) => self.store.create(key, cut.body, content_type).await?,
            (end, upload) => {
                let (upload, mut parts) = match upload {
                    Some(begun) => begun,
                    None => (
                        start(Arc::clone(&self.store), key.clone(), content_type).await?,
                        Vec::new(),
                    ),
                };
                parts.push(upload.put_part(cut.number, cut.body).await?);
                if end.is_some() {
                    upload.complete(parts).await?;
                } else {
                    self.upload = Some((upload, parts));
                }
            }
        }
        if let Some(measure) = cut.segment_end {
            let held = self.store.head(key).await?.map(|info| info.bytes);
            if held != Some(measure.bytes) {
                let cause = format!("the store holds {held:?} bytes instead of {}", measure.bytes);
                return Err(StoreError::permanent(format!("check {key}"), cause));
            }
            self.objects.push(ExportedObject {
                key: key.to_string(),
                bytes: measure.bytes,
                sha256: measure.sha256,
            });
        }
        Ok(())
    }

    fn key(&self, segment: u32) -> Result<ObjectKey, StoreError> {
        let (stem, suffix) = (&self.stem, self.packing.suffix());
        ObjectKey::new(match segment {
            1 => format!("{stem}{suffix}"),
            _ => format!("{stem}-{segment:04}{suffix}"),
        })
    }

    /// Sends the rest. What is not finished is left to be cleared away.
    pub(super) async fn finish(mut self) -> Result<Written, JobError> {
        self.pack().await?;
        let encoder = self.encoder.take().ok_or_else(gone)?;
        let cuts = Arc::clone(&self.cuts);
        let ended = tokio::task::spawn_blocking(move || {
            let last = encoder.finish()?.cutter.finish();
            cuts.lock().unwrap_or_else(PoisonError::into_inner).push(last);
            Ok(())
        });
        ended
            .await
            .map_err(|_| gone())?
            .map_err(|error: io::Error| unpackable(&error))?;
        self.send().await?;
        Ok(Written {
            raw: self.raw.finish(),
            objects: self.objects,
        })
    }
}

/// Begins an upload, in a task of its own: when the export is stopped meanwhile, the store may have begun
/// it already, and it is aborted as soon as its name is known.
async fn start(
    store: Arc<dyn Store>,
    key: ObjectKey,
    content_type: &'static str,
) -> Result<Arc<dyn Upload>, StoreError> {
    let (answer, answered) = oneshot::channel();
    tokio::spawn(async move {
        if let Err(Ok(upload)) = answer.send(store.start_upload(&key, content_type).await)
            && let Err(error) = upload.abort().await
        {
            tracing::warn!(%key, %error, "an upload could not be aborted; a sweep will in a day");
        }
    });
    answered
        .await
        .unwrap_or_else(|error| Err(StoreError::permanent("start an upload", error.to_string())))
}

fn failed(error: StoreError) -> JobError {
    crate::backup::sweep::store_error("store the export".to_owned(), error)
}

fn unpackable(error: &io::Error) -> JobError {
    JobError::permanent("pack the export", error.to_string())
}

fn gone() -> JobError {
    JobError::permanent("pack the export", "its thread ended early")
}
