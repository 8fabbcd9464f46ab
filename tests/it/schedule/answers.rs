//! What `next`, `why` and `history` answer.

use pgreeve::ledger::migrate;
use serde_json::{Value, json};

use crate::support::process::Host;
use crate::support::{Database, cluster};

/// A host with a job in New York at 02:30, and a ledger to write into.
async fn host(database: &Database) -> Host {
    migrate::apply(&database.target).await.unwrap();
    let url = cluster().await.url_as("postgres", &database.name);
    Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.purge]\nschedule = \"30 2 * * *\"\ntimezone = \"America/New_York\"\nretention = {{ table = \"t\", age_column = \"c\", keep = \"1d\" }}\n"
    ))
}

/// Writes the row of a slot; `end` is outcome and reason.
async fn row(database: &Database, slot: &str, end: Option<(&str, &str)>) {
    sqlx::query(
        "INSERT INTO pgreeve.run (run_id, job, kind, scheduled_for, timezone, trigger, actor, instance, epoch, policy, outcome, reason, finished_at)
         VALUES (gen_random_uuid(), 'purge', 'retention', $1::text::timestamptz, 'America/New_York', 'schedule', 'a', 'i', 1, 'p', $2, $3, CASE WHEN $2 IS NOT NULL THEN now() END)",
    )
    .bind(slot)
    .bind(end.map(|end| end.0))
    .bind(end.map(|end| end.1))
    .execute(&mut database.connect().await)
    .await
    .unwrap();
}

fn why(host: &Host, at: &str) -> Value {
    host.run(&["why", "purge", "--at", at, "--json"]).expect_code(0).json()["why"].clone()
}

fn gates(why: &Value) -> Vec<(String, String, String)> {
    let text = |gate: &Value, key: &str| gate[key].as_str().unwrap().to_owned();
    let gates = why["gates"].as_array().unwrap();
    gates
        .iter()
        .map(|gate| (text(gate, "gate"), text(gate, "result"), text(gate, "detail")))
        .collect()
}

#[tokio::test]
async fn next_tells_which_slots_a_clock_change_moved() {
    let database = Database::create().await;
    let host = host(&database).await;
    let arguments = ["next", "-n", "2", "--from", "2026-03-07T12:00:00Z"];
    let document = host.run(&[&arguments[..], &["--json"]].concat()).expect_code(0).json();
    assert_eq!(
        document,
        json!({ "version": 1, "occurrences": [
            { "job": "purge", "scheduled_for": "2026-03-08T07:00:00Z", "local": "2026-03-08T03:00:00-04:00", "timezone": "America/New_York", "adjusted": "gap" },
            { "job": "purge", "scheduled_for": "2026-03-09T06:30:00Z", "local": "2026-03-09T02:30:00-04:00", "timezone": "America/New_York", "adjusted": null },
        ] })
    );
    let table = host.run(&arguments).expect_code(0).stdout;
    assert!(
        table.contains("ADJUSTED") && table.contains("America/New_York  gap"),
        "{table}"
    );
}

