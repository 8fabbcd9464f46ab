//! Objects in stores that a person's rows own.

use std::path::PathBuf;

use serde_json::Value;

use super::{ERASE, JANE_ID, TABLES, ask, assert_nothing_of_jane, files, request, run, shop};
use crate::support::process::Host;
use crate::support::{Database, cluster};

const OBJECTS: &str = "exports = { action = \"delete\" }\n[jobs.erase.erasure.objects]\nexports = { store = \"uploads\", key_column = \"key\" }\n";

/// A shop whose exports lie in a store: four of Jane's, one of them named by a row of John's, too, and
/// one without a key; and John's own.
async fn with_exports() -> (Database, Host, PathBuf) {
    let database = shop().await;
    database
        .execute(&format!(
            "CREATE TABLE exports (id int PRIMARY KEY, user_id uuid REFERENCES users, key text);
             CREATE INDEX ON exports (user_id); CREATE INDEX ON exports (key);
             INSERT INTO exports SELECT n, '{JANE_ID}', 'jane/' || n || '.csv' FROM generate_series(1, 3) n;
             INSERT INTO exports VALUES (4, '{JANE_ID}', 'shared.csv'), (5, '{JANE_ID}', NULL);
             INSERT INTO exports SELECT 5 + n, id, key FROM users, (VALUES (1, 'shared.csv'), (2, 'john/1.csv')) k (n, key)
                 WHERE email LIKE 'john%'"
        ))
        .await;
    let host = Host::new("");
    configure(&host, &database, OBJECTS).await;
    let store = host.path("uploads");
    for key in ["jane/1.csv", "jane/2.csv", "jane/3.csv", "shared.csv", "john/1.csv"] {
        let path = store.join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, key).unwrap();
    }
    (database, host, store)
}

async fn configure(host: &Host, database: &Database, more: &str) {
    host.configure(&format!(
        "[databases.app]\nurl = \"{}\"\n[stores.uploads]\nurl = \"file://{}\"\n{ERASE}{TABLES}{more}",
        cluster().await.url_as("postgres", &database.name),
        host.path("uploads").display()
    ));
}

async fn certified(host: &Host, database: &Database) -> Value {
    let request = request(database).await;
    let signed = host
        .run(&["erasure", "certificate", &request, "--format", "json"])
        .expect_code(0);
    let steps = signed.json()["erasure"]["steps"].clone();
    let exports = steps.as_array().unwrap().iter();
    exports
        .clone()
        .find(|step| step["table"] == "public.exports")
        .unwrap()
        .clone()
}

#[tokio::test]
async fn a_persons_objects_go_with_their_rows_and_one_that_another_row_names_stays() {
    let (database, host, store) = with_exports().await;
    ask(&database).await;
    let report = run(&host, "erase");
    assert_eq!(report["outcome"], "succeeded", "{report:#}");
    let left: Vec<String> = files(&store).into_iter().map(|(path, _)| path).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(store.join("shared.csv").exists() && store.join("john/1.csv").exists());
    let step = certified(&host, &database).await;
    assert_eq!((&step["rows"], &step["objects"]), (&5.into(), &3.into()), "{step:#}");
    assert_eq!(database.value::<i64>("SELECT count(*) FROM exports").await, 2);
    assert_eq!(
        database
            .value::<i64>("SELECT count(*) FROM pgreeve.erasure_scope")
            .await,
        0
    );
    for (place, bytes) in files(&host.path("state")) {
        assert_nothing_of_jane(&place, &bytes);
        assert!(
            !String::from_utf8_lossy(&bytes).contains("jane/"),
            "{place} holds a key"
        );
    }
}

