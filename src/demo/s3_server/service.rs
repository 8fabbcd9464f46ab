//! What the server does for each call: `s3s-fs`, made as strict as AWS where a client can tell.
//!
//! `s3s-fs` alone cannot list open uploads, publishes a body before it checks its digest, takes any
//! tag for a part, ends an upload whose Complete it refuses, and lets two conditional writes win.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumAlgorithm, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput,
    DeleteObjectOutput, GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput, GetObjectOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput,
    ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsV2Input, ListObjectsV2Output, ListPartsInput,
    ListPartsOutput, MultipartUpload, PutObjectInput, PutObjectOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

use super::body::{bad_digest, verified};
use super::uploads::{Uploaded, UploadedPart};

/// The server's objects and uploads.
#[derive(Debug)]
pub(super) struct Bucket {
    files: FileSystem,
    pub(super) root: PathBuf,
    /// One lock a key, so that of two conditional writes one sees the other's object.
    keys: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// What `s3s-fs` does not keep of the uploads that this process began.
    pub(super) uploads: Mutex<HashMap<String, Uploaded>>,
}

impl Bucket {
    /// Serves the buckets (directories) in `root`.
    pub(super) fn new(root: PathBuf) -> io::Result<Self> {
        Ok(Self {
            files: FileSystem::new(&root).map_err(|error| io::Error::other(format!("{error:?}")))?,
            root,
            keys: Mutex::default(),
            uploads: Mutex::default(),
        })
    }

    /// `s3s-fs` makes a bucket of whatever it is asked to write to; AWS does not.
    fn require_bucket(&self, name: &str) -> S3Result<()> {
        if self.root.join(name).is_dir() {
            return Ok(());
        }
        Err(s3_error!(NoSuchBucket, "The specified bucket does not exist"))
    }

    async fn lock(&self, bucket: &str, key: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(keys.entry(format!("{bucket}/{key}")).or_default())
        };
        lock.lock_owned().await
    }
}

#[async_trait::async_trait]
impl S3 for Bucket {
    async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.require_bucket(&req.input.bucket)?;
        let _lock = self.lock(&req.input.bucket, &req.input.key).await;
        let body = req.input.body.take().ok_or_else(|| s3_error!(IncompleteBody))?;
        let (body, failed) = verified(body, req.input.content_md5.clone(), req.input.checksum_sha256.clone());
        req.input.body = Some(body);
        self.files
            .put_object(req)
            .await
            .map_err(|error| bad_digest(&failed, error))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.require_bucket(&req.input.bucket)?;
        let algorithm = req.input.checksum_algorithm.clone();
        let sha256 = algorithm.is_some_and(|algorithm| algorithm.as_str() == ChecksumAlgorithm::SHA256);
        let response = self.files.create_multipart_upload(req).await?;
        if let Some(id) = response.output.upload_id.clone() {
            let upload = Uploaded {
                sha256,
                parts: BTreeMap::new(),
            };
            self.uploads
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(id, upload);
        }
        Ok(response)
    }

    async fn upload_part(&self, mut req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let id = req.input.upload_id.clone();
        self.require_upload(&id)?;
        let number = req.input.part_number;
        let sha256 = req.input.checksum_sha256.clone();
        if self.uploaded(&id, |upload| upload.sha256 != sha256.is_some()) == Some(true) {
            return Err(s3_error!(
                InvalidRequest,
                "Checksum Type mismatch occurred between CreateMultipartUpload and UploadPart"
            ));
        }
        let body = req.input.body.take().ok_or_else(|| s3_error!(IncompleteBody))?;
        let (body, failed) = verified(body, req.input.content_md5.clone(), sha256.clone());
        req.input.body = Some(body);
        let mut response = self
            .files
            .upload_part(req)
            .await
            .map_err(|error| bad_digest(&failed, error))?;
        let e_tag = response.output.e_tag.as_ref().map(|tag| tag.value().to_owned());
        response.output.checksum_sha256.clone_from(&sha256);
        self.uploaded(&id, |upload| {
            upload.parts.insert(number, UploadedPart { e_tag, sha256 })
        });
        Ok(response)
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let _lock = self.lock(&req.input.bucket, &req.input.key).await;
        let id = req.input.upload_id.clone();
        self.require_upload(&id)?;
        self.check_complete(&req.input)?;
        let response = match self.assemble(&req.input).await? {
            Some(output) => S3Response::new(output),
            None => self.files.complete_multipart_upload(req).await?,
        };
        self.forget(&id);
        Ok(response)
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let id = req.input.upload_id.clone();
        self.require_upload(&id)?;
        let response = self.files.abort_multipart_upload(req).await?;
        self.forget(&id);
        Ok(response)
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = req.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        let limit = usize::try_from(input.max_uploads.unwrap_or(1000))
            .unwrap_or(1000)
            .clamp(1, 1000);
        let key_marker = input.key_marker.clone().unwrap_or_default();
        let id_marker = input.upload_id_marker.clone().unwrap_or_default();
        let mut open = self
            .open_uploads(&input.bucket, &prefix)
            .map_err(|error| s3_error!(error, InternalError))?;
        open.retain(|(key, id, _)| *key > key_marker || !id_marker.is_empty() && *key == key_marker && *id > id_marker);
        let truncated = open.len() > limit;
        open.truncate(limit);
        let last = open.last().filter(|_| truncated).cloned();
        let uploads = open.into_iter().map(|(key, id, initiated)| MultipartUpload {
            key: Some(key),
            upload_id: Some(id),
            initiated: Some(initiated),
            ..MultipartUpload::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            prefix: input.prefix,
            key_marker: input.key_marker,
            upload_id_marker: input.upload_id_marker,
            is_truncated: Some(truncated),
            next_key_marker: last.as_ref().map(|last| last.0.clone()),
            next_upload_id_marker: last.map(|last| last.1),
            uploads: Some(uploads.collect()),
            ..ListMultipartUploadsOutput::default()
        }))
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        self.require_upload(&req.input.upload_id)?;
        self.files.list_parts(req).await
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let wanted = req.input.if_match.clone();
        let response = self.files.get_object(req).await?;
        let tag = response.output.e_tag.as_ref();
        match wanted.as_ref().and_then(|condition| condition.as_etag()) {
            Some(wanted) if !tag.is_some_and(|tag| tag.strong_cmp(wanted)) => Err(s3_error!(PreconditionFailed)),
            _ => Ok(response),
        }
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.files.head_object(req).await
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let _lock = self.lock(&req.input.bucket, &req.input.key).await;
        self.files.delete_object(req).await
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.files.list_objects_v2(req).await
    }

    async fn list_buckets(&self, req: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        self.files.list_buckets(req).await
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.files.head_bucket(req).await
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.files.get_bucket_location(req).await
    }
}
