//! What goes along with each object, and what a probe finds out, as a proxy sees it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use pgreeve::store::{
    Checksum, Deleted, Encryption, LockMode, ObjectLock, S3Settings, Store, StoreErrorKind, StoreSettings,
};

use super::conformance::key;
use super::s3::{Network, limits, told};
use crate::support::fault_proxy::{Call, Fault};

const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd";
const LOCK: Duration = Duration::from_hours(24 * 30);
const DENIED: &str = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>no</Message></Error>";
const NO_LOCK: &str = "<?xml version=\"1.0\"?><Error><Code>ObjectLockConfigurationNotFoundError</Code><Message>Object Lock configuration does not exist for this bucket</Message></Error>";
const WITH_LOCK: &str = "<?xml version=\"1.0\"?><ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>";
const VERSIONED: &str =
    "<?xml version=\"1.0\"?><VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";

fn starts_upload(call: &Call) -> bool {
    call.method == "POST" && call.query.contains("uploads")
}

fn locked(settings: &mut S3Settings) {
    settings.object_lock = Some(ObjectLock {
        mode: LockMode::Compliance,
        period: LOCK,
    });
}

fn asks(call: &Call, what: &str) -> bool {
    call.method == "GET" && call.query.split('&').any(|pair| pair.split('=').next() == Some(what))
}

#[tokio::test]
async fn encryption_class_and_lock_go_along_with_each_object() {
    let network = Network::start_as(limits(), |settings| {
        locked(settings);
        settings.encryption = Some(Encryption::Kms(Some(KEY.to_owned())));
        settings.storage_class = Some("STANDARD_IA".to_owned());
    })
    .await;
    let (upload, parts) = network.uploaded(&key("app/data")).await;
    upload.complete(parts).await.unwrap();
    let small = key("app/manifest.json");
    network.store.create(&small, "{}".into(), "text/plain").await.unwrap();
    let started = network.proxy.calls(starts_upload);
    let created = network.proxy.calls(Call::is_create);
    assert_eq!((started.len(), created.len()), (1, 1));
    for call in [&started[0], &created[0]] {
        assert_eq!(call.header("x-amz-server-side-encryption"), Some("aws:kms"));
        assert_eq!(call.header("x-amz-server-side-encryption-aws-kms-key-id"), Some(KEY));
        assert_eq!(call.header("x-amz-object-lock-mode"), Some("COMPLIANCE"));
        let until: Timestamp = call
            .header("x-amz-object-lock-retain-until-date")
            .unwrap()
            .parse()
            .unwrap();
        let ahead = until.as_second() - Timestamp::now().as_second() - i64::try_from(LOCK.as_secs()).unwrap();
        assert!((-60..=0).contains(&ahead), "{until}");
        // S3 takes no locked object without a sum.
        assert!(call.header("content-md5").is_some() || starts_upload(call));
    }
    // Small objects are read at each listing, for which the cheap classes ask a fee.
    assert_eq!(started[0].header("x-amz-storage-class"), Some("STANDARD_IA"));
    assert_eq!(created[0].header("x-amz-storage-class"), None);
    assert_eq!(network.store.locks_for(), Some(LOCK));
}

#[tokio::test]
async fn without_settings_the_bucket_decides() {
    let network = Network::start().await;
    let (upload, parts) = network.uploaded(&key("app/data")).await;
    upload.complete(parts).await.unwrap();
    for call in network.proxy.calls(|_| true) {
        let own = call.headers.iter().filter(|(name, _)| {
            name.starts_with("x-amz-server-side")
                || name.starts_with("x-amz-object-lock")
                || name == "x-amz-storage-class"
        });
        assert_eq!(own.count(), 0, "{call:?}");
    }
    assert_eq!(network.store.locks_for(), None);
}

#[tokio::test]
async fn a_checksum_is_sent_as_the_settings_say() {
    let headers = ["x-amz-checksum-sha256", "x-amz-checksum-crc32", "content-md5"];
    for (checksum, sent, announced) in [
        (Checksum::Sha256, Some(headers[0]), Some("SHA256")),
        (Checksum::Crc32, Some(headers[1]), Some("CRC32")),
        (Checksum::Md5, Some(headers[2]), None),
        (Checksum::None, None, None),
    ] {
        let network = Network::start_summing(checksum).await;
        let (upload, parts) = network.uploaded(&key("app/data")).await;
        upload.complete(parts).await.unwrap();
        let started = &network.proxy.calls(starts_upload)[0];
        assert_eq!(started.header("x-amz-checksum-algorithm"), announced);
        let part = &network.proxy.calls(|call| call.is_part(1))[0];
        for header in headers {
            assert_eq!(
                part.header(header).is_some(),
                sent == Some(header),
                "{header}: {part:?}"
            );
        }
        assert_eq!(part.header("x-amz-sdk-checksum-algorithm"), None);
    }
}

#[tokio::test]
async fn no_part_goes_without_a_signed_digest_and_none_is_digested_twice() {
    for checksum in [Checksum::Sha256, Checksum::Crc32, Checksum::Md5, Checksum::None] {
        let network = Network::start_summing(checksum).await;
        let (upload, parts) = network.uploaded(&key("app/data")).await;
        upload.complete(parts).await.unwrap();
        let part = &network.proxy.calls(|call| call.is_part(1))[0];
        let signed = part.header("authorization").unwrap();
        let signed = signed
            .split("SignedHeaders=")
            .nth(1)
            .unwrap()
            .split(',')
            .next()
            .unwrap();
        let body_is_signed = part.header("x-amz-content-sha256") != Some("UNSIGNED-PAYLOAD");
        let sum_is_signed = signed.split(';').any(|header| header == "x-amz-checksum-sha256");
        assert_eq!(
            (body_is_signed, sum_is_signed),
            (checksum != Checksum::Sha256, checksum == Checksum::Sha256),
            "{part:?}"
        );
    }
}

