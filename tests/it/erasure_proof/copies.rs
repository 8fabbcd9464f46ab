//! Copies of the ledger beside the backups, and the mark in each manifest.

use std::sync::Arc;

use pgreeve::backup::catalog::{self, Filter};
use pgreeve::erasure::copies::{LedgerOfHost, fetch, put};
use pgreeve::erasure::entry::Begun;
use pgreeve::erasure::memory::{FILE, Memory};
use pgreeve::store::{ObjectKey, Store};
use uuid::Uuid;

use crate::support::backups::Bench;
use crate::support::memory_store::MemoryStore;

fn begun(request: u128) -> Begun {
    Begun {
        request: Uuid::from_u128(request),
        job: "erase".to_owned(),
        database: "main".to_owned(),
        table: "public.users".to_owned(),
        policy: "sha256:ab".to_owned(),
        key: "2026-0123456789abcdef".parse().unwrap(),
        token: "11".repeat(32).parse().unwrap(),
        audit: 1,
    }
}

#[tokio::test]
async fn a_copy_is_the_ledger_and_a_missing_part_of_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = MemoryStore::default();
    let memory = Memory::open(dir.path(), "db1").unwrap();
    for request in 1..=3 {
        memory.begin(begun(request)).await.unwrap();
        let mark = put(&memory, &store).await.unwrap();
        assert_eq!(put(&memory, &store).await.unwrap(), mark, "nothing is copied twice");
    }
    let objects = store.list("erasures").await.unwrap();
    assert_eq!(objects.len(), 3);
    let copies = fetch(&store).await.unwrap();
    assert_eq!(copies.len(), 1);
    assert_eq!(copies[0].text, std::fs::read(dir.path().join(FILE)).unwrap());
    assert_eq!(copies[0].mark, memory.mark().await.unwrap());
    // Two processes that copy at once leave parts that overlap.
    let whole = std::fs::read(dir.path().join(FILE)).unwrap();
    let key = format!("erasures/{}/000000000001-000000000004.jsonl", copies[0].ledger);
    store
        .create(
            &ObjectKey::new(key).unwrap(),
            whole.clone().into(),
            "application/x-ndjson",
        )
        .await
        .unwrap();
    assert_eq!(fetch(&store).await.unwrap()[0].text, whole);

    let store = MemoryStore::default();
    for object in &objects {
        let body = whole.split_inclusive(|byte| *byte == b'\n').next().unwrap().to_vec();
        if !object.key.as_str().ends_with("000000000003-000000000003.jsonl") {
            store
                .create(&object.key, body.into(), "application/x-ndjson")
                .await
                .unwrap();
        }
    }
    let error = fetch(&store).await.unwrap_err();
    assert!(error.cause.contains("entries 3 to 3 are missing"), "{error}");
}

#[tokio::test]
async fn a_manifest_says_how_far_the_ledger_was_before_its_snapshot() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let mut bench = Bench::new(Arc::clone(&store)).await;
    let dir = tempfile::tempdir().unwrap();
    bench.job.erasures = Some(Arc::new(LedgerOfHost {
        dir: dir.path().to_path_buf(),
        instance: "db1".to_owned(),
    }));
    let newest = async || {
        let catalog = catalog::list(store.as_ref(), Filter::default()).await.unwrap();
        catalog.backups.last().unwrap().manifest.clone()
    };
    bench.run().await.unwrap();
    let manifest = newest().await;
    assert_eq!(
        (manifest.erasures, manifest.erasure_watermark),
        (None, None),
        "a host without a ledger makes none"
    );
    assert!(!dir.path().join(FILE).exists());

    let memory = Memory::open(dir.path(), "db1").unwrap();
    let mark = memory.begin(begun(1)).await.unwrap();
    bench.run().await.unwrap();
    let manifest = newest().await;
    assert_eq!(manifest.erasures, Some(mark.clone()));
    assert!(manifest.erasure_watermark.unwrap() <= manifest.started_at + jiff::SignedDuration::from_secs(1));
    assert_eq!(fetch(store.as_ref()).await.unwrap()[0].mark, mark);

    // A damaged ledger does not cost the backup, and the manifest says so.
    std::fs::write(dir.path().join(FILE), "x\n").unwrap();
    bench.run().await.unwrap();
    let manifest = newest().await;
    assert_eq!(manifest.erasures, None);
    assert!(
        manifest
            .warnings
            .iter()
            .any(|warning| warning.contains("ledger of erasures")),
        "{:?}",
        manifest.warnings
    );
}
