//! S3 over a network that fails.

use std::time::{Duration, Instant};

use pgreeve::demo::s3_server::{S3Server, write_credentials};
use pgreeve::store::s3::{Limits, S3Store};
use pgreeve::store::{Checksum, ObjectKey, Part, S3Settings, Store, StoreError, StoreErrorKind, Upload};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use super::conformance::{PART, body, key, read};
use crate::support::fault_proxy::{Call, Fault, FaultProxy};

pub(super) const PREFIX: &str = "backups/db1";
const SLOW_DOWN: &str =
    "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>";
const INTERNAL: &str = "<?xml version=\"1.0\"?><Error><Code>InternalError</Code><Message>Try again.</Message></Error>";
const DENIED: &str = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
const CONFLICT: &str =
    "<?xml version=\"1.0\"?><Error><Code>ConditionalRequestConflict</Code><Message>Conflict.</Message></Error>";

/// Short enough for a test, long enough for a busy machine.
pub(super) fn limits() -> Limits {
    Limits {
        connect: Duration::from_secs(2),
        attempt: Duration::from_millis(1500),
        slowest: 4 << 20,
        complete: Duration::from_secs(2),
        call: Duration::from_secs(5),
        part: Duration::from_secs(6),
        first_wait: Duration::from_millis(10),
        longest_wait: Duration::from_millis(100),
        resumes: 3,
    }
}

/// For a store that never gets better.
fn impatient() -> Limits {
    Limits {
        attempt: Duration::from_millis(300),
        complete: Duration::from_millis(300),
        call: Duration::from_secs(1),
        part: Duration::from_secs(1),
        longest_wait: Duration::from_millis(20),
        ..limits()
    }
}

/// A bucket behind a proxy.
pub(super) struct Network {
    pub(super) proxy: FaultProxy,
    pub(super) store: S3Store,
    server: S3Server,
    directory: TempDir,
}

impl Network {
    pub(super) async fn start() -> Self {
        Self::start_with(limits()).await
    }

    async fn start_with(limits: Limits) -> Self {
        Self::start_as(limits, |_| {}).await
    }

    pub(super) async fn start_summing(checksum: Checksum) -> Self {
        Self::start_as(limits(), |settings| settings.checksum = checksum).await
    }

    pub(super) async fn start_as(limits: Limits, change: impl FnOnce(&mut S3Settings)) -> Self {
        let directory = TempDir::new().unwrap();
        let server = S3Server::start(directory.path()).await.unwrap();
        let proxy = FaultProxy::start(&server).await;
        let mut settings = proxy.settings(&server, PREFIX);
        change(&mut settings);
        Self {
            store: S3Store::open_with(&settings, limits).await.unwrap(),
            proxy,
            server,
            directory,
        }
    }

    /// An upload with one part, ready to be completed.
    pub(super) async fn uploaded(&self, key: &ObjectKey) -> (std::sync::Arc<dyn Upload>, Vec<Part>) {
        let upload = self.store.start_upload(key, "application/gzip").await.unwrap();
        let part = upload.put_part(1, body(1, 1000)).await.unwrap();
        (upload, vec![part])
    }

    fn count(&self, matches: impl Fn(&Call) -> bool) -> usize {
        self.proxy.calls(matches).len()
    }
}

pub(super) fn told(error: &StoreError) -> String {
    format!("{error} / {}", error.remedy.as_deref().unwrap_or_default())
}

#[tokio::test]
async fn a_part_that_meets_two_503_is_sent_a_third_time() {
    let network = Network::start().await;
    network
        .proxy
        .fault(2, Fault::Answer(503, SLOW_DOWN), |call| call.is_part(1));
    let (upload, parts) = network.uploaded(&key("app/data")).await;
    upload.complete(parts).await.unwrap();
    assert_eq!(network.count(|call| call.is_part(1)), 3);
    assert_eq!(read(&network.store, &key("app/data")).await, body(1, 1000));
}

#[tokio::test]
async fn a_connection_cut_before_the_server_saw_a_part_is_no_failure() {
    let network = Network::start().await;
    network.proxy.fault(1, Fault::CutBefore, |call| call.is_part(1));
    network.proxy.fault(1, Fault::CutAfter, |call| call.is_part(1));
    let (upload, parts) = network.uploaded(&key("app/data")).await;
    upload.complete(parts).await.unwrap();
    assert_eq!(network.count(|call| call.is_part(1)), 3);
}

