//! What is erased stays erased, also in a database that is restored from before.

use serde_json::Value;

use super::{JANE, JANE_ID, ask, assert_nothing_of_jane, configure_with_store, files, host, run, shop};
use crate::support::process::Host;
use crate::support::{Database, cluster};

/// Rows of Jane in a restored database, without the consents that are kept.
async fn of_jane(name: &str) -> i64 {
    let restored = Database {
        name: name.to_owned(),
        target: cluster().await.target(name),
    };
    restored
        .value(&format!(
            "SELECT (SELECT count(*) FROM users WHERE email = '{JANE}') + (SELECT count(*) FROM orders WHERE user_id = '{JANE_ID}')
             + (SELECT count(*) FROM orders WHERE note LIKE '%{JANE}%')"
        ))
        .await
}

async fn exists(database: &Database, name: &str) -> bool {
    database
        .value(&format!(
            "SELECT EXISTS (SELECT FROM pg_database WHERE datname = '{name}')"
        ))
        .await
}

/// A shop with a backup that holds Jane, who was erased after it.
async fn erased_after_a_backup() -> (Database, Host, String) {
    let database = shop().await;
    let host = host(&database, "").await;
    let report = run(&host, "nightly");
    ask(&database).await;
    assert_eq!(run(&host, "erase")["outcome"], "succeeded");
    let id = report["report"]["backup_id"].as_str().unwrap().to_owned();
    (database, host, id)
}

