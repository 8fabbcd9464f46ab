//! Faults that other schedulers had, by the numbers of their issues: those of `pg_timetable`, and
//! 399 of `pg_cron`. Two more stand beside what they test: `boundary_minute_160_690` and
//! `full_channel_drop`, both in `schedule`.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::Connection;

use crate::support::bench::{Bench, Script, green};
use crate::support::process::{Host, until, until_within};
use crate::support::{Database, cluster};

async fn slow_events(rows: u32) -> Database {
    let database = Database::create().await;
    database
        .execute(&format!(
            "CREATE TABLE events (id bigserial PRIMARY KEY, created_at timestamptz NOT NULL);
             INSERT INTO events (created_at) SELECT now() - interval '100 days' + i * interval '1 ms' FROM generate_series(1, {rows}) i;
             CREATE INDEX ON events (created_at);
             ANALYZE events;
             CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.001); RETURN OLD; END $$;
             CREATE TRIGGER slow BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION slow()"
        ))
        .await;
    database
}

fn job(name: &str, database: &str) -> String {
    format!(
        "[jobs.{name}]\ndatabase = \"{database}\"\nschedule = \"0 0 1 1 *\"\napproval = \"none\"\nretries = 0\nretention = {{ table = \"events\", age_column = \"created_at\", keep = \"90d\", max_fraction = 1 }}\n"
    )
}

async fn host(instance: &str, database: &Database) -> Host {
    let url = cluster().await.url_as("postgres", &database.name);
    Host::named(
        instance,
        &format!("[databases.app]\nurl = \"{url}\"\n{}", job("purge", "app")),
    )
}

async fn a_batch(database: &Database) {
    until("a batch is committed", async || {
        database
            .value::<bool>("SELECT to_regclass('pgreeve.run_batch') IS NOT NULL")
            .await
            && database.value::<i64>("SELECT count(*) FROM pgreeve.run_batch").await >= 1
    })
    .await;
}

#[tokio::test]
async fn instance_race_223_678() {
    let bench = Bench::set_up().await;
    let (now, most, ran) = (
        Arc::new(AtomicU32::new(0)),
        Arc::new(AtomicU32::new(0)),
        Arc::new(AtomicU32::new(0)),
    );
    let counters = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&ran));
    let script: Arc<Script> = Arc::new(move |context| {
        let (now, most, ran) = counters.clone();
        Box::pin(async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            ran.fetch_add(1, Ordering::SeqCst);
            sqlx::query("SELECT pg_sleep(0.5)")
                .execute(context.session.connection())
                .await
                .unwrap();
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(green())
        })
    });
    let runs = (0..12).map(|_| bench.run(Bench::job("one", Arc::clone(&script))));
    let records = futures::future::join_all(runs).await;
    assert_eq!(most.load(Ordering::SeqCst), 1, "never two at a time");
    let count = |outcome: &str| {
        let of = records
            .iter()
            .filter(|record| record.outcome.as_deref() == Some(outcome));
        u32::try_from(of.count()).unwrap()
    };
    assert_eq!(count("succeeded"), ran.load(Ordering::SeqCst));
    assert_eq!(count("succeeded") + count("skipped"), 12, "and each has its one end");
}

#[tokio::test]
async fn stop_leaves_row_789() {
    let database = slow_events(20_000).await;
    let host = host("one", &database).await;
    let daemon = host.daemon();
    until("it leads", async || daemon.log().contains("leading the database")).await;
    let mut asked = host.command(&["run", "purge"]).stdout(Stdio::null()).spawn().unwrap();
    a_batch(&database).await;
    assert_eq!(daemon.stop(), 0);
    asked.wait().unwrap();
    assert_eq!(
        database
            .value::<i64>("SELECT count(*) FROM pgreeve.run WHERE outcome IS NULL")
            .await,
        0,
        "no row is left active"
    );
    // And nothing is in the way of the next.
    database.execute("DROP TRIGGER slow ON events").await;
    let daemon = host.daemon();
    until("it leads again", async || {
        daemon.log().matches("leading the database").count() == 2
    })
    .await;
    host.run(&["run", "purge"]).expect_code(0);
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 0);
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test]
async fn failover_mid_run_364() {
    let database = slow_events(30_000).await;
    let (one, two) = (host("one", &database).await, host("two", &database).await);
    let first = one.daemon();
    until("the first leads", async || first.log().contains("leading the database")).await;
    let mut asked = one.command(&["run", "purge"]).stdout(Stdio::null()).spawn().unwrap();
    a_batch(&database).await;
    let second = two.daemon();
    until("the second follows", async || second.log().contains("following")).await;
    first.kill();
    asked.wait().unwrap();
    until("the run is not running for ever", async || {
        database
            .value::<bool>("SELECT coalesce(bool_and(outcome = 'abandoned'), false) FROM pgreeve.run")
            .await
    })
    .await;
    database.execute("DROP TRIGGER slow ON events").await;
    two.run(&["run", "purge"]).expect_code(0);
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 0);
    assert_eq!(
        database
            .value::<i64>("SELECT sum(rows)::bigint FROM pgreeve.run_batch")
            .await,
        30_000,
        "the rows of the dead run count once"
    );
    assert_eq!(second.stop(), 0);
}

