//! The sample database: its rows, its row security, and what the role `pgreeve` may do.

use std::path::Path;
use std::process::Command;

use pgreeve::config::Config;
use pgreeve::demo::churn_saver::{Size, Summary, build};
use pgreeve::demo::naive::{NAIVE, Naive};
use pgreeve::jobs::KindSettings;
use pgreeve::ledger::migrate;
use pgreeve::postgres::connect::{ConnectTarget, Session, SessionSettings};
use pgreeve::postgres::programs;
use pgreeve::postgres::sqlstate::DatabaseError;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::erasure;
use crate::support::Database;
use crate::support::context::{self, Setup, context};

const SMALL: Size = Size {
    companies: 4,
    users: 400,
    events: 2_000,
    sessions: 1_000,
    seed: 1,
};

async fn sample(size: &Size) -> (Database, Summary) {
    let database = Database::create().await;
    let summary = build(&database.target, size, |_, _, _| {}).await.unwrap();
    (database, summary)
}

fn target_as(database: &Database, user: &str) -> ConnectTarget {
    ConnectTarget {
        user: user.to_owned(),
        ..database.target.clone()
    }
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<u64, DatabaseError> {
    let result = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await?;
    Ok(result.rows_affected())
}

async fn count(connection: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(connection)
        .await
        .unwrap()
}

#[tokio::test]
async fn the_sample_holds_what_its_summary_says() {
    let mut steps = Vec::new();
    let database = Database::create().await;
    let summary = build(&database.target, &SMALL, |what, done, total| {
        assert!(done <= total, "{what}");
        steps.push((what.to_owned(), done, total));
    })
    .await
    .unwrap();

    assert_eq!(summary.rows.len(), 11);
    assert_eq!(summary.rows_of("events"), 2_000);
    assert_eq!(summary.rows_of("no such table"), 0);
    assert!(summary.bytes > 1_000_000);
    for (table, rows) in &summary.rows {
        assert!(*rows > 0, "{table}");
        let counted: i64 = database.value(&format!("SELECT count(*) FROM {table}")).await;
        assert_eq!(counted.unsigned_abs(), *rows, "{table}");
        assert!(
            steps
                .iter()
                .any(|(what, done, total)| what == table && done == total && total == rows),
            "{table}"
        );
    }
    let analysed: i64 = database
        .value("SELECT count(*) FROM pg_class WHERE relname = 'events' AND reltuples = 2000")
        .await;
    assert_eq!(analysed, 1);
}

#[tokio::test]
async fn rows_stand_close_around_every_cutoff() {
    let (database, summary) = sample(&SMALL).await;
    let anchor = summary.anchor;
    // Each policy's table, age column, period, and the rows that are due or would be but for their age.
    let policies = [
        ("events", "created_at", "90 days", "processed"),
        ("data_exports", "created_at", "30 days", "status = 'completed'"),
        ("consent_records", "revoked_at", "7 years", "true"),
        (
            "onboarding.sessions",
            "last_activity_at",
            "2 hours",
            "status = 'in_progress'",
        ),
    ];
    for (table, column, period, due) in policies {
        let near: (i64, i64, i64) = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT count(*) FILTER (WHERE {column} = cutoff - interval '1 microsecond'),
                    count(*) FILTER (WHERE {column} = cutoff),
                    count(*) FILTER (WHERE {column} = cutoff + interval '1 microsecond')
             FROM {table}, (SELECT timestamptz '{anchor}' - interval '{period}' AS cutoff) c WHERE {due}"
        )))
        .fetch_one(&mut database.connect().await)
        .await
        .unwrap();
        assert!(near.0 > 0 && near.1 > 0 && near.2 > 0, "{table}: {near:?}");
    }
}

