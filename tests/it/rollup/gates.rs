//! Purges wait for rollups, and rollups leave alone what a purge has begun.

use pgreeve::job::{Job, Outcome};
use pgreeve::jobs::retention::{RetentionJob, RetentionSettings};
use pgreeve::rollup::spec::Mode;
use pgreeve::rollup::{Rollup, Task};
use serde_json::json;

use super::{by_minute, contents, events, initialise, refresh, task, with};
use crate::support::Database;
use crate::support::context::{Setup, context, run_once};
use crate::support::process::Host;

fn purge(after: &[&str]) -> RetentionJob {
    RetentionJob::new(RetentionSettings {
        keep: "1h".parse().unwrap(),
        after: after.iter().map(|job| job.parse().unwrap()).collect(),
        ..crate::retention::events()
    })
}

/// A row a minute, for three hours.
async fn filled() -> Database {
    let database = events().await;
    database
        .execute("INSERT INTO events (company, person, amount, created_at) SELECT n % 2, n, n, now() - n * interval '1 minute' FROM generate_series(1, 180) n")
        .await;
    database
}

async fn rows(database: &Database) -> i64 {
    database.value("SELECT count(*) FROM events").await
}

#[tokio::test]
async fn a_purge_waits_for_every_rollup_of_its_table_named_or_not() {
    let database = filled().await;
    initialise(&database, &by_minute()).await;
    let report = run_once(&database, &purge(&[])).await.unwrap();
    assert_eq!((report.outcome, &report.body["rows"]), (Outcome::Gated, &json!(0)));
    assert!(
        report
            .reason
            .unwrap()
            .starts_with("rollup: the-job has sealed nothing yet")
    );
    assert_eq!(rows(&database).await, 180);

    // As far as it is sealed, rows go.
    database
        .execute("UPDATE pgreeve.rollup SET sealed_until = date_trunc('minute', now()) - interval '2 hours'")
        .await;
    let job = purge(&[]);
    let mut planning = context(&database, &job, &Setup::default()).await;
    let intent = job.plan(&mut planning).await.unwrap().intent();
    let sealed: String = database
        .value("SELECT to_char(sealed_until AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM pgreeve.rollup")
        .await;
    assert_eq!(intent["cutoff"], sealed);
    assert_eq!(intent["gates"][0]["sealed_until"], sealed);
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(report.outcome, Outcome::Gated, "{report:?}");
    assert_eq!(report.body["remaining"], 0);
    let (before, after): (i64, i64) = (
        database
            .value("SELECT count(*) FROM events WHERE created_at < (SELECT sealed_until FROM pgreeve.rollup)")
            .await,
        database
            .value("SELECT count(*) FROM events WHERE created_at >= (SELECT sealed_until FROM pgreeve.rollup)")
            .await,
    );
    assert_eq!(before, 0);
    assert!((119..=121).contains(&after), "{after}");

    // What it has sealed, it has: then the purge is green.
    refresh(&database, &by_minute()).await;
    assert_eq!(
        run_once(&database, &purge(&[])).await.unwrap().outcome,
        Outcome::Succeeded
    );
    assert!((59..=61).contains(&rows(&database).await));
}

#[tokio::test]
async fn a_named_rollup_that_is_not_there_holds_everything_back() {
    let database = filled().await;
    let report = run_once(&database, &purge(&["hourly"])).await.unwrap();
    assert_eq!((report.outcome, rows(&database).await), (Outcome::Gated, 180));
    assert_eq!(report.body["gates"][0]["job"], "hourly");
    assert_eq!(
        run_once(&database, &purge(&[])).await.unwrap().outcome,
        Outcome::Succeeded
    );
}