#[tokio::test]
async fn a_probe_finds_out_what_a_bucket_is_capable_of() {
    let network = Network::start_as(limits(), locked).await;
    network
        .proxy
        .fault(9, Fault::Answer(200, WITH_LOCK), |call| asks(call, "object-lock"));
    network
        .proxy
        .fault(9, Fault::Answer(200, VERSIONED), |call| asks(call, "versioning"));
    let found = network.store.probe().await.unwrap();
    assert!(found.conditional_create && found.conditional_complete, "{found:?}");
    assert_eq!((found.versioned, found.object_lock), (Some(true), Some(true)));
    assert_eq!((found.checksum, found.clock_ahead_s), ("md5", 0));
    // What a probe creates can be deleted again.
    for call in network.proxy.calls(|call| call.path.contains(".pgreeve-probes/")) {
        assert_eq!(call.header("x-amz-object-lock-mode"), None, "{call:?}");
    }
    assert!(network.store.list("").await.unwrap().is_empty());
    assert!(network.store.list_uploads("").await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_server_does_not_tell_is_unknown_and_no_failure() {
    let found = Network::start().await.store.probe().await.unwrap();
    assert_eq!((found.versioned, found.object_lock), (None, None));
}

#[tokio::test]
async fn a_bucket_without_locks_is_refused_where_objects_are_to_be_locked() {
    let network = Network::start_as(limits(), locked).await;
    network
        .proxy
        .fault(1, Fault::Answer(404, NO_LOCK), |call| asks(call, "object-lock"));
    let error = network.store.probe().await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Permanent);
    assert!(told(&error).contains("bucket with Object Lock"), "{}", told(&error));
}

#[tokio::test]
async fn a_store_that_honours_no_condition_at_complete_is_looked_at_before() {
    let network = Network::start().await;
    // The probe's Complete is the first one: this server says that it made the object once more.
    let done =
        "<?xml version=\"1.0\"?><CompleteMultipartUploadResult><ETag>\"x\"</ETag></CompleteMultipartUploadResult>";
    network.proxy.fault(1, Fault::Answer(200, done), Call::is_complete);
    let found = network.store.probe().await.unwrap();
    assert_eq!((found.conditional_create, found.conditional_complete), (true, false));
    let taken = key("app/data");
    network
        .store
        .create(&taken, "first".into(), "text/plain")
        .await
        .unwrap();
    let (upload, parts) = network.uploaded(&taken).await;
    let before = network.proxy.calls(Call::is_complete).len();
    assert_eq!(upload.complete(parts).await.unwrap_err().kind, StoreErrorKind::Exists);
    assert_eq!(network.proxy.calls(Call::is_complete).len(), before, "nothing was sent");
    upload.abort().await.unwrap();
}

#[tokio::test]
async fn a_key_that_may_not_list_or_abort_uploads_is_refused_before_any_work() {
    for (what, matches) in [
        (
            "list the open uploads",
            (|call: &Call| asks(call, "uploads")) as fn(&Call) -> bool,
        ),
        ("abort the upload", |call| {
            call.method == "DELETE" && call.query.contains("uploadId")
        }),
    ] {
        let network = Network::start().await;
        network.proxy.fault(u32::MAX, Fault::Answer(403, DENIED), matches);
        let error = network.store.probe().await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
        assert!(error.operation.contains(what), "{error}");
        assert!(told(&error).contains("s3:AbortMultipartUpload"), "{}", told(&error));
    }
}

#[tokio::test]
async fn a_deleted_object_of_a_versioned_bucket_is_hidden_and_not_gone() {
    let network = Network::start().await;
    let marker = Fault::AnswerWith(204, "x-amz-delete-marker: true\r\nx-amz-version-id: v1\r\n", "");
    network.proxy.fault(1, marker, |call| call.method == "DELETE");
    assert_eq!(
        network.store.delete(&key("app/a")).await.unwrap(),
        Deleted::VersionStays
    );
    assert_eq!(network.store.delete(&key("app/a")).await.unwrap(), Deleted::Gone);
}

#[tokio::test]
async fn a_probe_that_fails_leaves_nothing_behind() {
    let network = Network::start().await;
    let seen = AtomicU32::new(0);
    network.proxy.fault(1, Fault::Answer(403, DENIED), move |call| {
        call.is_read() && seen.fetch_add(1, Ordering::Relaxed) == 0
    });
    assert!(network.store.probe().await.is_err());
    assert!(network.store.list("").await.unwrap().is_empty());
    assert!(network.store.list_uploads("").await.unwrap().is_empty());
}

#[test]
fn parts_are_cut_as_the_settings_say() {
    let settings = S3Settings {
        part_bytes: Some(8 << 20),
        max_parts: Some(1000),
        ..S3Settings::default()
    };
    let store = StoreSettings::S3(Box::new(settings));
    assert_eq!((store.part_bytes(), store.max_parts()), (Some(8 << 20), Some(1000)));
}
