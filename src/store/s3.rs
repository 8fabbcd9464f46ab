//! S3 as a store. The only file, with those below it, that names `aws_*`.

mod checksum;
mod connect;
mod failure;
mod find_out;
mod limits;
mod list;
mod manner;
mod object;
mod read;
mod upload;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
use self::manner::Manner;
use self::upload::S3Upload;
use super::{
    Capabilities, Checksum, Deleted, ObjectInfo, ObjectKey, OpenUpload, S3Settings, Store, StoreError, Upload, below,
};

/// The metadata that tells our object from another of the same name: `x-amz-meta-pgreeve-upload`.
const IDENTITY: &str = "pgreeve-upload";

/// A bucket, or the part of it below a prefix.
#[derive(Debug, Clone)]
pub struct S3Store(Arc<Bucket>);

#[derive(Debug)]
struct Bucket {
    connection: Connection,
    name: String,
    prefix: String,
    limits: Limits,
    /// Never [`Checksum::ByEndpoint`].
    checksum: Checksum,
    manner: Manner,
    /// Cleared when a probe finds that the server writes although it was told not to.
    conditional_create: AtomicBool,
    conditional_complete: AtomicBool,
}

impl S3Store {
    /// Opens a bucket with the usual time limits. Credentials are read anew; nothing is sent to the
    /// bucket yet.
    ///
    /// # Errors
    /// When no credentials or no region can be had, or the endpoint is not an address.
    pub async fn open(settings: &S3Settings) -> Result<Self, StoreError> {
        Self::open_with(settings, Limits::default()).await
    }

    /// The same with other time limits.
    ///
    /// # Errors
    /// As [`S3Store::open`].
    pub async fn open_with(settings: &S3Settings, limits: Limits) -> Result<Self, StoreError> {
        let connection = connect(settings, &limits).await?;
        Ok(Self(Arc::new(Bucket {
            checksum: match settings.checksum {
                Checksum::ByEndpoint if connection.is_aws => Checksum::Sha256,
                Checksum::ByEndpoint => Checksum::Md5,
                chosen => chosen,
            },
            connection,
            name: settings.bucket.clone(),
            prefix: settings.prefix.trim_matches('/').to_owned(),
            limits,
            manner: Manner::of(settings),
            conditional_create: AtomicBool::new(true),
            conditional_complete: AtomicBool::new(true),
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

    /// How objects are stored.
    fn manner(&self) -> &Manner {
        &self.0.manner
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

    /// The condition under which an object is created in one piece.
    fn create_if(&self) -> Option<String> {
        condition(&self.0.conditional_create)
    }

    /// The condition under which an upload is completed.
    fn complete_if(&self) -> Option<String> {
        condition(&self.0.conditional_complete)
    }
}

fn condition(honoured: &AtomicBool) -> Option<String> {
    honoured.load(Ordering::Relaxed).then(|| "*".to_owned())
}

impl Store for S3Store {
    fn describe(&self) -> String {
        format!(
            "s3://{}",
            [self.0.name.as_str(), &self.0.prefix].join("/").trim_end_matches('/')
        )
    }

    fn probe(&self) -> BoxFuture<'_, Result<Capabilities, StoreError>> {
        self.find_out().boxed()
    }

    fn locks_for(&self) -> Option<Duration> {
        self.manner().lock.map(|lock| lock.period)
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

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Deleted, StoreError>> {
        self.remove(key).boxed()
    }

    fn list_uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<OpenUpload>, StoreError>> {
        self.list_open(prefix).boxed()
    }

    fn abort_upload<'a>(&'a self, upload: &'a OpenUpload) -> BoxFuture<'a, Result<(), StoreError>> {
        upload::abort(self, upload).boxed()
    }
}