#[tokio::test]
async fn a_store_that_answers_503_for_ever_fails_the_part_in_bounded_time() {
    let network = Network::start_with(impatient()).await;
    let upload = network
        .store
        .start_upload(&key("app/data"), "text/plain")
        .await
        .unwrap();
    network
        .proxy
        .fault(u32::MAX, Fault::Answer(503, SLOW_DOWN), |call| call.is_part(1));
    let started = Instant::now();
    let error = upload.put_part(1, body(1, 1000)).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Transient, "{error}");
    assert!(error.to_string().contains("SlowDown"), "{error}");
    assert!(
        error
            .to_string()
            .contains("part 1 of s3://pgreeve-demo/backups/db1/app/data"),
        "{error}"
    );
    assert!(
        started.elapsed() < impatient().part + Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    // It went on for its time, not for three attempts.
    assert!(network.count(|call| call.is_part(1)) > 3);
    upload.abort().await.unwrap();
    assert_eq!(network.store.list_uploads("").await.unwrap(), []);
}

#[tokio::test]
async fn a_peer_that_never_answers_fails_the_call_in_bounded_time() {
    let network = Network::start_with(impatient()).await;
    network.proxy.fault(u32::MAX, Fault::Silence, |_| true);
    let started = Instant::now();
    let error = network.store.head(&key("app/x")).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Transient, "{error}");
    assert!(told(&error).contains("no answer within"), "{}", told(&error));
    assert!(told(&error).contains("network"), "{}", told(&error));
    assert!(
        started.elapsed() < impatient().call + Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_peer_that_stops_reading_a_part_is_tried_again() {
    let network = Network::start().await;
    network.proxy.fault(1, Fault::StopReading, |call| call.is_part(1));
    let upload = network
        .store
        .start_upload(&key("app/data"), "text/plain")
        .await
        .unwrap();
    // More than the sockets hold.
    let part = upload.put_part(1, body(1, 2 * PART)).await.unwrap();
    upload.complete(vec![part]).await.unwrap();
    assert_eq!(network.count(|call| call.is_part(1)), 2);
    assert_eq!(read(&network.store, &key("app/data")).await, body(1, 2 * PART));
}

#[tokio::test]
async fn a_complete_whose_answer_is_lost_has_succeeded() {
    let network = Network::start().await;
    let (upload, parts) = network.uploaded(&key("app/data")).await;
    network.proxy.fault(1, Fault::CutAfter, Call::is_complete);
    upload.complete(parts).await.unwrap();
    // The second attempt found no upload any more; the object itself told.
    assert_eq!(network.count(Call::is_complete), 2);
    assert_eq!(read(&network.store, &key("app/data")).await, body(1, 1000));
    assert_eq!(network.store.list_uploads("").await.unwrap(), []);
}

#[tokio::test]
async fn an_object_of_somebody_else_is_not_taken_for_a_lost_answer() {
    let network = Network::start().await;
    let key = key("app/data");
    let (upload, parts) = network.uploaded(&key).await;
    // Of the same size, so only its identity tells it apart.
    network.store.create(&key, body(2, 1000), "text/plain").await.unwrap();
    network.proxy.fault(1, Fault::CutBefore, Call::is_complete);
    let error = upload.complete(parts).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Exists, "{error}");
    upload.abort().await.unwrap();
    assert_eq!(read(&network.store, &key).await, body(2, 1000));
}

#[tokio::test]
async fn a_create_whose_answer_is_lost_has_succeeded() {
    let network = Network::start().await;
    network.proxy.fault(1, Fault::CutAfter, Call::is_create);
    network
        .store
        .create(&key("app/manifest.json"), "{}".into(), "application/json")
        .await
        .unwrap();
    assert_eq!(network.count(Call::is_create), 2);
    let error = network
        .store
        .create(&key("app/manifest.json"), "{}".into(), "application/json")
        .await;
    assert_eq!(error.unwrap_err().kind, StoreErrorKind::Exists);
}

#[tokio::test]
async fn a_complete_answered_200_with_an_error_is_sent_again() {
    let network = Network::start().await;
    let (upload, parts) = network.uploaded(&key("app/data")).await;
    network.proxy.fault(2, Fault::Answer(200, INTERNAL), Call::is_complete);
    upload.complete(parts).await.unwrap();
    assert_eq!(network.count(Call::is_complete), 3);
    assert_eq!(read(&network.store, &key("app/data")).await, body(1, 1000));
}

