//! What an auditor is told about a stretch of time.

use std::fs;

use pgreeve::audit::segment::Segment;
use pgreeve::audit::{AuditLog, Digest, Entry, RecordKind};
use pgreeve::values::RunId;
use serde_json::{Value, json};

use crate::support::process::Host;
use crate::support::{Database, cluster};

const PURGE: &str = "[jobs.purge]\nschedule = \"0 * * * *\"\napproval = \"none\"\n\
     retention = { table = \"events\", age_column = \"created_at\", keep = \"30d\", max_fraction = 1 }\n";

fn slot(kind: RecordKind, run: RunId, slot: Option<&str>, body: &Value) -> Entry {
    let mut body = body.clone();
    body["scheduled_for"] = json!(slot);
    Entry::new(kind, body).run(run).job("purge".parse().unwrap())
}

/// Writes a log whose records have these times, as if it had been written then.
async fn write(host: &Host, records: Vec<(&str, Entry)>) {
    let times: Vec<String> = records.iter().map(|(ts, _)| (*ts).to_owned()).collect();
    {
        let log = AuditLog::open(&host.audit(), "test").unwrap();
        for (_, entry) in records {
            log.append(entry).await.unwrap();
        }
    }
    let [segment] = Segment::list(&host.audit()).unwrap().try_into().unwrap();
    let written = fs::read_to_string(&segment.path).unwrap();
    let (mut text, mut prev): (String, Option<String>) = (String::new(), None);
    let before = written.lines().count() - times.len();
    for (number, line) in written.lines().enumerate() {
        let record: Value = serde_json::from_str(line).unwrap();
        let ts = number
            .checked_sub(before)
            .map_or("2026-03-01T00:00:00.000000Z", |place| times[place].as_str());
        let mut line = line.replace(record["ts"].as_str().unwrap(), ts);
        if let Some(prev) = prev {
            line = line.replace(record["prev"].as_str().unwrap(), &prev);
        }
        prev = Some(Digest::of(line.as_bytes()).to_string());
        text.push_str(&line);
        text.push('\n');
    }
    fs::write(&segment.path, text).unwrap();
}

