//! What a bucket is capable of, found out by trying and by asking.

use std::sync::atomic::Ordering;

use aws_sdk_s3::types::{BucketVersioningStatus, ObjectLockEnabled};

use super::S3Store;
use super::limits::attempts;
use crate::store::{Capabilities, Store, StoreError, StoreErrorKind, probe};

/// A difference between the clocks from which on it is told. S3 refuses one of 15 minutes.
const TOLD_CLOCK_S: u64 = 300;

impl S3Store {
    /// Tries the bucket, and remembers what it does not honour.
    pub(super) async fn find_out(&self) -> Result<Capabilities, StoreError> {
        let probed = probe::probe(self).await?;
        let flags = [
            (&self.0.conditional_create, probed.conditional_create),
            (&self.0.conditional_complete, probed.conditional_complete),
        ];
        for (flag, honoured) in flags {
            flag.store(honoured, Ordering::Relaxed);
        }
        let place = self.describe();
        if !(probed.conditional_create && probed.conditional_complete) {
            tracing::warn!(
                store.place = %place,
                store.conditional_create = probed.conditional_create,
                store.conditional_complete = probed.conditional_complete,
                "conditional writes are not honoured by this store; pgreeve looks before it writes instead"
            );
        }
        if probed.clock_ahead_s.unsigned_abs() >= TOLD_CLOCK_S {
            tracing::warn!(
                store.place = %place,
                store.clock_ahead_s = probed.clock_ahead_s,
                "the clocks of this host and of the store differ; S3 refuses a difference of 15 minutes"
            );
        }
        let object_lock = self.has_object_lock().await;
        if self.manner().lock.is_some() && object_lock == Some(false) {
            return Err(StoreError::permanent(
                format!("probe {place}"),
                "the bucket has no Object Lock, and `object_lock` is set",
            )
            .with_remedy("make a bucket with Object Lock, or leave `object_lock` out"));
        }
        Ok(Capabilities {
            conditional_create: probed.conditional_create,
            conditional_complete: probed.conditional_complete,
            checksum: self.checksum_word(),
            versioned: self.is_versioned().await,
            object_lock,
            clock_ahead_s: probed.clock_ahead_s,
        })
    }

    /// Not every server knows the question, and not every key may ask it.
    async fn is_versioned(&self) -> Option<bool> {
        let operation = format!("ask for the versioning of {}", self.describe());
        let answer = attempts(&operation, self.limits().of_call(), || async {
            self.client()
                .get_bucket_versioning()
                .bucket(self.bucket())
                .send()
                .await
                .map_err(|error| self.failure(&operation, &error))
        })
        .await
        .ok()?;
        Some(answer.status == Some(BucketVersioningStatus::Enabled))
    }

    async fn has_object_lock(&self) -> Option<bool> {
        let operation = format!("ask for the locks of {}", self.describe());
        let answer = attempts(&operation, self.limits().of_call(), || async {
            self.client()
                .get_object_lock_configuration()
                .bucket(self.bucket())
                .send()
                .await
                .map_err(|error| self.failure(&operation, &error))
        })
        .await;
        match answer {
            Ok(answer) => {
                let enabled = answer.object_lock_configuration?.object_lock_enabled;
                Some(enabled == Some(ObjectLockEnabled::Enabled))
            }
            Err(failed) if failed.error.kind == StoreErrorKind::NotFound => Some(false),
            Err(_) => None,
        }
    }
}