#[tokio::test]
async fn some_old_rows_are_there_to_stay() {
    let (database, summary) = sample(&SMALL).await;
    let anchor = summary.anchor;
    let old: i64 = database
        .value(&format!(
            "SELECT count(*) FROM events WHERE created_at < timestamptz '{anchor}' - interval '90 days'"
        ))
        .await;
    assert!((600..=1000).contains(&old), "{old} of 2000 events are old");
    let must_stay = [
        "events WHERE NOT processed AND created_at < timestamptz '{}' - interval '90 days'",
        "data_exports WHERE status = 'failed' AND created_at < timestamptz '{}' - interval '30 days'",
        "consent_records WHERE revoked_at IS NULL AND created_at < timestamptz '{}' - interval '7 years'",
        "consent_records WHERE revoked_at > timestamptz '{0}' - interval '30 days' AND created_at < timestamptz '{0}' - interval '7 years'",
        "onboarding.sessions WHERE status = 'in_progress' AND last_activity_at IS NULL",
        "onboarding.sessions WHERE status = 'completed' AND last_activity_at < timestamptz '{}' - interval '2 hours'",
        "onboarding.sessions WHERE status = 'in_progress' AND abandoned_at IS NOT NULL",
        "recovery_cases WHERE status = 'open' AND first_failure_at < timestamptz '{}' - interval '90 days'",
    ];
    for rows in must_stay {
        let rows = rows
            .replace("{}", &anchor.to_string())
            .replace("{0}", &anchor.to_string());
        let found: i64 = database.value(&format!("SELECT count(*) FROM {rows}")).await;
        assert!(found > 0, "no row in {rows}");
    }
    let ahead: i64 = database
        .value(&format!(
            "SELECT count(*) FROM events WHERE created_at > timestamptz '{anchor}'"
        ))
        .await;
    assert_eq!(ahead, 0, "events of the future");
}

#[tokio::test]
async fn the_seed_decides_the_rows() {
    let other = Size { seed: 2, ..SMALL };
    let (first, again, other) = tokio::join!(sample(&SMALL), sample(&SMALL), sample(&other));
    let digest = "SELECT md5(string_agg(id::text || type || payload::text, ',' ORDER BY id)) FROM events";
    let rows: String = first.0.value(digest).await;
    assert_eq!(rows, again.0.value::<String>(digest).await);
    assert_ne!(rows, other.0.value::<String>(digest).await);
}

#[tokio::test]
async fn a_second_build_changes_nothing() {
    let (database, summary) = sample(&SMALL).await;
    let error = build(&database.target, &SMALL, |_, _, _| {}).await.unwrap_err();
    assert!(error.is("42P07"), "{error}");
    let events: i64 = database.value("SELECT count(*) FROM events").await;
    assert_eq!(events.unsigned_abs(), summary.rows_of("events"));
}

#[tokio::test]
async fn a_tenant_sees_and_writes_only_its_own_rows() {
    let (database, summary) = sample(&SMALL).await;
    let mut superuser = database.connect().await;
    let mut app = target_as(&database, "app_role").connect("test").await.unwrap();
    let company: String = database.value("SELECT min(id) FROM companies").await;
    for (table, rows) in &summary.rows {
        let tenant = if *table == "companies" { "id" } else { "company_id" };
        for nobody in ["RESET app.current_company_id", "SET app.current_company_id = ''"] {
            run(&mut app, nobody).await.unwrap();
            assert_eq!(count(&mut app, &format!("SELECT count(*) FROM {table}")).await, 0);
        }
        run(&mut app, &format!("SET app.current_company_id = '{company}'"))
            .await
            .unwrap();
        let seen = count(&mut app, &format!("SELECT count(*) FROM {table}")).await;
        let own = count(
            &mut superuser,
            &format!("SELECT count(*) FROM {table} WHERE {tenant} = '{company}'"),
        )
        .await;
        assert_eq!(seen, own, "{table}");
        assert!(seen.unsigned_abs() < *rows, "{table}");
    }
    let foreign = "INSERT INTO events (company_id, whop_event_id, type, payload)
                   VALUES ('somebody else', 'evt_x', 'payment.failed', '{}')";
    assert!(run(&mut app, foreign).await.unwrap_err().is("42501"));
}