#[tokio::test]
async fn a_complete_answered_200_with_an_error_for_ever_is_no_success() {
    let network = Network::start_with(impatient()).await;
    let (upload, parts) = network.uploaded(&key("app/data")).await;
    network
        .proxy
        .fault(u32::MAX, Fault::Answer(200, INTERNAL), Call::is_complete);
    let error = upload.complete(parts).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Transient, "{error}");
    assert_eq!(network.store.head(&key("app/data")).await.unwrap(), None);
}

#[tokio::test]
async fn a_conflict_at_complete_is_not_tried_again() {
    let network = Network::start().await;
    let (upload, parts) = network.uploaded(&key("app/data")).await;
    network.proxy.fault(1, Fault::Answer(409, CONFLICT), Call::is_complete);
    let error = upload.complete(parts).await.unwrap_err();
    assert!(told(&error).contains("do the upload again"), "{}", told(&error));
    assert_eq!(network.count(Call::is_complete), 1);
    upload.abort().await.unwrap();
}

#[tokio::test]
async fn an_abort_that_meets_a_fault_leaves_no_upload() {
    let network = Network::start().await;
    let (upload, _) = network.uploaded(&key("app/data")).await;
    network.proxy.fault(1, Fault::CutAfter, |call| call.method == "DELETE");
    upload.abort().await.unwrap();
    assert_eq!(network.store.list_uploads("").await.unwrap(), []);
}

#[tokio::test]
async fn a_broken_read_is_resumed_where_it_broke() {
    let network = Network::start().await;
    let key = key("app/data");
    network
        .store
        .create(&key, body(7, 3 << 20), "text/plain")
        .await
        .unwrap();
    network.proxy.fault(1, Fault::CutAnswer(1_000_000), Call::is_read);
    network.proxy.fault(1, Fault::StallAnswer(300_000), Call::is_read);
    assert_eq!(read(&network.store, &key).await, body(7, 3 << 20));
    let reads = network.proxy.calls(Call::is_read);
    assert_eq!(reads.len(), 3);
    assert!(
        reads[1..]
            .iter()
            .all(|call| call.header("range").is_some() && call.header("if-match").is_some())
    );
}

#[tokio::test]
async fn a_slow_read_is_no_failure() {
    let network = Network::start().await;
    let key = key("app/data");
    network
        .store
        .create(&key, body(7, 300_000), "text/plain")
        .await
        .unwrap();
    network.proxy.fault(1, Fault::SlowAnswer(150_000), Call::is_read);
    assert_eq!(read(&network.store, &key).await, body(7, 300_000));
    assert_eq!(network.count(Call::is_read), 1);
}

#[tokio::test]
async fn a_read_that_never_gets_on_ends_in_an_error() {
    let network = Network::start().await;
    let key = key("app/data");
    network
        .store
        .create(&key, body(7, 3 << 20), "text/plain")
        .await
        .unwrap();
    network.proxy.fault(u32::MAX, Fault::CutAnswer(20_000), Call::is_read);
    let mut found = Vec::new();
    let mut reader = network.store.open(&key).await.unwrap();
    let error = reader.read_to_end(&mut found).await.unwrap_err();
    assert!(error.to_string().contains("app/data"), "{error}");
    assert!(found.len() < 3 << 20);
    assert_eq!(network.count(Call::is_read), 1 + limits().resumes as usize);
}

#[tokio::test]
async fn an_object_replaced_while_it_is_read_is_not_patched_together() {
    let network = Network::start().await;
    let key = key("app/data");
    network
        .store
        .create(&key, body(7, 3 << 20), "text/plain")
        .await
        .unwrap();
    network.proxy.fault(1, Fault::CutAnswer(1_000_000), Call::is_read);
    let mut reader = network.store.open(&key).await.unwrap();
    network.store.delete(&key).await.unwrap();
    network
        .store
        .create(&key, body(8, 3 << 20), "text/plain")
        .await
        .unwrap();
    let error = reader.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("replaced"), "{error}");
}

#[tokio::test]
async fn a_wrong_secret_is_denied_with_a_remedy() {
    let network = Network::start().await;
    let file = network.directory.path().join("wrong");
    for (access_key, secret, remedy) in [
        (network.server.access_key(), "another-secret", "secret"),
        ("NOBODY", network.server.secret_key(), "access key"),
    ] {
        write_credentials(&file, access_key, secret).unwrap();
        let settings = S3Settings {
            credentials_file: Some(file.clone()),
            ..network.server.settings(PREFIX)
        };
        let store = S3Store::open_with(&settings, limits()).await.unwrap();
        let error = store.probe().await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Denied, "{}", told(&error));
        assert!(error.remedy.as_ref().unwrap().contains(remedy), "{}", told(&error));
        assert!(!told(&error).contains(secret) && !format!("{store:?}").contains(secret));
    }
}

