//! The program is killed at each step, and begins again.

use std::fmt::Write;
use std::process::Stdio;

use sqlx::Executor;

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
        .value("SELECT string_agg(step || ' ' || action || ' ' || relation || ' ' || rows || ' ' || state, ', ' ORDER BY step) FROM pgreeve.erasure_step")
        .await
}

#[tokio::test]
async fn killed_at_each_step_and_started_again_it_counts_as_if_undisturbed() {
    kill_at_each_step(false).await;
}

#[tokio::test]
async fn steps_with_a_transaction_each_are_not_done_again_after_a_kill() {
    kill_at_each_step(true).await;
}

/// A hold that stands, though it keeps none of Jane's rows, gives each step a transaction of its own.
async fn kill_at_each_step(apart: bool) {
    let undisturbed = shop().await;
    host(&undisturbed).await.run(&["run", "erase"]).expect_code(0);

    let database = shop().await;
    if apart {
        place(&database, "users", "id = 3").await;
    }
    let mut gates = String::from(
        "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(TG_ARGV[0]::bigint); RETURN NULL; END $$;",
    );
    // Every step that changes rows waits for the test, in the order of the plan.
    let mut reader = undisturbed.connect().await;
    let waits: Vec<(String, String)> = sqlx::query_as(
        "SELECT relation, CASE action WHEN 'delete' THEN 'DELETE' ELSE 'UPDATE' END FROM pgreeve.erasure_step
         WHERE action <> 'keep' AND rows > 0 ORDER BY step",
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
    assert_eq!(count(&database, "users WHERE id = 1").await, 0);
    assert_eq!(database.value::<String>("SELECT status FROM requests").await, "done");
    assert_eq!(
        database
            .value::<i32>("SELECT attempt FROM pgreeve.erasure_request")
            .await,
        7
    );
    host.run(&["audit", "verify"]).expect_code(0);
}

async fn waiting(database: &Database) -> i64 {
    count(
        database,
        "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'advisory'",
    )
    .await
}
