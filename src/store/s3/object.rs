//! Objects in one piece: created, looked at, deleted.

use aws_sdk_s3::primitives::DateTime;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use md5::Md5;
use sha2::{Digest, Sha256};
use tokio_util::bytes::Bytes;
use uuid::Uuid;

use super::failure::{CONFLICT, Failure};
use super::limits::attempts;
use super::{IDENTITY, S3Store};
use crate::store::{ObjectInfo, ObjectKey, StoreError, StoreErrorKind};

/// What the store shall compare a body with.
pub(super) struct Checksum {
    pub(super) sha256: Option<String>,
    pub(super) md5: Option<String>,
}

impl S3Store {
    /// Where the server does not look for itself whether a key is taken.
    pub(super) async fn refuse_taken(&self, operation: &str, key: &ObjectKey) -> Result<(), StoreError> {
        if self.if_none_match().is_none() && self.look(operation, key).await?.is_some() {
            let cause = "an object with this key exists already";
            return Err(StoreError::new(StoreErrorKind::Exists, operation, cause));
        }
        Ok(())
    }

    /// Digests away from the runtime's threads: a part takes tens of milliseconds.
    pub(super) async fn checksum(&self, operation: &str, body: Bytes) -> Result<Checksum, StoreError> {
        let sha256 = self.sums_sha256();
        let digest = move || Checksum {
            sha256: sha256.then(|| STANDARD.encode(Sha256::digest(&body))),
            md5: (!sha256).then(|| STANDARD.encode(Md5::digest(&body))),
        };
        tokio::task::spawn_blocking(digest)
            .await
            .map_err(|error| StoreError::permanent(operation, format!("the digest was broken off: {error}")))
    }

    /// What the store says of an object, and whose it is.
    pub(super) async fn look(
        &self,
        operation: &str,
        key: &ObjectKey,
    ) -> Result<Option<(ObjectInfo, Option<String>)>, StoreError> {
        let answer = attempts(operation, self.limits().of_call(), || async {
            self.client()
                .head_object()
                .bucket(self.bucket())
                .key(self.full_key(key))
                .send()
                .await
                .map_err(|error| self.failure(operation, &error))
        })
        .await;
        match answer {
            Ok(answer) => {
                let identity = answer.metadata().and_then(|pairs| pairs.get(IDENTITY)).cloned();
                let info = info(key.clone(), answer.content_length, answer.last_modified.as_ref());
                Ok(Some((info, identity)))
            }
            Err(failed) if failed.error.kind == StoreErrorKind::NotFound => Ok(None),
            Err(failed) => Err(failed.error),
        }
    }

    /// Whether the object is there and ours, after an answer was lost.
    pub(super) async fn is_made(&self, key: &ObjectKey, bytes: u64, identity: &str) -> bool {
        let operation = self.operation("look for", key);
        match self.look(&operation, key).await {
            Ok(Some((found, Some(owner)))) => found.bytes == bytes && owner == identity,
            Ok(_) => false,
            Err(error) => {
                tracing::warn!(store.error = %error.cause, "{operation} failed, so it counts as not made");
                false
            }
        }
    }

    pub(super) async fn put(&self, key: &ObjectKey, body: Bytes, content_type: &str) -> Result<(), StoreError> {
        let operation = self.operation("create", key);
        self.refuse_taken(&operation, key).await?;
        let identity = Uuid::now_v7().simple().to_string();
        let sum = self.checksum(&operation, body.clone()).await?;
        let sent = attempts(&operation, self.limits().of_object(body.len()), || async {
            let answer = self
                .client()
                .put_object()
                .bucket(self.bucket())
                .key(self.full_key(key))
                .content_type(content_type)
                .metadata(IDENTITY, &identity)
                .set_checksum_sha256(sum.sha256.clone())
                .set_content_md5(sum.md5.clone())
                .set_if_none_match(self.if_none_match())
                .body(body.clone().into())
                .send()
                .await;
            answer.map(drop).map_err(|error| {
                let failed = self.failure(&operation, &error);
                // Unlike an upload in parts, this can simply be sent again.
                Failure {
                    again: failed.again || failed.code == CONFLICT,
                    ..failed
                }
            })
        })
        .await;
        let bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
        match sent {
            Err(failed) if !failed.error.kind.may_have_happened() || !self.is_made(key, bytes, &identity).await => {
                Err(failed.error)
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn remove(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let operation = self.operation("delete", key);
        let deleted = attempts(&operation, self.limits().of_call(), || async {
            self.client()
                .delete_object()
                .bucket(self.bucket())
                .key(self.full_key(key))
                .send()
                .await
                .map_err(|error| self.failure(&operation, &error))
        })
        .await;
        match deleted {
            Err(failed) if failed.code != "NoSuchKey" => Err(failed.error),
            _ => Ok(()),
        }
    }
}

impl StoreErrorKind {
    /// Whether the call may have done its work all the same, and only its answer was lost: a later
    /// attempt then finds the object there, or the upload gone.
    pub(super) fn may_have_happened(self) -> bool {
        matches!(self, Self::Transient | Self::Exists | Self::NotFound)
    }
}

pub(super) fn info(key: ObjectKey, bytes: Option<i64>, modified: Option<&DateTime>) -> ObjectInfo {
    ObjectInfo {
        key,
        bytes: bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default(),
        modified: modified.and_then(instant).unwrap_or(Timestamp::UNIX_EPOCH),
    }
}

pub(super) fn instant(time: &DateTime) -> Option<Timestamp> {
    Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).ok()?).ok()
}
