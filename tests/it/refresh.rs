//! Materialized views brought up to date on a real server.

use std::time::Duration;

use pgreeve::job::{Exclusion, Job, JobReport, Outcome};
use pgreeve::jobs::refresh::RefreshJob;
use pgreeve::ledger::{locks, migrate};
use pgreeve::rollup::views::Views;
use serde_json::{Value, json};
use sqlx::Connection;

use crate::support::context::{Setup, context, refusal, run, run_once};
use crate::support::process::Host;
use crate::support::{Database, cluster};

fn job(views: &[&str], concurrently: Option<bool>) -> RefreshJob {
    RefreshJob::new(Views {
        views: views.iter().map(|view| view.parse().unwrap()).collect(),
        concurrently,
    })
}

/// Sales, their days, the best day of the week by way of a plain view, and one view that stands alone.
async fn shop() -> Database {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE sales (id int PRIMARY KEY, day date NOT NULL, amount int NOT NULL);
             INSERT INTO sales SELECT n, date '2026-01-01' + n % 20, n FROM generate_series(1, 200) n;
             CREATE MATERIALIZED VIEW days AS SELECT day, sum(amount) AS amount FROM sales GROUP BY day;
             CREATE UNIQUE INDEX ON days (day);
             CREATE VIEW ranked AS SELECT *, rank() OVER (ORDER BY amount DESC) AS place FROM days;
             CREATE MATERIALIZED VIEW best AS SELECT date_trunc('week', day)::date AS week, max(amount) AS amount FROM ranked GROUP BY 1;
             CREATE MATERIALIZED VIEW whole AS SELECT count(*) AS sales FROM sales",
        )
        .await;
    database
}

fn entry<'a>(report: &'a JobReport, view: &str) -> &'a Value {
    let views = report.body["views"].as_array().unwrap();
    views.iter().find(|entry| entry["view"] == view).unwrap()
}