#[tokio::test]
async fn row_security_binds_the_owner_too() {
    let (database, _) = sample(&SMALL).await;
    let open: i64 = database
        .value(
            "SELECT count(*) FROM pg_class
             WHERE relkind = 'r' AND relnamespace IN ('public'::regnamespace, 'onboarding'::regnamespace)
               AND NOT (relrowsecurity AND relforcerowsecurity AND relowner = 'migration_role'::regrole)",
        )
        .await;
    assert_eq!(open, 0);
}

#[tokio::test]
async fn pgreeve_may_do_its_work_and_nothing_else() {
    let (database, _) = sample(&SMALL).await;
    let target = target_as(&database, "pgreeve");
    migrate::apply(&target).await.unwrap();
    let mut session = Session::open(&target, &SessionSettings::control("test")).await.unwrap();
    let connection = session.connection();

    let work = [
        "DELETE FROM public.events WHERE processed AND created_at < now() - interval '90 days'",
        "DELETE FROM public.data_exports WHERE status = 'completed' AND created_at < now() - interval '30 days'",
        "DELETE FROM public.consent_records WHERE revoked_at < now() - interval '7 years'",
        "UPDATE onboarding.sessions SET status = 'abandoned', abandoned_at = now(), updated_at = now()
         WHERE id IN (SELECT id FROM onboarding.sessions WHERE status = 'in_progress' AND last_activity_at < now() - interval '2 hours' FOR UPDATE)",
    ];
    for statement in work {
        assert!(run(connection, statement).await.unwrap() > 0, "{statement}");
    }
    let too_much = [
        "UPDATE public.users SET email = 'x'",
        "DELETE FROM public.users",
        "UPDATE public.events SET processed = true",
        "INSERT INTO public.consent_records SELECT * FROM public.consent_records LIMIT 1",
        "TRUNCATE public.events",
        "UPDATE onboarding.sessions SET user_id = user_id",
        "DELETE FROM onboarding.sessions",
        "ALTER TABLE public.events DISABLE ROW LEVEL SECURITY",
        "CREATE TABLE public.mine ()",
        "CREATE ROLE another",
        "SET ROLE migration_role",
        "COPY (SELECT 1) TO PROGRAM 'true'",
    ];
    for statement in too_much {
        let error = run(connection, statement).await.unwrap_err();
        assert!(error.is("42501"), "{statement}: {error}");
    }
}

#[tokio::test]
async fn an_open_case_outlives_its_event() {
    let (database, summary) = sample(&Size { events: 5_000, ..SMALL }).await;
    let target = target_as(&database, "pgreeve");
    let mut session = Session::open(&target, &SessionSettings::control("test")).await.unwrap();
    let old = "first_failure_at < now() - interval '90 days' AND status = 'open'";
    let before: i64 = database
        .value(&format!(
            "SELECT count(*) FROM recovery_cases WHERE {old} AND caused_by IS NOT NULL"
        ))
        .await;
    assert!(before > 0);
    run(
        session.connection(),
        "DELETE FROM public.events WHERE created_at < now() - interval '90 days'",
    )
    .await
    .unwrap();
    let after: i64 = database
        .value(&format!(
            "SELECT count(*) FROM recovery_cases WHERE {old} AND caused_by IS NULL"
        ))
        .await;
    assert_eq!(after, before);
    let cases: i64 = database.value("SELECT count(*) FROM recovery_cases").await;
    assert_eq!(cases.unsigned_abs(), summary.rows_of("recovery_cases"));
}

