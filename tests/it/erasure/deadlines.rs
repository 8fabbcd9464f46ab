//! One calendar month, and what an operator can do about it.

use jiff::{Span, Timestamp, ToSpan};
use pgreeve::job::Outcome;

use super::{SHOP_RULE, count, shop};
use crate::support::process::Host;
use crate::support::{Database, cluster};

fn ago(span: Span) -> Timestamp {
    let now = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    now.checked_sub(span).unwrap().timestamp()
}

async fn host(database: &Database) -> Host {
    let url = cluster().await.url_as("postgres", &database.name);
    Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.erase]\nschedule = \"0 0 1 1 *\"\napproval = \"none\"\n[jobs.erase.erasure]\n{SHOP_RULE}"
    ))
}

#[tokio::test]
async fn warnings_come_once_at_a_half_and_at_four_fifths_and_an_overdue_request_is_not_green() {
    let database = shop().await;
    database.execute("UPDATE requests SET who = '2'").await;
    // A hold keeps the request open.
    crate::retention::holds::place(&database, "users", "id = 2").await;
    let mut warned = Vec::new();
    for days in [1, 16, 17, 26, 40] {
        database
            .execute(&format!("UPDATE requests SET created_at = now() - interval '{days} days'; UPDATE pgreeve.erasure_request SET received_at = now() - interval '{days} days', due_at = now() - interval '{days} days' + interval '30 days'"))
            .await;
        let report = super::erase(&database, SHOP_RULE).await.0.unwrap();
        let level: i16 = database.value("SELECT warned FROM pgreeve.erasure_request").await;
        warned.push((
            level,
            report.outcome == Outcome::Succeeded,
            report.body["days_left"].as_i64().unwrap(),
        ));
        if days == 1 {
            let due: bool = database.value("SELECT due_at = received_at + interval '1 month' OR due_at = received_at + interval '30 days' FROM pgreeve.erasure_request").await;
            assert!(due);
        }
    }
    // What is left is counted in whole days from a moment a little later.
    let levels: Vec<(i16, bool)> = warned.iter().map(|(level, green, _)| (*level, *green)).collect();
    assert_eq!(levels, [(0, true), (50, true), (50, true), (80, true), (100, false)]);
    let left: Vec<i64> = warned[1..].iter().map(|(_, _, left)| *left).collect();
    assert!(
        (13..=14).contains(&left[0]) && (3..=4).contains(&left[2]) && left[3] <= -10,
        "{left:?}"
    );
}

#[tokio::test]
async fn a_deadline_is_extended_once_and_only_before_it_passes() {
    let database = shop().await;
    let host = host(&database).await;
    let received = ago(20.days()).to_string();
    let kept = host
        .run(&[
            "erasure",
            "request",
            "--job",
            "erase",
            "--subject",
            "2",
            "--received",
            &received,
            "--json",
        ])
        .expect_code(0)
        .json();
    let id = kept["request"]["request_id"].as_str().unwrap().to_owned();
    let list = host.run(&["erasure", "list", "--json"]).expect_code(0).json();
    assert_eq!(list["requests"][0]["state"], "received");
    let left = list["requests"][0]["days_left"].as_i64().unwrap();
    assert!((7..=11).contains(&left), "{left}");
    host.run(&["erasure", "extend", &id, "--months", "3", "--reason", "x"])
        .expect_code(2);
    host.run(&["erasure", "extend", &id, "--months", "2", "--reason", " "])
        .expect_code(2);
    host.run(&["erasure", "extend", &id, "--months", "2", "--reason", "many systems"])
        .expect_code(0);
    let list = host.run(&["erasure", "list", "--json"]).expect_code(0).json();
    assert_eq!(list["requests"][0]["extended_months"], 2);
    assert!(list["requests"][0]["days_left"].as_i64().unwrap() >= left + 58);
    let again = host
        .run(&["erasure", "extend", &id, "--months", "1", "--reason", "more"])
        .expect_code(3);
    assert!(again.stderr.contains("extended before"), "{}", again.stderr);
    let received = ago(2.months()).to_string();
    let late = host
        .run(&[
            "erasure",
            "request",
            "--job",
            "erase",
            "--subject",
            "3",
            "--received",
            &received,
            "--json",
        ])
        .expect_code(0)
        .json();
    let late = late["request"]["request_id"].as_str().unwrap().to_owned();
    let refused = host
        .run(&["erasure", "extend", &late, "--months", "1", "--reason", "x"])
        .expect_code(3);
    assert!(refused.stderr.contains("before it passes"), "{}", refused.stderr);
    let status = host.run(&["status"]);
    assert!(
        status.stdout.contains("erase: 2 requests are open, 1 of them overdue"),
        "{}",
        status.stdout
    );
    let records = host.audit_records();
    let extended = records
        .iter()
        .find(|record| record["kind"] == "erasure.extended")
        .unwrap();
    assert_eq!(extended["body"]["reason"], "many systems");
    host.run(&["audit", "verify"]).expect_code(0);
}