#[tokio::test]
async fn views_come_after_what_they_read_and_keep_their_readers_where_they_can() {
    let database = shop().await;
    database
        .execute("INSERT INTO sales VALUES (201, '2026-01-05', 1000), (202, '2026-03-01', 1); DELETE FROM sales WHERE day = '2026-01-20'")
        .await;
    // Written the wrong way round.
    let report = run_once(&database, &job(&["best", "whole", "days"], None))
        .await
        .unwrap();
    assert_eq!((report.outcome, &report.reason), (Outcome::Succeeded, &None));
    let order: Vec<&str> = report.body["views"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["view"].as_str().unwrap())
        .collect();
    assert_eq!(order, ["public.whole", "public.days", "public.best"]);
    let best: i64 = database.value("SELECT max(amount)::int8 FROM best").await;
    assert_eq!(
        best,
        database
            .value::<i64>("SELECT max(amount)::int8 FROM (SELECT sum(amount) AS amount FROM sales GROUP BY day) AS d")
            .await
    );
    // One day is new, one changed, one is gone; the view was not written anew.
    let days = entry(&report, "public.days");
    assert_eq!(
        (
            &days["concurrently"],
            &days["rows_inserted"],
            &days["rows_deleted"],
            &days["reason"]
        ),
        (&json!(true), &json!(2), &json!(2), &Value::Null)
    );
    let whole = entry(&report, "public.whole");
    assert_eq!(
        (&whole["concurrently"], &whole["rows_inserted"], &whole["reason"]),
        (&json!(false), &json!(1), &json!("it has no unique index"))
    );
    assert!(whole["bytes"].as_i64().unwrap() > 0);
    let batches: i64 = database.value("SELECT count(*) FROM pgreeve.run_batch").await;
    assert_eq!(batches, 3);
    // Nothing is new, so nothing is written where readers go on.
    let again = run_once(&database, &job(&["days"], Some(true))).await.unwrap();
    let days = entry(&again, "public.days");
    assert_eq!((&days["rows_inserted"], &days["rows_deleted"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn a_reader_holds_up_only_the_view_that_would_keep_it_out() {
    let database = shop().await;
    let mut reader = database.connect().await;
    sqlx::raw_sql("BEGIN; SELECT * FROM days; SELECT * FROM whole")
        .execute(&mut reader)
        .await
        .unwrap();
    database
        .execute("INSERT INTO sales VALUES (201, '2026-03-01', 1)")
        .await;
    let job = job(&["whole", "days", "best"], None);
    let setup = Setup {
        lock_timeout: Duration::from_millis(100),
        ..Setup::default()
    };
    let report = run(&job, &mut context(&database, &job, &setup).await).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial, "{report:?}");
    assert!(
        report
            .reason
            .as_deref()
            .unwrap()
            .starts_with("public.whole: other sessions kept it locked"),
        "{report:?}"
    );
    assert_eq!(
        (&report.body["refreshed"], &report.body["left"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(database.value::<i64>("SELECT count(*) FROM days").await, 21);
    assert_eq!(database.value::<i64>("SELECT sales FROM whole").await, 200);
    sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
    assert_eq!(run_once(&database, &job).await.unwrap().outcome, Outcome::Succeeded);
    assert_eq!(database.value::<i64>("SELECT sales FROM whole").await, 201);
}

#[tokio::test]
async fn what_keeps_a_view_from_being_refreshed_concurrently_is_named() {
    let database = shop().await;
    for (index, cause) in [
        ("", "it has no unique index"),
        (
            "CREATE UNIQUE INDEX i ON best (week) WHERE amount > 0",
            "the unique index i has a condition",
        ),
        (
            "CREATE UNIQUE INDEX i ON best ((week + 1))",
            "the unique index i is over an expression",
        ),
        (
            "CREATE UNIQUE INDEX i ON best (week, (amount + 1))",
            "the unique index i is over an expression",
        ),
        (
            "CREATE UNIQUE INDEX i ON best (week); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'i'::regclass",
            "the unique index i is invalid",
        ),
        ("CREATE INDEX i ON best (week)", "it has no unique index"),
    ] {
        database.execute(&format!("DROP INDEX IF EXISTS i; {index}")).await;
        let error = refusal(&database, &job(&["days", "best"], Some(true)), &Setup::default()).await;
        assert_eq!(error.cause, format!("it cannot be refreshed concurrently: {cause}"));
        assert_eq!(error.setting, Some("concurrently"));
        assert!(
            error
                .remedy
                .unwrap()
                .starts_with("CREATE UNIQUE INDEX ON \"public\".\"best\"")
        );
        // Left to pgreeve, it is refreshed all the same, and the report says why readers waited.
        let report = run_once(&database, &job(&["best"], None)).await.unwrap();
        assert_eq!(entry(&report, "public.best")["reason"], cause);
    }
    database
        .execute("DROP INDEX i; CREATE UNIQUE INDEX i ON best (week) INCLUDE (amount)")
        .await;
    let report = run_once(&database, &job(&["best"], Some(true))).await.unwrap();
    assert_eq!(entry(&report, "public.best")["concurrently"], true);
    let report = run_once(&database, &job(&["days"], Some(false))).await.unwrap();
    assert_eq!(entry(&report, "public.days")["reason"], "`concurrently` is false");
}

#[tokio::test]
async fn a_view_that_was_never_filled_is_filled_the_plain_way_once() {
    let database = shop().await;
    database
        .execute(
            "CREATE MATERIALIZED VIEW later AS SELECT * FROM days WITH NO DATA; CREATE UNIQUE INDEX ON later (day)",
        )
        .await;
    let job = job(&["later"], Some(true));
    let report = run_once(&database, &job).await.unwrap();
    let first = entry(&report, "public.later").clone();
    assert_eq!(
        (&first["concurrently"], &first["rows_inserted"], &first["reason"]),
        (
            &json!(false),
            &json!(20),
            &json!("it was never filled, so nobody reads it")
        )
    );
    assert!(
        report.body["warnings"][0]
            .as_str()
            .unwrap()
            .contains("reads the materialized view public.days, which this job does not refresh"),
        "{report:?}"
    );
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(entry(&report, "public.later")["concurrently"], true);
}

#[tokio::test]
async fn a_view_that_fails_keeps_back_only_those_that_read_it() {
    let database = shop().await;
    database
        .execute(
            "CREATE TABLE divisors (n int); INSERT INTO divisors VALUES (1);
             CREATE MATERIALIZED VIEW shares AS SELECT 100 / n AS share FROM divisors;
             CREATE MATERIALIZED VIEW largest AS SELECT max(share) AS share FROM shares;
             INSERT INTO divisors VALUES (0); INSERT INTO sales VALUES (201, '2026-03-01', 1)",
        )
        .await;
    let report = run_once(&database, &job(&["largest", "shares", "days"], None))
        .await
        .unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    let error = |view: &str| entry(&report, view)["error"].as_str().unwrap().to_owned();
    assert!(error("public.shares").contains("22012"), "{report:?}");
    assert_eq!(
        error("public.largest"),
        "it reads public.shares, which was not refreshed"
    );
    assert_eq!(entry(&report, "public.days")["refreshed"], true);
    assert_eq!(database.value::<i64>("SELECT count(*) FROM days").await, 21);
    // When none could be refreshed, the run has failed.
    let failed = run_once(&database, &job(&["shares"], None)).await.unwrap_err();
    assert!(failed.cause.contains("22012"), "{failed:?}");
    assert_eq!(failed.partial.unwrap()["refreshed"], 0);
}

#[tokio::test]
async fn a_backup_and_a_view_that_keeps_readers_out_keep_apart() {
    let database = shop().await;
    migrate::apply(&database.target).await.unwrap();
    // As a run of a backup holds it.
    let mut backup = database.connect().await;
    let key = locks::key(&Exclusion::Snapshot.lock_name());
    assert!(locks::try_lock(&mut backup, locks::EXCLUSION_CLASS, key).await.unwrap());
    let job = job(&["whole", "days"], None);
    let setup = Setup {
        time: Duration::from_secs(3),
        ..Setup::default()
    };
    let report = run(&job, &mut context(&database, &job, &setup).await).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial, "{report:?}");
    assert!(
        entry(&report, "public.whole")["error"]
            .as_str()
            .unwrap()
            .starts_with("a backup holds its snapshot"),
        "{report:?}"
    );
    assert_eq!(entry(&report, "public.days")["refreshed"], true);
    assert!(locks::unlock(&mut backup, locks::EXCLUSION_CLASS, key).await.unwrap());
    let mut finished = context(&database, &job, &setup).await;
    assert_eq!(run(&job, &mut finished).await.unwrap().outcome, Outcome::Succeeded);
    // And the run has given its exclusion back.
    assert!(locks::try_lock(&mut backup, locks::EXCLUSION_CLASS, key).await.unwrap());
    backup.close().await.unwrap();
}

#[tokio::test]
async fn names_that_are_no_materialized_views_are_refused() {
    let database = shop().await;
    for (view, cause, remedy) in [
        (
            "dais",
            "there is no materialized view of this name",
            "did you mean public.days?",
        ),
        ("sales", "it is a table", "name a materialized view"),
        ("ranked", "it is a view", "is never behind"),
    ] {
        let error = refusal(&database, &job(&["days", view], None), &Setup::default()).await;
        assert_eq!((error.cause.as_str(), error.setting), (cause, Some("views")));
        assert!(error.remedy.as_deref().unwrap().contains(remedy), "{error:?}");
    }
    let twice = refusal(&database, &job(&["days", "public.days"], None), &Setup::default()).await;
    assert!(twice.cause.contains("named twice"), "{twice:?}");
    // A plain view can be replaced so that it reads a view that reads it.
    database
        .execute(
            "CREATE VIEW between AS SELECT day FROM sales; CREATE MATERIALIZED VIEW round AS SELECT day FROM between;
             CREATE OR REPLACE VIEW between AS SELECT day FROM round",
        )
        .await;
    let round = refusal(&database, &job(&["round"], None), &Setup::default()).await;
    assert!(round.cause.contains("read each other"), "{round:?}");
}

#[tokio::test]
async fn a_role_that_does_not_own_the_view_is_refused_with_the_statement_that_helps() {
    let database = shop().await;
    let (owner, role) = (format!("owner_{}", database.name), format!("role_{}", database.name));
    database
        .execute(&format!(
            "CREATE ROLE {owner}; CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {} TO {role};
             ALTER MATERIALIZED VIEW days OWNER TO {owner}; GRANT SELECT ON sales TO {owner}",
            database.name
        ))
        .await;
    let setup = Setup {
        target: Some(cluster().await.target_as(&role, &database.name)),
        ..Setup::default()
    };
    let lacking = |views: &'static [&'static str]| {
        let (database, setup) = (&database, &setup);
        async move { refusal(database, &job(views, None), setup).await.remedy.unwrap() }
    };
    assert_eq!(lacking(&["days"]).await, format!("GRANT \"{owner}\" TO \"{role}\""));
    // Nobody is made a member of a superuser.
    assert_eq!(
        lacking(&["whole"]).await,
        format!("ALTER MATERIALIZED VIEW \"public\".\"whole\" OWNER TO \"{role}\"")
    );
    database
        .execute(&format!("GRANT {owner} TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA pgreeve TO {role}; GRANT USAGE ON SCHEMA pgreeve TO {role}"))
        .await;
    let job = job(&["days"], None);
    let mut context = context(&database, &job, &setup).await;
    assert_eq!(run(&job, &mut context).await.unwrap().outcome, Outcome::Succeeded);
    let grants = job.grants(context.session.connection()).await.unwrap().unwrap();
    assert!(grants.iter().all(|grant| grant.held), "{grants:?}");
}

#[tokio::test]
async fn a_view_of_a_purged_table_warns_that_it_forgets() {
    let database = shop().await;
    migrate::apply(&database.target).await.unwrap();
    database
        .execute("INSERT INTO pgreeve.purge (relation, job, purged_until, run_id) VALUES ('public.sales', 'purge', now(), gen_random_uuid())")
        .await;
    let report = run_once(&database, &job(&["best", "days"], None)).await.unwrap();
    let warnings = report.body["warnings"].to_string();
    assert!(
        warnings.contains("public.best reads public.sales, which is purged") && warnings.contains("a rollup keeps"),
        "{warnings}"
    );
}

#[tokio::test]
async fn the_program_plans_and_runs_it_and_the_record_holds_the_intent() {
    let database = shop().await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.views]\nschedule = \"*/5 * * * *\"\nrefresh = {{ views = [\"best\", \"days\"] }}\n"
    ));
    host.run(&["check", "--connect"]).expect_code(0);
    let plan = host.run(&["plan", "views", "--json"]).expect_code(0).json();
    assert_eq!(plan["plan"]["intent"]["views"][0]["view"], "public.days");
    assert_eq!(plan["plan"]["intent"]["views"][1]["after"], json!(["public.days"]));
    database
        .execute("INSERT INTO sales VALUES (201, '2026-03-01', 1)")
        .await;
    let done = host.run(&["run", "views", "--json"]).expect_code(0).json();
    assert_eq!(
        (&done["run"]["kind"], &done["run"]["outcome"]),
        (&json!("refresh"), &json!("succeeded"))
    );
    assert_eq!(database.value::<i64>("SELECT count(*) FROM days").await, 21);
    let records = host.audit_records();
    let start = records.iter().find(|record| record["kind"] == "run.start").unwrap();
    assert_eq!(
        start["body"]["intent"]["views"][0]["statement"],
        "REFRESH MATERIALIZED VIEW CONCURRENTLY \"public\".\"days\""
    );
}
