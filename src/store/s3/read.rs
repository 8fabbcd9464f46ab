//! Reading an object: a transfer that breaks or stands still is resumed where it broke.

use std::io;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use futures::stream;
use tokio::io::AsyncRead;
use tokio::time::timeout;
use tokio_util::bytes::Bytes;
use tokio_util::io::StreamReader;

use super::S3Store;
use super::failure::{Failure, chain};
use super::limits::attempts;
use crate::store::{ObjectKey, StoreError, StoreErrorKind};

/// After so many bytes a transfer counts as working again.
const PROGRESS: u64 = 1024 * 1024;

/// An object being read.
struct Transfer {
    store: S3Store,
    key: ObjectKey,
    operation: String,
    /// The object as it was when the first byte was asked for.
    tag: Option<String>,
    total: u64,
    offset: u64,
    body: Option<ByteStream>,
    resumes: u32,
    resumed_at: u64,
}

/// Opens an object; the reader ends in an error if the object cannot be had whole.
pub(super) async fn open(store: &S3Store, key: &ObjectKey) -> Result<Box<dyn AsyncRead + Send + Unpin>, StoreError> {
    let operation = store.operation("read", key);
    let mut transfer = Transfer {
        store: store.clone(),
        key: key.clone(),
        operation,
        tag: None,
        total: 0,
        offset: 0,
        body: None,
        resumes: 0,
        resumed_at: 0,
    };
    let answer = transfer.get().await.map_err(|failed| failed.error)?;
    transfer.tag = answer.e_tag;
    transfer.total = answer
        .content_length
        .and_then(|bytes| u64::try_from(bytes).ok())
        .ok_or_else(|| StoreError::permanent(&transfer.operation, "the store does not say how long the object is"))?;
    transfer.body = Some(answer.body);
    let chunks = stream::try_unfold(transfer, |mut transfer| async move {
        let chunk = transfer.next().await.map_err(io::Error::other)?;
        Ok::<_, io::Error>(chunk.map(|chunk| (chunk, transfer)))
    });
    Ok(Box::new(StreamReader::new(Box::pin(chunks))))
}

impl Transfer {
    /// The next bytes, `None` after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            let problem = match &mut self.body {
                None => "the transfer broke".to_owned(),
                Some(body) => match timeout(self.store.limits().attempt, body.next()).await {
                    Ok(Some(Ok(chunk))) => return self.received(chunk).map(Some),
                    Ok(None) if self.offset == self.total => return Ok(None),
                    Ok(None) => "the transfer ended early".to_owned(),
                    Ok(Some(Err(error))) => chain(&error),
                    Err(_) => "the transfer stood still".to_owned(),
                },
            };
            self.resume(problem).await?;
        }
    }

    fn received(&mut self, chunk: Bytes) -> Result<Bytes, StoreError> {
        self.offset = self
            .offset
            .saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        if self.offset > self.total {
            let cause = format!("the store sent more than the {} bytes it promised", self.total);
            return Err(StoreError::permanent(&self.operation, cause));
        }
        if self.offset.saturating_sub(self.resumed_at) >= PROGRESS {
            self.resumes = 0;
        }
        Ok(chunk)
    }

    async fn resume(&mut self, problem: String) -> Result<(), StoreError> {
        self.body = None;
        self.resumes = self.resumes.saturating_add(1);
        if self.resumes > self.store.limits().resumes {
            let cause = format!(
                "{problem} at byte {} of {}, after {} attempts to resume it",
                self.offset,
                self.total,
                self.resumes - 1
            );
            return Err(StoreError::new(StoreErrorKind::Transient, &self.operation, cause));
        }
        tracing::warn!(
            store.offset = self.offset,
            store.error = %problem,
            "{} broke, resuming",
            self.operation
        );
        self.resumed_at = self.offset;
        let answer = self.get().await.map_err(|failed| self.explain(failed))?;
        let from = format!("bytes {}-", self.offset);
        if self.offset > 0 && !answer.content_range().is_some_and(|range| range.starts_with(&from)) {
            return Err(StoreError::permanent(
                &self.operation,
                format!("{problem}, and the store cannot resume it at byte {}", self.offset),
            ));
        }
        self.body = Some(answer.body);
        Ok(())
    }

    /// Asks for all that has not come yet, of the same object as before.
    async fn get(&self) -> Result<GetObjectOutput, Failure> {
        let range = (self.offset > 0).then(|| format!("bytes={}-", self.offset));
        attempts(&self.operation, self.store.limits().of_call(), || async {
            self.store
                .client()
                .get_object()
                .bucket(self.store.bucket())
                .key(self.store.full_key(&self.key))
                .set_if_match(self.tag.clone())
                .set_range(range.clone())
                .send()
                .await
                .map_err(|error| self.store.failure(&self.operation, &error))
        })
        .await
    }

    fn explain(&self, failed: Failure) -> StoreError {
        match failed.error.kind {
            StoreErrorKind::Exists | StoreErrorKind::NotFound => StoreError::permanent(
                &self.operation,
                format!(
                    "the object was replaced or deleted after {} bytes were read",
                    self.offset
                ),
            ),
            _ => failed.error,
        }
    }
}
