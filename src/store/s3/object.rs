//! Objects in one piece: created, looked at, deleted.

use aws_sdk_s3::primitives::DateTime;
use jiff::Timestamp;
use tokio_util::bytes::Bytes;
use uuid::Uuid;

use super::failure::{CONFLICT, Failure};
use super::limits::attempts;
use super::{IDENTITY, S3Store};
use crate::store::{Deleted, ObjectInfo, ObjectKey, StoreError, StoreErrorKind};

impl S3Store {
    /// Where the server does not look for itself whether a key is taken: there is no condition that
    /// it honours.
    pub(super) async fn refuse_taken(
        &self,
        operation: &str,
        key: &ObjectKey,
        condition: Option<&str>,
    ) -> Result<(), StoreError> {
        if condition.is_none() && self.look(operation, key).await?.is_some() {
            let cause = "an object with this key exists already";
            return Err(StoreError::new(StoreErrorKind::Exists, operation, cause));
        }
        Ok(())
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
        let condition = self.create_if();
        self.refuse_taken(&operation, key, condition.as_deref()).await?;
        let identity = Uuid::now_v7().simple().to_string();
        let sum = self.sum(&operation, body.clone()).await?;
        let (manner, locked) = (self.manner(), self.manner().locked(key));
        let sent = attempts(&operation, self.limits().of_object(body.len()), || async {
            let answer = self
                .client()
                .put_object()
                .bucket(self.bucket())
                .key(self.full_key(key))
                .content_type(content_type)
                .metadata(IDENTITY, &identity)
                .set_checksum_sha256(sum.sha256.clone())
                .set_checksum_crc32(sum.crc32.clone())
                .set_content_md5(sum.md5.clone())
                .set_server_side_encryption(manner.encryption.clone())
                .set_ssekms_key_id(manner.kms_key.clone())
                .set_object_lock_mode(locked.mode.clone())
                .set_object_lock_retain_until_date(locked.until)
                .set_if_none_match(condition.clone())
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

    pub(super) async fn remove(&self, key: &ObjectKey) -> Result<Deleted, StoreError> {
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
            Ok(answer) if answer.delete_marker == Some(true) => Ok(Deleted::VersionStays),
            Err(failed) if failed.code != "NoSuchKey" => Err(failed.error),
            _ => Ok(Deleted::Gone),
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
