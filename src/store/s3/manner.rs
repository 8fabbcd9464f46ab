//! How a bucket stores what is created in it: encrypted, in a storage class, locked.

use std::time::SystemTime;

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockMode, ServerSideEncryption, StorageClass};

use crate::store::probe::is_probe;
use crate::store::{Encryption, LockMode, ObjectKey, ObjectLock, S3Settings};

/// What goes along with each object, as far as the settings say.
#[derive(Debug, Clone, Default)]
pub(super) struct Manner {
    pub(super) encryption: Option<ServerSideEncryption>,
    pub(super) kms_key: Option<String>,
    pub(super) storage_class: Option<StorageClass>,
    pub(super) lock: Option<ObjectLock>,
}

/// How one object is locked.
#[derive(Debug, Clone, Default)]
pub(super) struct Locked {
    pub(super) mode: Option<ObjectLockMode>,
    pub(super) until: Option<DateTime>,
}

impl Manner {
    pub(super) fn of(settings: &S3Settings) -> Self {
        let (encryption, kms_key) = match settings.encryption.clone() {
            None => (None, None),
            Some(Encryption::Aes256) => (Some(ServerSideEncryption::Aes256), None),
            Some(Encryption::Kms(key)) => (Some(ServerSideEncryption::AwsKms), key),
            Some(Encryption::KmsTwice(key)) => (Some(ServerSideEncryption::AwsKmsDsse), key),
        };
        Self {
            encryption,
            kms_key,
            storage_class: settings.storage_class.as_deref().map(StorageClass::from),
            lock: settings.object_lock,
        }
    }

    /// The lock of an object that is created now.
    pub(super) fn locked(&self, key: &ObjectKey) -> Locked {
        let Some(lock) = self.lock.filter(|_| !is_probe(key)) else {
            return Locked::default();
        };
        Locked {
            mode: Some(match lock.mode {
                LockMode::Governance => ObjectLockMode::Governance,
                LockMode::Compliance => ObjectLockMode::Compliance,
            }),
            until: SystemTime::now().checked_add(lock.period).map(DateTime::from),
        }
    }
}
