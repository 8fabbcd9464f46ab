//! The program as an operator meets it: what it answers to bad input, broken surroundings and every
//! verb, by its exit code, its text and its documents.

mod archive;
mod configuration;
mod documents;
mod grounds;
mod reach;
mod rights;
mod secrecy;
mod verbs;

use std::process::Command;

use pgreeve::demo::s3_server::S3Server;
use serde_json::Value;

use crate::support::process::{Finished, Host};
use crate::support::{Database, cluster};

/// A user that owns nothing.
const NOBODY: u32 = 65534;

/// An application's table: 90 of 100 rows are due, and every row holds an e-mail address.
async fn application() -> Database {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (id bigserial PRIMARY KEY, created_at timestamptz NOT NULL, processed boolean NOT NULL, email text);
             INSERT INTO events (created_at, processed, email)
                SELECT now() - interval '100 days', i % 10 <> 0, 'user' || i || '@example.org' FROM generate_series(1, 100) i;
             CREATE INDEX ON events (created_at);
             ANALYZE events",
        )
        .await;
    database
}

/// The job `purge` on the table `events`.
const PURGE: &str = "[jobs.purge]\nschedule = \"0 2 * * *\"\napproval = \"none\"\nretries = 0\nretention = { table = \"events\", age_column = \"created_at\", keep = \"90d\", where = \"processed\", max_fraction = 1 }\n";

/// The job `nightly`, to the store `offsite`.
const NIGHTLY: &str = "[jobs.nightly]\nschedule = \"30 3 * * *\"\nretries = 0\nbackup = { store = \"offsite\" }\n";

/// `[databases.app]`, as the superuser.
async fn superuser(database: &Database) -> String {
    as_role(database, "postgres").await
}

/// `[databases.app]`, as a role.
async fn as_role(database: &Database, role: &str) -> String {
    format!(
        "[databases.app]\nurl = \"{}\"\n",
        cluster().await.url_as(role, &database.name)
    )
}

/// A role of its own for a database; it may do nothing but connect and make its ledger.
async fn role(database: &Database) -> String {
    let role = format!("role_{}", database.name);
    let name = &database.name;
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {name} TO {role}"
        ))
        .await;
    role
}

/// `[stores.offsite]`: a directory of the host.
fn directory_store(host: &Host) -> String {
    format!("[stores.offsite]\nurl = \"file://{}\"\n", host.path("store").display())
}

/// `[stores.offsite]` on an S3 server, with a bucket and a file of credentials.
fn s3_store(server: &S3Server, bucket: &str, credentials: &std::path::Path) -> String {
    format!(
        "[stores.offsite]\nurl = \"s3://{bucket}/backups\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\n",
        server.endpoint(),
        credentials.display()
    )
}

/// Fails unless all words stand in what a verb said.
#[track_caller]
fn assert_says(finished: &Finished, words: &[&str]) {
    let said = format!("{}{}", finished.stdout, finished.stderr);
    for word in words {
        assert!(said.contains(word), "`{word}` is missing:\n{said}");
    }
}

/// The line, from 1, of a host's configuration that holds a text.
#[track_caller]
fn line_of(host: &Host, text: &str) -> usize {
    let config = std::fs::read_to_string(host.path("config.toml")).unwrap();
    1 + config.lines().position(|line| line.contains(text)).unwrap()
}

/// The findings of a check, as `LINE MESSAGE`.
fn findings(document: &Value) -> Vec<String> {
    let found = document["findings"].as_array().unwrap();
    found
        .iter()
        .map(|finding| format!("{} {}", finding["line"], finding["message"].as_str().unwrap()))
        .collect()
}

/// The sorted keys of a JSON object.
#[track_caller]
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// Runs a verb as a user that owns nothing. For root only.
fn as_nobody(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    command.uid(NOBODY).gid(NOBODY)
}

/// Whether the tests run as root, which no permission stops.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