#[tokio::test]
async fn rotated_credentials_count_from_the_next_opening_on() {
    let network = Network::start().await;
    let file = network.directory.path().join("rotated");
    write_credentials(&file, network.server.access_key(), "old").unwrap();
    let settings = S3Settings {
        credentials_file: Some(file.clone()),
        ..network.server.settings(PREFIX)
    };
    let old = S3Store::open_with(&settings, limits()).await.unwrap();
    assert!(old.probe().await.is_err());
    write_credentials(&file, network.server.access_key(), network.server.secret_key()).unwrap();
    S3Store::open_with(&settings, limits())
        .await
        .unwrap()
        .probe()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_denied_call_is_not_tried_again() {
    let network = Network::start().await;
    network
        .proxy
        .fault(u32::MAX, Fault::Answer(403, DENIED), Call::is_create);
    let error = network
        .store
        .create(&key("x"), "x".into(), "text/plain")
        .await
        .unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
    assert!(told(&error).contains("s3:PutObject"), "{}", told(&error));
    assert_eq!(network.count(|_| true), 1);
}

#[tokio::test]
async fn an_unreachable_endpoint_is_transient_and_named() {
    let network = Network::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let settings = S3Settings {
        endpoint: Some(endpoint.clone()),
        ..network.server.settings(PREFIX)
    };
    let store = S3Store::open_with(&settings, impatient()).await.unwrap();
    let error = store.probe().await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Transient, "{error}");
    assert!(error.remedy.as_ref().unwrap().contains(&endpoint), "{}", told(&error));
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_before_anything_is_sent() {
    let network = Network::start().await;
    let good = network.server.settings(PREFIX);
    let missing = S3Settings {
        credentials_file: Some(network.directory.path().join("no-such-file")),
        ..good.clone()
    };
    let error = S3Store::open_with(&missing, limits()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("no-such-file"), "{error}");
    for endpoint in ["127.0.0.1:9000", "ftp://host", "https://user:hunter2@host", ""] {
        let wrong = S3Settings {
            endpoint: Some(endpoint.to_owned()),
            ..good.clone()
        };
        let error = S3Store::open_with(&wrong, limits()).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Permanent, "{endpoint}");
        assert!(!told(&error).contains("hunter2"));
    }
    let empty = network.directory.path().join("empty");
    std::fs::write(&empty, "[other]\n").unwrap();
    let without = S3Settings {
        credentials_file: Some(empty),
        ..good
    };
    let error = S3Store::open_with(&without, limits()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Denied, "{}", told(&error));
}

#[tokio::test]
async fn a_missing_bucket_is_named_with_a_remedy() {
    let network = Network::start().await;
    let settings = S3Settings {
        bucket: "no-such-bucket".to_owned(),
        ..network.server.settings(PREFIX)
    };
    let store = S3Store::open_with(&settings, limits()).await.unwrap();
    let error = store.list("").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
    assert!(told(&error).contains("create the bucket"), "{}", told(&error));
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_looked_at_before_each_write() {
    let network = Network::start().await;
    // A server that ignores the condition says that it created the probe's object once more.
    let seen = std::sync::atomic::AtomicU32::new(0);
    network.proxy.fault(1, Fault::Answer(200, ""), move |call| {
        call.is_create()
            && call.path.contains(".pgreeve-probes/")
            && seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1
    });
    network.store.probe().await.unwrap();
    let key = key("app/manifest.json");
    network.store.create(&key, "first".into(), "text/plain").await.unwrap();
    let sent = network
        .proxy
        .calls(|call| call.is_create() && call.path.ends_with("manifest.json"));
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].header("if-none-match"), None);
    let error = network
        .store
        .create(&key, "second".into(), "text/plain")
        .await
        .unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Exists, "{error}");
    let (upload, parts) = network.uploaded(&key).await;
    assert_eq!(upload.complete(parts).await.unwrap_err().kind, StoreErrorKind::Exists);
    upload.abort().await.unwrap();
    assert_eq!(read(&network.store, &key).await, b"first");
}