#[tokio::test]
async fn a_row_stays_while_its_object_does_and_goes_when_the_store_lets_it() {
    let (database, host, store) = with_exports().await;
    ask(&database).await;
    let away = host.path("away");
    std::fs::rename(&store, &away).unwrap();
    std::fs::write(&store, "no directory").unwrap();
    let refused = host.run(&["run", "erase", "--json"]);
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    assert!(
        refused.stdout.contains("delete objects in the store uploads"),
        "{}",
        refused.stdout
    );
    assert_nothing_of_jane("the run", refused.stdout.as_bytes());
    assert_nothing_of_jane("the log", refused.stderr.as_bytes());
    assert!(!(refused.stdout.clone() + &refused.stderr).contains("jane/"));
    assert_eq!(database.value::<i64>("SELECT count(*) FROM exports").await, 7);
    // One of them is gone already, as after a crash between the store and the commit.
    std::fs::remove_file(&store).unwrap();
    std::fs::rename(&away, &store).unwrap();
    std::fs::remove_file(store.join("jane/2.csv")).unwrap();
    let report = run(&host, "erase");
    assert_eq!(report["outcome"], "succeeded", "{report:#}");
    let step = certified(&host, &database).await;
    assert_eq!((&step["rows"], &step["objects"]), (&5.into(), &3.into()), "{step:#}");
}

#[tokio::test]
async fn a_key_that_leads_out_of_the_store_fails_its_request_and_is_not_repeated() {
    let (database, host, store) = with_exports().await;
    std::fs::write(store.parent().unwrap().join("passwd"), "root").unwrap();
    database
        .execute("UPDATE exports SET key = '../passwd' WHERE id = 1")
        .await;
    ask(&database).await;
    let report = run(&host, "erase");
    assert_eq!(report["report"]["failed"], 1, "{report:#}");
    let reason: String = database.value("SELECT reason FROM pgreeve.erasure_request").await;
    assert!(
        reason.contains("holds no key below the prefix") && !reason.contains("passwd"),
        "{reason}"
    );
    assert!(store.parent().unwrap().join("passwd").exists());
    assert_eq!(database.value::<String>("SELECT status FROM requests").await, "failed");
}

#[tokio::test]
async fn objects_of_rows_that_stay_are_refused_by_the_plan() {
    let (database, host, _) = with_exports().await;
    for (from, to, cause) in [
        (
            "action = \"delete\"",
            "action = \"mask\", set = { key = \"null\" }",
            "the rows of exports stay",
        ),
        ("key_column = \"key\"", "key_column = \"id\"", "holds no keys"),
        ("key_column = \"key\"", "key_column = \"kex\"", "has no column kex"),
    ] {
        configure(&host, &database, &OBJECTS.replacen(from, to, 1)).await;
        let refused = host.run(&["plan", "erase"]);
        assert_ne!(refused.code, 0);
        let said = refused.stdout + &refused.stderr;
        assert!(said.contains(cause), "{cause}: {said}");
    }
}

#[tokio::test]
async fn objects_of_tables_in_a_circle_are_refused_by_the_plan() {
    let (database, host, _) = with_exports().await;
    database
        .execute(
            "CREATE TABLE parts (id int PRIMARY KEY, export_id int NOT NULL REFERENCES exports);
             ALTER TABLE exports ADD first_part int;
             UPDATE exports SET first_part = id;
             INSERT INTO parts SELECT id, id FROM exports;
             ALTER TABLE exports ALTER first_part SET NOT NULL, ADD FOREIGN KEY (first_part) REFERENCES parts;
             CREATE INDEX ON parts (export_id); CREATE INDEX ON exports (first_part)",
        )
        .await;
    let more = format!("parts = {{ action = \"delete\" }}\n{OBJECTS}");
    configure(&host, &database, &more).await;
    let refused = host.run(&["plan", "erase"]);
    assert_ne!(refused.code, 0);
    let said = refused.stdout + &refused.stderr;
    assert!(said.contains("exports refers to itself through other tables"), "{said}");
    // Without objects the circle is none of a problem.
    configure(
        &host,
        &database,
        "parts = { action = \"delete\" }\nexports = { action = \"delete\" }\n",
    )
    .await;
    host.run(&["plan", "erase"]).expect_code(0);
}