#[tokio::test]
async fn what_is_sealed_never_shrinks_when_its_source_is_purged() {
    for mode in [Mode::Recompute, Mode::Exact] {
        let rollup = with(by_minute(), |source| source.mode = mode);
        let database = filled().await;
        initialise(&database, &rollup).await;
        refresh(&database, &rollup).await;
        let sealed = "SELECT coalesce(string_agg(t::text, ' ' ORDER BY t::text), '') FROM event_minutes t WHERE bucket < date_trunc('minute', now()) - interval '5 minutes'";
        let before: String = database.value(sealed).await;
        for _ in 0..2 {
            assert_eq!(
                run_once(&database, &purge(&["the-job"])).await.unwrap().outcome,
                Outcome::Succeeded
            );
            let report = refresh(&database, &rollup).await;
            assert_eq!(report.body["noted"], 0, "a purge is no change: {report:?}");
            let range = Task::Backfill {
                from: jiff::Timestamp::now() - jiff::SignedDuration::from_hours(5),
                to: jiff::Timestamp::now(),
            };
            task(&database, &rollup, range).await;
            task(&database, &rollup, Task::Reconcile { buckets: 1000 }).await;
            let now: String = database.value(sealed).await;
            assert!(now.contains(&before), "{mode:?}\n{before}\n{now}");
        }
        assert!((59..=61).contains(&rows(&database).await));
        // A range that is wholly gone is refused; a change there is taken note of and left alone.
        let gone = Task::Backfill {
            from: jiff::Timestamp::now() - jiff::SignedDuration::from_hours(3),
            to: jiff::Timestamp::now() - jiff::SignedDuration::from_hours(2),
        };
        let job = pgreeve::jobs::rollup::RollupJob::new(rollup.clone()).with_task(gone);
        let error = crate::support::context::refusal(&database, &job, &Setup::default()).await;
        assert!(error.cause.contains("purged until"), "{error:?}");
        if mode == Mode::Exact {
            let contents = contents(&database).await;
            database
                .execute("INSERT INTO events (company, created_at) VALUES (1, now() - interval '100 minutes')")
                .await;
            assert_eq!(refresh(&database, &rollup).await.body["noted_and_purged"], 1);
            assert_eq!(super::contents(&database).await, contents);
        }
    }
}

#[tokio::test]
async fn a_purge_that_was_only_begun_is_left_alone_too() {
    let database = filled().await;
    let rollup = by_minute();
    initialise(&database, &rollup).await;
    refresh(&database, &rollup).await;
    let before = contents(&database).await;
    // Half of a purge: its announcement, and some of its rows.
    database
        .execute(
            "UPDATE pgreeve.rollup SET purged_until = now() - interval '1 hour';
             DELETE FROM events WHERE created_at < now() - interval '1 hour' AND id % 3 = 0",
        )
        .await;
    let range = Task::Backfill {
        from: jiff::Timestamp::now() - jiff::SignedDuration::from_hours(5),
        to: jiff::Timestamp::now() - jiff::SignedDuration::from_mins(30),
    };
    assert_eq!(task(&database, &rollup, range).await.outcome, Outcome::Succeeded);
    assert_eq!(contents(&database).await, before);
}

#[tokio::test]
async fn a_rollup_by_another_column_keeps_the_rows_of_its_open_buckets() {
    let database = filled().await;
    database
        .execute("ALTER TABLE events ADD happened_at timestamptz; UPDATE events SET happened_at = now() WHERE id % 2 = 0; UPDATE events SET happened_at = created_at WHERE id % 2 = 1 AND id > 100; CREATE INDEX ON events (happened_at)")
        .await;
    let rollup = with(by_minute(), |source| source.time_column = "happened_at".to_owned());
    initialise(&database, &rollup).await;
    refresh(&database, &rollup).await;
    let report = run_once(&database, &purge(&[])).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    let kept: i64 = database
        .value("SELECT count(*) FROM events WHERE created_at < now() - interval '1 hour'")
        .await;
    let open: i64 = database
        .value("SELECT count(*) FROM events WHERE created_at < now() - interval '1 hour' AND id % 2 = 0")
        .await;
    assert_eq!((kept, kept > 50), (open, true));
}