#[tokio::test]
async fn every_slot_of_every_schedule_in_force_is_accounted_for_also_without_the_database() {
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"postgresql://postgres@127.0.0.1:1/app?connect_timeout=1\"\n{PURGE}"
    ));
    let schedules = |schedules: Value| {
        Entry::new(
            RecordKind::ConfigApplied,
            json!({ "fingerprint": "sha256:aa", "schedules": schedules }),
        )
    };
    let (first, second, hand) = (RunId::new(), RunId::new(), RunId::new());
    let purge = || "purge".parse().unwrap();
    write(
        &host,
        vec![
            ("2026-03-01T00:30:00.000000Z", schedules(json!({ "purge": "0 * * * * UTC" }))),
            ("2026-03-01T01:00:00.100000Z", slot(RecordKind::RunStart, first, Some("2026-03-01T01:00:00Z"), &json!({}))),
            ("2026-03-01T01:00:01.000000Z", slot(RecordKind::RunEnd, first, Some("2026-03-01T01:00:00Z"), &json!({ "outcome": "succeeded" }))),
            ("2026-03-01T02:00:00.100000Z", slot(RecordKind::RunStart, second, Some("2026-03-01T02:00:00Z"), &json!({}))),
            ("2026-03-01T02:00:01.000000Z", slot(RecordKind::RunEnd, second, Some("2026-03-01T02:00:00Z"), &json!({ "outcome": "failed", "reason": "disk full" }))),
            ("2026-03-01T02:10:00.000000Z", slot(RecordKind::RunEnd, hand, None, &json!({ "outcome": "succeeded" }))),
            ("2026-03-01T02:15:00.000000Z", Entry::new(RecordKind::HoldPlaced, json!({ "id": 7, "reason": "case 12" })).actor("uid:0")),
            // The third and the fourth hour are missed, nothing is said of the fifth.
            ("2026-03-01T05:10:00.000000Z", Entry::new(RecordKind::Missed, json!({ "slots": 2, "first": "2026-03-01T03:00:00Z", "last": "2026-03-01T04:00:00Z", "reason": "downtime" })).job(purge())),
            // From here on it comes twice an hour, in another zone.
            ("2026-03-01T05:20:00.000000Z", schedules(json!({ "purge": "15,45 * * * * Asia/Kolkata" }))),
            ("2026-03-01T05:45:00.100000Z", slot(RecordKind::Skipped, RunId::new(), Some("2026-03-01T05:45:00Z"), &json!({ "reason": "paused" }))),
            ("2026-03-01T07:00:00.000000Z", Entry::new(RecordKind::HoldReleased, json!({ "id": 7 }))),
        ],
    )
    .await;
    let report = ["audit", "report", "--from", "2026-03-01", "--to", "2026-03-01T06:30"];
    let json = host
        .run(&[&report[..], &["--format", "json"]].concat())
        .expect_code(3)
        .json();
    let purge = &json["jobs"]["purge"];
    assert_eq!(
        purge["slots"],
        json!({ "succeeded": 1, "failed": 1, "missed": 2, "skipped": 1, "no record": 2 }),
        "{json:#}"
    );
    assert_eq!(
        (&purge["expected"], &purge["manual"]),
        (&json!(7), &json!({ "succeeded": 1 }))
    );
    assert_eq!(purge["reasons"]["missed: downtime"], 2);
    assert_eq!(purge["reasons"]["failed: disk full"], 1);
    // The hold was placed within the time, and released after it.
    assert_eq!(json["decisions"].as_array().unwrap().len(), 1);
    assert!(json["decisions"][0]["what"].as_str().unwrap().contains("case 12"));
    assert_eq!(json["configuration"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&json["record"]["ok"], &json["record"]["records"]),
        (&json!(true), &json!(12))
    );
    assert_eq!(json["record"]["public_key"].as_str().unwrap().len(), 64);
    // What only the database knows is named as not known.
    assert_eq!(json["standing"][0]["job"], "purge");
    assert!(
        json["standing"][0]["error"].as_str().unwrap().contains("127.0.0.1"),
        "{json:#}"
    );
    let text = host.run(&report).expect_code(3).stdout;
    assert!(
        text.contains("could not be asked") && text.contains("no record"),
        "{text}"
    );
    // A narrower time holds its own slots only, its end not among them.
    let hour = [
        "audit",
        "report",
        "--from",
        "2026-03-01T01:00",
        "--to",
        "2026-03-01T02:00",
        "--format",
        "json",
    ];
    assert_eq!(
        host.run(&hour).json()["jobs"]["purge"]["slots"],
        json!({ "succeeded": 1 })
    );
    // An edit is told, by the code too.
    let [segment] = Segment::list(&host.audit()).unwrap().try_into().unwrap();
    let edited = fs::read_to_string(&segment.path)
        .unwrap()
        .replace("disk full", "all good!");
    fs::write(&segment.path, edited).unwrap();
    let tampered = host.run(&report).expect_code(4).stdout;
    assert!(tampered.contains("NO: record"), "{tampered}");
}

#[tokio::test]
async fn the_report_of_a_host_has_its_runs_in_every_format() {
    let database = Database::create().await;
    database
        .execute("CREATE TABLE events (id int PRIMARY KEY, created_at timestamptz); INSERT INTO events SELECT n, now() - n * interval '1 day' FROM generate_series(1, 60) n")
        .await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&format!("[databases.app]\nurl = \"{url}\"\n{PURGE}"));
    host.run(&["run", "purge", "--reason", "an <b>auditor</b> asked"])
        .expect_code(0);
    let report = ["audit", "report", "--from", "2026-01-01", "--to", "2126-01-01"];
    let format = |format: &'static str| [&report[..], &["--format", format]].concat();
    let json = host.run(&format("json")).expect_code(0).json();
    assert_eq!(json["version"], 1);
    assert_eq!(json["jobs"]["purge"]["manual"], json!({ "succeeded": 1 }));
    assert!(json["standing"][0]["over_retention_seconds"].as_u64().unwrap() < 600);
    let csv = host.run(&format("csv")).expect_code(0).stdout;
    assert!(csv.starts_with("part,row,column,value\r\n"));
    assert!(csv.contains("\"slots\",\"1\",\"by hand\",\"succeeded 1\"\r\n"), "{csv}");
    let html = host.run(&format("html")).expect_code(0).stdout;
    assert!(
        html.contains("<td>succeeded 1</td>") && html.ends_with("</html>\n"),
        "{html}"
    );
    for outside in ["<script", "http://", "https://", "<b>auditor", "src="] {
        assert!(!html.contains(outside), "{outside}: {html}");
    }
    let backwards = ["audit", "report", "--from", "2026-01-02", "--to", "2026-01-01"];
    assert!(host.run(&backwards).expect_code(2).stderr.contains("earlier --from"));
}
