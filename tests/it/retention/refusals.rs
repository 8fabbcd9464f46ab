//! What is refused before a row is touched, and what the operator is told.

use pgreeve::job::{Job, Outcome};
use pgreeve::jobs::retention::{RetentionJob, RetentionSettings};

use super::{count, events, job};
use crate::support::Database;
use crate::support::context::{Setup, context, refusal, run, run_once};

const TABLE: &str =
    "CREATE TABLE events (id int PRIMARY KEY, created_at timestamptz, kind text, state text DEFAULT 'x');
                     INSERT INTO events SELECT n, '2001-01-01' FROM generate_series(1, 10) n;";

/// Checks that a policy on a database set up by `sql` is refused with a cause and a remedy that hold
/// these words.
async fn refused(sql: &str, settings: RetentionSettings, cause: &str, remedy: &str) {
    let database = Database::create().await;
    database.execute(sql).await;
    let error = refusal(&database, &RetentionJob::new(settings), &Setup::default()).await;
    assert!(error.cause.contains(cause), "{error:?}");
    assert!(error.remedy.as_deref().unwrap().contains(remedy), "{error:?}");
}

fn table(name: &str) -> RetentionSettings {
    RetentionSettings {
        table: name.parse().unwrap(),
        ..events()
    }
}

fn condition(text: &str) -> RetentionSettings {
    RetentionSettings {
        predicate: Some(text.to_owned()),
        ..events()
    }
}

#[tokio::test]
async fn a_table_that_does_not_exist_is_met_with_the_nearest_names() {
    refused(
        TABLE,
        table("evnts"),
        "no table of this name",
        "did you mean public.events?",
    )
    .await;
    refused(
        "CREATE TABLE \"Events\" (created_at timestamptz)",
        events(),
        "no table of this name",
        "did you mean public.Events?",
    )
    .await;
    refused(
        "CREATE SCHEMA a; CREATE TABLE a.events (created_at timestamptz)",
        table("b.events"),
        "no table of this name",
        "did you mean a.events?",
    )
    .await;
    refused(TABLE, table("pg_catalog.pg_class"), "no table", "as the catalog has it").await;
    refused(TABLE, table("pgreeve.run_batch"), "ledger", "trims its ledger").await;
}

#[tokio::test]
async fn a_name_that_two_schemas_have_needs_its_schema_unless_one_is_public() {
    let two = "CREATE SCHEMA a; CREATE SCHEMA b; CREATE TABLE a.events (created_at timestamptz);
               CREATE TABLE b.events (created_at timestamptz);";
    refused(two, events(), "a.events, b.events", "with its schema").await;
    let database = Database::create().await;
    database.execute(&format!("{two} {TABLE}")).await;
    let report = run_once(&database, &job()).await.unwrap();
    assert_eq!(report.body["table"], "public.events");
    let elsewhere = Database::create().await;
    elsewhere
        .execute("CREATE SCHEMA a; CREATE TABLE a.events (created_at timestamptz)")
        .await;
    assert_eq!(run_once(&elsewhere, &job()).await.unwrap().body["table"], "a.events");
}

#[tokio::test]
async fn a_column_that_tells_no_time_is_refused() {
    let column = |name: &str| RetentionSettings {
        age_column: name.to_owned(),
        ..events()
    };
    refused(
        TABLE,
        column("create_at"),
        "no column create_at",
        "did you mean created_at?",
    )
    .await;
    refused(
        TABLE,
        column("kind"),
        "of type text, which tells no time",
        "timestamptz",
    )
    .await;
    let zoneless = "CREATE TABLE events (id int, created_at timestamp)";
    refused(zoneless, events(), "has no time zone", "set `timezone`").await;
    refused(
        "CREATE TABLE events (created_at date)",
        events(),
        "has no time zone",
        "set `timezone`",
    )
    .await;
    refused(
        "CREATE DOMAIN wall AS timestamp; CREATE TABLE events (created_at wall)",
        events(),
        "has no time zone",
        "set `timezone`",
    )
    .await;
}

#[tokio::test]
async fn what_stores_no_rows_is_refused() {
    refused(
        "CREATE VIEW events AS SELECT now() AS created_at",
        events(),
        "it is a view",
        "name the table",
    )
    .await;
    refused(
        "CREATE MATERIALIZED VIEW events AS SELECT now() AS created_at",
        events(),
        "it is a materialized view",
        "name the table",
    )
    .await;
    refused(
        "CREATE FOREIGN DATA WRAPPER f; CREATE SERVER s FOREIGN DATA WRAPPER f;
         CREATE FOREIGN TABLE events (created_at timestamptz) SERVER s",
        events(),
        "it is a foreign table",
        "against the server",
    )
    .await;
}

