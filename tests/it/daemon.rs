//! The daemon as a process: start, kill, restart, drain.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;

use pgreeve::demo::s3_server::S3Server;
use serde_json::Value;

use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::http::{free_address, http_get};
use crate::support::process::{Host, peak_memory, until};
use crate::support::{Database, cluster};

/// A table of events, most of them due, and the role the daemon works as.
async fn events(rows: u32) -> Database {
    let database = Database::create().await;
    database
        .execute(&format!(
            "CREATE TABLE events (id bigserial PRIMARY KEY, created_at timestamptz NOT NULL, processed boolean NOT NULL, payload text);
             INSERT INTO events (created_at, processed, payload)
                SELECT now() - interval '100 days' + i * interval '1 ms', i % 10 <> 0, repeat('x', 50) FROM generate_series(1, {rows}) i;
             CREATE INDEX ON events (created_at);
             ANALYZE events"
        ))
        .await;
    database
}

/// Each row takes a millisecond to delete, so that there is a middle to be killed in.
async fn slow_down(database: &Database) {
    database
        .execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.001); RETURN OLD; END $$;
             CREATE TRIGGER slow BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .await;
}

async fn url(database: &Database) -> String {
    cluster().await.url_as("postgres", &database.name)
}

const PURGE: &str = r#"
[jobs.purge]
schedule  = "0 0 1 1 *"
approval  = "none"
catch_up_window = "800d"
retention = { table = "events", age_column = "created_at", keep = "90d", where = "processed", max_fraction = 1 }
"#;

/// The store `offsite`: the server, or what stands before it at an endpoint.
fn store_config(server: &S3Server, endpoint: &str) -> String {
    format!(
        "[stores.offsite]\nurl = \"s3://{}/backups\"\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\npath_style = true\ncredentials_file = \"{}\"\n",
        server.bucket(),
        server.credentials_file().display()
    )
}

async fn purge_config(database: &Database) -> String {
    format!("[databases.app]\nurl = \"{}\"\n{PURGE}", url(database).await)
}

/// Makes the ledger say that a job's schedule was last evaluated long ago, so that a slot is due as
/// soon as a daemon leads. The job must have been seen before.
async fn miss_a_slot(host: &Host, database: &Database) {
    let daemon = host.daemon();
    until("the daemon has seen the job", async || {
        database
            .value::<bool>("SELECT to_regclass('pgreeve.schedule') IS NOT NULL")
            .await
            && database
                .value::<bool>("SELECT EXISTS (SELECT 1 FROM pgreeve.schedule)")
                .await
    })
    .await;
    assert_eq!(daemon.stop(), 0);
    database
        .execute("UPDATE pgreeve.schedule SET evaluated_until = now() - interval '500 days'")
        .await;
}

async fn outcomes(database: &Database) -> Vec<String> {
    sqlx::query_scalar("SELECT coalesce(outcome, 'open') FROM pgreeve.run ORDER BY scheduled_for, created_at")
        .fetch_all(&mut database.connect().await)
        .await
        .unwrap()
}

fn assert_sound(host: &Host) -> Value {
    host.run(&["audit", "verify", "--json"]).expect_code(0).json()
}

#[tokio::test]
async fn the_first_start_catches_nothing_up() {
    let database = events(100).await;
    let host = Host::new(&purge_config(&database).await);
    let daemon = host.daemon();
    until("the daemon has seen the job", async || {
        database
            .value::<bool>("SELECT to_regclass('pgreeve.schedule') IS NOT NULL")
            .await
            && database
                .value::<bool>("SELECT EXISTS (SELECT 1 FROM pgreeve.schedule)")
                .await
    })
    .await;
    assert_eq!(daemon.stop(), 0);
    assert_eq!(database.value::<i64>("SELECT count(*) FROM pgreeve.run").await, 0);
    assert_sound(&host);
}

