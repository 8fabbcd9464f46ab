//! Figures of a database read from a real server.

use std::collections::BTreeMap;

use pgreeve::health::{Check, Health, Limits};
use pgreeve::job::{Job, JobError, JobReport, Outcome};
use pgreeve::jobs::health::HealthJob;
use pgreeve::ledger::migrate;
use pgreeve::postgres::grant::Grant;
use serde_json::{Value, json};

use crate::support::context::{Setup, context, run, run_once};
use crate::support::process::{Host, until};
use crate::support::{Database, cluster};

/// A job of these checks, which warn from a figure on.
fn warning(checks: &[(Check, f64)]) -> HealthJob {
    let limits = |warning: f64| Limits {
        warning: Some(warning),
        critical: None,
    };
    HealthJob::new(Health {
        checks: checks.iter().map(|(check, from)| (*check, limits(*from))).collect(),
    })
}

fn entry<'a>(body: &'a Value, check: &str) -> &'a Value {
    let checks = body["checks"].as_array().unwrap();
    checks.iter().find(|entry| entry["check"] == check).unwrap()
}

/// The level of one check, its figure, and what that is about.
async fn of(database: &Database, check: Check, from: f64) -> (String, f64, Vec<String>) {
    let report = run_once(database, &warning(&[(check, from)])).await.unwrap();
    let found = entry(&report.body, check.as_str());
    let worst = found["worst"].as_array().unwrap().iter();
    (
        found["level"].as_str().unwrap().to_owned(),
        found["value"].as_f64().unwrap(),
        worst.map(|name| name.as_str().unwrap().to_owned()).collect(),
    )
}

#[tokio::test]
async fn every_check_can_be_read_and_a_quiet_database_is_green() {
    let database = Database::create().await;
    database.execute("CREATE TABLE quiet (id int PRIMARY KEY)").await;
    let all: Vec<(Check, f64)> = Check::ALL.iter().map(|check| (*check, 1e12)).collect();
    let report: JobReport = run_once(&database, &warning(&all)).await.unwrap();
    assert_eq!((report.outcome, &report.reason), (Outcome::Succeeded, &None));
    assert_eq!(
        (&report.body["ok"], &report.body["unknown"]),
        (&json!(Check::ALL.len()), &json!(0))
    );
    let backends = entry(&report.body, "backends")["value"].as_f64().unwrap();
    assert!(backends > 0.0 && backends < 1.0, "{backends}");
    assert!(entry(&report.body, "max_freeze_age")["value"].as_f64().unwrap() < 1.0);
}

#[tokio::test]
async fn objects_that_should_not_be_are_counted_and_named() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE parent (id int PRIMARY KEY, other int UNIQUE);
             CREATE TABLE child (id int, parent int REFERENCES parent, second int REFERENCES parent (other), part int REFERENCES parent, good int REFERENCES parent);
             CREATE INDEX ON child (id, second); CREATE INDEX ON child (part) WHERE part > 0; CREATE INDEX ON child (good, id);
             CREATE UNLOGGED TABLE fleeting (id int);
             CREATE SEQUENCE short AS smallint; SELECT setval('short', 30000);
             CREATE TABLE doubled AS SELECT 1 AS id FROM generate_series(1, 2)",
        )
        .await;
    // An index that is not over the column first, or not over every row, does not help.
    assert_eq!(
        of(&database, Check::UnindexedKeys, 1.0).await,
        (
            "warning".to_owned(),
            3.0,
            vec![
                "public.child (child_parent_fkey)".to_owned(),
                "public.child (child_part_fkey)".to_owned(),
                "public.child (child_second_fkey)".to_owned()
            ]
        )
    );
    let (level, value, worst) = of(&database, Check::TableUnlogged, 2.0).await;
    assert_eq!((level.as_str(), value), ("ok", 1.0));
    assert_eq!(worst, ["public.fleeting"]);
    let (_, value, worst) = of(&database, Check::SequencesExhausted, 0.9).await;
    assert!((0.91..0.92).contains(&value), "{value}");
    assert_eq!(worst, ["public.short"]);
    let mut connection = database.connect().await;
    sqlx::raw_sql("CREATE UNIQUE INDEX CONCURRENTLY broken ON doubled (id)")
        .execute(&mut connection)
        .await
        .unwrap_err();
    let (level, _, worst) = of(&database, Check::InvalidIndexes, 1.0).await;
    assert_eq!((level.as_str(), worst), ("warning", vec!["public.broken".to_owned()]));
}

#[tokio::test]
async fn dead_rows_and_old_backups_are_seen() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events WITH (autovacuum_enabled = off) AS SELECT n FROM generate_series(1, 40000) n;
             DELETE FROM events WHERE n <= 10000",
        )
        .await;
    let (level, value, worst) = of(&database, Check::DeadRows, 0.25).await;
    assert_eq!((level.as_str(), value), ("warning", 0.25));
    assert_eq!(worst, ["public.events"]);
    assert_eq!(of(&database, Check::BackupAge, 1.0).await.0, "ok");
    database
        .execute(
            "INSERT INTO pgreeve.backup (backup_id, run_id, job, store, prefix, state, started_at)
             SELECT n::text, gen_random_uuid(), 'nightly', 's', 'p', state, now() - n * interval '1 hour'
             FROM (VALUES (1, 'aborted'), (27, 'committed'), (60, 'committed')) AS b (n, state)",
        )
        .await;
    let (level, value, worst) = of(&database, Check::BackupAge, 26.0 * 3600.0).await;
    assert_eq!(level, "warning");
    assert!((27.0 * 3600.0..27.1 * 3600.0).contains(&value), "{value}");
    assert_eq!(worst, ["job nightly"]);
}

