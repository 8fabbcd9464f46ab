//! `restore_check`, and the level that asks assertions.

use std::sync::Arc;

use futures::FutureExt;
use pgreeve::backup::catalog::{self, Filter};
use pgreeve::backup::prove::Assertion;
use pgreeve::backup::verify;
use pgreeve::job::{Disposition, Job, JobError, JobReport, Outcome};
use pgreeve::jobs::restore_check::{RestoreCheckJob, RestoreCheckSettings};
use pgreeve::store::Store;
use serde_json::Value;

use crate::support::backups::{Bench, key};
use crate::support::memory_store::MemoryStore;

/// A backup of a table of 100 rows in memory, and a check of it.
struct Checked {
    bench: Bench,
    store: MemoryStore,
}

impl Checked {
    async fn new(sql: &str) -> Self {
        let store = MemoryStore::default();
        let bench = Bench::new(Arc::new(store.clone())).await;
        bench.database.execute(sql).await;
        bench.run().await.unwrap();
        Self { bench, store }
    }

    fn job(&self, level: u8, assertions: &[(&str, &str)]) -> RestoreCheckJob {
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        RestoreCheckJob {
            settings: RestoreCheckSettings {
                backup: "nightly".parse().unwrap(),
                database: "main".parse().unwrap(),
                store: "offsite".parse().unwrap(),
                level,
                identity_file: None,
                assertions: assertions
                    .iter()
                    .map(|(query, expect)| Assertion {
                        query: (*query).to_owned(),
                        expect: (*expect).to_owned(),
                    })
                    .collect(),
            },
            open_store: Arc::new(move || {
                let store = Arc::clone(&store);
                async move { Ok(store) }.boxed()
            }),
        }
    }

    async fn check(&self, level: u8, assertions: &[(&str, &str)]) -> Result<JobReport, JobError> {
        let mut context = self.bench.context(&self.bench.database.target).await;
        let job = self.job(level, assertions);
        job.plan(&mut context).await?.execute(&mut context).await
    }

    fn evidence(&self) -> Vec<String> {
        let keys = self.store.keys().into_iter();
        keys.filter(|key| key.contains("/verify-")).collect()
    }

    async fn verified_at(&self) -> bool {
        let catalog = catalog::list(&self.store, Filter::default()).await.unwrap();
        catalog.backups[0].verified_at.is_some()
    }
}

const USERS: &str = "CREATE TABLE users (id int PRIMARY KEY, email text);
    INSERT INTO users SELECT n, 'user' || n || '@example.org' FROM generate_series(1, 100) n;
    CREATE TABLE empty (id int)";

#[tokio::test]
async fn the_newest_backup_is_restored_compared_asked_and_the_proof_kept() {
    let checked = Checked::new(USERS).await;
    let assertions = [
        ("SELECT count(*) > 50 FROM users", "true"),
        ("SELECT max(id) FROM users", "100"),
        ("SELECT email FROM public.users WHERE id = 7", "user7@example.org"),
    ];
    let report = checked.check(3, &assertions).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    let body = &report.body;
    assert_eq!((&body["level"], &body["ok"]), (&Value::from(3), &Value::from(true)));
    assert!(
        body["compared"].as_u64().unwrap() >= 2 && body["rows"].as_u64().unwrap() >= 100,
        "{body:#}"
    );
    assert_eq!(
        (&body["assertions"], &body["assertions_held"]),
        (&Value::from(3), &Value::from(3))
    );
    assert_eq!(checked.evidence(), [body["evidence"].as_str().unwrap()]);
    let evidence: Value = serde_json::from_slice(&checked.store.body(&checked.evidence()[0])).unwrap();
    assert_eq!(
        (&evidence["level"], &evidence["backup_id"]),
        (&Value::from(3), &body["backup_id"])
    );
    assert!(checked.verified_at().await);
    assert_eq!(checked.bench.records.body("backup.verified")["ok"], true);
}

#[tokio::test]
async fn an_assertion_that_does_not_hold_fails_without_telling_the_answer() {
    let checked = Checked::new(USERS).await;
    for (query, says) in [
        ("SELECT email FROM users WHERE id = 7", "another answer"),
        ("SELECT NULL", "another answer"),
        ("SELECT id FROM users", "100 rows"),
        ("SELECT 1 WHERE false", "0 rows"),
        ("SELECT nothing FROM users", "fails"),
        ("DELETE FROM users RETURNING 'true'", "fails"),
    ] {
        let error = checked
            .check(3, &[("SELECT count(*) FROM users", "100"), (query, "true")])
            .await
            .unwrap_err();
        assert_eq!(error.disposition, Disposition::Permanent);
        assert!(
            error.cause.contains("assertion 2") && error.cause.contains(says),
            "{error}"
        );
        let body = error.partial.unwrap();
        assert_eq!(
            (&body["ok"], &body["assertions_held"]),
            (&Value::from(false), &Value::from(1))
        );
        assert!(!body.to_string().contains("user7@"), "{body}");
    }
    assert!(checked.evidence().is_empty() && !checked.verified_at().await);
}