#[tokio::test]
async fn a_condition_that_the_server_refuses_is_shown_with_its_code() {
    refused(
        TABLE,
        condition("procesed"),
        "column \"procesed\" does not exist (SQLSTATE 42703)",
        "correct `where`",
    )
    .await;
    refused(TABLE, condition("id"), "SQLSTATE 42804", "correct `where`").await;
    refused(TABLE, condition("sum(id) > 1"), "SQLSTATE 42803", "correct `where`").await;
    refused(TABLE, condition("own(id)"), "SQLSTATE 42883", "with their schema").await;
    refused(
        TABLE,
        condition("kind::int > 1 OR state::int > 1"),
        "SQLSTATE 22P02",
        "for every row",
    )
    .await;
    refused(
        &format!(
            "{TABLE} CREATE FUNCTION nasty() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN DELETE FROM public.events; RETURN true; END $$"
        ),
        condition("public.nasty()"),
        "read-only",
        "changes nothing",
    )
    .await;
    let enumerated = "CREATE TYPE mood AS ENUM ('done'); CREATE TABLE events (created_at timestamptz, mood mood)";
    refused(
        enumerated,
        condition("mood = 'doen'"),
        "SQLSTATE 22P02",
        "correct `where`",
    )
    .await;
}

#[tokio::test]
async fn a_condition_that_no_row_meets_is_a_warning_and_one_that_young_rows_meet_is_none() {
    let database = Database::create().await;
    database
        .execute(&format!(
            "{TABLE} INSERT INTO events VALUES (11, now(), 'young', 'x'); CREATE TABLE empty (LIKE events)"
        ))
        .await;
    let warned = async |settings: RetentionSettings| {
        let job = RetentionJob::new(settings);
        let mut context = context(&database, &job, &Setup::default()).await;
        let plan = job.plan(&mut context).await.unwrap();
        assert_eq!(plan.intent()["eligible"], 0);
        plan.intent()["warnings"]
            .to_string()
            .contains("`where` holds for no row")
    };
    assert!(warned(condition("kind = 'canceled'")).await);
    assert!(!warned(condition("kind = 'young'")).await);
    // It fails on the young row, of which nothing is asked.
    assert!(!warned(condition("kind IS NOT NULL AND kind::int = 1")).await);
    let nothing_yet = RetentionSettings {
        predicate: Some("kind = 'canceled'".to_owned()),
        ..table("empty")
    };
    assert!(!warned(nothing_yet).await);
}

#[tokio::test]
async fn what_postgresql_would_refuse_or_rewrite_is_refused_first() {
    refused(
        "CREATE TABLE events (created_at timestamptz); CREATE PUBLICATION p FOR TABLE events",
        events(),
        "without a replica identity, so PostgreSQL refuses the change: public.events",
        "REPLICA IDENTITY",
    )
    .await;
    refused(
        "CREATE TABLE events (id int, created_at timestamptz) PARTITION BY LIST (id);
         CREATE TABLE events_1 PARTITION OF events DEFAULT;
         CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)",
        events(),
        "public.events_1",
        "REPLICA IDENTITY",
    )
    .await;
    refused(
        &format!("{TABLE} CREATE RULE no AS ON DELETE TO events DO INSTEAD NOTHING"),
        events(),
        "a rule rewrites DELETE into something else: public.events.no",
        "trigger",
    )
    .await;
    // With an identity, or when deletions are not published, there is nothing to refuse.
    for publication in ["FOR ALL TABLES", "FOR TABLE events WITH (publish = 'insert')"] {
        let database = Database::create().await;
        database
            .execute(&format!("{TABLE} CREATE PUBLICATION p {publication}"))
            .await;
        assert_eq!(run_once(&database, &job()).await.unwrap().outcome, Outcome::Succeeded);
    }
}

/// A database with `events` and a role that may do nothing yet but write the ledger.
async fn with_role() -> (Database, String, Setup) {
    let database = Database::create().await;
    pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
    let role = format!("{}_reeve", database.name);
    database
        .execute(&format!(
            "{TABLE} CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA pgreeve TO {role};
             GRANT ALL ON ALL TABLES IN SCHEMA pgreeve TO {role}"
        ))
        .await;
    let setup = Setup {
        target: Some(crate::support::cluster().await.target_as(&role, &database.name)),
        ..Setup::default()
    };
    (database, role, setup)
}

