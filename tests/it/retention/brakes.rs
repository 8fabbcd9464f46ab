//! Brakes: implausible runs are refused, and an approval lets one pass.

use pgreeve::job::{Disposition, Job, JobError, JobReport, Outcome};
use pgreeve::jobs::retention::{RetentionJob, RetentionSettings};
use pgreeve::ledger::{migrate, policies};
use serde_json::Value;

use super::{count, events, job, with_due_rows};
use crate::support::context::{Setup, context};
use crate::support::process::Host;
use crate::support::{Database, cluster};

/// The names of the brakes that the plan shows, and how its execution ends.
async fn try_run(database: &Database, job: &RetentionJob) -> (Vec<String>, Result<JobReport, JobError>) {
    let mut context = context(database, job, &Setup::default()).await;
    let plan = job.plan(&mut context).await.unwrap();
    let brakes = plan.intent()["brakes"].as_array().unwrap().clone();
    let names = brakes.iter().map(|brake| brake["brake"].as_str().unwrap().to_owned());
    (names.collect(), plan.execute(&mut context).await)
}

async fn stopped(database: &Database, job: &RetentionJob, brake: &str, cause: &str) -> JobError {
    let before = count(database, "events").await;
    let (brakes, result) = try_run(database, job).await;
    assert_eq!(brakes, [brake]);
    let error = result.unwrap_err();
    assert_eq!(error.disposition, Disposition::Refused);
    assert!(
        error.cause.starts_with(&format!("the brake {brake} stops the run")),
        "{error:?}"
    );
    assert!(error.cause.contains(cause), "{error:?}");
    assert_eq!(count(database, "events").await, before);
    error
}

/// Approves the policy of all tests' runs with its plan of now.
async fn approve(database: &Database, job: &RetentionJob) {
    let plan = job
        .plan(&mut context(database, job, &Setup::default()).await)
        .await
        .unwrap()
        .intent();
    let name = "the-job".parse().unwrap();
    policies::approve(&mut database.connect().await, "policy", &name, &plan, "a test")
        .await
        .unwrap();
}

/// Green runs of the past, one a day until yesterday, of so many rows each.
async fn ran(database: &Database, runs: u32, rows: u32) {
    migrate::apply(&database.target).await.unwrap();
    database
        .execute(&format!(
            "INSERT INTO pgreeve.run (run_id, job, kind, timezone, trigger, actor, instance, epoch, policy, attempt,
                                      started_at, finished_at, outcome, report)
             SELECT gen_random_uuid(), 'the-job', 'retention', 'UTC', 'schedule', 'test', 'test', 0, 'policy', 1,
                    now() - n * interval '1 day', now(), 'succeeded', '{{\"rows\": {rows}}}'
             FROM generate_series(1, {runs}) n"
        ))
        .await;
}

fn limited(max_rows: Option<u64>, max_fraction: Option<f64>) -> RetentionJob {
    RetentionJob::new(RetentionSettings {
        max_rows,
        max_fraction,
        ..events()
    })
}

#[tokio::test]
async fn more_rows_than_the_policy_allows_are_not_deleted() {
    // Ten rows are due and ten are not.
    let database = with_due_rows(10, true).await;
    let error = stopped(
        &database,
        &limited(Some(9), None),
        "max_rows",
        "10 rows are due, more than `max_rows` = 9",
    )
    .await;
    let remedy = error.remedy.unwrap();
    assert!(
        remedy.contains("pgreeve approve policy") && remedy.contains("raise `max_rows`"),
        "{remedy}"
    );
    stopped(
        &database,
        &limited(None, Some(0.49)),
        "max_fraction",
        "10 of 20 rows are due",
    )
    .await;
    for job in [
        limited(Some(10), None),
        limited(None, Some(0.5)),
        limited(None, Some(1.0)),
    ] {
        let database = with_due_rows(10, true).await;
        let (brakes, result) = try_run(&database, &job).await;
        assert_eq!(brakes, [""; 0]);
        assert_eq!(result.unwrap().outcome, Outcome::Succeeded);
    }
}

#[tokio::test]
async fn an_approved_plan_lets_its_own_count_pass_until_a_run_is_green() {
    let database = with_due_rows(100, true).await;
    let job = limited(Some(50), Some(0.3));
    approve(&database, &job).await;
    // A tenth more is due by the time it runs; one more would be too many.
    let more =
        |from: u32, to: u32| format!("INSERT INTO events SELECT n, '2001-01-01' FROM generate_series({from}, {to}) n");
    database.execute(&more(1001, 1011)).await;
    let (brakes, result) = try_run(&database, &job).await;
    assert_eq!(brakes, ["max_rows", "max_fraction"]);
    assert_eq!(result.unwrap_err().disposition, Disposition::Refused);
    database.execute("DELETE FROM events WHERE id = 1011").await;
    let (_, result) = try_run(&database, &job).await;
    let report = result.unwrap();
    assert_eq!(
        (report.outcome, &report.body["rows"]),
        (Outcome::Succeeded, &110.into())
    );
    // The runner closes the run; from then on the brakes hold again.
    database
        .execute("UPDATE pgreeve.run SET outcome = 'succeeded', finished_at = now(), started_at = clock_timestamp()")
        .await;
    database.execute(&more(2001, 2060)).await;
    assert_eq!(
        try_run(&database, &job).await.1.unwrap_err().disposition,
        Disposition::Refused
    );
    approve(&database, &job).await;
    assert_eq!(try_run(&database, &job).await.1.unwrap().body["rows"], 60);
}

