//! What every store must do, run against each of them.

use std::sync::Arc;

use futures::future::join_all;
use pgreeve::demo::s3_server::S3Server;
use pgreeve::store::s3::{Limits, S3Store};
use pgreeve::store::{Checksum, ObjectKey, OpenUpload, Part, S3Settings, Store, StoreErrorKind, StoreSettings};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio_util::bytes::Bytes;

/// The smallest part that S3 takes.
pub const PART: usize = 5 * 1024 * 1024;

/// A store and what it needs to live.
pub struct Home {
    pub store: Arc<dyn Store>,
    pub directory: TempDir,
    pub server: Option<S3Server>,
}

pub async fn file_home() -> Home {
    let directory = TempDir::new().unwrap();
    let settings = StoreSettings::File(directory.path().join("store"));
    Home {
        store: settings.open().await.unwrap(),
        directory,
        server: None,
    }
}

pub async fn s3_home() -> Home {
    let directory = TempDir::new().unwrap();
    let server = S3Server::start(directory.path()).await.unwrap();
    let settings = StoreSettings::S3(Box::new(server.settings("backups/db1")));
    Home {
        store: settings.open().await.unwrap(),
        directory,
        server: Some(server),
    }
}

/// A server that is spoken to as AWS is: it checks SHA-256 sums as AWS does.
pub async fn aws_home() -> Home {
    let directory = TempDir::new().unwrap();
    let server = S3Server::start(directory.path()).await.unwrap();
    let settings = S3Settings {
        checksum: Checksum::Sha256,
        ..server.settings("")
    };
    let opened = S3Store::open_with(&settings, Limits::default()).await;
    Home {
        store: Arc::new(opened.unwrap()),
        directory,
        server: Some(server),
    }
}

pub fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

/// Bytes that differ from place to place.
pub fn body(seed: u8, bytes: usize) -> Bytes {
    (0..bytes)
        .map(|at| seed.wrapping_add(u8::try_from(at % 251).unwrap()).wrapping_mul(31))
        .collect::<Vec<_>>()
        .into()
}

pub async fn read(store: &dyn Store, key: &ObjectKey) -> Vec<u8> {
    let mut found = Vec::new();
    store.open(key).await.unwrap().read_to_end(&mut found).await.unwrap();
    found
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    let found = store.list(prefix).await.unwrap();
    found.into_iter().map(|info| info.key.to_string()).collect()
}

async fn an_object_comes_back_as_it_was_created(store: &dyn Store) {
    let (key, body) = (key("app/nightly/01/manifest.json"), body(1, 70_000));
    let before = jiff::Timestamp::now();
    store.create(&key, body.clone(), "application/json").await.unwrap();
    assert_eq!(read(store, &key).await, body);
    let info = store.head(&key).await.unwrap().unwrap();
    assert_eq!((info.key, info.bytes), (key.clone(), 70_000));
    assert!(info.modified.duration_since(before).as_secs().abs() < 60);
    let empty = ObjectKey::new("app/empty").unwrap();
    store.create(&empty, Bytes::new(), "text/plain").await.unwrap();
    assert!(read(store, &empty).await.is_empty());
}

async fn an_object_is_never_replaced(store: &dyn Store) {
    let key = key("app/manifest.json");
    store.create(&key, "first".into(), "text/plain").await.unwrap();
    let error = store.create(&key, "second".into(), "text/plain").await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Exists, "{error}");
    let upload = store.start_upload(&key, "text/plain").await.unwrap();
    let part = upload.put_part(1, "third".into()).await.unwrap();
    let error = upload.complete(vec![part]).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Exists, "{error}");
    upload.abort().await.unwrap();
    assert_eq!(read(store, &key).await, b"first");
    assert_eq!(store.list_uploads("").await.unwrap(), []);
}

async fn of_eight_creates_at_once_exactly_one_wins(store: &dyn Store) {
    let key = key("app/race");
    let bodies: Vec<Bytes> = (0..8).map(|seed| body(seed, 100_000)).collect();
    let creates = bodies.iter().map(|body| store.create(&key, body.clone(), "text/plain"));
    let outcomes = join_all(creates).await;
    let winners: Vec<_> = (0..8).filter(|at| outcomes[*at].is_ok()).collect();
    assert_eq!(winners.len(), 1, "{outcomes:?}");
    for error in outcomes.into_iter().filter_map(Result::err) {
        assert_eq!(error.kind, StoreErrorKind::Exists, "{error}");
    }
    assert_eq!(read(store, &key).await, bodies[winners[0]]);
    assert_eq!(store.list_uploads("").await.unwrap(), []);
}

