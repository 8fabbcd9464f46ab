//! S3 as a store. The only file, with those below it, that names `aws_*`.

mod connect;
mod failure;
mod limits;
mod list;
mod object;
mod read;
mod upload;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::AsyncRead;
use tokio_util::bytes::Bytes;

use self::connect::{Connection, connect};
use self::failure::{Failure, failure};
pub use self::limits::Limits;
use self::upload::S3Upload;
use super::{ObjectInfo, ObjectKey, OpenUpload, S3Settings, Store, StoreError, Upload, below, probe};

/// The metadata that tells our object from another of the same name: `x-amz-meta-pgreeve-upload`.
const IDENTITY: &str = "pgreeve-upload";

/// A bucket, or the part of it below a prefix.
#[derive(Debug, Clone)]
pub struct S3Store(Arc<Bucket>);

/// What a server compares each body with, so that none is stored that was changed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// SHA-256 for AWS, MD5 where an endpoint is given.
    ByEndpoint,
    /// `x-amz-checksum-sha256`, announced when an upload starts and repeated when it completes.
    Sha256,
    /// `Content-MD5`, which every server that speaks S3 knows.
    Md5,
}

#[derive(Debug)]
struct Bucket {
    connection: Connection,
    name: String,
    prefix: String,
    limits: Limits,
    sha256: bool,
    /// Cleared when a probe finds that the server writes although it was told not to.
    conditional: AtomicBool,
}

impl S3Store {
    /// Opens a bucket with the usual time limits. Credentials are read anew; nothing is sent to the
    /// bucket yet.
    ///
    /// # Errors
    /// When no credentials or no region can be had, or the endpoint is not an address.
    pub async fn open(settings: &S3Settings) -> Result<Self, StoreError> {
        Self::open_with(settings, Limits::default(), Checksums::ByEndpoint).await
    }

    /// The same with other time limits and checksums.
    ///
    /// # Errors
    /// As [`S3Store::open`].
    pub async fn open_with(settings: &S3Settings, limits: Limits, checksums: Checksums) -> Result<Self, StoreError> {
        let connection = connect(settings, &limits).await?;
        Ok(Self(Arc::new(Bucket {
            sha256: match checksums {
                Checksums::ByEndpoint => connection.is_aws,
                Checksums::Sha256 => true,
                Checksums::Md5 => false,
            },
            connection,
            name: settings.bucket.clone(),
            prefix: settings.prefix.trim_matches('/').to_owned(),
            limits,
            conditional: AtomicBool::new(true),
        })))
    }

    fn client(&self) -> &Client {
        &self.0.connection.client
    }

    fn bucket(&self) -> &str {
        &self.0.name
    }

    fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Whether parts and bodies carry a SHA-256 sum, and Complete what AWS compares with it.
    fn sums_sha256(&self) -> bool {
        self.0.sha256
    }

    fn full_key(&self, key: &ObjectKey) -> String {
        self.full(key.as_str())
    }

    fn full(&self, key: &str) -> String {
        if self.0.prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{}/{key}", self.0.prefix)
        }
    }

    /// What listed keys start with.
    fn listed(&self, prefix: &str) -> String {
        match (self.0.prefix.as_str(), prefix) {
            ("", "") => String::new(),
            (own, "") => format!("{own}/"),
            (_, prefix) => format!("{}/", self.full(prefix)),
        }
    }

    /// A listed key as the store's own; `None` for what was not made by a store.
    fn own_key(&self, full: &str) -> Option<ObjectKey> {
        ObjectKey::new(below(full, &self.0.prefix)?).ok()
    }

    fn operation(&self, what: &str, key: &ObjectKey) -> String {
        format!("{what} s3://{}/{}", self.0.name, self.full_key(key))
    }

    fn failure<E>(&self, operation: &str, error: &SdkError<E, HttpResponse>) -> Failure
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        failure(operation, &self.0.connection.endpoint, error)
    }

    fn if_none_match(&self) -> Option<String> {
        self.0.conditional.load(Ordering::Relaxed).then(|| "*".to_owned())
    }
}

impl Store for S3Store {
    fn describe(&self) -> String {
        format!(
            "s3://{}",
            [self.0.name.as_str(), &self.0.prefix].join("/").trim_end_matches('/')
        )
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            if !probe::probe(self).await? {
                self.0.conditional.store(false, Ordering::Relaxed);
                tracing::warn!(
                    store.place = %self.describe(),
                    "conditional writes are not honoured by this store; pgreeve looks before it writes instead"
                );
            }
            Ok(())
        }
        .boxed()
    }

    fn create<'a>(
        &'a self,
        key: &'a ObjectKey,
        body: Bytes,
        content_type: &'static str,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.put(key, body, content_type).boxed()
    }

    fn start_upload<'a>(
        &'a self,
        key: &'a ObjectKey,
        content_type: &'static str,
    ) -> BoxFuture<'a, Result<Arc<dyn Upload>, StoreError>> {
        async move {
            let upload = S3Upload::start(self.clone(), key, content_type).await?;
            Ok(Arc::new(upload) as Arc<dyn Upload>)
        }
        .boxed()
    }

    fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<ObjectInfo>, StoreError>> {
        async move {
            let found = self.look(&self.operation("look at", key), key).await?;
            Ok(found.map(|(info, _)| info))
        }
        .boxed()
    }

    fn open<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Box<dyn AsyncRead + Send + Unpin>, StoreError>> {
        read::open(self, key).boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        self.list_objects(prefix).boxed()
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<(), StoreError>> {
        self.remove(key).boxed()
    }

    fn list_uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<OpenUpload>, StoreError>> {
        self.list_open(prefix).boxed()
    }

    fn abort_upload<'a>(&'a self, upload: &'a OpenUpload) -> BoxFuture<'a, Result<(), StoreError>> {
        upload::abort(self, upload).boxed()
    }
}