#[tokio::test]
async fn why_compares_each_field_in_the_zone_and_in_utc() {
    let database = Database::create().await;
    let host = host(&database).await;
    // 02:30 in UTC is what somebody who forgot the zone expects.
    let answer = why(&host, "2026-06-01T02:30:00Z");
    assert_eq!(
        (&answer["is_slot"], &answer["local"]),
        (&json!(false), &json!("2026-05-31T22:30:00-04:00"))
    );
    let matching = |side: &str| {
        let fields = answer["fields"].as_array().unwrap();
        fields
            .iter()
            .map(|field| field[side]["matches"].as_bool().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(matching("local"), [true, false, true, true, true]);
    assert_eq!(matching("utc"), [true, true, true, true, true]);
    assert_eq!(
        (&answer["previous"], &answer["next"]),
        (&json!("2026-05-31T06:30:00Z"), &json!("2026-06-01T06:30:00Z"))
    );
    let text = host
        .run(&["why", "purge", "--at", "2026-06-01T02:30:00Z"])
        .expect_code(0)
        .stdout;
    assert!(
        text.contains("22 no") && text.contains("2 yes") && text.contains("It is not a slot."),
        "{text}"
    );
    host.run(&["why", "purge", "--at", "soon"]).expect_code(2);
    host.run(&["why", "nothing", "--at", "2026-06-01T02:30:00Z"])
        .expect_code(2);
}

#[tokio::test]
async fn why_names_the_gate_that_stopped_a_slot() {
    let database = Database::create().await;
    let host = host(&database).await;
    let never = gates(&why(&host, "2026-03-08T02:30"));
    assert!(never[0].2.contains("no daemon has evaluated"), "{never:?}");
    database
        .execute(
            "INSERT INTO pgreeve.schedule VALUES ('purge', '30 2 * * *', 'America/New_York', '2026-03-20T00:00:00Z')",
        )
        .await;
    for (day, end) in [
        (9, Some(("succeeded", ""))),
        (10, Some(("missed", "nobody could run it"))),
        (11, Some(("skipped", "paused: migration (uid:0)"))),
        (12, Some(("skipped", "overlap: run X is under way"))),
        (13, Some(("skipped", "start_deadline: waited 1 s"))),
        (14, Some(("gated", "approve it"))),
        (15, Some(("failed", "division by zero"))),
        (16, None),
    ] {
        row(&database, &format!("2026-03-{day:02}T06:30:00Z"), end).await;
    }
    let order = [
        "lead", "pause", "overlap", "turn", "primary", "approval", "rollups", "run",
    ];
    for (day, stopped, detail) in [
        (10, "lead", "nobody could run it"),
        (11, "pause", "migration"),
        (12, "overlap", "under way"),
        (13, "turn", "waited 1 s"),
        (14, "approval", "approve it"),
        (15, "run", "division by zero"),
    ] {
        let found = gates(&why(&host, &format!("2026-03-{day}T02:30")));
        let names: Vec<&str> = found.iter().map(|gate| gate.0.as_str()).collect();
        assert_eq!(names, order);
        let stop = found.iter().position(|gate| gate.1 == "stopped").unwrap();
        assert_eq!(found[stop].0, stopped);
        assert!(found[stop].2.contains(detail), "{found:?}");
        assert!(found[..stop].iter().all(|gate| gate.1 == "passed"));
        assert!(found[stop + 1..].iter().all(|gate| gate.1 == "not_reached"));
    }
    let green = why(&host, "2026-03-09T06:30:00Z");
    assert!(gates(&green).iter().all(|gate| gate.1 == "passed"));
    assert_eq!(green["run"]["outcome"], "succeeded");
    assert_eq!(gates(&why(&host, "2026-03-16T02:30")).last().unwrap().1, "waiting");
    // The slot in the gap is found by the time that does not exist.
    let moved = why(&host, "2026-03-08T02:30");
    assert_eq!(
        (&moved["at"], &moved["adjusted"]),
        (&json!("2026-03-08T07:00:00Z"), &json!("gap"))
    );
    assert!(gates(&moved)[0].2.contains("has no row"));
    let ahead = gates(&why(&host, "2026-03-25T02:30"));
    assert!(
        ahead[0].1 == "waiting" && ahead[0].2.contains("evaluated until"),
        "{ahead:?}"
    );
    let future = gates(&why(&host, "2126-03-25T02:30"));
    assert!(
        future[0].1 == "waiting" && future[0].2.contains("starts at 2126-03-25T06:30:00Z"),
        "{future:?}"
    );
    let text = host
        .run(&["why", "purge", "--at", "2026-03-12T02:30"])
        .expect_code(0)
        .stdout;
    assert!(text.contains("overlap   stopped"), "{text}");
}

#[tokio::test]
async fn history_is_narrowed_by_time_trigger_and_colour() {
    let database = Database::create().await;
    let host = host(&database).await;
    for (day, outcome) in [(9, "succeeded"), (10, "missed"), (11, "failed")] {
        row(&database, &format!("2026-03-{day:02}T06:30:00Z"), Some((outcome, ""))).await;
    }
    row(&database, "2026-03-12T06:30:00Z", None).await;
    let slots = |arguments: &[&str]| {
        let document = host
            .run(&[&["history", "--json"], arguments].concat())
            .expect_code(0)
            .json();
        let runs = document["runs"].as_array().unwrap().clone();
        runs.iter()
            .map(|run| run["scheduled_for"].as_str().unwrap()[8..10].to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(slots(&[]), ["12", "11", "10", "09"]);
    assert_eq!(slots(&["--not-green"]), ["11", "10"]);
    let window = ["--since", "2026-03-10T06:30:00Z", "--until", "2026-03-12T06:30:00Z"];
    assert_eq!(slots(&window), ["11", "10"]);
    assert_eq!(slots(&["--trigger", "manual"]), Vec::<String>::new());
    assert_eq!(slots(&["--trigger", "schedule", "--outcome", "missed"]), ["10"]);
    host.run(&["history", "--trigger", "luck"]).expect_code(2);
}