#[tokio::test]
async fn sessions_that_are_in_the_way_are_named_by_their_process() {
    let database = Database::create().await;
    database.execute("CREATE TABLE a (id int)").await;
    migrate::apply(&database.target).await.unwrap();
    let mut idle = database.connect().await;
    let idle_pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut idle)
        .await
        .unwrap();
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE a; SELECT 1 FROM a")
        .execute(&mut idle)
        .await
        .unwrap();
    let mut waiting = database.connect().await;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
        .fetch_one(&mut waiting)
        .await
        .unwrap();
    let waits = tokio::spawn(async move { sqlx::raw_sql("SELECT * FROM a").execute(&mut waiting).await.map(drop) });
    let blocked =
        format!("SELECT EXISTS (SELECT FROM pg_locks WHERE pid = {pid} AND NOT granted AND waitstart IS NOT NULL)");
    until("it waits for the lock", async || database.value::<bool>(&blocked).await).await;
    let (level, _, worst) = of(&database, Check::OldestIdlexact, 0.0).await;
    assert_eq!(
        (level.as_str(), worst),
        ("warning", vec![format!("session {idle_pid}")])
    );
    let (level, _, worst) = of(&database, Check::LongestQuery, 0.0).await;
    assert_eq!((level.as_str(), worst), ("warning", vec![format!("session {pid}")]));
    let (_, _, worst) = of(&database, Check::LockWaits, 0.0).await;
    assert!(
        worst.contains(&format!("session {pid} waits for {idle_pid}")),
        "{worst:?}"
    );
    let (_, _, worst) = of(&database, Check::OldestXmin, 0.0).await;
    assert!(worst.contains(&format!("session {idle_pid}")), "{worst:?}");
    sqlx::raw_sql("ROLLBACK").execute(&mut idle).await.unwrap();
    waits.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_a_role_may_not_see_is_unknown_and_not_green() {
    let database = Database::create().await;
    let role = format!("role_{}", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; CREATE SEQUENCE s; SELECT nextval('s')"
        ))
        .await;
    let setup = Setup {
        target: Some(cluster().await.target_as(&role, &database.name)),
        ..Setup::default()
    };
    let job = warning(&[
        (Check::LongestQuery, 1e9),
        (Check::SequencesExhausted, 0.9),
        (Check::ArchiveBacklog, 1e9),
        (Check::MaxFreezeAge, 9.0),
        // What a role may not ask.
        (Check::BackupAge, 1e9),
    ]);
    let report = run(&job, &mut context(&database, &job, &setup).await).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial, "{report:?}");
    let hidden = |check: &str| entry(&report.body, check)["hidden"].as_str().unwrap().to_owned();
    assert!(hidden("longest_query").ends_with(&format!("GRANT pg_read_all_stats TO {role}")));
    assert!(hidden("sequences_exhausted").starts_with("1 sequences may not be read"));
    assert!(hidden("backup_age").contains("permission denied"));
    for check in ["max_freeze_age", "archive_backlog"] {
        // The server does not archive, so it need not be asked what waits for that.
        assert_eq!(entry(&report.body, check)["level"], "ok");
    }
    assert!(report.reason.unwrap().contains("longest_query is unknown: "));
    let mut context = context(&database, &job, &setup).await;
    let grants = job.grants(context.session.connection()).await.unwrap().unwrap();
    assert_eq!(grants, [Grant::new(format!("GRANT pg_monitor TO \"{role}\""), false)]);
}

#[tokio::test]
async fn a_critical_figure_fails_the_run_and_the_worst_is_named_first() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE UNLOGGED TABLE fleeting (id int); CREATE SEQUENCE short AS smallint; SELECT setval('short', 32767)",
        )
        .await;
    let checks = [Check::TableUnlogged, Check::SequencesExhausted].map(|check| (check, check.limits()));
    let job = HealthJob::new(Health {
        checks: BTreeMap::from(checks),
    });
    let error: JobError = run_once(&database, &job).await.unwrap_err();
    assert_eq!(
        error.cause,
        "sequences_exhausted is critical: 100 % (public.short); table_unlogged is warning: 1 (public.fleeting)"
    );
    let body = error.partial.unwrap();
    assert_eq!((&body["critical"], &body["warning"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn the_program_tells_green_from_warning_and_critical_by_its_exit_code() {
    let database = Database::create().await;
    database.execute("CREATE UNLOGGED TABLE fleeting (id int)").await;
    let url = cluster().await.url_as("postgres", &database.name);
    let with = |health: &str| {
        Host::new(&format!(
            "[databases.app]\nurl = \"{url}\"\n[jobs.look]\nschedule = \"*/5 * * * *\"\nhealth = {health}\n"
        ))
    };
    for (limits, code) in [("warning = 2", 0), ("", 3), ("critical = 1", 1)] {
        let host = with(&format!("{{ checks = {{ table_unlogged = {{ {limits} }} }} }}"));
        host.run(&["check", "--connect"]).expect_code(0);
        let done = host.run(&["run", "look", "--json"]).expect_code(code).json();
        assert_eq!(done["run"]["report"]["checks"][0]["value"], 1.0, "{done}");
    }
    let all = with("{}");
    let plan = all.run(&["plan", "look", "--json"]).expect_code(0).json();
    assert_eq!(
        plan["plan"]["intent"]["checks"].as_array().unwrap().len(),
        Check::ALL.len()
    );
}