#[tokio::test]
async fn a_missed_slot_is_caught_up_once_and_the_others_have_rows() {
    let database = events(1000).await;
    let host = Host::new(&purge_config(&database).await.replace("0 0 1 1 *", "0 0 1 * *"));
    miss_a_slot(&host, &database).await;
    let daemon = host.daemon();
    until("the caught-up run has ended", async || {
        database
            .value::<bool>("SELECT EXISTS (SELECT 1 FROM pgreeve.run WHERE outcome = 'succeeded')")
            .await
    })
    .await;
    assert_eq!(daemon.stop(), 0);
    let outcomes = outcomes(&database).await;
    assert!((16..=17).contains(&outcomes.len()), "{outcomes:?}");
    assert_eq!(
        outcomes.iter().filter(|outcome| *outcome == "missed").count(),
        outcomes.len() - 1
    );
    assert_eq!(
        database
            .value::<String>("SELECT trigger FROM pgreeve.run WHERE outcome = 'succeeded'")
            .await,
        "catch_up"
    );
    assert_eq!(
        database
            .value::<i64>("SELECT count(*) FROM events WHERE processed")
            .await,
        0
    );
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 100);
    assert_sound(&host);
}

#[tokio::test]
async fn a_daemon_killed_in_the_middle_of_a_purge_leaves_exact_counts() {
    let database = events(20_000).await;
    slow_down(&database).await;
    let host = Host::new(&purge_config(&database).await);
    miss_a_slot(&host, &database).await;
    let daemon = host.daemon();
    until("two batches are committed", async || {
        database.value::<i64>("SELECT count(*) FROM pgreeve.run_batch").await >= 2
    })
    .await;
    daemon.kill();

    let daemon = host.daemon();
    until("the dead run is closed", async || {
        database
            .value::<bool>("SELECT NOT EXISTS (SELECT 1 FROM pgreeve.run WHERE outcome IS NULL)")
            .await
    })
    .await;
    assert_eq!(daemon.stop(), 0);
    assert_eq!(outcomes(&database).await.last().map(String::as_str), Some("abandoned"));
    let slots: i64 = database
        .value("SELECT count(*) - count(DISTINCT (job, scheduled_for)) FROM pgreeve.run")
        .await;
    assert_eq!(slots, 0, "one terminal state per occurrence");
    let gone: i64 = database.value("SELECT 20000 - count(*) FROM events").await;
    let counted: i64 = database.value("SELECT sum(rows)::bigint FROM pgreeve.run_batch").await;
    assert!(gone > 0 && gone < 18_000, "killed in the middle: {gone}");
    assert_eq!(gone, counted);
    let reported: i64 = database
        .value("SELECT (report->>'rows')::bigint FROM pgreeve.run WHERE outcome = 'abandoned'")
        .await;
    assert_eq!(reported, counted);

    let verified = assert_sound(&host);
    assert_eq!(verified["unfinished_runs"].as_array().map(Vec::len), Some(0));
    let interrupted: Vec<Value> = host
        .audit_records()
        .into_iter()
        .filter(|record| record["kind"] == "run.interrupted")
        .collect();
    assert_eq!(interrupted.len(), 1);
    assert_eq!(interrupted[0]["body"]["report"]["rows"], counted);
    // The next run finishes what is left.
    database.execute("DROP TRIGGER slow ON events").await;
    host.run(&["run", "purge"]).expect_code(0);
    assert_eq!(
        database
            .value::<i64>("SELECT count(*) FROM events WHERE processed")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_killed_in_the_middle_of_a_backup_leaves_nothing_in_the_store() {
    let database = events(1000).await;
    // Incompressible, so that the upload has several parts.
    database
        .execute(
            "CREATE TABLE bulk AS SELECT i, (SELECT string_agg(md5(i::text || j::text), '') FROM generate_series(1, 300) j) AS text
             FROM generate_series(1, 6000) i",
        )
        .await;
    let directory = tempfile::tempdir().unwrap();
    let server = S3Server::start(directory.path()).await.unwrap();
    let proxy = FaultProxy::start(&server).await;
    proxy.fault(1000, Fault::Silence, |call| call.is_part(2));
    let settings = proxy.settings(&server, "backups");
    let jobs = format!(
        "[databases.app]\nurl = \"{}\"\n[jobs.nightly]\nschedule = \"0 0 1 1 *\"\ncatch_up_window = \"800d\"\nbackup = {{ store = \"offsite\" }}\n",
        url(&database).await
    );
    let host = Host::new(&format!(
        "{}{jobs}",
        store_config(&server, settings.endpoint.as_deref().unwrap())
    ));
    miss_a_slot(&host, &database).await;
    let store = pgreeve::store::StoreSettings::S3(Box::new(server.settings("backups")))
        .open()
        .await
        .unwrap();
    let daemon = host.daemon();
    until("an upload is open and a part of it has begun", async || {
        !proxy.calls(|call| call.is_part(2)).is_empty() && !store.list_uploads("").await.unwrap().is_empty()
    })
    .await;
    daemon.kill();
    assert!(
        !store.list_uploads("").await.unwrap().is_empty(),
        "the crash left an upload"
    );

    host.configure(&format!("{}{jobs}", store_config(&server, &server.endpoint())));
    assert_eq!(
        host.run(&["backup", "list", "--json"]).expect_code(0).json()["backups"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    let daemon = host.daemon();
    until("the dead run is closed and its leftovers are swept", async || {
        database
            .value::<bool>("SELECT NOT EXISTS (SELECT 1 FROM pgreeve.run WHERE outcome IS NULL)")
            .await
            && database
                .value::<bool>("SELECT NOT EXISTS (SELECT 1 FROM pgreeve.backup WHERE state = 'streaming')")
                .await
    })
    .await;
    assert_eq!(daemon.stop(), 0);
    assert!(
        store.list_uploads("").await.unwrap().is_empty(),
        "no open upload is left"
    );
    assert!(store.list("").await.unwrap().is_empty(), "no object is left");
    assert_eq!(outcomes(&database).await.last().map(String::as_str), Some("abandoned"));
    assert_sound(&host);
    let kinds: Vec<String> = host
        .audit_records()
        .iter()
        .map(|record| record["kind"].as_str().unwrap().to_owned())
        .collect();
    assert!(
        kinds.contains(&"run.interrupted".to_owned()) && kinds.contains(&"backup.swept".to_owned()),
        "{kinds:?}"
    );
    // And the next backup is whole.
    host.run(&["run", "nightly"]).expect_code(0);
    assert_eq!(
        host.run(&["backup", "list", "--json"]).expect_code(0).json()["backups"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn a_closed_audit_directory_stops_a_purge_before_its_first_statement() {
    let database = events(1000).await;
    let host = Host::new(&purge_config(&database).await);
    miss_a_slot(&host, &database).await;
    database
        .execute("UPDATE pgreeve.schedule SET evaluated_until = now()")
        .await;
    let daemon = host.daemon();
    // The log has the daemon's before, too; a daemon that still starts would not start.
    until("the daemon leads", async || {
        daemon.log().matches("leading the database").count() == 2
    })
    .await;
    std::fs::set_permissions(host.audit(), std::fs::Permissions::from_mode(0o555)).unwrap();
    let refused = host.run(&["run", "purge"]);
    assert_eq!(refused.code, 1, "{}{}", refused.stdout, refused.stderr);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("audit") && said.contains("write"), "{said}");
    drop(daemon);
    std::fs::set_permissions(host.audit(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let log = std::fs::read_to_string(cluster().await.server_log()).unwrap();
    let destructive: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with(&format!("{} pgreeve:purge", database.name)))
        .filter(|line| line.contains("DELETE") || line.contains("UPDATE ONLY"))
        .collect();
    assert!(destructive.is_empty(), "{destructive:?}");
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 1000);
}

#[tokio::test]
async fn a_stopped_daemon_ends_its_purge_at_a_batch_and_says_so() {
    let database = events(20_000).await;
    slow_down(&database).await;
    let host = Host::new(&purge_config(&database).await);
    miss_a_slot(&host, &database).await;
    let daemon = host.daemon();
    until("a batch is committed", async || {
        database.value::<i64>("SELECT count(*) FROM pgreeve.run_batch").await >= 1
    })
    .await;
    assert_eq!(daemon.stop(), 0, "a drained daemon ends well");
    assert_eq!(outcomes(&database).await.last().map(String::as_str), Some("cancelled"));
    let gone: i64 = database.value("SELECT 20000 - count(*) FROM events").await;
    assert_eq!(
        gone,
        database
            .value::<i64>("SELECT sum(rows)::bigint FROM pgreeve.run_batch")
            .await
    );
    assert_eq!(
        gone,
        database
            .value::<i64>("SELECT (report->>'rows')::bigint FROM pgreeve.run ORDER BY created_at DESC LIMIT 1")
            .await
    );
    let verified = assert_sound(&host);
    assert_eq!(verified["unfinished_runs"].as_array().map(Vec::len), Some(0));
}

#[tokio::test]
async fn one_database_that_is_down_does_not_stop_the_others() {
    let database = events(1000).await;
    let nowhere = "[databases.down]\nurl = \"postgresql:///x?host=/nonexistent&user=nobody\"\n[jobs.never]\ndatabase = \"down\"\nschedule = \"* * * * *\"\nretention = { table = \"t\", age_column = \"c\", keep = \"1d\" }\n";
    let config = format!(
        "{nowhere}{}",
        purge_config(&database)
            .await
            .replace("[jobs.purge]", "[jobs.purge]\ndatabase = \"app\"")
    );
    let host = Host::new(&config);
    miss_a_slot(&host, &database).await;
    let socket = host.path("notify");
    let receiver = UnixDatagram::bind(&socket).unwrap();
    let daemon = host.daemon_with(|command| {
        command.env("NOTIFY_SOCKET", &socket);
    });
    until("the purge has ended", async || {
        database
            .value::<bool>("SELECT EXISTS (SELECT 1 FROM pgreeve.run WHERE outcome = 'succeeded')")
            .await
    })
    .await;
    let log = daemon.log();
    assert!(
        log.contains("the database cannot be used") && log.contains("/nonexistent"),
        "{log}"
    );
    assert_eq!(daemon.stop(), 0);
    let messages = notifications(&receiver);
    let position = |what: &str| messages.iter().position(|message| message.contains(what));
    assert!(
        messages
            .iter()
            .any(|message| message.contains("STATUS=leading 1 of 2 databases; down unreachable")),
        "{messages:?}"
    );
    assert!(
        position("READY=1").unwrap() < position("STOPPING=1").unwrap(),
        "{messages:?}"
    );
}

pub fn notifications(receiver: &UnixDatagram) -> Vec<String> {
    receiver.set_nonblocking(true).unwrap();
    let mut buffer = [0; 4096];
    std::iter::from_fn(|| {
        let length = receiver.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    })
    .collect()
}

#[tokio::test]
async fn the_watchdog_is_fed_while_the_loops_are_alive() {
    let database = events(10).await;
    let host = Host::new(&purge_config(&database).await);
    let socket = host.path("notify");
    let receiver = UnixDatagram::bind(&socket).unwrap();
    let daemon = host.daemon_with(|command| {
        command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "400000");
    });
    let mut seen = Vec::new();
    until("two signs of life", async || {
        seen.extend(notifications(&receiver));
        seen.iter().filter(|message| message.contains("WATCHDOG=1")).count() >= 2
    })
    .await;
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test]
async fn a_second_daemon_follows_and_takes_over_when_the_first_dies() {
    let database = events(10).await;
    let first = Host::new(&purge_config(&database).await);
    let second = Host::new(&purge_config(&database).await);
    let leader = first.daemon();
    until("the first leads", async || {
        leader.log().contains("leading the database")
    })
    .await;
    let follower = second.daemon();
    until("the second follows", async || follower.log().contains("following")).await;
    let epoch: i64 = database.value("SELECT epoch FROM pgreeve.leader").await;
    leader.kill();
    until("the second leads", async || {
        follower.log().contains("leading the database")
    })
    .await;
    assert_eq!(
        database.value::<i64>("SELECT epoch FROM pgreeve.leader").await,
        epoch + 1
    );
    assert_eq!(follower.stop(), 0);
}

#[tokio::test]
async fn a_daemon_with_a_bad_configuration_ends_with_78() {
    let host = Host::new("[jobs.x]\nschedule = \"0 0 31 2 *\"\nretentoin = {}\n");
    let mut daemon = host.daemon();
    assert_eq!(daemon.wait(), 78);
    let log = daemon.log();
    assert!(log.contains("retention") && log.contains("config.toml:"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_three_times_larger_takes_no_more_memory() {
    let directory = tempfile::tempdir().unwrap();
    let server = S3Server::start(directory.path()).await.unwrap();
    let mut peaks = Vec::new();
    for rows in [30_000, 90_000] {
        let database = Database::create().await;
        // 8 KB a row, which the server keeps compressed and pg_dump writes out: 240 and 720 MB.
        database
            .execute(&format!("CREATE TABLE bulk AS SELECT i, repeat('0123456789abcdef', 500) AS text FROM generate_series(1, {rows}) i"))
            .await;
        // The first answers are slow, so that in both all buffers are in use.
        let proxy = FaultProxy::start(&server).await;
        proxy.fault(6, Fault::SlowAnswer(200), |call| {
            call.parameter("partNumber").is_some() && call.path.contains("data")
        });
        let settings = proxy.settings(&server, "backups");
        let store = store_config(&server, settings.endpoint.as_deref().unwrap());
        let host = Host::new(&format!(
            "[databases.app]\nurl = \"{}\"\n{store}[jobs.nightly]\nschedule = \"0 0 1 1 *\"\nbackup = {{ store = \"offsite\", compress = \"none\" }}\n",
            url(&database).await
        ));
        let mut child = host
            .command(&["run", "nightly"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut peak = 0;
        let status = loop {
            peak = peak.max(peak_memory(child.id()).unwrap_or(0));
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        assert!(status.success());
        peaks.push(peak);
    }
    println!("peak memory in KiB: {peaks:?}");
    assert!(peaks[1] * 100 < peaks[0] * 110, "peak memory in KiB: {peaks:?}");
}

#[tokio::test]
async fn metrics_health_and_the_status_page_answer_over_http() {
    let database = events(1000).await;
    let host = Host::new(&purge_config(&database).await);
    miss_a_slot(&host, &database).await;
    let address = free_address();
    let config = std::fs::read_to_string(host.path("config.toml")).unwrap();
    std::fs::write(
        host.path("config.toml"),
        config.replace("listen = \"off\"", &format!("listen = \"{address}\"")),
    )
    .unwrap();
    let daemon = host.daemon();
    until("the purge has ended", async || {
        database
            .value::<bool>("SELECT EXISTS (SELECT 1 FROM pgreeve.run WHERE outcome = 'succeeded')")
            .await
    })
    .await;
    assert!(http_get(address, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(http_get(address, "/readyz").starts_with("HTTP/1.1 200"));
    until("the metrics show the run", async || {
        http_get(address, "/metrics").contains("pgreeve_job_runs_total{job=\"purge\",outcome=\"succeeded\"} 1")
    })
    .await;
    let metrics = http_get(address, "/metrics");
    let kept = metrics
        .lines()
        .find_map(|line| line.strip_prefix("pgreeve_kept_within_until_timestamp_seconds{job=\"purge\"} "));
    let kept: f64 = kept.unwrap().parse().unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!(
        (0.0..60.0).contains(&(now - kept)),
        "nothing was left, a moment ago: {kept}"
    );
    for line in [
        "pgreeve_rows_changed_total{job=\"purge\"} 900",
        "pgreeve_rows_past_limit{job=\"purge\"} 0",
        "pgreeve_job_runs_total{job=\"purge\",outcome=\"failed\"} 0",
        "pgreeve_is_leader{database=\"app\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in:\n{metrics}");
    }
    let page = http_get(address, "/");
    assert!(
        page.contains("<td>purge</td>") && page.contains("<td>leading</td>"),
        "{page}"
    );
    assert!(http_get(address, "/nothing").starts_with("HTTP/1.1 404"));
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_tells_at_its_start_which_stores_it_can_use() {
    let directory = tempfile::tempdir().unwrap();
    let server = S3Server::start(directory.path()).await.unwrap();
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"postgresql:///app?host=/nonexistent&user=nobody\"\n{}\
         [stores.lost]\nurl = \"file:///nonexistent/store\"\n[stores.unused]\nurl = \"file:///nonexistent/other\"\n\
         [jobs.nightly]\nschedule = \"0 0 1 1 *\"\nbackup = {{ store = \"offsite\" }}\n\
         [jobs.weekly]\nschedule = \"0 0 1 1 *\"\nbackup = {{ store = \"lost\" }}\n",
        store_config(&server, &server.endpoint())
    ));
    let daemon = host.daemon();
    let probed = || {
        let records = host.audit_records().into_iter();
        let probed = records.filter(|record| record["kind"] == "store.probed");
        probed.map(|record| record["body"].clone()).collect::<Vec<_>>()
    };
    until("both stores are on record", async || {
        host.audit().exists() && probed().len() == 2
    })
    .await;
    let bodies = probed();
    let of = |name: &str| bodies.iter().find(|body| body["store"] == name).unwrap();
    assert_eq!(of("offsite")["usable"], true);
    let capabilities = &of("offsite")["capabilities"];
    assert_eq!(capabilities["conditional_complete"], true, "{capabilities:#}");
    assert_eq!(capabilities["checksum"], "md5");
    assert_eq!(of("lost")["usable"], false);
    assert!(
        of("lost")["reason"].as_str().unwrap().contains("/nonexistent/store"),
        "{bodies:?}"
    );
    let log = daemon.log();
    assert!(log.contains("the store offsite is usable"), "{log}");
    assert!(log.contains("the store lost cannot be used"), "{log}");
    assert_eq!(daemon.stop(), 0);
}