async fn parts_make_the_object_in_their_order_whenever_they_were_sent(store: &dyn Store) {
    let key = key("app/nightly/02/data.dump.gz");
    let bodies = [body(1, PART), body(2, PART), body(3, PART), body(4, 1234)];
    let upload = store.start_upload(&key, "application/gzip").await.unwrap();
    assert_eq!(store.head(&key).await.unwrap(), None, "an upload is not an object");
    let mut parts = Vec::new();
    // The last part first, by itself; then the others at the same time.
    parts.push(upload.put_part(4, bodies[3].clone()).await.unwrap());
    let sent = [3_u32, 1, 2].map(|number| upload.put_part(number, bodies[number as usize - 1].clone()));
    parts.extend(join_all(sent).await.into_iter().map(Result::unwrap));
    parts.sort_by_key(|part| part.number);
    upload.complete(parts).await.unwrap();
    assert_eq!(read(store, &key).await, bodies.concat());
    assert_eq!(store.head(&key).await.unwrap().unwrap().bytes, 3 * PART as u64 + 1234);
    assert_eq!(store.list_uploads("").await.unwrap(), []);
}

async fn a_part_sent_again_counts_once(store: &dyn Store) {
    let key = key("app/again");
    let upload = store.start_upload(&key, "text/plain").await.unwrap();
    let first = upload.put_part(1, body(1, PART)).await.unwrap();
    upload.put_part(2, body(9, 1000)).await.unwrap();
    let last = upload.put_part(2, body(2, 500)).await.unwrap();
    upload.complete(vec![first, last]).await.unwrap();
    assert_eq!(read(store, &key).await, [body(1, PART), body(2, 500)].concat());
}

async fn an_upload_of_other_parts_than_were_sent_is_refused(store: &dyn Store) {
    let key = key("app/refused");
    let upload = store.start_upload(&key, "text/plain").await.unwrap();
    let part = upload.put_part(1, body(1, 100)).await.unwrap();
    let invented = Part {
        tag: "d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        ..part.clone()
    };
    let second = Part {
        number: 2,
        ..part.clone()
    };
    for parts in [vec![], vec![invented], vec![second.clone()], vec![part, second]] {
        let error = upload.complete(parts.clone()).await.unwrap_err();
        assert!(error.to_string().contains("app/refused"), "{error}");
        assert_eq!(store.head(&key).await.unwrap(), None, "{parts:?}");
    }
    assert!(upload.put_part(0, body(1, 1)).await.is_err());
    upload.abort().await.unwrap();
}

async fn an_aborted_upload_leaves_nothing(store: &dyn Store) {
    let key = key("app/aborted");
    let upload = store.start_upload(&key, "text/plain").await.unwrap();
    upload.put_part(2, body(1, 1000)).await.unwrap();
    upload.put_part(1, body(1, PART)).await.unwrap();
    assert_eq!(store.list_uploads("app").await.unwrap().len(), 1);
    upload.abort().await.unwrap();
    upload.abort().await.unwrap();
    assert_eq!(store.list_uploads("").await.unwrap(), []);
    assert_eq!(store.list("").await.unwrap(), []);
    let error = upload.put_part(3, body(1, 10)).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
}

async fn listing_is_by_key_and_prefixes_end_at_a_slash(store: &dyn Store) {
    for text in ["app2/x", "app/b/z", "app/b-c", "app/a/x", "app-1", "app/b0"] {
        store.create(&key(text), "x".into(), "text/plain").await.unwrap();
    }
    let all = keys(store, "").await;
    let mut sorted = all.clone();
    sorted.sort();
    assert_eq!(all, sorted);
    assert_eq!(keys(store, "app").await, ["app/a/x", "app/b-c", "app/b/z", "app/b0"]);
    assert_eq!(keys(store, "app/b").await, ["app/b/z"]);
    assert_eq!(keys(store, "app2").await, ["app2/x"]);
    assert_eq!(keys(store, "ap").await, [""; 0]);
    assert_eq!(keys(store, "nothing/here").await, [""; 0]);
}

