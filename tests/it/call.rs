//! Functions of the application called on a real server.

use std::time::Duration;

use pgreeve::call::Call;
use pgreeve::job::{Disposition, Job, JobReport, Outcome};
use pgreeve::jobs::call::CallJob;
use serde_json::json;

use crate::support::context::{Setup, context, refusal, run, run_once};
use crate::support::process::Host;
use crate::support::{Database, cluster};

fn call(function: &str, arguments: &[&str]) -> Call {
    Call {
        function: function.parse().unwrap(),
        arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        repeat_while_positive: false,
        search_path: Vec::new(),
    }
}

fn repeated(function: &str, arguments: &[&str]) -> CallJob {
    CallJob::new(Call {
        repeat_while_positive: true,
        ..call(function, arguments)
    })
}

/// A queue of 25 events, and what processes some of them.
async fn queue() -> Database {
    let database = Database::create().await;
    database
        .execute(
            "CREATE SCHEMA analytics;
             CREATE TABLE analytics.pending (id int PRIMARY KEY, done_in xid8);
             INSERT INTO analytics.pending SELECT n FROM generate_series(1, 25) n;
             CREATE FUNCTION analytics.process_pending_events(most int, OUT processed int) LANGUAGE sql SET search_path = analytics AS $$
                 WITH next AS (SELECT id FROM pending WHERE done_in IS NULL ORDER BY id LIMIT most),
                      done AS (UPDATE pending p SET done_in = pg_current_xact_id() FROM next WHERE next.id = p.id RETURNING 1)
                 SELECT count(*)::int FROM done $$;
             CREATE FUNCTION analytics.pathless() RETURNS text LANGUAGE plpgsql AS $$
                 BEGIN UPDATE pending SET done_in = NULL; RETURN 'ann@example.org'; END $$;
             CREATE FUNCTION public.nothing(flag bool, note text DEFAULT 'x') RETURNS void LANGUAGE sql AS ''",
        )
        .await;
    database
}

fn figures(report: &JobReport) -> (Outcome, u64, Option<i64>, i64) {
    let number = |key: &str| report.body[key].as_i64();
    (
        report.outcome,
        report.body["calls"].as_u64().unwrap(),
        number("result"),
        number("sum").unwrap(),
    )
}

#[tokio::test]
async fn a_function_is_called_until_it_has_no_more_to_do_each_time_in_a_transaction() {
    let database = queue().await;
    let report = run_once(&database, &repeated("analytics.process_pending_events", &["10"]))
        .await
        .unwrap();
    assert_eq!(figures(&report), (Outcome::Succeeded, 4, Some(0), 25));
    assert_eq!(report.body["function"], "analytics.process_pending_events(integer)");
    // What it did is not counted by anybody but itself.
    assert_eq!(report.body["verified"], false);
    let transactions: i64 = database
        .value("SELECT count(DISTINCT done_in::text) FROM analytics.pending")
        .await;
    assert_eq!(transactions, 3);
    let once = CallJob::new(call("analytics.process_pending_events", &["10"]));
    assert_eq!(
        figures(&run_once(&database, &once).await.unwrap()),
        (Outcome::Succeeded, 1, Some(0), 0)
    );
}

#[tokio::test]
async fn what_a_function_answers_is_kept_only_where_it_is_a_number() {
    let database = queue().await;
    let pathless = CallJob::new(Call {
        search_path: vec!["analytics".to_owned()],
        ..call("analytics.pathless", &[])
    });
    let report = run_once(&database, &pathless).await.unwrap();
    assert_eq!(figures(&report), (Outcome::Succeeded, 1, None, 0));
    assert!(!report.body.to_string().contains("ann@"), "{report:?}");
    // Without a schema, and with a default left out.
    let nothing = CallJob::new(call("nothing", &["true"]));
    assert_eq!(run_once(&database, &nothing).await.unwrap().body["result"], json!(null));
}