#[tokio::test]
async fn each_level_finds_what_the_one_below_does_not() {
    let checked = Checked::new(USERS).await;
    let data = checked
        .store
        .keys()
        .into_iter()
        .find(|key| key.contains("/data"))
        .unwrap();
    for level in 0..=2 {
        let report = checked.check(level, &[]).await.unwrap();
        assert_eq!(report.body["ok"], true);
        assert_eq!(report.body["compared"].is_u64(), level == 2, "{:#}", report.body);
    }
    assert_eq!(checked.evidence().len(), 1, "only a restore is a proof");
    checked.store.damage(&data, |bytes| *bytes.last_mut().unwrap() ^= 1);
    checked.check(0, &[]).await.unwrap();
    for level in 1..=2 {
        let error = checked.check(level, &[]).await.unwrap_err();
        assert!(error.cause.contains("SHA-256"), "{error}");
    }
    checked.store.damage(&data, |bytes| bytes.truncate(10));
    let error = checked.check(0, &[]).await.unwrap_err();
    assert!(error.cause.contains("10 bytes"), "{error}");
}

#[tokio::test]
async fn without_a_backup_the_check_is_refused_and_not_green() {
    let checked = Checked::new(USERS).await;
    let mut job = checked.job(2, &[]);
    job.settings.backup = "other".parse().unwrap();
    let mut context = checked.bench.context(&checked.bench.database.target).await;
    let Err(error) = job.plan(&mut context).await else {
        panic!("nothing was checked")
    };
    assert_eq!(error.disposition, Disposition::Refused);
    assert!(error.cause.contains("other has made no backup"), "{error}");
}

#[tokio::test]
async fn a_check_that_is_stopped_leaves_no_server_and_no_proof() {
    let checked = Checked::new(USERS).await;
    checked.bench.stop.cancel();
    let error = checked.check(2, &[]).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Cancelled);
    assert!(checked.evidence().is_empty());
}

/// What a restored database must not be: each is found, by its kind.
#[tokio::test]
async fn a_comparison_fails_on_an_empty_scratch_a_skipped_table_nothing_to_compare_and_a_changed_value() {
    let checked = Checked::new(USERS).await;
    let manifest = catalog::list(&checked.store, Filter::default()).await.unwrap().backups[0]
        .manifest
        .clone();
    let programs = pgreeve::backup::program::Programs::find().unwrap();
    let database = &checked.bench.database;
    let compare = async |manifest: &_| verify::verify_against(&programs, manifest, &database.target).await;
    let users = async |manifest: &_| {
        let found = compare(manifest).await.unwrap();
        let mismatches = found.mismatches.into_iter();
        mismatches
            .map(|mismatch| mismatch.to_string())
            .filter(|text| text.contains("users"))
            .collect::<Vec<_>>()
    };
    assert_eq!(users(&manifest).await, [""; 0]);
    database.execute("UPDATE users SET email = 'x' WHERE id = 50").await;
    assert_eq!(users(&manifest).await, ["public.users has other rows"]);
    database.execute("DELETE FROM users WHERE id = 50").await;
    assert_eq!(users(&manifest).await, ["public.users has another number of rows"]);
    database.execute("DROP TABLE users").await;
    assert_eq!(users(&manifest).await, ["public.users is missing"]);
    let mut nothing = manifest.clone();
    nothing.tables.clear();
    assert_eq!(compare(&nothing).await.unwrap_err().disposition, Disposition::Refused);
    database.execute("DROP TABLE empty; DROP SCHEMA pgreeve CASCADE").await;
    let error = compare(&manifest).await.unwrap_err();
    assert!(error.cause.contains("no table of the manifest is there"), "{error}");
}

#[tokio::test]
async fn an_encrypted_backup_is_checked_with_an_identity_of_its_own_only() {
    let (recipient, _, file) = key();
    let (_, _, stranger) = key();
    let store = MemoryStore::default();
    let mut bench = Bench::new(Arc::new(store.clone())).await;
    bench.job.settings.encrypt = vec![recipient.parse().unwrap()];
    bench.database.execute("CREATE TABLE users AS SELECT 1 AS id").await;
    bench.run().await.unwrap();
    let checked = Checked { bench, store };
    let check = async |level, identity: Option<&std::path::Path>| {
        let mut context = checked.bench.context(&checked.bench.database.target).await;
        let mut job = checked.job(level, &[]);
        job.settings.identity_file = identity.map(std::path::Path::to_owned);
        job.plan(&mut context).await?.execute(&mut context).await
    };
    check(0, None).await.unwrap();
    let error = check(1, None).await.unwrap_err();
    assert_eq!(
        (error.disposition, error.setting),
        (Disposition::Refused, Some("identity_file"))
    );
    assert!(error.cause.contains(&recipient), "{error}");
    let error = check(1, Some(stranger.path())).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Refused, "{error}");
    let error = check(1, Some(std::path::Path::new("/nowhere/age"))).await.unwrap_err();
    assert!(error.cause.contains("/nowhere/age"), "{error}");
    let report = check(2, Some(file.path())).await.unwrap();
    assert_eq!(
        (&report.body["ok"], &report.body["mismatches"]),
        (&true.into(), &Value::Array(Vec::new())),
        "{}",
        report.body
    );
    assert!(report.body["rows"].as_u64().unwrap() > 0, "{}", report.body);
}