#[tokio::test]
async fn many_times_the_usual_is_refused_after_five_green_runs() {
    for (runs, rows, due, trips) in [
        (5, 300, 1501, true),
        (5, 300, 1500, false),
        (4, 300, 1501, false),
        (10, 0, 1000, false),
    ] {
        let database = with_due_rows(due, true).await;
        ran(&database, runs, rows).await;
        if trips {
            let error = stopped(&database, &job(), "surge", "5 times the 300").await;
            assert!(error.remedy.unwrap().contains("pgreeve approve policy"));
            approve(&database, &job()).await;
        }
        assert_eq!(try_run(&database, &job()).await.1.unwrap().outcome, Outcome::Succeeded);
    }
}

/// Puts a clock of the test's own in the place of one of the server's, in this database.
async fn turn(database: &Database, clock: &str, by: &str) {
    database
        .execute(&format!(
            "SET allow_system_table_mods = on;
             ALTER FUNCTION pg_catalog.{clock}() RENAME TO real_{clock};
             CREATE FUNCTION pg_catalog.{clock}() RETURNS timestamptz LANGUAGE sql VOLATILE
                 AS $$ SELECT pg_catalog.real_{clock}() + interval '{by}' $$"
        ))
        .await;
}

#[tokio::test]
async fn clocks_that_differ_stop_every_run_and_no_approval_helps() {
    for by in ["2 minutes", "-2 minutes"] {
        let database = with_due_rows(10, true).await;
        migrate::apply(&database.target).await.unwrap();
        turn(&database, "clock_timestamp", by).await;
        let error = stopped(&database, &job(), "clock_skew", "the database's clock is 120 s").await;
        assert!(error.remedy.unwrap().contains("set the clocks"));
        approve(&database, &job()).await;
        stopped(&database, &job(), "clock_skew", "120 s").await;
    }
    let database = with_due_rows(10, true).await;
    migrate::apply(&database.target).await.unwrap();
    turn(&database, "clock_timestamp", "50 seconds").await;
    assert_eq!(try_run(&database, &job()).await.1.unwrap().outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_while_nobody_writes_stops_the_run() {
    let database = with_due_rows(10, true).await;
    ran(&database, 5, 10).await;
    turn(&database, "now", "400 days").await;
    stopped(&database, &job(), "clock_jump", "did the clock jump?").await;
    // Somebody wrote meanwhile: pgreeve was down, the clock is right.
    database
        .execute("INSERT INTO events VALUES (5000, pg_catalog.real_now() + interval '399 days')")
        .await;
    let mut context = context(&database, &job(), &Setup::default()).await;
    let plan = job().plan(&mut context).await.unwrap();
    assert_eq!(plan.intent()["brakes"], serde_json::json!([]));
    database.execute("DELETE FROM events WHERE id = 5000").await;
    // Or an operator has looked at it.
    approve(&database, &job()).await;
    assert_eq!(try_run(&database, &job()).await.1.unwrap().body["rows"], 20);
}

#[tokio::test]
async fn by_default_a_third_of_a_table_needs_an_approval_and_the_program_tells_how() {
    let database = with_due_rows(20, true).await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.purge]\nschedule = \"0 0 1 1 *\"\napproval = \"none\"\n\
         retention = {{ table = \"events\", age_column = \"created_at\", keep = \"30d\" }}\n"
    ));
    let refused = host.run(&["run", "purge", "--json"]).expect_code(3).json();
    let reason = refused["run"]["reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("the brake max_fraction stops the run: 20 of 30 rows"),
        "{reason}"
    );
    let hash = reason
        .split("pgreeve approve ")
        .nth(1)
        .unwrap()
        .split('`')
        .next()
        .unwrap();
    assert_eq!(count(&database, "events").await, 30);
    let plan = host.run(&["plan", "purge", "--json"]).expect_code(0).json();
    assert_eq!(plan["plan"]["intent"]["brakes"][0]["brake"], "max_fraction");
    host.run(&["approve", hash]).expect_code(0);
    let run = host.run(&["run", "purge", "--json"]).expect_code(0).json();
    assert_eq!(run["run"]["report"]["rows"], 20);
    let status = host.run(&["status", "--json"]).expect_code(0).json();
    assert!(
        status["jobs"][0]["over_retention_seconds"].as_u64().unwrap() < 60,
        "{status}"
    );
    assert!(host.run(&["status"]).expect_code(0).stdout.contains("BEHIND"));
    let approved = host
        .audit_records()
        .into_iter()
        .find(|record| record["kind"] == "policy.approved")
        .unwrap();
    assert_eq!(approved["body"]["plan"]["eligible"], Value::from(20));
}