async fn open_uploads_are_listed_below_a_prefix_and_can_be_aborted(store: &dyn Store) {
    let mut ids = Vec::new();
    for text in ["app/01/data", "app/02/data", "app2/01/data"] {
        let upload = store.start_upload(&key(text), "text/plain").await.unwrap();
        upload.put_part(1, "x".into()).await.unwrap();
        ids.push(upload.open_upload().id);
    }
    let open = store.list_uploads("app").await.unwrap();
    let found: Vec<_> = open.iter().map(|upload| upload.key.as_str()).collect();
    assert_eq!(found, ["app/01/data", "app/02/data"]);
    assert_eq!(
        open.iter().map(|upload| upload.id.clone()).collect::<Vec<_>>(),
        ids[..2]
    );
    let age = jiff::Timestamp::now().duration_since(open[0].started.unwrap());
    assert!(age.as_secs().abs() < 60, "{age}");
    for upload in &open {
        store.abort_upload(upload).await.unwrap();
        store.abort_upload(upload).await.unwrap();
    }
    assert_eq!(store.list_uploads("app").await.unwrap(), []);
    assert_eq!(store.list_uploads("").await.unwrap().len(), 1);
    let never = OpenUpload {
        key: key("app/01/data"),
        id: "0190b8a0-0000-7000-8000-000000000000".to_owned(),
        started: None,
    };
    store.abort_upload(&never).await.unwrap();
}

async fn deleting_is_idempotent_and_takes_one_object_only(store: &dyn Store) {
    for text in ["app/01/data", "app/01/manifest.json"] {
        store.create(&key(text), "x".into(), "text/plain").await.unwrap();
    }
    for _ in 0..2 {
        store.delete(&key("app/01/data")).await.unwrap();
    }
    store.delete(&key("never/was")).await.unwrap();
    assert_eq!(keys(store, "").await, ["app/01/manifest.json"]);
    store.delete(&key("app/01/manifest.json")).await.unwrap();
    assert_eq!(keys(store, "").await, [""; 0]);
    store
        .create(&key("app/01/data"), "again".into(), "text/plain")
        .await
        .unwrap();
    assert_eq!(read(store, &key("app/01/data")).await, b"again");
}

async fn a_missing_object_is_told_from_a_failure(store: &dyn Store) {
    assert_eq!(store.head(&key("no/such")).await.unwrap(), None);
    let Err(error) = store.open(&key("no/such")).await else {
        panic!("an object that was never created can be read");
    };
    assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("no/such"), "{error}");
}

async fn a_probe_passes_and_leaves_nothing(store: &dyn Store) {
    store.probe().await.unwrap();
    assert_eq!(store.list("").await.unwrap(), []);
    assert_eq!(store.list_uploads("").await.unwrap(), []);
}

async fn a_probe_removes_what_a_probe_that_died_has_left_and_not_one_that_goes_on(store: &dyn Store) {
    let begun = |time| key(&format!(".pgreeve-probes/{}/object", uuid::Uuid::new_v7(time).simple()));
    let now = uuid::Timestamp::now(uuid::NoContext);
    let (old, young) = (
        begun(uuid::Timestamp::from_unix_time(now.to_unix().0 - 2 * 3600, 0, 0, 0)),
        begun(now),
    );
    for key in [&old, &young] {
        drop(store.start_upload(key, "text/plain").await.unwrap());
        store.create(key, body(1, 10), "text/plain").await.unwrap();
    }
    store.probe().await.unwrap();
    assert_eq!(keys(store, "").await, [young.to_string()]);
    let open = store.list_uploads("").await.unwrap();
    assert_eq!(open.iter().map(|upload| &upload.key).collect::<Vec<_>>(), [&young]);
}

macro_rules! conformance {
    ($($test:ident)*) => {
        mod file_store {
            $(#[tokio::test]
            async fn $test() {
                super::$test(&*super::file_home().await.store).await;
            })*
        }
        mod s3_store_like_aws {
            $(#[tokio::test]
            async fn $test() {
                let home = super::aws_home().await;
                super::$test(&*home.store).await;
            })*
        }
        mod s3_store {
            $(#[tokio::test]
            async fn $test() {
                let home = super::s3_home().await;
                super::$test(&*home.store).await;
            })*
        }
    };
}

conformance! {
    an_object_comes_back_as_it_was_created
    an_object_is_never_replaced
    of_eight_creates_at_once_exactly_one_wins
    parts_make_the_object_in_their_order_whenever_they_were_sent
    a_part_sent_again_counts_once
    an_upload_of_other_parts_than_were_sent_is_refused
    an_aborted_upload_leaves_nothing
    listing_is_by_key_and_prefixes_end_at_a_slash
    open_uploads_are_listed_below_a_prefix_and_can_be_aborted
    deleting_is_idempotent_and_takes_one_object_only
    a_missing_object_is_told_from_a_failure
    a_probe_passes_and_leaves_nothing
    a_probe_removes_what_a_probe_that_died_has_left_and_not_one_that_goes_on
}
