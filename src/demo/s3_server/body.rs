//! Bodies that are checked as they are written.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt, TryStreamExt, stream};
use md5::Md5;
use s3s::dto::StreamingBlob;
use s3s::{S3Error, s3_error};
use sha2::{Digest, Sha256};

/// A body that fails at its end when it does not have the digests its sender told, so that what was
/// written of it is thrown away. The flag says whether it failed.
pub(super) fn verified(
    body: StreamingBlob,
    content_md5: Option<String>,
    sha256: Option<String>,
) -> (StreamingBlob, Arc<Mutex<bool>>) {
    // What was not told is not computed: whatever the server computes, it takes from who sends.
    let hashes = Arc::new(Mutex::new((
        content_md5.map(|told| (told, Md5::new())),
        sha256.map(|told| (told, Sha256::new())),
    )));
    let failed = Arc::new(Mutex::new(false));
    let flag = Arc::clone(&failed);
    let update = Arc::clone(&hashes);
    let end = stream::once(async move {
        let (md5, sha) = std::mem::take(&mut *hashes.lock().unwrap_or_else(PoisonError::into_inner));
        if md5.is_some_and(|(told, hash)| told != STANDARD.encode(hash.finalize()))
            || sha.is_some_and(|(told, hash)| told != STANDARD.encode(hash.finalize()))
        {
            *flag.lock().unwrap_or_else(PoisonError::into_inner) = true;
            return Err(io::Error::other("the body does not have the digest its sender told"));
        }
        Ok(hyper::body::Bytes::new())
    });
    let body = body
        .inspect_ok(move |bytes| {
            let mut hashes = update.lock().unwrap_or_else(PoisonError::into_inner);
            let (md5, sha) = &mut *hashes;
            if let Some((_, hash)) = md5 {
                hash.update(bytes);
            }
            if let Some((_, hash)) = sha {
                hash.update(bytes);
            }
        })
        .map_err(io::Error::other)
        .chain(end);
    (StreamingBlob::wrap(Box::pin(body)), failed)
}

/// The error of a body that failed its check, else the error that was.
pub(super) fn bad_digest(failed: &Mutex<bool>, error: S3Error) -> S3Error {
    if *failed.lock().unwrap_or_else(PoisonError::into_inner) {
        s3_error!(BadDigest)
    } else {
        error
    }
}
