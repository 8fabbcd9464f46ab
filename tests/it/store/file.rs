//! A directory as a store, and what an operating system may do to it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use pgreeve::store::file::FileStore;
use pgreeve::store::{Store, StoreErrorKind};
use tempfile::TempDir;

use super::conformance::{file_home, key};

#[tokio::test]
async fn a_store_is_made_for_its_owner_only() {
    let home = file_home().await;
    home.store
        .create(&key("app/x"), "x".into(), "text/plain")
        .await
        .unwrap();
    let mode = |path: &str| fs::metadata(home.directory.path().join(path)).unwrap().mode() & 0o777;
    assert_eq!(
        [mode("store"), mode("store/app"), mode("store/app/x")],
        [0o700, 0o700, 0o600]
    );
}

#[tokio::test]
async fn a_directory_without_a_parent_is_refused_with_a_remedy() {
    let directory = TempDir::new().unwrap();
    let error = FileStore::open(&directory.path().join("not/there")).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Permanent, "{error}");
    assert!(error.to_string().contains("not/there"), "{error}");
    assert!(error.remedy.unwrap().contains("mount"));
}

#[tokio::test]
async fn a_directory_that_went_away_is_not_an_empty_store() {
    let home = file_home().await;
    fs::remove_dir(home.directory.path().join("store")).unwrap();
    assert!(home.store.list("").await.is_err());
    assert!(home.store.head(&key("x")).await.is_err());
    assert!(home.store.delete(&key("x")).await.is_err());
    assert!(home.store.list_uploads("").await.is_err());
}

#[tokio::test]
async fn no_key_leads_out_of_the_store_through_a_link() {
    let home = file_home().await;
    let (outside, root) = (
        home.directory.path().join("outside"),
        home.directory.path().join("store"),
    );
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, root.join("app")).unwrap();
    symlink(outside.join("secret"), root.join("link")).unwrap();
    let store = &home.store;
    for text in ["app/secret", "link"] {
        assert!(store.open(&key(text)).await.is_err(), "{text}");
        assert_eq!(store.head(&key(text)).await.unwrap(), None, "{text}");
        store.delete(&key(text)).await.unwrap();
    }
    assert_eq!(store.list("").await.unwrap(), []);
    assert_eq!(store.list("app").await.unwrap(), []);
    let error = store
        .create(&key("app/new"), "x".into(), "text/plain")
        .await
        .unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Permanent, "{error}");
    assert!(error.remedy.unwrap().contains("link"));
    assert!(store.list("../outside").await.is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(store.list_uploads("").await.unwrap(), []);
}

#[tokio::test]
async fn the_stores_own_directory_is_no_place_for_objects() {
    let home = file_home().await;
    let upload = home.store.start_upload(&key("app/x"), "text/plain").await.unwrap();
    let inside = key(&format!(".uploads/{}/upload.json", upload.open_upload().id));
    assert!(home.store.create(&inside, "x".into(), "text/plain").await.is_err());
    assert!(home.store.delete(&inside).await.is_err());
    assert!(home.store.start_upload(&inside, "text/plain").await.is_err());
    assert_eq!(home.store.list_uploads("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_refused_with_a_remedy() {
    let home = file_home().await;
    let root = home.directory.path().join("store");
    if rustix::process::geteuid().is_root() {
        // Permissions do not stop root; a file where a directory must be does.
        fs::write(root.join(".uploads"), "").unwrap();
    } else {
        fs::set_permissions(&root, fs::Permissions::from_mode(0o500)).unwrap();
    }
    let error = home.store.probe().await.unwrap_err();
    assert!(
        matches!(error.kind, StoreErrorKind::Denied | StoreErrorKind::Permanent),
        "{error}"
    );
    assert!(error.remedy.is_some(), "{error}");
    assert!(error.to_string().contains(&root.display().to_string()), "{error}");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
}

#[tokio::test]
async fn an_upload_outlives_its_process_and_can_be_swept() {
    let home = file_home().await;
    let upload = home
        .store
        .start_upload(&key("app/01/data"), "text/plain")
        .await
        .unwrap();
    upload.put_part(1, "half".into()).await.unwrap();
    let open = upload.open_upload();
    drop(upload);
    let again = FileStore::open(&home.directory.path().join("store")).await.unwrap();
    assert_eq!(again.list_uploads("app").await.unwrap(), std::slice::from_ref(&open));
    again.abort_upload(&open).await.unwrap();
    assert_eq!(
        fs::read_dir(home.directory.path().join("store/.uploads"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(again.head(&open.key).await.unwrap(), None);
}

#[tokio::test]
async fn parts_of_different_sizes_are_refused() {
    let home = file_home().await;
    let upload = home.store.start_upload(&key("x"), "text/plain").await.unwrap();
    upload.put_part(1, "four".into()).await.unwrap();
    assert!(upload.put_part(2, "fives".into()).await.is_err());
    let short = upload.put_part(2, "two".into()).await.unwrap();
    let third = upload.put_part(3, "four".into()).await.unwrap();
    let first = upload.put_part(1, "FOUR".into()).await.unwrap();
    let error = upload.complete(vec![first, short, third]).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Permanent, "{error}");
    assert_eq!(home.store.list("").await.unwrap(), []);
}

#[tokio::test]
async fn empty_directories_go_with_their_last_object() {
    let home = file_home().await;
    home.store
        .create(&key("a/b/c/x"), "x".into(), "text/plain")
        .await
        .unwrap();
    home.store.create(&key("a/y"), "y".into(), "text/plain").await.unwrap();
    home.store.delete(&key("a/b/c/x")).await.unwrap();
    let root = home.directory.path().join("store");
    assert!(root.join("a/y").exists() && !root.join("a/b").exists());
}

#[tokio::test]
async fn creating_and_deleting_neighbours_at_once_loses_nothing() {
    let home = file_home().await;
    let store = &home.store;
    let rounds = (0..8).map(|name| async move {
        for round in 0..20 {
            let key = key(&format!("shared/deep/{name}-{round}"));
            store.create(&key, "x".into(), "text/plain").await.unwrap();
            store.delete(&key).await.unwrap();
        }
    });
    futures::future::join_all(rounds).await;
    assert_eq!(store.list("").await.unwrap(), []);
}
