//! The program is killed at each step, and begins again.

use std::fmt::Write;
use std::process::{Child, Stdio};

use sqlx::{Connection, Executor};

use super::{SHOP_RULE, count, shop};
use crate::retention::holds::place;
use crate::support::process::{Host, until};
use crate::support::{Database, cluster};

async fn host(database: &Database) -> Host {
    let url = cluster().await.url_as("postgres", &database.name);
    Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.erase]\nschedule = \"0 0 1 1 *\"\napproval = \"none\"\nlock_timeout = \"40s\"\n[jobs.erase.erasure]\n{SHOP_RULE}"
    ))
}

async fn steps(database: &Database) -> String {
    database
        .value(
            "SELECT string_agg(concat_ws(' ', source_id, step, action, relation, rows, s.state), ', ' ORDER BY source_id, step)
             FROM pgreeve.erasure_step s JOIN pgreeve.erasure_request USING (request_id)",
        )
        .await
}

/// How many people ask at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// Jane.
    One,
    /// Jane and John, who refers to her.
    Two,
}

async fn asked(asking: Asking) -> Database {
    let database = shop().await;
    if asking == Asking::Two {
        database
            .execute("INSERT INTO requests (id, who) VALUES (20, '2')")
            .await;
    }
    database
}

/// Nobody who asked is there, and all were answered.
async fn assert_over(database: &Database, asking: Asking) {
    let left = if asking == Asking::One { 2 } else { 1 };
    assert_eq!(count(database, "users").await, left);
    assert_eq!(count(database, "requests WHERE status <> 'done'").await, 0);
}

#[tokio::test]
async fn killed_at_each_step_and_started_again_it_counts_as_if_undisturbed() {
    kill_at_each_step(Asking::One, false).await;
}

#[tokio::test]
async fn a_group_killed_at_each_step_and_started_again_counts_as_if_undisturbed() {
    kill_at_each_step(Asking::Two, false).await;
}

#[tokio::test]
async fn steps_with_a_transaction_each_are_not_done_again_after_a_kill() {
    kill_at_each_step(Asking::One, true).await;
}

/// A hold that stands, though it keeps none of Jane's rows, gives each step a transaction of its own.
async fn kill_at_each_step(asking: Asking, apart: bool) {
    let undisturbed = asked(asking).await;
    host(&undisturbed).await.run(&["run", "erase"]).expect_code(0);

    let database = asked(asking).await;
    if apart {
        place(&database, "users", "id = 3").await;
    }
    let mut gates = String::from(
        "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(TG_ARGV[0]::bigint); RETURN NULL; END $$;",
    );
    // Every step that changes rows waits for the test, in the order of the plan.
    let mut reader = undisturbed.connect().await;
    let waits: Vec<(String, String)> = sqlx::query_as(
        "SELECT relation, CASE action WHEN 'delete' THEN 'DELETE' ELSE 'UPDATE' END
         FROM pgreeve.erasure_step JOIN pgreeve.erasure_request USING (request_id)
         WHERE action <> 'keep' AND rows > 0 AND source_id = '10' ORDER BY step",
    )
    .fetch_all(&mut reader)
    .await
    .unwrap();
    assert_eq!(waits.len(), 7, "{waits:?}");
    for (key, (table, event)) in waits.iter().enumerate() {
        write!(
            gates,
            "CREATE TRIGGER gate_{key} AFTER {event} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION gate({key});"
        )
        .unwrap();
    }
    database.execute(&gates).await;
    let host = host(&database).await;
    let mut killed = 0;
    for key in 0..waits.len() {
        let mut holder = database.connect().await;
        holder
            .execute(sqlx::AssertSqlSafe(format!("SELECT pg_advisory_lock({key}::bigint)")))
            .await
            .unwrap();
        let mut child = host.command(&["run", "erase"]).stdout(Stdio::null()).spawn().unwrap();
        until("the step waits at the gate, or all is done", async || {
            child.try_wait().unwrap().is_some() || waiting(&database).await == 1
        })
        .await;
        killed += i32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        drop(holder);
        until("the server has ended the work", async || {
            count(
                &database,
                "pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgreeve%'",
            )
            .await
                == 0
        })
        .await;
    }
    assert_eq!(killed, 7, "each step was reached");
    host.run(&["run", "erase"]).expect_code(0);
    assert_eq!(steps(&database).await, steps(&undisturbed).await);
    assert_over(&database, asking).await;
    assert_eq!(count(&database, "pgreeve.erasure_request WHERE attempt <> 7").await, 0);
    host.run(&["audit", "verify"]).expect_code(0);
}

/// Where a run stands in the ledger when it is killed: what it has just written, and not yet committed.
const BOUNDARIES: [(&str, &str); 8] = [
    ("received", "AFTER INSERT ON pgreeve.erasure_request FOR EACH ROW"),
    (
        "claimed",
        "AFTER UPDATE ON pgreeve.erasure_request FOR EACH ROW WHEN (old.attempt < new.attempt)",
    ),
    ("resolved", "AFTER INSERT ON pgreeve.erasure_scope FOR EACH STATEMENT"),
    (
        "announced",
        "AFTER UPDATE ON pgreeve.erasure_request FOR EACH ROW WHEN (old.remembered_at IS DISTINCT FROM new.remembered_at)",
    ),
    (
        "stepped",
        "AFTER INSERT OR UPDATE ON pgreeve.erasure_step FOR EACH STATEMENT",
    ),
    (
        "verifying",
        "AFTER UPDATE ON pgreeve.erasure_request FOR EACH ROW WHEN (new.state = 'verifying' AND old.state <> 'verifying')",
    ),
    (
        "closed",
        "AFTER UPDATE ON pgreeve.erasure_request FOR EACH ROW WHEN (old.finished_at IS NULL AND new.finished_at IS NOT NULL)",
    ),
    (
        "ended",
        "AFTER UPDATE ON pgreeve.run FOR EACH ROW WHEN (old.finished_at IS NULL AND new.finished_at IS NOT NULL)",
    ),
];

