//! The smaller verbs, and a verb beside a daemon.

use super::{PURGE, application, assert_says, superuser};
use crate::support::process::{Host, until};

#[test]
fn completions_know_every_verb() {
    let host = Host::new("");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = host.run(&["completions", shell]).expect_code(0).stdout;
        for word in ["daemon", "approve", "doctor", "prune", "outcome"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_says(&host.run(&["completions", "csh"]).expect_code(2), &["bash", "zsh"]);
}

#[test]
fn the_manual_has_a_page_for_every_verb() {
    let host = Host::new("");
    let page = host.run(&["man"]).expect_code(0).stdout;
    assert!(page.contains(".TH pgreeve 1") && page.contains("tampering"), "{page}");
    let directory = host.path("man");
    let into = directory.display().to_string();
    assert_says(
        &host.run(&["man", "--dir", &into]).expect_code(1),
        &["/man", "name a directory that exists"],
    );
    std::fs::create_dir(&directory).unwrap();
    host.run(&["man", "--dir", &into]).expect_code(0);
    for page in [
        "pgreeve.1",
        "pgreeve-run.1",
        "pgreeve-backup-restore.1",
        "pgreeve-audit-verify.1",
    ] {
        let text = std::fs::read_to_string(directory.join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
}

#[tokio::test]
async fn a_run_by_hand_beside_a_daemon_works_and_never_beside_the_same_job() {
    let database = application().await;
    database
        .execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM pg_advisory_lock_shared(4711); PERFORM pg_advisory_unlock_shared(4711); RETURN OLD; END $$;
             CREATE TRIGGER slow BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .await;
    let host = Host::new(&format!(
        "{}{}",
        superuser(&database).await,
        PURGE
            .replace("0 2 * * *", "0 0 1 1 *")
            .replace("schedule", "catch_up_window = \"800d\"\nschedule")
    ));
    let daemon = host.daemon();
    until("the daemon has seen the job", async || {
        daemon.log().contains("leading the database")
            && database
                .value::<bool>("SELECT EXISTS (SELECT 1 FROM pgreeve.schedule)")
                .await
    })
    .await;
    assert_eq!(daemon.stop(), 0);
    database
        .execute("UPDATE pgreeve.schedule SET evaluated_until = now() - interval '500 days'")
        .await;

    // The trigger waits for this lock, so the daemon's run goes on until it is released.
    let mut gate = database.connect().await;
    sqlx::query("SELECT pg_advisory_lock(4711)")
        .execute(&mut gate)
        .await
        .unwrap();
    let daemon = host.daemon();
    until("the daemon's run is in its first batch", async || {
        database
            .value::<bool>("SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'pgreeve:purge:%' AND wait_event = 'advisory' AND datname = current_database())")
            .await
    })
    .await;
    let epoch: i64 = database.value("SELECT epoch FROM pgreeve.leader").await;
    let beside = host.run(&["run", "purge", "--json"]).expect_code(3).json();
    assert_eq!(beside["run"]["outcome"], "skipped", "{beside:#}");
    assert!(
        beside["run"]["reason"].as_str().unwrap().starts_with("overlap:"),
        "{beside:#}"
    );
    sqlx::query("SELECT pg_advisory_unlock(4711)")
        .execute(&mut gate)
        .await
        .unwrap();
    until("the daemon's run has ended", async || {
        database
            .value::<bool>(
                "SELECT EXISTS (SELECT 1 FROM pgreeve.run WHERE trigger = 'catch_up' AND outcome = 'succeeded')",
            )
            .await
    })
    .await;
    // While it leads, a run by hand joins its epoch.
    database
        .execute("INSERT INTO events (created_at, processed) VALUES (now() - interval '200 days', true)")
        .await;
    let after = host
        .run(&["run", "purge", "--json", "--reason", "a late row"])
        .expect_code(0)
        .json();
    assert_eq!(after["run"]["report"]["rows"], 1, "{after:#}");
    assert_eq!(database.value::<i64>("SELECT epoch FROM pgreeve.leader").await, epoch);
    assert_eq!(daemon.stop(), 0);
    host.run(&["audit", "verify"]).expect_code(0);
    let reasons: Vec<String> = host
        .audit_records()
        .iter()
        .filter(|record| record["kind"] == "run.start")
        .map(|record| record["body"]["reason"].to_string())
        .collect();
    assert!(reasons.contains(&"\"a late row\"".to_owned()), "{reasons:?}");
}

#[tokio::test]
async fn a_verb_needs_no_home_and_no_environment() {
    let database = application().await;
    let host = Host::new(&format!("{}{PURGE}", superuser(&database).await));
    let mut command = host.command(&["run", "purge"]);
    command.env_clear().env("HOME", "/nonexistent").current_dir("/");
    command.arg("--config").arg(host.path("config.toml"));
    let finished = crate::support::process::Finished::from(command.output().unwrap());
    finished.expect_code(0);
}
