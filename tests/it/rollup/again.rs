//! The same work a second time, and what the daemon tells of it.

use serde_json::json;

use super::{contents, events};
use crate::support::http::{free_address, http_get};
use crate::support::process::{Host, until};
use crate::support::{Database, cluster};

/// Ten days of rows, so that a first run needs several transactions.
async fn ten_days() -> Database {
    let database = events().await;
    database
        .execute("INSERT INTO events (company, person, amount, created_at) SELECT nullif(n % 4, 0), n % 7, n, now() - n * interval '97 seconds' FROM generate_series(1, 9000) n")
        .await;
    database
}

fn jobs(url: &str, mode: &str) -> String {
    format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.minutes]\nschedule = \"0 0 1 1 *\"\nretries = 1\n\
         rollup = {{ source = \"events\", time_column = \"created_at\", bucket = \"1m\", target = \"event_minutes\", group_by = [\"company\"], \
         measures = {{ events = \"count(*)\", total = \"sum(amount)\", people = \"count(DISTINCT person)\" }}, mode = \"{mode}\" }}\n"
    )
}

/// Buckets and groups that are not what the table says.
const WRONG: &str = "WITH fresh AS (SELECT date_trunc('minute', created_at, 'UTC'), company, count(*), sum(amount), count(DISTINCT person) FROM events GROUP BY 1, 2),
     kept AS (SELECT bucket, company, events, total, people FROM event_minutes)
     SELECT count(*) FROM ((TABLE fresh EXCEPT ALL TABLE kept) UNION ALL (TABLE kept EXCEPT ALL TABLE fresh)) AS d";

#[tokio::test]
async fn a_retry_after_a_failure_midway_doubles_and_loses_nothing() {
    for mode in ["recompute", "exact"] {
        let database = ten_days().await;
        let url = cluster().await.url_as("postgres", &database.name);
        let host = Host::new(&jobs(&url, mode));
        host.run(&["rollup", "init", "minutes"]).expect_code(0);
        // A sequence is not rolled back, so the third statement fails, and only that.
        database
            .execute(
                "CREATE SEQUENCE statements;
                 CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     IF nextval('public.statements') = 3 THEN RAISE 'no room' USING ERRCODE = '53300'; END IF;
                     RETURN NULL;
                 END $$;
                 CREATE TRIGGER fail AFTER INSERT ON event_minutes EXECUTE FUNCTION fail()",
            )
            .await;
        let run = host.run(&["run", "minutes", "--json"]).expect_code(0).json();
        assert_eq!(
            (&run["run"]["outcome"], &run["run"]["attempt"]),
            (&json!("succeeded"), &json!(2)),
            "{mode}: {run}"
        );
        assert_eq!(database.value::<i64>(WRONG).await, 0, "{mode}");
        let first = contents(&database).await;
        host.run(&["run", "minutes"]).expect_code(0);
        assert_eq!(contents(&database).await, first, "{mode}");
    }
}

#[tokio::test]
async fn the_daemon_tells_until_when_a_rollup_is_final() {
    let database = ten_days().await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&jobs(&url, "recompute"));
    host.run(&["rollup", "init", "minutes"]).expect_code(0);
    // As if a daemon had been here before the last slot, which is caught up at once.
    database
        .execute("INSERT INTO pgreeve.schedule (job, schedule, timezone, evaluated_until) VALUES ('minutes', '0 0 1 1 *', 'UTC', now() - interval '400 days')")
        .await;
    let address = free_address();
    let file = host.path("config.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("listen = \"off\"", &format!("listen = \"{address}\""));
    // However long ago that slot was.
    let text = text.replace("retries = 1", "retries = 1\ncatch_up_window = \"400d\"");
    std::fs::write(&file, text).unwrap();
    let running = host.daemon();
    let gauge = || {
        let metrics = http_get(address, "/metrics");
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("pgreeve_rollup_sealed_until_timestamp_seconds{job=\"minutes\"} "));
        line.map(|value| value.parse::<f64>().unwrap())
    };
    until("the daemon has refreshed it", async || {
        database
            .value::<bool>("SELECT EXISTS (SELECT 1 FROM pgreeve.run WHERE outcome = 'succeeded')")
            .await
            && gauge().is_some()
    })
    .await;
    let told = gauge().unwrap();
    let sealed: f64 = database
        .value("SELECT extract(epoch FROM sealed_until)::float8 FROM pgreeve.rollup")
        .await;
    assert!((sealed - told).abs() < 1e-3, "{sealed} {told}");
    // The text has the lag of ten minutes of lateness, too.
    let status = host.run(&["status"]);
    let line = status.stdout.lines().find(|line| line.starts_with("minutes")).unwrap();
    assert!(line.contains(" 10m") || line.contains(" 11m"), "{line}");
    running.kill();
}