#[tokio::test]
async fn missing_privileges_are_refused_with_the_grants_that_mend_it() {
    let (database, role, setup) = with_role().await;
    database.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC").await;
    let error = refusal(&database, &job(), &setup).await;
    assert_eq!(error.cause, format!("the role {role} lacks USAGE, SELECT, DELETE"));
    let remedy = error.remedy.unwrap();
    assert_eq!(
        remedy,
        format!(
            "GRANT USAGE ON SCHEMA \"public\" TO \"{role}\"; GRANT SELECT ON \"public\".\"events\" TO \"{role}\"; \
             GRANT DELETE ON \"public\".\"events\" TO \"{role}\""
        )
    );
    database.execute(&remedy).await;
    let report = run(&job(), &mut context(&database, &job(), &setup).await)
        .await
        .unwrap();
    assert_eq!((report.outcome, &report.body["rows"]), (Outcome::Succeeded, &10.into()));
}

#[tokio::test]
async fn row_security_that_would_hide_rows_is_refused_and_never_nothing_to_do() {
    for (owner, forced) in [(false, false), (false, true), (true, false), (true, true)] {
        // Never set, set to nothing as by an earlier SET LOCAL, and one that is an error while it is not set.
        for (tenant, set) in [
            ("'app.tenant', true", false),
            ("'app.tenant', true", true),
            ("'app.tenant'", false),
        ] {
            let cell = format!("owner {owner}, forced {forced}, by {tenant}, set {set}");
            let (database, role, setup) = with_role().await;
            database
                .execute(&format!(
                    "ALTER TABLE events ENABLE ROW LEVEL SECURITY;
                     CREATE POLICY tenant ON events USING (kind = current_setting({tenant}));
                     GRANT SELECT, DELETE ON events TO {role};"
                ))
                .await;
            if owner {
                database.execute(&format!("ALTER TABLE events OWNER TO {role}")).await;
            }
            if forced {
                database.execute("ALTER TABLE events FORCE ROW LEVEL SECURITY").await;
            }
            if set {
                database
                    .execute(&format!("ALTER ROLE {role} SET app.tenant = ''"))
                    .await;
            }
            // Only an owner who is not forced sees every row.
            if !owner || forced {
                let error = refusal(&database, &job(), &setup).await;
                let cause = "row-level security would hide rows of public.events";
                assert!(error.cause.contains(cause), "{cell}: {error:?}");
                let remedy = error.remedy.unwrap();
                assert_eq!(remedy, format!("ALTER ROLE \"{role}\" BYPASSRLS"), "{cell}");
                assert_eq!(count(&database, "events").await, 10, "{cell}");
                database.execute(&remedy).await;
            }
            let report = run(&job(), &mut context(&database, &job(), &setup).await)
                .await
                .unwrap();
            let done = (report.outcome, &report.body["rows"]);
            assert_eq!(done, (Outcome::Succeeded, &10.into()), "{cell}");
        }
    }
}

#[tokio::test]
async fn row_security_of_a_table_in_the_condition_is_refused_too() {
    let (database, role, setup) = with_role().await;
    database
        .execute(&format!(
            "GRANT SELECT, DELETE ON events TO {role}; CREATE TABLE holds (event_id int);
             GRANT SELECT ON holds TO {role}; ALTER TABLE holds ENABLE ROW LEVEL SECURITY"
        ))
        .await;
    let job = RetentionJob::new(condition(
        "NOT EXISTS (SELECT FROM public.holds WHERE holds.event_id = events.id)",
    ));
    let error = refusal(&database, &job, &setup).await;
    assert!(error.cause.contains("row-level security"), "{error:?}");
    assert!(error.remedy.unwrap().contains("BYPASSRLS"));
}

#[tokio::test]
async fn a_plan_and_its_refusal_leave_the_session_outside_of_any_transaction() {
    let database = Database::create().await;
    let job = job();
    let mut context = context(&database, &job, &Setup::default()).await;
    assert!(job.plan(&mut context).await.is_err());
    sqlx::raw_sql("VACUUM")
        .execute(context.session.connection())
        .await
        .unwrap();
}
