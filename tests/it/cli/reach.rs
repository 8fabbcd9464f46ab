//! What is not there, or does not let us in: databases and stores.

use pgreeve::demo::s3_server::{S3Server, write_credentials};
use pgreeve::store::StoreSettings;

use super::{NIGHTLY, PURGE, application, assert_says, directory_store, findings, line_of, s3_store, superuser};
use crate::support::cluster;
use crate::support::process::Host;

const DOWN: &str = "[databases.app]\nurl = \"postgresql:///app?host=/nonexistent&user=nobody\"\n";

#[test]
fn a_database_that_is_down_is_worth_another_try() {
    let host = Host::new(&format!("{DOWN}{PURGE}"));
    let verbs: [&[&str]; 5] = [
        &["check", "--connect"],
        &["run", "purge"],
        &["plan", "purge"],
        &["history"],
        &["doctor"],
    ];
    for arguments in verbs {
        let finished = host.run(arguments);
        assert_eq!(
            finished.code, 75,
            "{arguments:?}: {}{}",
            finished.stdout, finished.stderr
        );
        assert_says(&finished, &["app", "/nonexistent", "start the server"]);
    }
    let checked = host.run(&["check", "--connect", "--json"]).expect_code(75).json();
    assert_eq!(checked["findings"][0]["line"], line_of(&host, "url ="), "{checked:#}");
    assert_says(&host.run(&["status"]).expect_code(3), &["unknown", "/nonexistent"]);
    let status = host.run(&["status", "--json"]).expect_code(3).json();
    assert!(
        status["jobs"][0]["error"].as_str().unwrap().contains("/nonexistent"),
        "{status:#}"
    );
    // Schedules need no database.
    host.run(&["next"]).expect_code(0);
}

#[tokio::test]
async fn a_database_that_does_not_exist_or_refuses_the_user_is_no_passing_trouble() {
    let url = cluster().await.url_as("postgres", "not_there");
    let host = Host::new(&format!("[databases.app]\nurl = \"{url}\"\n{PURGE}"));
    let run = host.run(&["run", "purge"]).expect_code(1);
    assert_says(
        &run,
        &[
            "not_there",
            "does not exist",
            "create the database, or correct its name in `url`",
        ],
    );
    host.run(&["check", "--connect"]).expect_code(78);
    let url = cluster().await.url_as("no_such_role", "postgres");
    host.configure(&format!("[databases.app]\nurl = \"{url}\"\n{PURGE}"));
    assert_says(
        &host.run(&["run", "purge"]).expect_code(1),
        &["no_such_role", "check the user"],
    );
}

#[tokio::test]
async fn one_database_that_is_down_does_not_hide_what_is_wrong_with_another() {
    let database = application().await;
    let host = Host::new(&format!(
        "{}{}[databases.down]\nurl = \"postgresql:///x?host=/nonexistent&user=nobody\"\n",
        superuser(&database).await,
        PURGE
            .replace("[jobs.purge]", "[jobs.purge]\ndatabase = \"app\"")
            .replace("created_at", "created")
    ));
    let checked = host.run(&["check", "--connect", "--json"]).expect_code(78).json();
    let findings = findings(&checked);
    assert_eq!(findings.len(), 2, "{checked:#}");
    assert!(
        findings[0].contains("database down") && findings[1].contains("no column created"),
        "{checked:#}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_answer_is_told_once_and_worth_another_try() {
    let database = application().await;
    let directory = tempfile::tempdir().unwrap();
    let server = S3Server::start(directory.path()).await.unwrap();
    let store = s3_store(&server, server.bucket(), server.credentials_file());
    let host = Host::new(&format!("{}{store}{NIGHTLY}", superuser(&database).await));
    drop(server);
    let checked = host.run(&["check", "--connect", "--json"]).expect_code(75).json();
    assert_eq!(findings(&checked).len(), 1, "told once, not for each job: {checked:#}");
    assert_eq!(checked["findings"][0]["line"], line_of(&host, "s3://"), "{checked:#}");
    assert!(findings(&checked)[0].contains("store offsite"), "{checked:#}");
    assert_says(
        &host.run(&["backup", "list"]).expect_code(75),
        &["store offsite", "127.0.0.1"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_secret_or_bucket_names_the_store_and_the_remedy_and_leaves_no_object() {
    let database = application().await;
    let directory = tempfile::tempdir().unwrap();
    let server = S3Server::start(directory.path()).await.unwrap();
    let wrong = directory.path().join("wrong-credentials");
    write_credentials(&wrong, server.access_key(), "hunter2-hunter2-hunter2").unwrap();
    let cases = [
        (s3_store(&server, server.bucket(), &wrong), "secret"),
        (
            s3_store(&server, "no-such-bucket", server.credentials_file()),
            "no-such-bucket",
        ),
    ];
    for (store, word) in cases {
        let host = Host::new(&format!("{}{store}{NIGHTLY}", superuser(&database).await));
        let checked = host.run(&["check", "--connect"]).expect_code(78);
        assert_says(&checked, &["store offsite", word, "= help: ", "1 problem"]);
        let run = host.run(&["run", "nightly"]);
        assert!(matches!(run.code, 1 | 3), "{}: {}{}", run.code, run.stdout, run.stderr);
        assert_says(&run, &["offsite", word]);
        let list = host.run(&["backup", "list"]).expect_code(1);
        assert_says(&list, &["store offsite", word, "help: "]);
        for finished in [&checked, &run, &list] {
            assert!(!format!("{}{}", finished.stdout, finished.stderr).contains("hunter2"));
        }
    }
    let store = StoreSettings::S3(Box::new(server.settings("backups")))
        .open()
        .await
        .unwrap();
    assert!(store.list("").await.unwrap().is_empty());
    assert!(store.list_uploads("").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_store_whose_directory_cannot_be_made_is_refused_by_name() {
    let database = application().await;
    let host = Host::new("");
    std::fs::write(host.path("store"), "a file").unwrap();
    host.configure(&format!(
        "{}{}{NIGHTLY}",
        superuser(&database).await,
        directory_store(&host)
    ));
    let checked = host.run(&["check", "--connect"]).expect_code(78);
    assert_says(&checked, &["store offsite", "/store"]);
    let run = host.run(&["run", "nightly"]);
    assert!(matches!(run.code, 1 | 3), "{}: {}{}", run.code, run.stdout, run.stderr);
    assert_says(&run, &["offsite", "/store"]);
}