#[tokio::test]
async fn pgreeve_can_dump_the_sample() {
    let (database, _) = sample(&SMALL).await;
    let output = Command::new(programs::find("pg_dump").unwrap())
        .envs(target_as(&database, "pgreeve").environment().unwrap())
        .args(["--no-password", "--format=custom"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.starts_with(b"PGDMP"));
}

#[tokio::test]
async fn a_naive_statement_tells_a_run_that_did_the_same_from_one_that_did_not() {
    let (database, summary) = sample(&SMALL).await;
    let mut connection = database.connect().await;
    let periods = ["90 days", "30 days", "7 years", "2 hours"];
    let work = [
        "DELETE FROM events WHERE processed AND created_at < $",
        "DELETE FROM data_exports WHERE status = 'completed' AND created_at < $",
        "DELETE FROM consent_records WHERE revoked_at < $",
        "UPDATE onboarding.sessions SET status = 'abandoned', abandoned_at = coalesce(abandoned_at, now()), updated_at = now()
         WHERE status = 'in_progress' AND last_activity_at < $",
    ];
    for ((naive, period), work) in NAIVE.iter().zip(periods).zip(work) {
        assert_eq!(Naive::of(naive.job), Some(naive));
        let cutoff: String = database
            .value(&format!(
                "SELECT (timestamptz '{}' - interval '{period}')::text",
                summary.anchor
            ))
            .await;
        run(&mut connection, &naive.copy()).await.unwrap();
        assert_eq!(count(&mut connection, &naive.differences()).await, 0, "{}", naive.job);
        let changed = run(&mut connection, &naive.apply(&cutoff)).await.unwrap();
        assert!(changed > 0, "{}", naive.job);
        assert!(
            count(&mut connection, &naive.differences()).await.unsigned_abs() >= changed,
            "{}",
            naive.job
        );
        // A microsecond more is another result, because rows stand there.
        let work = |cutoff: &str| work.replace('$', &format!("timestamptz '{cutoff}'"));
        run(&mut connection, "BEGIN").await.unwrap();
        let late = format!("{cutoff}' + interval '1 microsecond");
        run(&mut connection, &work(&late)).await.unwrap();
        assert!(
            count(&mut connection, &naive.differences()).await > 0,
            "{}: a later cutoff",
            naive.job
        );
        run(&mut connection, "ROLLBACK").await.unwrap();
        run(&mut connection, &work(&cutoff)).await.unwrap();
        assert_eq!(count(&mut connection, &naive.differences()).await, 0, "{}", naive.job);
    }
    assert_eq!(Naive::of("no-such-job"), None);
}

#[tokio::test]
async fn the_shipped_erasure_is_planned_on_the_sample_and_erases_a_person_of_it() {
    let (database, _) = sample(&SMALL).await;
    migrate::apply(&database.target).await.unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.toml");
    let (config, _) = Config::load(&shipped).unwrap();
    let KindSettings::Erasure(rule) = &config.jobs[&"erase-users".parse().unwrap()].kind else {
        panic!("erase-users is an erasure");
    };
    let mut connection = database.connect().await;
    run(&mut connection, "DELETE FROM user_deletion_requests")
        .await
        .unwrap();
    let who: String = sqlx::query_scalar(
        "INSERT INTO user_deletion_requests (company_id, user_id)
         SELECT company_id, id FROM users u WHERE EXISTS (SELECT FROM onboarding.sessions s WHERE s.user_id = u.id)
         ORDER BY id LIMIT 1 RETURNING user_id::text",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    let sessions = format!("SELECT count(*) FROM onboarding.sessions WHERE user_id = '{who}'");
    assert!(count(&mut connection, &sessions).await > 0);
    let others = count(&mut connection, "SELECT count(*) FROM users").await;
    let (job, witness) = erasure::job_of(rule.as_ref().clone());
    let mut context = context(&database, &job, &Setup::default()).await;
    let report = context::run(&job, &mut context).await.unwrap();
    assert_eq!(report.body["completed"], 1, "{report:?}");
    assert_eq!(witness.asked().certified.len(), 1);
    assert_eq!(count(&mut connection, &sessions).await, 0);
    assert_eq!(
        count(&mut connection, "SELECT count(*) FROM users").await,
        others,
        "the row stays, masked"
    );
    let masked =
        format!("SELECT count(*) FROM users WHERE id = '{who}' AND full_name = 'erased' AND last_seen_at IS NULL");
    assert_eq!(count(&mut connection, &masked).await, 1);
}
