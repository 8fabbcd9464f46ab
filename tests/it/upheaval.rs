//! The real daemon is stopped, killed, put to sleep and given other schedules, in any order, and
//! every slot that was due has one row with an end.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::process::Signal;

use crate::support::process::{Daemon, Host, until};
use crate::support::{Database, cluster};

/// Each second, or each second one.
const SCHEDULES: [&str; 2] = ["* * * * * *", "*/2 * * * * *"];

#[derive(Debug, Clone)]
enum Event {
    Stop,
    Kill,
    /// For so many milliseconds, longer than a slot and shorter than a lease.
    Sleep(u64),
    Reload(usize),
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let event = prop_oneof![
        Just(Event::Stop),
        Just(Event::Kill),
        (1_500_u64..5_000).prop_map(Event::Sleep),
        (0..SCHEDULES.len()).prop_map(Event::Reload),
        (0..SCHEDULES.len()).prop_map(Event::Reload),
    ];
    prop::collection::vec((100_u64..2_500, event), 8)
}

fn start(host: &Host) -> Daemon {
    host.daemon_with(|command| {
        command.env("PGREEVE_DEMO_SECONDS", "1");
    })
}

/// Answers when the daemon leads and takes orders.
async fn ready(host: &Host, daemon: &Daemon) {
    let before = daemon.log().matches("leading the database").count();
    until("the daemon leads", async || {
        daemon.log().matches("leading the database").count() > before && host.path("run/control.sock").exists()
    })
    .await;
}

/// The instants since which another schedule was in force, and which.
fn changes(host: &Host) -> Vec<(Timestamp, String)> {
    let records = host.audit_records();
    let changes = records
        .iter()
        .filter(|record| record["body"]["schedule_before"].is_string());
    changes
        .map(|record| {
            let at = record["ts"].as_str().unwrap().parse().unwrap();
            (at, record["body"]["schedule"].as_str().unwrap().to_owned())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_stopped_killed_put_to_sleep_and_reloaded_accounts_for_every_slot_once() {
    let seed: [u8; 32] = std::array::from_fn(|_| uuid::Uuid::new_v4().as_bytes()[0]);
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let events = events().new_tree(&mut runner).unwrap().current();
    println!("{events:?}");

    let database = Database::create().await;
    database
        .execute("CREATE TABLE events (created_at timestamptz NOT NULL); CREATE INDEX ON events (created_at)")
        .await;
    let url = cluster().await.url_as("postgres", &database.name);
    let config = |schedule: usize| {
        format!(
            "[databases.app]\nurl = \"{url}\"\n[jobs.purge]\nschedule = \"{}\"\nmissed = \"run_all\"\napproval = \"none\"\nretention = {{ table = \"events\", age_column = \"created_at\", keep = \"90d\" }}\n",
            SCHEDULES[schedule]
        )
    };
    let host = Host::new(&config(0));
    let mut daemon = start(&host);
    until("the daemon leads", async || {
        daemon.log().contains("leading the database")
    })
    .await;
    for (pause, event) in events {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        match event {
            Event::Stop => {
                assert_eq!(daemon.stop(), 0);
                daemon = start(&host);
                ready(&host, &daemon).await;
            }
            Event::Kill => {
                daemon.kill();
                daemon = start(&host);
                ready(&host, &daemon).await;
            }
            Event::Sleep(millis) => {
                daemon.signal(Signal::STOP);
                tokio::time::sleep(Duration::from_millis(millis)).await;
                daemon.signal(Signal::CONT);
            }
            Event::Reload(schedule) => {
                host.configure(&config(schedule));
                let mut reload = host.command(&["reload"]);
                let reloaded = reload.env("PGREEVE_DEMO_SECONDS", "1").status().unwrap();
                assert!(reloaded.success());
            }
        }
    }
    assert_eq!(daemon.stop(), 0);
    // What the last one left open is closed by the next.
    let daemon = start(&host);
    ready(&host, &daemon).await;
    assert_eq!(daemon.stop(), 0);
    verify(&host, &database).await;
}

async fn verify(host: &Host, database: &Database) {
    let open = "SELECT count(*) FROM pgreeve.run WHERE outcome IS NULL";
    assert_eq!(database.value::<i64>(open).await, 0);
    let rows: Vec<i64> =
        sqlx::query_scalar("SELECT extract(epoch FROM scheduled_for)::bigint FROM pgreeve.run ORDER BY 1")
            .fetch_all(&mut database.connect().await)
            .await
            .unwrap();
    let rows: BTreeSet<i64> = rows.into_iter().collect();
    let changes = changes(host);
    let (first, last) = (*rows.first().unwrap(), *rows.last().unwrap());
    for second in first..=last {
        let at = Timestamp::from_second(second).unwrap();
        let near = changes
            .iter()
            .any(|(change, _)| at.duration_until(*change).abs() <= SignedDuration::from_secs(1));
        let in_force = changes.iter().rev().find(|(change, _)| *change < at);
        let in_force = in_force.map_or(SCHEDULES[0], |(_, schedule)| schedule);
        let due = second % 2 == 0 || in_force == SCHEDULES[0];
        // A change is recorded some milliseconds after the instant from which it counts.
        if second % 2 == 0 || !near {
            assert_eq!(rows.contains(&second), due, "{at}: {in_force}; {changes:?}");
        }
    }
    let log = host.audit();
    host.run(&["audit", "verify", "--dir", log.to_str().unwrap()])
        .expect_code(0);
}
