//! The last stage: parts to the store, three at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::bytes::Bytes;

use super::part_writer::Ready;
use super::{Job, PipelineError, Stage, Verdict};
use crate::backup::digest::Measure;
use crate::store::{ObjectKey, Part, Store, StoreError, StoreErrorKind, Upload};

/// How many parts are sent at once.
pub(super) const PARTS_IN_FLIGHT: usize = 3;

/// Objects whose bytes the store has, and which do not exist until they are completed. Dropped,
/// they are given up.
#[derive(Debug, Default)]
pub struct Open {
    objects: Vec<OpenObject>,
}

/// One of them.
#[derive(Debug)]
pub struct OpenObject {
    /// Its key.
    pub key: ObjectKey,
    /// Its size and digest.
    pub measure: Measure,
    /// How many parts it has; 0 for one piece.
    pub parts: u32,
    pending: Pending,
}

#[derive(Debug)]
enum Pending {
    /// A dump smaller than a part: sent in one piece when it is completed.
    Whole(Bytes),
    Parts(Arc<dyn Upload>, Vec<Part>),
}

impl Open {
    /// The objects, in their order.
    #[must_use]
    pub fn objects(&self) -> &[OpenObject] {
        &self.objects
    }

    /// Makes all objects exist. On an error the rest is still to be aborted.
    ///
    /// # Errors
    /// When the store does not make one of them exist.
    pub async fn complete(&mut self, store: &dyn Store, content_type: &'static str) -> Result<(), StoreError> {
        while let Some(object) = self.objects.first() {
            match &object.pending {
                Pending::Whole(body) => match store.create(&object.key, body.clone(), content_type).await {
                    // The answer to an earlier attempt was lost: only we write below this prefix,
                    // and the size is compared next.
                    Err(error) if error.kind == StoreErrorKind::Exists => {}
                    result => result?,
                },
                Pending::Parts(upload, parts) => upload.complete(parts.clone()).await?,
            }
            self.objects.remove(0);
        }
        Ok(())
    }

    /// Gives up all objects that are not complete. What cannot be given up now is left to the sweep.
    pub async fn abort(&mut self) {
        for object in std::mem::take(&mut self.objects) {
            if let Pending::Parts(upload, _) = object.pending {
                abort(upload.as_ref()).await;
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.objects.is_empty() {
            return;
        }
        let mut left = Self {
            objects: std::mem::take(&mut self.objects),
        };
        // Without a runtime the sweep at the next start does it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { left.abort().await });
        } else {
            left.objects.clear();
        }
    }
}

async fn abort(upload: &dyn Upload) {
    if let Err(error) = upload.abort().await {
        tracing::warn!(key = %upload.open_upload().key, %error, "an upload could not be aborted; the next sweep will");
    }
}

/// The stage's state.
pub(super) struct Sender {
    job: Job,
    verdict: Verdict,
    uploads: BTreeMap<u32, Sending>,
    whole: Option<(ObjectKey, Bytes, Measure)>,
    /// An upload that the store has been asked for and has not named yet: it may exist already, so
    /// nobody may walk away from it.
    starting: Option<JoinHandle<Result<Arc<dyn Upload>, StoreError>>>,
    in_flight: FuturesUnordered<BoxFuture<'static, Result<(u32, Part), StoreError>>>,
}

struct Sending {
    key: ObjectKey,
    upload: Arc<dyn Upload>,
    parts: Vec<Part>,
    measure: Option<Measure>,
}

impl Sender {
    pub(super) fn new(job: Job, verdict: Verdict) -> Self {
        Self {
            job,
            verdict,
            uploads: BTreeMap::new(),
            whole: None,
            starting: None,
            in_flight: FuturesUnordered::new(),
        }
    }

