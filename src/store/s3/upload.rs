//! A multipart upload to S3.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio_util::bytes::Bytes;
use uuid::Uuid;

use super::checksum::Sum;
use super::failure::{CONFLICT, Failure};
use super::limits::attempts;
use super::{IDENTITY, S3Store};
use crate::store::{ObjectKey, OpenUpload, Part, StoreError, StoreErrorKind, Upload, check_parts};

/// The most parts S3 takes.
const MOST_PARTS: u32 = 10_000;

/// How often an upload is aborted until the store has no part of it: an abort may miss a part that
/// is on its way.
const ABORTS: u32 = 4;

/// An upload in progress.
#[derive(Debug)]
pub(super) struct S3Upload {
    store: S3Store,
    open: OpenUpload,
    /// What the object will carry, to know it again when an answer is lost.
    identity: String,
    /// AWS wants each part's sum once more in Complete.
    sums: Mutex<BTreeMap<u32, Sum>>,
}

impl S3Upload {
    pub(super) async fn start(store: S3Store, key: &ObjectKey, content_type: &str) -> Result<Self, StoreError> {
        let operation = store.operation("start the upload of", key);
        let identity = Uuid::now_v7().simple().to_string();
        let (manner, locked) = (store.manner(), store.manner().locked(key));
        let answer = attempts(&operation, store.limits().of_call(), || async {
            store
                .client()
                .create_multipart_upload()
                .bucket(store.bucket())
                .key(store.full_key(key))
                .content_type(content_type)
                .metadata(IDENTITY, &identity)
                .set_checksum_algorithm(store.announced())
                .set_server_side_encryption(manner.encryption.clone())
                .set_ssekms_key_id(manner.kms_key.clone())
                .set_storage_class(manner.storage_class.clone())
                .set_object_lock_mode(locked.mode.clone())
                .set_object_lock_retain_until_date(locked.until)
                .send()
                .await
                .map_err(|error| store.failure(&operation, &error))
        })
        .await
        .map_err(|failed| failed.error)?;
        let id = answer
            .upload_id
            .ok_or_else(|| StoreError::permanent(&operation, "the store did not name the upload"))?;
        Ok(Self {
            store,
            open: OpenUpload {
                key: key.clone(),
                id,
                started: Some(Timestamp::now()),
            },
            identity,
            sums: Mutex::default(),
        })
    }

    async fn send_part(&self, number: u32, body: Bytes) -> Result<Part, StoreError> {
        let operation = self.store.operation(&format!("send part {number} of"), &self.open.key);
        let part_number = i32::try_from(number)
            .ok()
            .filter(|_| (1..=MOST_PARTS).contains(&number))
            .ok_or_else(|| {
                StoreError::permanent(&operation, format!("parts are numbered from 1 to {MOST_PARTS}"))
                    .with_remedy("make the parts larger")
            })?;
        let sum = self.store.sum(&operation, body.clone()).await?;
        let answer = attempts(&operation, self.store.limits().of_part(body.len()), || async {
            let request = self
                .store
                .client()
                .upload_part()
                .bucket(self.store.bucket())
                .key(self.store.full_key(&self.open.key))
                .upload_id(&self.open.id)
                .part_number(part_number)
                .set_checksum_sha256(sum.sha256.clone())
                .set_checksum_crc32(sum.crc32.clone())
                .set_content_md5(sum.md5.clone())
                .body(body.clone().into())
                .customize();
            // The signature covers the header with the body's SHA-256; to sign the body too is to compute the
            // same digest again, here and at the server.
            let request = match sum.sha256 {
                Some(_) => request.disable_payload_signing(),
                None => request,
            };
            request
                .send()
                .await
                .map_err(|error| self.store.failure(&operation, &error))
        })
        .await
        .map_err(|failed| failed.error)?;
        let tag = answer
            .e_tag
            .ok_or_else(|| StoreError::permanent(&operation, "the store did not tag the part"))?;
        if self.store.announced().is_some() {
            let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
            sums.insert(number, sum);
        }
        Ok(Part {
            number,
            tag,
            bytes: u64::try_from(body.len()).unwrap_or(u64::MAX),
        })
    }

