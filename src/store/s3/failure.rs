//! What an answer of S3, or the lack of one, means, and what an operator can do about it.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::store::{StoreError, StoreErrorKind};

/// A failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    /// What the caller is told if this was the last attempt.
    pub(super) error: StoreError,
    /// Whether the same call may succeed.
    pub(super) again: bool,
    /// S3's name for it; empty when there was no answer.
    pub(super) code: String,
}

/// Two writers met at one key; S3 wants the whole of it done again.
pub(super) const CONFLICT: &str = "ConditionalRequestConflict";

impl Failure {
    /// Says how often it was tried.
    pub(super) fn after(mut self, attempts: u32) -> Self {
        if attempts > 1 {
            self.error.cause = format!("{} (the last of {attempts} attempts)", self.error.cause);
        }
        self
    }
}

/// Reads a failed call.
pub(super) fn failure<E>(operation: &str, endpoint: &str, error: &SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + Error + 'static,
{
    if let SdkError::ServiceError(answer) = error {
        let meta = answer.err().meta();
        return answered(
            operation,
            answer.raw().status().as_u16(),
            meta.code().unwrap_or_default(),
            meta.message().unwrap_or_default(),
        );
    }
    let (kind, remedy) = match error {
        SdkError::ConstructionFailure(_) => (
            StoreErrorKind::Permanent,
            "check the endpoint, the bucket's name and the credentials in the configuration".to_owned(),
        ),
        SdkError::DispatchFailure(dispatch) if dispatch.is_user() => (
            StoreErrorKind::Permanent,
            format!("check that {endpoint} is a correct endpoint"),
        ),
        _ => (
            StoreErrorKind::Transient,
            format!("check that {endpoint} is right and can be reached from this host (name, port, firewall, TLS)"),
        ),
    };
    Failure {
        // The outermost text only names the SDK's stage.
        error: StoreError::new(kind, operation, error.source().map_or_else(|| error.to_string(), chain))
            .with_remedy(remedy),
        again: kind == StoreErrorKind::Transient,
        code: String::new(),
    }
}

/// Reads an answer that is an error. `HEAD` answers have no code, only a status.
fn answered(operation: &str, status: u16, code: &str, message: &str) -> Failure {
    let (kind, remedy) = meaning(status, code);
    let mut cause = match (code, message) {
        ("", _) => format!("HTTP status {status}"),
        (code, "") => code.to_owned(),
        (code, message) => format!("{code}: {message}"),
    };
    // Some servers explain at length.
    if let Some((end, _)) = cause.char_indices().nth(400) {
        cause.truncate(end);
    }
    let error = StoreError {
        remedy: remedy.map(str::to_owned),
        ..StoreError::new(kind, operation, cause)
    };
    Failure {
        error,
        again: kind == StoreErrorKind::Transient && code != CONFLICT,
        code: code.to_owned(),
    }
}

fn meaning(status: u16, code: &str) -> (StoreErrorKind, Option<&'static str>) {
    use StoreErrorKind::{Denied, Exists, NotFound, Permanent, Transient};
    match code {
        "NoSuchBucket" => (NotFound, Some("check the bucket's name and its region, or create the bucket")),
        "NoSuchKey" | "NoSuchUpload" | "NotFound" => (NotFound, None),
        "PreconditionFailed" => (Exists, None),
        CONFLICT => (Transient, Some("another writer met this key at the same moment; do the upload again")),
        "InvalidAccessKeyId" | "NotSignedUp" => (Denied, Some("the store does not know the access key; check its id")),
        "SignatureDoesNotMatch" => (Denied, Some("check the secret that belongs to the access key")),
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
            (Denied, Some("the session token is over; renew it, or use a role or credential_process"))
        }
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => (
            Denied,
            Some("allow s3:PutObject, s3:GetObject, s3:DeleteObject, s3:AbortMultipartUpload, s3:ListBucket, s3:ListBucketMultipartUploads and s3:ListMultipartUploadParts on the bucket and its prefix"),
        ),
        "RequestTimeTooSkewed" => (Permanent, Some("set this host's clock; S3 refuses a difference above 15 minutes")),
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
            (Permanent, Some("set `region` to the bucket's own region"))
        }
        "SlowDown" | "ServiceUnavailable" | "InternalError" | "RequestTimeout" | "OperationAborted" | "Throttling"
        | "ThrottlingException" | "RequestLimitExceeded" | "TooManyRequests" | "XMinioServerNotInitialized"
        // The body was changed on its way.
        | "BadDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" => (Transient, None),
        "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" => {
            (Permanent, Some("make room in the store, or keep fewer backups"))
        }
        _ => match status {
            404 => (NotFound, None),
            412 => (Exists, None),
            401 | 403 => (Denied, Some("check the access key, its secret and its rights on the bucket")),
            301 | 307 => (Permanent, Some("set `region` to the bucket's own region")),
            400 if code.is_empty() => {
                (Permanent, Some("check `region`, the credentials and this host's clock; the store gave no reason"))
            }
            408 | 429 | 500 | 502..=599 => (Transient, None),
            _ => (Permanent, None),
        },
    }
}

/// An error with its causes, without what repeats.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_has_its_kind_and_known_ones_a_remedy() {
        use StoreErrorKind::{Denied, Exists, NotFound, Permanent, Transient};
        for (status, code, kind, remedy) in [
            (403, "SignatureDoesNotMatch", Denied, "secret"),
            (403, "InvalidAccessKeyId", Denied, "access key"),
            (403, "AccessDenied", Denied, "s3:PutObject"),
            (403, "", Denied, "rights"),
            (403, "RequestTimeTooSkewed", Permanent, "clock"),
            (301, "PermanentRedirect", Permanent, "region"),
            (400, "AuthorizationHeaderMalformed", Permanent, "region"),
            (400, "", Permanent, "region"),
            (404, "NoSuchBucket", NotFound, "bucket"),
            (404, "", NotFound, ""),
            (412, "", Exists, ""),
            (409, CONFLICT, Transient, "again"),
            (503, "SlowDown", Transient, ""),
            (200, "InternalError", Transient, ""),
            (500, "", Transient, ""),
            (501, "NotImplemented", Permanent, ""),
            (400, "EntityTooSmall", Permanent, ""),
        ] {
            let failed = answered("put x", status, code, "because");
            assert_eq!(failed.error.kind, kind, "{status} {code}");
            let told = failed.error.remedy.unwrap_or_default();
            assert!(told.contains(remedy), "{status} {code}: {told}");
            assert_eq!(failed.again, kind == Transient && code != CONFLICT, "{status} {code}");
        }
    }

    #[test]
    fn a_long_explanation_is_cut_between_characters() {
        let failed = answered("put x", 400, "Odd", &"é".repeat(1000));
        assert_eq!(failed.error.cause.chars().count(), 400);
    }
}