    /// Sends all parts, or aborts every upload it began.
    pub(super) async fn run(mut self, from: mpsc::Receiver<Ready>) -> Option<Open> {
        let stop = self.verdict.stop.clone();
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            result = self.send_all(from) => Some(result),
        };
        match result {
            Some(Ok(())) if self.is_whole() => return Some(self.into_open()),
            Some(Err(error)) => self.verdict.fail(PipelineError::store(Stage::Upload, error)),
            // The stage before gave up, and has said why.
            Some(Ok(())) | None => {}
        }
        // No part may arrive after its upload is aborted.
        self.in_flight.clear();
        if let Some(starting) = self.starting.take()
            && let Ok(Ok(upload)) = starting.await
        {
            abort(upload.as_ref()).await;
        }
        for sending in self.uploads.into_values() {
            abort(sending.upload.as_ref()).await;
        }
        None
    }

    async fn send_all(&mut self, mut from: mpsc::Receiver<Ready>) -> Result<(), StoreError> {
        let mut open = true;
        while open || !self.in_flight.is_empty() {
            tokio::select! {
                ready = from.recv(), if open => match ready {
                    Some(ready) => self.accept(ready).await?,
                    None => open = false,
                },
                Some(sent) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    let (segment, part) = sent?;
                    if let Some(sending) = self.uploads.get_mut(&segment) {
                        sending.parts.push(part);
                    }
                }
            }
        }
        Ok(())
    }

    async fn accept(&mut self, Ready { cut, slot }: Ready) -> Result<(), StoreError> {
        let key = self.job.key(cut.segment)?;
        if self.job.whole && cut.segment == 1 && cut.number == 1 && cut.segment_end.is_some() {
            // Whether more segments follow does not matter: this one has a single part.
            self.whole = cut.segment_end.map(|measure| (key, cut.body, measure));
            return Ok(());
        }
        if !self.uploads.contains_key(&cut.segment) {
            let upload = self.start(key.clone()).await?;
            let sending = Sending {
                key,
                upload,
                parts: Vec::new(),
                measure: None,
            };
            self.uploads.insert(cut.segment, sending);
        }
        if let Some(sending) = self.uploads.get_mut(&cut.segment) {
            sending.measure = cut.segment_end;
            let upload = Arc::clone(&sending.upload);
            let pace = self.job.pace.clone();
            self.in_flight.push(Box::pin(async move {
                if let Some(pace) = pace {
                    pace.turn(cut.body.len()).await;
                }
                let part = upload.put_part(cut.number, cut.body).await?;
                drop(slot);
                Ok((cut.segment, part))
            }));
        }
        Ok(())
    }

    /// Begins an upload, in a task of its own that outlives this future.
    async fn start(&mut self, key: ObjectKey) -> Result<Arc<dyn Upload>, StoreError> {
        let (store, content_type) = (Arc::clone(&self.job.store), self.job.form.content_type());
        let task = tokio::spawn(async move { store.start_upload(&key, content_type).await });
        let started = self.starting.insert(task).await;
        self.starting = None;
        started.unwrap_or_else(|error| Err(StoreError::permanent("start an upload", error.to_string())))
    }

    /// Whether the last part came: every segment that was begun is measured.
    fn is_whole(&self) -> bool {
        let any = self.whole.is_some() || !self.uploads.is_empty();
        any && !self.verdict.stop.is_cancelled() && self.uploads.values().all(|sending| sending.measure.is_some())
    }

    fn into_open(self) -> Open {
        let whole = self.whole.map(|(key, body, measure)| OpenObject {
            key,
            measure,
            parts: 0,
            pending: Pending::Whole(body),
        });
        let parts = self.uploads.into_values().filter_map(|mut sending| {
            sending.parts.sort_by_key(|part| part.number);
            Some(OpenObject {
                key: sending.key,
                measure: sending.measure?,
                parts: u32::try_from(sending.parts.len()).unwrap_or(u32::MAX),
                pending: Pending::Parts(sending.upload, sending.parts),
            })
        });
        Open {
            objects: whole.into_iter().chain(parts).collect(),
        }
    }
}