#[tokio::test]
async fn a_request_is_rejected_with_a_reason_before_it_is_begun_and_the_application_is_told() {
    let database = shop().await;
    let host = host(&database).await;
    // Not run yet: the application's request is taken in by a run that a pause of the job precedes.
    let kept = host
        .run(&["erasure", "request", "--job", "erase", "--subject", "2", "--json"])
        .expect_code(0)
        .json();
    let id = kept["request"]["request_id"].as_str().unwrap().to_owned();
    host.run(&["erasure", "reject", &id, "--reason", "a claim is pending"])
        .expect_code(0);
    host.run(&["erasure", "reject", &id, "--reason", "again"])
        .expect_code(3);
    let run = host.run(&["run", "erase", "--json"]).expect_code(0).json();
    assert_eq!(run["run"]["report"]["completed"], 1, "{run}");
    assert_eq!(count(&database, "users WHERE id = 2").await, 1);
    assert_eq!(count(&database, "users WHERE id = 1").await, 0);
    let records = host.audit_records();
    let of = |kind: &str| {
        records
            .iter()
            .filter(|record| record["kind"] == kind)
            .collect::<Vec<_>>()
    };
    assert_eq!(of("erasure.rejected")[0]["body"]["reason"], "a claim is pending");
    assert_eq!((of("erasure.started").len(), of("erasure.completed").len()), (1, 1));
    let started = of("erasure.started")[0]["seq"].as_u64();
    assert!(started < of("erasure.completed")[0]["seq"].as_u64());
    let text = serde_json::to_string(&records).unwrap() + &run.to_string();
    for personal in ["jane@", "john@", "session-"] {
        assert!(!text.contains(personal), "{personal}");
    }
}

#[tokio::test]
async fn a_new_policy_waits_for_its_approval_and_a_bad_subject_is_refused() {
    let database = shop().await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.erase]\nschedule = \"0 0 1 1 *\"\n[jobs.erase.erasure]\n{SHOP_RULE}"
    ));
    let plan = host.run(&["erasure", "plan", "erase", "--json"]).expect_code(0).json();
    let policy = plan["plan"]["policy"].as_str().unwrap().to_owned();
    let text = host.run(&["erasure", "plan", "erase", "--init"]).expect_code(0).stdout;
    assert!(text.contains("[jobs.erase.erasure.tables]"), "{text}");
    let gated = host.run(&["run", "erase", "--json"]).expect_code(3).json();
    assert_eq!(gated["run"]["outcome"], "gated");
    assert_eq!(count(&database, "users").await, 3);
    host.run(&["approve", &policy]).expect_code(0);
    let refused = host
        .run(&["erasure", "request", "--job", "erase", "--subject", "jane"])
        .expect_code(3);
    assert!(refused.stderr.contains("not of the key's type"), "{}", refused.stderr);
    let run = host.run(&["run", "erase", "--json"]).expect_code(0).json();
    assert_eq!(run["run"]["report"]["completed"], 1);
    assert_eq!(count(&database, "users").await, 2);
}