#[tokio::test]
async fn the_program_shows_the_gate_and_the_lag() {
    let database = filled().await;
    let url = crate::support::cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.minutes]\nschedule = \"0 0 1 1 *\"\n\
         rollup = {{ source = \"events\", time_column = \"created_at\", bucket = \"1m\", target = \"event_minutes\", measures = {{ events = \"count(*)\" }} }}\n\
         [jobs.purge]\nschedule = \"0 0 1 1 *\"\napproval = \"none\"\n\
         retention = {{ table = \"events\", age_column = \"created_at\", keep = \"1h\", max_fraction = 1, after = [\"minutes\"] }}\n"
    ));
    let refused = host.run(&["run", "minutes", "--json"]).expect_code(3).json();
    assert!(
        refused["run"]["reason"]
            .as_str()
            .unwrap()
            .contains("pgreeve rollup init minutes"),
        "{refused}"
    );
    let plan = host.run(&["plan", "purge", "--json"]).expect_code(0).json();
    assert_eq!(
        plan["plan"]["intent"]["gates"][0]["sealed_until"],
        serde_json::Value::Null
    );
    let gated = host.run(&["run", "purge", "--json"]).expect_code(3).json();
    assert_eq!(gated["run"]["outcome"], "gated");
    let printed = host.run(&["rollup", "init", "minutes", "--print"]).expect_code(0);
    assert!(
        printed.stdout.contains("CREATE TABLE \"public\".\"event_minutes\""),
        "{}",
        printed.stdout
    );
    host.run(&["rollup", "init", "minutes"]).expect_code(0);
    host.run(&["run", "minutes"]).expect_code(0);
    assert_eq!(
        host.run(&["run", "purge", "--json"]).expect_code(0).json()["run"]["outcome"],
        "succeeded"
    );
    let range = [
        "rollup",
        "backfill",
        "minutes",
        "--from",
        "2026-01-01T00:00",
        "--to",
        "2126-01-01T00:00",
    ];
    host.run(&range).expect_code(0);
    host.run(&["rollup", "reconcile", "minutes", "--buckets", "10"])
        .expect_code(0);
    let status = host.run(&["status", "--json"]).expect_code(0).json();
    let job = status["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .find(|job| job["job"] == "minutes")
        .unwrap();
    // Ten minutes of lateness, and a bucket at most.
    let lag = job["rollup_lag_seconds"].as_u64().unwrap();
    assert!((600..900).contains(&lag), "{lag}");
    host.run(&["rollup", "remove", "minutes"]).expect_code(0);
    host.run(&["rollup", "remove", "minutes"]).expect_code(2);
    assert!(
        host.audit_records()
            .iter()
            .any(|record| record["kind"] == "rollup.changed" && record["body"]["action"] == "init")
    );
    host.run(&["audit", "verify"]).expect_code(0);
}

#[tokio::test]
async fn a_gate_must_be_a_rollup_of_the_same_database() {
    let text = |after: &str| {
        format!(
            "[databases.app]\nurl = \"postgresql://u@localhost/app\"\n[databases.other]\nurl = \"postgresql://u@localhost/other\"\n\
             [jobs.minutes]\nschedule = \"0 0 1 1 *\"\ndatabase = \"other\"\n\
             rollup = {{ source = \"events\", time_column = \"created_at\", bucket = \"1m\", target = \"event_minutes\", measures = {{ events = \"count(*)\" }} }}\n\
             [jobs.purge]\nschedule = \"0 0 1 1 *\"\ndatabase = \"app\"\n\
             retention = {{ table = \"events\", age_column = \"created_at\", keep = \"1h\", after = [{after}] }}\n"
        )
    };
    for (after, message) in [
        ("\"minuts\"", "did you mean `minutes`?"),
        ("\"purge\"", "is no rollup"),
        ("\"minutes\"", "another database"),
        ("", "names no job"),
    ] {
        let host = Host::new(&text(after));
        let findings = host.run(&["check"]).expect_code(78);
        assert!(findings.stderr.contains(message), "{message}: {}", findings.stderr);
    }
}

#[tokio::test]
async fn reconcile_finds_drift_computes_it_again_and_is_not_green() {
    let database = filled().await;
    let rollup = Rollup {
        lateness: "1m".parse().unwrap(),
        ..by_minute()
    };
    initialise(&database, &rollup).await;
    refresh(&database, &rollup).await;
    let report = task(&database, &rollup, Task::Reconcile { buckets: 1000 }).await;
    assert_eq!(
        (report.outcome, &report.body["drift"]),
        (Outcome::Succeeded, &json!(0)),
        "{report:?}"
    );
    database
        .execute(
            "UPDATE events SET amount = amount + 1 WHERE created_at = (SELECT min(created_at) FROM events);
             DELETE FROM event_minutes WHERE bucket = (SELECT max(bucket) FROM event_minutes WHERE bucket < now() - interval '30 minutes')",
        )
        .await;
    let report = task(&database, &rollup, Task::Reconcile { buckets: 1000 }).await;
    assert_eq!(
        (report.outcome, &report.body["drift"]),
        (Outcome::Partial, &json!(2)),
        "{report:?}"
    );
    assert!(report.reason.unwrap().starts_with("drift: 2 sealed buckets"));
    let report = task(&database, &rollup, Task::Reconcile { buckets: 1000 }).await;
    assert_eq!(report.outcome, Outcome::Succeeded);
}