#[tokio::test]
async fn bodies_are_sent_whole_with_a_digest_and_never_encoded() {
    let network = Network::start().await;
    let (upload, parts) = network.uploaded(&key("app/data")).await;
    upload.complete(parts).await.unwrap();
    network
        .store
        .create(&key("app/manifest.json"), "{}".into(), "application/json")
        .await
        .unwrap();
    for call in network.proxy.calls(|call| call.method == "PUT") {
        assert!(call.header("content-md5").is_some(), "{call:?}");
        assert!(call.header("content-length").is_some(), "{call:?}");
        for absent in [
            "content-encoding",
            "transfer-encoding",
            "x-amz-trailer",
            "x-amz-sdk-checksum-algorithm",
            "x-amz-checksum-crc32",
        ] {
            assert_eq!(call.header(absent), None, "{call:?}");
        }
    }
    let completes = network.proxy.calls(Call::is_complete);
    assert_eq!(completes[0].header("if-none-match"), Some("*"));
}

#[tokio::test]
async fn a_list_of_more_than_one_page_is_whole() {
    let network = Network::start().await;
    let bucket = network
        .directory
        .path()
        .join("s3")
        .join(network.server.bucket())
        .join(PREFIX);
    std::fs::create_dir_all(bucket.join("app")).unwrap();
    for number in 0..2345 {
        std::fs::write(bucket.join(format!("app/{number:05}")), "x").unwrap();
    }
    let found = network.store.list("app").await.unwrap();
    assert_eq!(found.len(), 2345);
    assert!(found.is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(network.count(|call| call.parameter("list-type").is_some()), 3);
}

#[tokio::test]
async fn a_list_of_open_uploads_of_more_than_one_page_is_whole() {
    let network = Network::start().await;
    let opened = network
        .store
        .start_upload(&key("app/data"), "text/plain")
        .await
        .unwrap();
    let (first, root) = (opened.open_upload().id, network.directory.path().join("s3"));
    // The server's own files, many times: starting as many uploads would take long.
    let files: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(&first))
        .collect();
    assert_eq!(files.len(), 2, "{files:?}");
    for _ in 0..2344 {
        let id = uuid::Uuid::now_v7().to_string();
        for file in &files {
            std::fs::copy(root.join(file), root.join(file.replace(&first, &id))).unwrap();
        }
    }
    let open = network.store.list_uploads("app").await.unwrap();
    let ids: std::collections::BTreeSet<_> = open.iter().map(|upload| &upload.id).collect();
    assert_eq!((open.len(), ids.len()), (2345, 2345));
    assert_eq!(
        network.count(|call| call.parameter("uploads").is_some() && call.method == "GET"),
        3
    );
}

#[tokio::test]
async fn as_on_aws_an_upload_announces_its_sums_and_its_size() {
    let network = Network::start_summing(Checksum::Sha256).await;
    let (upload, parts) = network.uploaded(&key("app/data")).await;
    upload.complete(parts).await.unwrap();
    let start = &network.proxy.calls(|call| call.method == "POST" && !call.is_complete())[0];
    assert_eq!(start.header("x-amz-checksum-algorithm"), Some("SHA256"));
    let part = &network.proxy.calls(|call| call.is_part(1))[0];
    assert!(part.header("x-amz-checksum-sha256").is_some());
    // With it and without a sum of its own making, the SDK would send what AWS refuses.
    assert_eq!(part.header("x-amz-sdk-checksum-algorithm"), None);
    let complete = &network.proxy.calls(Call::is_complete)[0];
    assert_eq!(complete.header("x-amz-mp-object-size"), Some("1000"));
}

#[tokio::test]
async fn a_part_changed_on_its_way_is_refused_and_sent_again() {
    for checksum in [Checksum::Md5, Checksum::Sha256] {
        let network = Network::start_summing(checksum).await;
        network.proxy.fault(1, Fault::Corrupt, |call| call.is_part(1));
        let (upload, parts) = network.uploaded(&key("app/data")).await;
        upload.complete(parts).await.unwrap();
        assert_eq!(network.count(|call| call.is_part(1)), 2);
        assert_eq!(read(&network.store, &key("app/data")).await, body(1, 1000));
    }
}

#[tokio::test]
async fn as_on_aws_small_parts_are_refused_and_the_upload_stays_open() {
    let network = Network::start().await;
    let upload = network
        .store
        .start_upload(&key("app/data"), "text/plain")
        .await
        .unwrap();
    let small = upload.put_part(1, body(1, PART - 1)).await.unwrap();
    let last = upload.put_part(2, body(2, 10)).await.unwrap();
    let error = upload.complete(vec![small, last.clone()]).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains("EntityTooSmall"), "{error}");
    let large = upload.put_part(1, body(1, PART)).await.unwrap();
    upload.complete(vec![large, last]).await.unwrap();
    assert_eq!(read(&network.store, &key("app/data")).await.len(), PART + 10);
}
