//! The JSON documents: their keys are a published format.

use jiff::Timestamp;
use serde_json::Value;

use super::{NIGHTLY, PURGE, application, directory_store, keys, superuser};
use crate::support::process::Host;

const RUN: [&str; 12] = [
    "attempt",
    "database",
    "finished_at",
    "job",
    "kind",
    "outcome",
    "reason",
    "report",
    "run_id",
    "scheduled_for",
    "started_at",
    "trigger",
];

#[track_caller]
fn assert_utc(value: &Value) {
    let text = value.as_str().unwrap();
    assert!(text.ends_with('Z'), "{text} is not in UTC");
    text.parse::<Timestamp>().unwrap();
}

#[tokio::test]
#[expect(
    clippy::too_many_lines,
    reason = "one document after another, each in two or three lines"
)]
async fn every_document_has_its_published_keys_and_instants_in_utc() {
    let database = application().await;
    let host = Host::new("");
    host.configure(&format!(
        "{}{}{PURGE}{NIGHTLY}",
        superuser(&database).await,
        directory_store(&host)
    ));
    let document = |arguments: &[&str]| {
        let finished = host.run(arguments).expect_code(0);
        // One document and nothing else: a second one would not parse.
        assert_eq!(finished.stderr, "", "{arguments:?}");
        let document = finished.json();
        assert_eq!(document["version"], 1, "{arguments:?}");
        document
    };

    let checked = document(&["check", "--connect", "--json"]);
    assert_eq!(keys(&checked), ["findings", "version"]);
    assert_eq!(checked["findings"].as_array().map(Vec::len), Some(0));

    let plan = document(&["plan", "purge", "--json"]);
    assert_eq!(keys(&plan), ["plan", "version"]);
    assert_eq!(
        keys(&plan["plan"]),
        ["approval", "database", "intent", "job", "kind", "policy"]
    );
    assert_eq!(plan["plan"]["intent"]["eligible"], 90);
    assert_utc(&plan["plan"]["intent"]["cutoff"]);

    let run = document(&["run", "purge", "--json"]);
    assert_eq!(keys(&run), ["run", "version"]);
    assert_eq!(keys(&run["run"]), RUN);
    assert_eq!(run["run"]["report"]["rows"], 90);
    assert_eq!(run["run"]["trigger"], "manual");
    for key in ["started_at", "finished_at"] {
        assert_utc(&run["run"][key]);
    }
    document(&["run", "nightly", "--json"]);

    let history = document(&["history", "--json"]);
    assert_eq!(keys(&history), ["runs", "version"]);
    let runs = history["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for run in runs {
        assert_eq!(keys(run), RUN);
    }
    assert_eq!(
        runs[1], run["run"],
        "history tells of a run what the run told of itself"
    );
    assert_eq!(
        document(&["history", "--job", "nightly", "--json"])["runs"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        document(&["history", "--outcome", "failed", "--json"])["runs"]
            .as_array()
            .unwrap()
            .len(),
        0
    );

    let status = document(&["status", "--json"]);
    assert_eq!(keys(&status), ["daemon", "jobs", "version"]);
    let job = [
        "database",
        "error",
        "job",
        "last",
        "next",
        "over_retention_seconds",
        "paused_until",
        "requests",
        "rollup_lag_seconds",
    ];
    assert_eq!(keys(&status["jobs"][0]), job);
    assert_eq!(keys(&status["jobs"][0]["last"]), RUN);
    assert_utc(&status["jobs"][0]["next"]);

    let backups = document(&["backup", "list", "--json"]);
    assert_eq!(keys(&backups), ["backups", "version"]);
    let backup = &backups["backups"][0];
    assert_eq!(
        keys(backup),
        [
            "bytes",
            "database",
            "finished_at",
            "id",
            "job",
            "started_at",
            "verified_at"
        ]
    );
    for key in ["started_at", "finished_at"] {
        assert_utc(&backup[key]);
    }

    let audit = document(&["audit", "verify", "--json"]);
    for key in ["first_bad", "ok", "records", "version"] {
        assert!(keys(&audit).contains(&key), "{audit:#}");
    }
    assert_eq!((&audit["ok"], &audit["first_bad"]), (&Value::Bool(true), &Value::Null));
    assert_eq!(audit["records"], host.audit_records().len());

    let doctor = document(&["doctor", "--json"]);
    assert_eq!(keys(&doctor), ["checks", "grants", "version"]);
    assert_eq!(
        keys(&doctor["checks"][0]),
        ["check", "help", "message", "ok", "subject"]
    );
    assert_eq!(keys(&doctor["grants"][0]), ["database", "held", "jobs", "statement"]);
}

#[test]
fn next_tells_instant_local_time_zone_and_what_the_clock_change_did() {
    let host = Host::new(
        "[databases.app]\nurl = \"postgresql:///app?host=/nowhere&user=nobody\"\n[jobs.gap]\nschedule = \"30 2 * * *\"\ntimezone = \"Europe/Berlin\"\nretention = { table = \"t\", age_column = \"c\", keep = \"1d\" }\n",
    );
    // At 2026-03-29T01:00Z the clocks of Berlin go from 2:00 to 3:00.
    let next = host
        .run(&["next", "gap", "-n", "2", "--from", "2026-03-28T12:00:00Z", "--json"])
        .expect_code(0)
        .json();
    assert_eq!(keys(&next), ["occurrences", "version"]);
    let occurrences = next["occurrences"].as_array().unwrap();
    assert_eq!(occurrences.len(), 2);
    assert_eq!(
        keys(&occurrences[0]),
        ["adjusted", "job", "local", "scheduled_for", "timezone"]
    );
    assert_eq!(occurrences[0]["scheduled_for"], "2026-03-29T01:00:00Z", "{next:#}");
    assert_eq!(occurrences[0]["local"], "2026-03-29T03:00:00+02:00");
    assert_eq!(occurrences[0]["timezone"], "Europe/Berlin");
    assert!(occurrences[0]["adjusted"].is_string(), "{next:#}");
    assert_eq!(occurrences[1]["scheduled_for"], "2026-03-30T00:30:00Z");
    assert!(occurrences[1]["adjusted"].is_null(), "{next:#}");
}

#[tokio::test]
async fn a_document_of_a_run_that_is_not_green_is_one_document_too() {
    let database = application().await;
    let gated = PURGE.replace("approval = \"none\"\n", "");
    let host = Host::new(&format!("{}{gated}", superuser(&database).await));
    let run = host.run(&["run", "purge", "--json"]).expect_code(3);
    assert_eq!(run.stderr, "");
    let run = run.json();
    assert_eq!(keys(&run["run"]), RUN);
    assert_eq!(run["run"]["outcome"], "gated");
    let policy = host.run(&["plan", "purge", "--json"]).expect_code(0).json()["plan"]["policy"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(run["run"]["reason"].as_str().unwrap().contains(&policy), "{run:#}");
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 100);

    let digits = &policy["sha256:".len()..]["".len()..12];
    let approved = host.run(&["approve", digits, "--json"]).expect_code(0).json();
    assert_eq!(approved["approved"][0]["policy"], policy.as_str(), "{approved:#}");
    host.run(&["run", "purge"]).expect_code(0);
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 10);
}
