//! What the server knows of uploads, and what it checks before it completes one.

use std::collections::BTreeMap;
use std::io;
use std::sync::PoisonError;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use s3s::dto::{CompleteMultipartUploadInput, CompletedPart, Timestamp};
use s3s::{S3Result, s3_error};
use uuid::Uuid;

use super::service::Bucket;

/// The smallest part but the last.
const SMALLEST_PART: i64 = 5 * 1024 * 1024;

/// What a client must repeat in Complete.
#[derive(Debug, Default)]
pub(super) struct Uploaded {
    pub(super) sha256: bool,
    pub(super) parts: BTreeMap<i32, UploadedPart>,
}

#[derive(Debug)]
pub(super) struct UploadedPart {
    pub(super) e_tag: Option<String>,
    pub(super) sha256: Option<String>,
}

impl Bucket {
    pub(super) fn uploaded<T>(&self, id: &str, act: impl FnOnce(&mut Uploaded) -> T) -> Option<T> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.get_mut(id).map(act)
    }

    pub(super) fn forget(&self, id: &str) {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    pub(super) fn require_upload(&self, id: &str) -> S3Result<()> {
        let known =
            Uuid::try_parse(id).is_ok_and(|id| self.root.join(format!(".upload-{}.json", id.hyphenated())).exists());
        if known { Ok(()) } else { Err(s3_error!(NoSuchUpload)) }
    }

    /// All that AWS checks before it touches an upload; `s3s-fs` would end the upload first.
    pub(super) fn check_complete(&self, input: &CompleteMultipartUploadInput) -> S3Result<()> {
        let id = &input.upload_id;
        let parts: &[CompletedPart] = input
            .multipart_upload
            .as_ref()
            .and_then(|upload| upload.parts.as_deref())
            .unwrap_or_default();
        let mut total = 0_i64;
        for (index, part) in parts.iter().enumerate() {
            let number = part.part_number.unwrap_or_default();
            if usize::try_from(number) != Ok(index + 1) {
                return Err(s3_error!(InvalidPartOrder));
            }
            let file = self.root.join(format!(".upload_id-{id}.part-{number}"));
            let bytes = file.metadata().map_err(|_| s3_error!(InvalidPart))?.len();
            let bytes = i64::try_from(bytes).map_err(|_| s3_error!(InvalidPart))?;
            if index + 1 < parts.len() && bytes < SMALLEST_PART {
                return Err(s3_error!(EntityTooSmall));
            }
            total = total.saturating_add(bytes);
            self.uploaded(id, |upload| check_part(upload, number, part))
                .transpose()?;
        }
        match input.mpu_object_size {
            Some(promised) if promised != total => Err(s3_error!(InvalidRequest, "the parts have {total} bytes")),
            _ => Ok(()),
        }
    }

    /// The open uploads of a bucket, by key, then by identity, as `s3s-fs` has them on disk.
    pub(super) fn open_uploads(&self, bucket: &str, prefix: &str) -> io::Result<Vec<(String, String, Timestamp)>> {
        let start = format!(".bucket-{}.object-", URL_SAFE_NO_PAD.encode(bucket));
        let mut found = Vec::new();
        for entry in self.root.read_dir()? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let parsed = name
                .strip_prefix(&start)
                .and_then(|rest| rest.strip_suffix(".metadata.json"))
                .and_then(|rest| rest.split_once(".upload-"))
                .and_then(|(key, id)| {
                    Some((
                        String::from_utf8(URL_SAFE_NO_PAD.decode(key).ok()?).ok()?,
                        id.to_owned(),
                    ))
                });
            if let Some((key, id)) = parsed
                && key.starts_with(prefix)
                && self.require_upload(&id).is_ok()
            {
                // An upload that ended since the directory was read is not open.
                if let Ok(metadata) = entry.metadata() {
                    found.push((key, id, Timestamp::from(metadata.modified()?)));
                }
            }
        }
        found.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        Ok(found)
    }
}

fn check_part(upload: &Uploaded, number: i32, part: &CompletedPart) -> S3Result<()> {
    let known = upload.parts.get(&number).ok_or_else(|| s3_error!(InvalidPart))?;
    if upload.sha256 && part.checksum_sha256.is_none() {
        return Err(s3_error!(
            InvalidRequest,
            "The upload was created using a sha256 checksum. The complete request must include the checksum for each part. It was missing for part {number} in the request."
        ));
    }
    let tag = part.e_tag.as_ref().map(|tag| tag.value().to_owned());
    if tag != known.e_tag || part.checksum_sha256.is_some() && part.checksum_sha256 != known.sha256 {
        return Err(s3_error!(InvalidPart));
    }
    Ok(())
}