#[tokio::test]
async fn a_restored_database_does_not_hold_the_erased_when_it_opens() {
    let (database, host, id) = erased_after_a_backup().await;
    let into = format!("{}_back", database.name);
    let restored = host
        .run(&["backup", "restore", &id, "--into", &into, "--json"])
        .expect_code(0)
        .json();
    let erasures = &restored["restore"]["erasures"];
    assert_eq!(
        (&erasures["remembered"], &erasures["found"]),
        (&1.into(), &1.into()),
        "{restored:#}"
    );
    assert!(
        restored["restore"]["verified"]["mismatches"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    assert_eq!(of_jane(&into).await, 0);
    assert_eq!(of_jane(&database.name).await, 0);
    let kinds: Vec<String> = host
        .audit_records()
        .iter()
        .map(|record| record["kind"].as_str().unwrap().to_owned())
        .filter(|kind| kind.starts_with("restore.") || kind == "erasure.replayed")
        .collect();
    assert_eq!(
        kinds,
        [
            "restore.started",
            "restore.replayed",
            "erasure.replayed",
            "restore.completed"
        ]
    );
    // The certificate of the first erasure tells of it.
    let request = host
        .audit_records()
        .into_iter()
        .find(|record| record["kind"] == "erasure.replayed")
        .unwrap()["body"]["request"]
        .as_str()
        .unwrap()
        .to_owned();
    let shown = host
        .run(&["erasure", "certificate", &request, "--json"])
        .expect_code(0)
        .json();
    assert_eq!(
        shown["addenda"][0]["event"]["replay"]["restored"],
        Value::from(into.clone())
    );
    for (place, bytes) in files(&host.path("state")) {
        assert_nothing_of_jane(&place, &bytes);
    }
    // A backup that is made after the erasure needs no repetition.
    let later = run(&host, "nightly")["report"]["backup_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let again = format!("{}_again", database.name);
    let restored = host
        .run(&["backup", "restore", &later, "--into", &again, "--json"])
        .expect_code(0)
        .json();
    assert_eq!(restored["restore"]["erasures"]["remembered"], 0, "{restored:#}");
    assert_eq!(of_jane(&again).await, 0);
    for name in [into, again] {
        database.execute(&format!("DROP DATABASE {name}")).await;
    }
}

#[tokio::test]
async fn a_ledger_that_lacks_an_entry_refuses_the_restore() {
    let (database, host, id) = erased_after_a_backup().await;
    let into = format!("{}_back", database.name);
    let ledger = host.path("state/erasures/ledger.jsonl");
    let whole = std::fs::read_to_string(&ledger).unwrap();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    assert_eq!(lines.len(), 3, "{whole}");
    let refused = async |text: Option<String>, what: &str| {
        match text {
            Some(text) => std::fs::write(&ledger, text).unwrap(),
            None => std::fs::remove_file(&ledger).unwrap(),
        }
        let refused = host.run(&["backup", "restore", &id, "--into", &into]).expect_code(3);
        assert!(refused.stderr.contains(what), "{}", refused.stderr);
        assert!(!exists(&database, &into).await);
    };
    refused(Some([lines[0], lines[2]].concat()), "entry 2 is missing").await;
    refused(Some(lines[..2].concat()), "entry 3 is missing").await;
    refused(Some(lines[..1].concat()), "entries 2 to 3 are missing").await;
    refused(
        Some(whole.replacen("\"main\"", "\"niam\"", 1).replacen("erase", "esare", 1)),
        "was changed",
    )
    .await;
    // Gone altogether, its copy beside the backups takes its place; the key is still here.
    std::fs::remove_file(&ledger).unwrap();
    let keys = host.path("state/erasures/keys");
    let moved = host.path("keys");
    std::fs::rename(&keys, &moved).unwrap();
    let lost = host.run(&["backup", "restore", &id, "--into", &into]).expect_code(3);
    assert!(lost.stderr.contains("subject key"), "{}", lost.stderr);
    assert!(!exists(&database, &into).await);
    std::fs::rename(&moved, &keys).unwrap();
    std::fs::write(&ledger, &whole).unwrap();
    host.run(&["backup", "restore", &id, "--into", &into]).expect_code(0);
    assert_eq!(of_jane(&into).await, 0);
    database.execute(&format!("DROP DATABASE {into}")).await;
}

#[tokio::test]
async fn a_hold_that_stands_in_the_backup_refuses_the_restore_and_says_what_to_do() {
    let database = shop().await;
    let host = host(&database, "").await;
    // So that there is a ledger for the hold.
    run(&host, "nightly");
    let condition = format!("id = '{JANE_ID}'");
    let placed = host
        .run(&[
            "hold", "place", "--table", "users", "--where", &condition, "--reason", "case 12", "--json",
        ])
        .expect_code(0)
        .json();
    let hold = placed["hold"]["hold_id"].as_str().unwrap();
    let report = run(&host, "nightly");
    host.run(&["hold", "release", hold, "--reason", "settled"])
        .expect_code(0);
    ask(&database).await;
    assert_eq!(run(&host, "erase")["outcome"], "succeeded");
    let into = format!("{}_back", database.name);
    let id = report["report"]["backup_id"].as_str().unwrap();
    let refused = host.run(&["backup", "restore", id, "--into", &into]).expect_code(3);
    for words in ["legal holds: 1", "pgreeve hold release", "pgreeve erasure replay"] {
        assert!(refused.stderr.contains(words), "{words}: {}", refused.stderr);
    }
    assert!(!exists(&database, &into).await);
}

#[tokio::test]
async fn another_host_restores_with_a_copy_of_the_ledger_and_not_without() {
    let (database, host, id) = erased_after_a_backup().await;
    let into = format!("{}_back", database.name);
    let other = Host::new("");
    configure_with_store(&other, &database, &host.path("store"), "").await;
    let refused = other.run(&["backup", "restore", &id, "--into", &into]).expect_code(3);
    assert!(refused.stderr.contains("--erasures"), "{}", refused.stderr);
    assert!(!exists(&database, &into).await);
    let copy = host.path("state/erasures").display().to_string();
    other
        .run(&["backup", "restore", &id, "--into", &into, "--erasures", &copy])
        .expect_code(0);
    assert_eq!(of_jane(&into).await, 0);
    database.execute(&format!("DROP DATABASE {into}")).await;
}

#[tokio::test]
async fn replay_erases_again_in_a_database_that_was_restored_by_other_means() {
    let (database, host, id) = erased_after_a_backup().await;
    // Restored by hand, as the documentation says.
    let name = format!("{}_hand", database.name);
    database.execute(&format!("CREATE DATABASE {name}")).await;
    let dump = host.path(&format!("store/app/nightly/{id}/data.dump.gz"));
    let target = cluster().await.target(&name);
    let environment = target.environment().unwrap();
    let script = format!(
        "gunzip < {} | /usr/lib/postgresql/15/bin/pg_restore -d {name}",
        dump.display()
    );
    let mut command = std::process::Command::new("sh");
    assert!(
        command
            .arg("-c")
            .arg(script)
            .envs(environment)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(of_jane(&name).await, 11);
    let url = cluster().await.url_as("postgres", &name);
    let replayed = host
        .run(&["erasure", "replay", "--job", "erase", "--url", &url, "--json"])
        .expect_code(0)
        .json();
    assert_eq!(replayed["replay"]["found"], 1, "{replayed:#}");
    assert_eq!(of_jane(&name).await, 0);
    // Once more finds nobody.
    let replayed = host
        .run(&["erasure", "replay", "--job", "erase", "--url", &url, "--json"])
        .expect_code(0)
        .json();
    assert_eq!(replayed["replay"]["found"], 0, "{replayed:#}");
    // Since a time after all erasures there is nothing to repeat.
    let later = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(2)).to_string();
    let replayed = host
        .run(&[
            "erasure", "replay", "--job", "erase", "--url", &url, "--since", &later, "--json",
        ])
        .expect_code(0)
        .json();
    assert_eq!(replayed["replay"]["remembered"], 0, "{replayed:#}");
    database.execute(&format!("DROP DATABASE {name}")).await;
}