#[tokio::test]
async fn killed_between_any_two_records_and_started_again_its_certificate_counts_as_if_undisturbed() {
    kill_at_each_boundary(Asking::One).await;
}

#[tokio::test]
async fn a_group_killed_between_any_two_records_has_the_certificates_of_an_undisturbed_one() {
    kill_at_each_boundary(Asking::Two).await;
}

async fn kill_at_each_boundary(asking: Asking) {
    let undisturbed = asked(asking).await;
    let first = host(&undisturbed).await;
    first.run(&["run", "erase"]).expect_code(0);

    let database = asked(asking).await;
    let mut gates = String::from(
        "CREATE TABLE bystanders (name text); INSERT INTO bystanders VALUES ('Bob');
         CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(TG_ARGV[0]::bigint); RETURN NULL; END $$;",
    );
    for (key, (name, when)) in BOUNDARIES.iter().enumerate() {
        write!(gates, "CREATE TRIGGER {name} {when} EXECUTE FUNCTION gate({key});").unwrap();
    }
    database.execute(&gates).await;
    let host = host(&database).await;
    for (key, (name, _)) in BOUNDARIES.iter().enumerate() {
        if *name == "closed" {
            killed_while_it_searches(&database, &host).await;
            killed_between_certificate_and_record(&database, &host).await;
        }
        let mut holder = database.connect().await;
        holder
            .execute(sqlx::AssertSqlSafe(format!("SELECT pg_advisory_lock({key}::bigint)")))
            .await
            .unwrap();
        let child = begun(&host);
        until(&format!("a run is at the boundary `{name}`"), async || {
            waiting(&database).await == 1
        })
        .await;
        killed(&database, child).await;
        drop(holder);
    }
    host.run(&["run", "erase"]).expect_code(0);
    assert_eq!(steps(&database).await, steps(&undisturbed).await);
    assert_eq!(
        certificates(&host, &database).await,
        certificates(&first, &undisturbed).await
    );
    assert_over(&database, asking).await;
    host.run(&["audit", "verify"]).expect_code(0);
}

/// What each certificate counts.
async fn certificates(host: &Host, database: &Database) -> Vec<serde_json::Value> {
    let mut connection = database.connect().await;
    let requests: Vec<String> =
        sqlx::query_scalar("SELECT request_id::text FROM pgreeve.erasure_request ORDER BY source_id")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    let certificate = |request: &String| {
        let signed = host
            .run(&["erasure", "certificate", request, "--format", "json"])
            .expect_code(0);
        let erasure = &signed.json()["erasure"];
        let places = &erasure["residue"]["places"];
        serde_json::json!({
            "state": erasure["state"], "found": erasure["found"], "steps": erasure["steps"], "kept": erasure["kept"], "residue": places,
        })
    };
    requests.iter().map(certificate).collect()
}

fn begun(host: &Host) -> Child {
    host.command(&["run", "erase"]).stdout(Stdio::null()).spawn().unwrap()
}

/// Kills a run that is under way, and waits until the server knows.
async fn killed(database: &Database, mut child: Child) {
    assert!(child.try_wait().unwrap().is_none(), "it is under way");
    child.kill().unwrap();
    child.wait().unwrap();
    // A backend that waits for a lock does not see that its client is gone.
    database
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgreeve%'")
        .await;
    until("the server has ended the work", async || {
        count(
            database,
            "pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgreeve%'",
        )
        .await
            == 0
    })
    .await;
}

/// The search reads every table, also one that the plan does not know.
async fn killed_while_it_searches(database: &Database, host: &Host) {
    let mut holder = database.connect().await;
    let mut transaction = holder.begin().await.unwrap();
    transaction.execute("LOCK TABLE bystanders").await.unwrap();
    let child = begun(host);
    until("the search is under way", async || searching(database).await).await;
    killed(database, child).await;
}

/// Whoever reads the audit log keeps out the record, not the certificate.
async fn killed_between_certificate_and_record(database: &Database, host: &Host) {
    let certificates = host.path("state/erasures/certificates");
    assert!(!certificates.exists(), "no attempt came as far");
    let mut holder = database.connect().await;
    let mut transaction = holder.begin().await.unwrap();
    transaction.execute("LOCK TABLE bystanders").await.unwrap();
    let child = begun(host);
    until("the search is under way", async || searching(database).await).await;
    let lock = std::fs::File::open(host.audit().join("lock")).unwrap();
    lock.lock_shared().unwrap();
    transaction.rollback().await.unwrap();
    until("there is a certificate", async || {
        std::fs::read_dir(&certificates).is_ok_and(|mut files| files.next().is_some())
    })
    .await;
    killed(database, child).await;
    let written = host.audit_records();
    assert!(!written.iter().any(|record| record["kind"] == "erasure.completed"));
}

async fn searching(database: &Database) -> bool {
    count(
        database,
        "pg_locks WHERE relation = 'bystanders'::regclass AND NOT granted",
    )
    .await
        == 1
}

async fn waiting(database: &Database) -> i64 {
    count(
        database,
        "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'advisory'",
    )
    .await
}