    async fn finish(&self, parts: Vec<Part>) -> Result<(), StoreError> {
        let operation = self.store.operation("complete the upload of", &self.open.key);
        let total = check_parts(&operation, &parts)?;
        let condition = self.store.complete_if();
        self.store
            .refuse_taken(&operation, &self.open.key, condition.as_deref())
            .await?;
        match self.send_complete(&operation, &parts, total, condition).await {
            Ok(()) => {}
            // The answer may have been lost after the object was made; then the next attempt finds
            // no upload, or an object.
            Err(failed) if failed.code != CONFLICT && failed.error.kind.may_have_happened() => {
                if !self.store.is_made(&self.open.key, total, &self.identity).await {
                    return Err(failed.error);
                }
            }
            Err(failed) => return Err(failed.error),
        }
        let (found, _) = self
            .store
            .look(&operation, &self.open.key)
            .await?
            .ok_or_else(|| StoreError::permanent(&operation, "the store completed it, but has no such object"))?;
        if found.bytes != total {
            let cause = format!("the object has {} bytes, but its parts have {total}", found.bytes);
            return Err(StoreError::permanent(&operation, cause)
                .with_remedy("do not trust this object; delete it and ask the store's operator what happened"));
        }
        Ok(())
    }

    async fn send_complete(
        &self,
        operation: &str,
        parts: &[Part],
        total: u64,
        condition: Option<String>,
    ) -> Result<(), Failure> {
        let upload = self.completed(parts);
        // Other servers than AWS may not know it.
        let size = i64::try_from(total).ok().filter(|_| self.store.announced().is_some());
        attempts(operation, self.store.limits().of_complete(), || async {
            self.store
                .client()
                .complete_multipart_upload()
                .bucket(self.store.bucket())
                .key(self.store.full_key(&self.open.key))
                .upload_id(&self.open.id)
                .multipart_upload(upload.clone())
                .set_if_none_match(condition.clone())
                .set_mpu_object_size(size)
                .send()
                .await
                .map(drop)
                .map_err(|error| self.store.failure(operation, &error))
        })
        .await
    }

    fn completed(&self, parts: &[Part]) -> CompletedMultipartUpload {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = parts.iter().map(|part| {
            let sum = sums.get(&part.number).cloned().unwrap_or_default();
            CompletedPart::builder()
                .set_part_number(i32::try_from(part.number).ok())
                .e_tag(&part.tag)
                .set_checksum_sha256(sum.sha256)
                .set_checksum_crc32(sum.crc32)
                .build()
        });
        CompletedMultipartUpload::builder()
            .set_parts(Some(parts.collect()))
            .build()
    }
}

impl Upload for S3Upload {
    fn open_upload(&self) -> OpenUpload {
        self.open.clone()
    }

    fn put_part(&self, number: u32, body: Bytes) -> BoxFuture<'_, Result<Part, StoreError>> {
        self.send_part(number, body).boxed()
    }

    fn complete(&self, parts: Vec<Part>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.finish(parts).boxed()
    }

    fn abort(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        abort(&self.store, &self.open).boxed()
    }
}

/// Ends an upload, until the store has no part of it.
pub(super) async fn abort(store: &S3Store, upload: &OpenUpload) -> Result<(), StoreError> {
    let operation = store.operation("abort the upload of", &upload.key);
    for _ in 0..ABORTS {
        let aborted = attempts(&operation, store.limits().of_call(), || async {
            store
                .client()
                .abort_multipart_upload()
                .bucket(store.bucket())
                .key(store.full_key(&upload.key))
                .upload_id(&upload.id)
                .send()
                .await
                .map_err(|error| store.failure(&operation, &error))
        })
        .await;
        match aborted {
            Ok(_) => {}
            Err(failed) if failed.code == "NoSuchUpload" => return Ok(()),
            Err(failed) => return Err(failed.error),
        }
        let left = store
            .client()
            .list_parts()
            .bucket(store.bucket())
            .key(store.full_key(&upload.key))
            .upload_id(&upload.id)
            .send();
        // Only an answer that still knows the upload is a reason to go on: the abort itself was
        // acknowledged, and not every key may list parts.
        match tokio::time::timeout(store.limits().attempt, left).await {
            Ok(Ok(_)) => {}
            _ => return Ok(()),
        }
    }
    Err(
        StoreError::new(StoreErrorKind::Transient, operation, "the store still has parts of it")
            .with_remedy("set a lifecycle rule AbortIncompleteMultipartUpload on the bucket"),
    )
}
