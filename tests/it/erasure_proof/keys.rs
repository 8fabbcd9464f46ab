//! Keys of subject tokens: new each year, destroyed when no backup needs them.

use pgreeve::erasure::entry::Begun;
use pgreeve::erasure::memory::Memory;
use uuid::Uuid;

use super::{host, run, shop};

#[tokio::test]
async fn a_key_is_destroyed_when_no_backup_can_hold_whom_it_names() {
    let database = shop().await;
    let host = host(&database, "").await;
    run(&host, "nightly");
    let dir = host.path("state/erasures");
    let memory = Memory::open(&dir, "test").unwrap();
    let last_year = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * 366);
    let old = memory.keys().current(last_year).unwrap().id;
    let new = memory.keys().current(jiff::Timestamp::now()).unwrap().id;
    let request = Uuid::from_u128(1);
    let begun = Begun {
        request,
        job: "erase".to_owned(),
        database: "app".to_owned(),
        table: "public.users".to_owned(),
        policy: "sha256:ab".to_owned(),
        key: old.clone(),
        token: "11".repeat(32).parse().unwrap(),
        audit: 1,
    };
    memory.begin(begun).await.unwrap();
    let states = || {
        let shown = host
            .run(&["erasure", "keys", "--destroy", "--json"])
            .expect_code(0)
            .json();
        let keys = shown["keys"].as_array().unwrap().clone();
        keys.iter()
            .map(|key| format!("{} {}", key["key"].as_str().unwrap(), key["state"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    let current = format!("{new} it names subjects this year");
    assert_eq!(
        states(),
        [format!("{old} an erasure under it is not done"), current.clone()]
    );
    memory.finish(request, "completed").await.unwrap();
    assert_eq!(
        states(),
        [
            format!("{old} a backup may hold a subject that it names"),
            current.clone()
        ]
    );
    std::fs::remove_dir_all(host.path("store")).unwrap();
    assert_eq!(states(), [format!("{old} destroyed"), current.clone()]);
    assert_eq!(states(), [current]);
    assert!(!dir.join(format!("keys/{old}.key")).exists());
    let records = host.audit_records().into_iter();
    assert_eq!(
        records
            .filter(|record| record["kind"] == "erasure.key_destroyed")
            .count(),
        1
    );
    assert!(
        std::fs::read_to_string(dir.join("ledger.jsonl"))
            .unwrap()
            .contains("key_destroyed")
    );
}