#[tokio::test]
async fn a_function_that_does_not_find_its_tables_fails_with_the_remedy_and_the_plan_has_warned() {
    let database = queue().await;
    let pathless = CallJob::new(call("analytics.pathless", &[]));
    let mut context = context(&database, &pathless, &Setup::default()).await;
    let plan = pathless.plan(&mut context).await.unwrap();
    let warning = plan.intent()["warnings"][0].as_str().unwrap().to_owned();
    assert!(
        warning.starts_with("analytics.pathless() sets no search_path"),
        "{warning}"
    );
    let error = plan.execute(&mut context).await.unwrap_err();
    assert_eq!(error.sqlstate.as_deref(), Some("42P01"));
    assert!(error.remedy.unwrap().contains("`search_path`"));
    assert_eq!(error.partial.unwrap()["calls"], 0);
}

#[tokio::test]
async fn what_cannot_be_called_is_refused_by_name() {
    let database = queue().await;
    database
        .execute(
            "CREATE PROCEDURE public.proc() LANGUAGE sql AS '';
             CREATE FUNCTION public.rows() RETURNS SETOF int LANGUAGE sql AS 'SELECT 1';
             CREATE FUNCTION public.fires() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE FUNCTION public.twice(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
             CREATE FUNCTION public.twice(text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        )
        .await;
    for (function, arguments, repeat, cause, remedy) in [
        (
            "proces_pending_events",
            &[][..],
            false,
            "there is no function",
            "did you mean analytics.process_pending_events?",
        ),
        (
            "analytics.process_pending_events",
            &[],
            false,
            "it cannot be called with 0 arguments",
            "process_pending_events(integer)",
        ),
        ("proc", &[], false, "it is a procedure", "name a function"),
        ("rows", &[], false, "it returns rows", "void or a number"),
        (
            "fires",
            &[],
            false,
            "only a trigger can call it",
            "name another function",
        ),
        (
            "twice",
            &["1"],
            false,
            "several could be meant: public.twice(integer), public.twice(text)",
            "another name",
        ),
        (
            "nothing",
            &["true"],
            true,
            "it returns no whole number",
            "leave `repeat_while_positive` out",
        ),
    ] {
        let job = CallJob::new(Call {
            repeat_while_positive: repeat,
            ..call(function, arguments)
        });
        let error = refusal(&database, &job, &Setup::default()).await;
        assert!(error.cause.starts_with(cause), "{error:?}");
        assert!(error.remedy.as_deref().unwrap().contains(remedy), "{error:?}");
    }
    let lost = CallJob::new(Call {
        search_path: vec!["analytic".to_owned()],
        ..call("nothing", &["true"])
    });
    let error = refusal(&database, &lost, &Setup::default()).await;
    assert_eq!(
        (error.cause.as_str(), error.setting),
        ("there is no schema `analytic`", Some("search_path"))
    );
}

#[tokio::test]
async fn nobody_can_put_a_function_of_theirs_in_the_place_of_another() {
    let database = queue().await;
    let job = CallJob::new(call("process_pending_events", &["10"]));
    let mut found = context(&database, &job, &Setup::default()).await;
    let intent = job.plan(&mut found).await.unwrap().intent();
    assert_eq!(intent["function"], "analytics.process_pending_events(integer)");
    assert_eq!(
        (&intent["owner"], &intent["security_definer"]),
        (&json!("postgres"), &json!(false))
    );
    database
        .execute(
            "CREATE FUNCTION public.process_pending_events(int) RETURNS int LANGUAGE sql AS 'SELECT 0';
             CREATE SCHEMA open; GRANT CREATE ON SCHEMA open TO PUBLIC;
             CREATE FUNCTION open.harmless() RETURNS int LANGUAGE sql AS 'SELECT 0'",
        )
        .await;
    let error = refusal(&database, &job, &Setup::default()).await;
    assert!(
        error.cause.starts_with("several could be meant: analytics."),
        "{error:?}"
    );
    let in_path = CallJob::new(Call {
        search_path: vec!["open".to_owned()],
        ..call("nothing", &["true"])
    });
    for job in [CallJob::new(call("open.harmless", &[])), in_path] {
        let error = refusal(&database, &job, &Setup::default()).await;
        assert!(
            error
                .cause
                .starts_with("everybody may create functions in the schema open"),
            "{error:?}"
        );
        assert_eq!(
            error.remedy.as_deref(),
            Some("REVOKE CREATE ON SCHEMA \"open\" FROM PUBLIC")
        );
    }
}

#[tokio::test]
async fn what_a_function_raises_is_told_by_its_code_only() {
    let database = queue().await;
    database
        .execute(
            "CREATE FUNCTION public.complains() RETURNS void LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'customer ann@example.org has no plan' USING ERRCODE = '45000'; END $$",
        )
        .await;
    let error = run_once(&database, &CallJob::new(call("complains", &[])))
        .await
        .unwrap_err();
    assert_eq!(error.cause, "the function failed (SQLSTATE 45000)");
    assert!(!format!("{error:?}").contains("ann@"), "{error:?}");
}

#[tokio::test]
async fn an_argument_that_is_not_of_its_type_fails_before_the_function_runs() {
    let database = queue().await;
    let error = run_once(&database, &repeated("analytics.process_pending_events", &["ten"]))
        .await
        .unwrap_err();
    assert_eq!(error.sqlstate.as_deref(), Some("22P02"));
    assert!(!format!("{error:?}").contains("ten\""), "{error:?}");
    assert_eq!(error.disposition, Disposition::Permanent);
}

#[tokio::test]
async fn a_role_that_may_not_call_it_is_refused_with_the_statement_that_helps() {
    let database = queue().await;
    let role = format!("role_{}", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; REVOKE EXECUTE ON FUNCTION analytics.pathless() FROM PUBLIC"
        ))
        .await;
    let setup = Setup {
        target: Some(cluster().await.target_as(&role, &database.name)),
        ..Setup::default()
    };
    let job = CallJob::new(call("analytics.pathless", &[]));
    let error = refusal(&database, &job, &setup).await;
    assert_eq!(
        error.remedy.unwrap(),
        format!(
            "GRANT USAGE ON SCHEMA \"analytics\" TO \"{role}\"; GRANT EXECUTE ON FUNCTION \"analytics\".\"pathless\"() TO \"{role}\""
        )
    );
}

#[tokio::test]
async fn a_run_that_lost_the_lead_or_is_out_of_time_calls_no_more() {
    let database = queue().await;
    database
        .execute("CREATE FUNCTION public.endless() RETURNS int LANGUAGE sql AS 'SELECT 1 FROM pg_sleep(0.05)'")
        .await;
    let job = repeated("endless", &[]);
    let setup = Setup {
        time: Duration::from_secs(1),
        ..Setup::default()
    };
    let report = run(&job, &mut context(&database, &job, &setup).await).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(report.reason.unwrap().contains("had more to do"));
    let job = repeated("analytics.process_pending_events", &["10"]);
    let mut lost = context(&database, &job, &Setup::default()).await;
    database.execute("UPDATE pgreeve.leader SET epoch = epoch + 1").await;
    let error = run(&job, &mut lost).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Displaced);
    let done: i64 = database
        .value("SELECT count(*) FROM analytics.pending WHERE done_in IS NOT NULL")
        .await;
    assert_eq!(done, 0);
}

#[tokio::test]
async fn the_program_wants_a_call_approved_before_it_runs_it() {
    let database = queue().await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.process]\nschedule = \"*/5 * * * *\"\n\
         call = {{ function = \"analytics.process_pending_events\", arguments = [10], repeat_while_positive = true }}\n"
    ));
    host.run(&["check", "--connect"]).expect_code(0);
    host.run(&["run", "process"]).expect_code(3);
    let plan = host.run(&["plan", "process", "--json"]).expect_code(0).json();
    assert_eq!(
        plan["plan"]["intent"]["statement"],
        "SELECT \"analytics\".\"process_pending_events\"($1::text::integer)::int8"
    );
    let hash = plan["plan"]["policy"].as_str().unwrap();
    host.run(&["approve", hash]).expect_code(0);
    let done = host.run(&["run", "process", "--json"]).expect_code(0).json();
    assert_eq!(
        (&done["run"]["kind"], &done["run"]["report"]["sum"]),
        (&json!("call"), &json!(25))
    );
}