#[tokio::test]
async fn dropped_role_399() {
    let (dropped, healthy) = (slow_events(10).await, slow_events(10).await);
    let role = format!("gone_{}", dropped.name);
    let make = format!("CREATE ROLE {role} LOGIN SUPERUSER");
    dropped.execute(&make).await;
    let urls = (
        cluster().await.url_as(&role, &dropped.name),
        cluster().await.url_as("postgres", &healthy.name),
    );
    let host = Host::new(&format!(
        "[databases.dropped]\nurl = \"{}\"\n[databases.healthy]\nurl = \"{}\"\n{}{}",
        urls.0,
        urls.1,
        job("purge-one", "dropped"),
        job("purge-other", "healthy"),
    ));
    let daemon = host.daemon();
    let leads = |count| daemon.log().matches("leading the database").count() == count;
    until("both are led", async || leads(2)).await;
    dropped
        .execute(&format!(
            "REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role};
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}' OR application_name = 'pgreeve:leader:test' AND datname = current_database()"
        ))
        .await;
    until("its database is given up, with its name", async || {
        let log = daemon.log();
        log.contains("the database cannot be used") && log.contains(&role)
    })
    .await;
    host.run(&["run", "purge-other"]).expect_code(0);
    assert_eq!(healthy.value::<i64>("SELECT count(*) FROM events").await, 0);
    dropped.execute(&make).await;
    until("it comes back by itself", async || leads(3)).await;
    host.run(&["run", "purge-one"]).expect_code(0);
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test]
async fn log_store_timeout_153() {
    let (stuck, healthy) = (slow_events(300).await, slow_events(10).await);
    // The purge says that it deletes, and waits there for the lock below: it cannot end before it.
    stuck
        .execute(
            "CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 PERFORM pg_advisory_xact_lock(153);
                 WHILE NOT EXISTS (SELECT FROM pg_locks WHERE relation = 'pgreeve.run'::regclass AND mode = 'ShareLock' AND granted) LOOP
                     PERFORM pg_sleep(0.01);
                 END LOOP;
                 RETURN OLD;
             END $$",
        )
        .await;
    let urls = (
        cluster().await.url_as("postgres", &stuck.name),
        cluster().await.url_as("postgres", &healthy.name),
    );
    let host = Host::new(&format!(
        "[databases.stuck]\nurl = \"{}\"\n[databases.healthy]\nurl = \"{}\"\n{}{}",
        urls.0,
        urls.1,
        job("purge-one", "stuck"),
        job("purge-other", "healthy"),
    ));
    let daemon = host.daemon();
    until("both are led", async || {
        daemon.log().matches("leading the database").count() == 2
    })
    .await;
    let asked = host
        .command(&["run", "purge-one", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until("the purge deletes", async || {
        stuck
            .value::<bool>("SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database d ON d.oid = database AND datname = current_database() WHERE locktype = 'advisory' AND objid = 153)")
            .await
    })
    .await;
    // Nobody can write to the run's row for longer than a statement waits for a lock.
    let mut blocker = stuck.connect().await;
    let mut transaction = blocker.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE pgreeve.run IN SHARE MODE")
        .execute(&mut *transaction)
        .await
        .unwrap();
    // The purge yields to whatever else the shared server does before it comes to its end.
    until_within(
        Duration::from_mins(3),
        "the ledger could not be closed in time",
        async || daemon.log().contains("the ledger could not be closed; trying again"),
    )
    .await;
    host.run(&["run", "purge-other"]).expect_code(0);
    assert_eq!(healthy.value::<i64>("SELECT count(*) FROM events").await, 0);
    transaction.rollback().await.unwrap();
    let told = crate::support::process::Finished::from(asked.wait_with_output().unwrap());
    assert_eq!(told.json()["run"]["outcome"], "succeeded");
    assert_eq!(
        stuck.value::<String>("SELECT outcome FROM pgreeve.run").await,
        "succeeded",
        "and the run has its one end"
    );
    assert_eq!(daemon.stop(), 0);
}
