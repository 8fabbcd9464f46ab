//! The proof of an erasure: what is left is found, what is certified can be checked, what is erased
//! stays erased.

mod certificates;
mod copies;
mod keys;
mod objects;
mod recipients;
mod residue;
mod restores;
mod secrecy;

use std::path::Path;

use serde_json::Value;

use crate::support::process::Host;
use crate::support::{Database, cluster};

/// Who is erased.
const JANE: &str = "jane.austen@example.org";
const JANE_ID: &str = "11111111-2222-4333-8444-555555555555";

/// A shop: Jane and John, their orders, what a trigger copies, what mentions them, and Jane's
/// request.
async fn shop() -> Database {
    let database = Database::create().await;
    database
        .execute(&format!(
            "CREATE TABLE users (id uuid PRIMARY KEY, email text NOT NULL UNIQUE);
             CREATE TABLE orders (id bigserial PRIMARY KEY, user_id uuid NOT NULL REFERENCES users, note text);
             CREATE INDEX ON orders (user_id);
             CREATE TABLE consents (id bigserial PRIMARY KEY, user_id uuid, email text, given_at timestamptz DEFAULT now());
             CREATE TABLE requests (id int PRIMARY KEY, who uuid, status text DEFAULT 'pending', created_at timestamptz DEFAULT now(), done_at timestamptz);
             INSERT INTO users VALUES ('{JANE_ID}', '{JANE}'), ('99999999-2222-4333-8444-555555555555', 'john@example.org');
             INSERT INTO orders (user_id, note) SELECT id, 'for ' || email FROM users, generate_series(1, 5);
             INSERT INTO consents (user_id, email) SELECT id, email FROM users"
        ))
        .await;
    database
}

async fn ask(database: &Database) {
    database
        .execute(&format!("INSERT INTO requests (id, who) VALUES (10, '{JANE_ID}')"))
        .await;
}

const ERASE: &str = r#"
[jobs.erase]
schedule = "*/15 * * * *"
approval = "none"
retries  = 0
[jobs.erase.erasure]
requests = { table = "requests", id = "id", subject = "who", status = "status", pending = "pending", done = "done", failed = "failed", received_at = "created_at", finished_at = "done_at" }
subject  = { table = "users", key = "id", identifiers = ["email"] }
edges    = ["consents.user_id = users.id"]
"#;

const TABLES: &str = r#"
[jobs.erase.erasure.tables]
users    = { action = "delete" }
orders   = { action = "delete" }
consents = { action = "keep", basis = "Art. 17(3)(b)", until = "7y" }
requests = { action = "keep", basis = "Art. 5(2)" }
"#;

const NIGHTLY: &str = "[jobs.nightly]\nschedule = \"30 3 * * *\"\nretries = 0\nbackup = { store = \"offsite\", keep = { daily = 7, min = 2 } }\n";

/// The configuration of a host: the database, a directory as store, a backup, the erasure.
async fn configure(host: &Host, database: &Database, more: &str) {
    configure_with_store(host, database, &host.path("store"), more).await;
}

async fn configure_with_store(host: &Host, database: &Database, store: &Path, more: &str) {
    host.configure(&format!(
        "[databases.app]\nurl = \"{}\"\n[stores.offsite]\nurl = \"file://{}\"\n{NIGHTLY}{ERASE}{more}{TABLES}",
        cluster().await.url_as("postgres", &database.name),
        store.display()
    ));
}

/// A host of a shop.
async fn host(database: &Database, more: &str) -> Host {
    let host = Host::new("");
    configure(&host, database, more).await;
    host
}

/// The report of a job's run, whatever its outcome.
fn run(host: &Host, job: &str) -> Value {
    let finished = host.run(&["run", job, "--json"]);
    assert!(matches!(finished.code, 0 | 3), "{}{}", finished.stdout, finished.stderr);
    finished.json()["run"].clone()
}

/// The only request there is.
async fn request(database: &Database) -> String {
    database
        .value("SELECT request_id::text FROM pgreeve.erasure_request")
        .await
}

/// Every file below a directory with its bytes.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.is_file() {
            found.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    found
}

/// Fails when a text of Jane stands in some bytes.
#[track_caller]
fn assert_nothing_of_jane(place: &str, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    for word in [JANE, JANE_ID, "austen"] {
        assert!(!text.contains(word), "{place} holds `{word}`");
    }
}
