//! A commit whose answer is lost: what it did is counted afterwards, or said to be unknown.

use std::process::{Child, Stdio};

use crate::support::pg_proxy::{Frozen, PgProxy};
use crate::support::process::{Finished, Host, until};
use crate::support::{Database, cluster};

const ROWS: i64 = 50;

/// Rows that are due, and whose deletion takes its time to commit.
async fn events() -> Database {
    let database = Database::create().await;
    database
        .execute(&format!(
            "CREATE TABLE events (id bigserial PRIMARY KEY, created_at timestamptz NOT NULL);
             INSERT INTO events (created_at) SELECT now() - interval '100 days' FROM generate_series(1, {ROWS});
             CREATE INDEX ON events (created_at);
             CREATE TABLE once (done boolean);
             CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NOT EXISTS (SELECT FROM public.once) THEN INSERT INTO public.once VALUES (true); PERFORM pg_sleep(1.5); END IF;
                 RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER late AFTER DELETE ON events DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW EXECUTE FUNCTION late()"
        ))
        .await;
    database
}

fn config(url: &str) -> String {
    format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.purge]\nschedule = \"0 0 1 1 *\"\napproval = \"none\"\nretries = 0\nretention = {{ table = \"events\", age_column = \"created_at\", keep = \"90d\", max_fraction = 1 }}\n"
    )
}

/// Runs the job until its batch is committed and the answer is on its way.
async fn lose_the_answer(database: &Database, host: &Host, proxy: &PgProxy) -> Child {
    let child = host
        .command(&["run", "purge", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until("the batch is being committed", async || {
        database
            .value::<bool>(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
                     AND application_name LIKE 'pgreeve:purge:%' AND query ILIKE 'commit%')",
            )
            .await
    })
    .await;
    proxy.freeze(Frozen::Answers);
    until("it is committed", async || {
        database.value::<i64>("SELECT count(*) FROM pgreeve.run_batch").await == 1
    })
    .await;
    child
}

async fn proxy() -> PgProxy {
    PgProxy::start(cluster().await.directory().join(".s.PGSQL.5432")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_commit_without_an_answer_did_is_counted_from_the_ledger() {
    let (database, proxy) = (events().await, proxy().await);
    let host = Host::new(&config(&proxy.url(&database.name)));
    let child = lose_the_answer(&database, &host, &proxy).await;
    proxy.cut();
    proxy.freeze(Frozen::Nothing);
    let told = Finished::from(child.wait_with_output().unwrap());
    let run = &told.json()["run"];
    assert_eq!(run["outcome"], "failed", "the rest of the run was not done: {run}");
    assert_eq!(run["report"]["rows"], ROWS, "{run}");
    assert_eq!(told.code, 75, "and may be another time");
    assert_eq!(
        database
            .value::<i64>("SELECT (report->>'rows')::bigint FROM pgreeve.run")
            .await,
        ROWS
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_can_be_asked_about_is_unknown_and_counted_by_the_next_leader() {
    let (database, proxy) = (events().await, proxy().await);
    let host = Host::new(&config(&proxy.url(&database.name)));
    let child = lose_the_answer(&database, &host, &proxy).await;
    // There is no way to the server any more.
    drop(proxy);
    let told = Finished::from(child.wait_with_output().unwrap());
    let run = &told.json()["run"];
    assert_eq!(run["outcome"], "unknown", "{run}");
    assert!(run["reason"].as_str().unwrap().contains("was not answered"), "{run}");
    assert_eq!(told.code, 1);
    host.configure(&config(&cluster().await.url_as("postgres", &database.name)));
    host.run(&["run", "purge"]).expect_code(0);
    let (outcome, rows): (String, i64) =
        sqlx::query_as("SELECT outcome, (report->>'rows')::bigint FROM pgreeve.run ORDER BY created_at LIMIT 1")
            .fetch_one(&mut database.connect().await)
            .await
            .unwrap();
    assert_eq!((outcome.as_str(), rows), ("unknown", ROWS));
    let verified = host.run(&["audit", "verify", "--json"]).expect_code(0).json();
    assert_eq!(verified["unfinished_runs"].as_array().map(Vec::len), Some(0));
}
