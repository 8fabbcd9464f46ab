//! What a plan decides and refuses.

use std::sync::Arc;

use pgreeve::erasure::prepare::prepare;
use pgreeve::job::{Disposition, JobError, Outcome};
use serde_json::Value;

use super::{SHOP_RULE, count, erase, job, rule, shop};
use crate::support::Database;
use crate::support::context::{Setup, context, run};

async fn plan(database: &Database, settings: &str) -> Result<Value, JobError> {
    let rule = Arc::new(rule(settings));
    let mut session = context(database, &job(settings).0, &Setup::default()).await.session;
    let prepared = prepare(session.connection(), &rule).await;
    session.close().await;
    prepared.map(|prepared| prepared.intent())
}

/// The settings of a shop with one table's line changed; empty takes it out.
fn with(table: &str, line: &str) -> String {
    let lines: Vec<String> = SHOP_RULE
        .lines()
        .map(|old| {
            if old.trim().starts_with(table) && old.contains("action") {
                line.to_owned()
            } else {
                old.to_owned()
            }
        })
        .collect();
    lines.join("\n")
}

#[tokio::test]
async fn children_go_before_their_parents_and_the_plan_says_how_each_is_reached() {
    let database = shop().await;
    let intent = plan(&database, SHOP_RULE).await.unwrap();
    let steps: Vec<String> = serde_json::from_value::<Vec<Vec<String>>>(intent["steps"].clone())
        .unwrap()
        .concat();
    let place = |what: &str| {
        steps
            .iter()
            .position(|step| step.contains(what))
            .unwrap_or_else(|| panic!("{what}: {steps:?}"))
    };
    assert!(place("delete from sales.lines") < place("delete from sales.orders"));
    assert!(place("delete from sales.orders") < place("delete from public.users"));
    assert!(place("take referred_by out of public.users") < place("delete from public.users"));
    let lines = intent["tables"]
        .as_array()
        .unwrap()
        .iter()
        .find(|table| table["table"] == "sales.lines")
        .unwrap();
    let path = lines["path"].as_str().unwrap();
    assert!(
        path.starts_with("public.users ← sales.orders by the foreign key orders_user_id_fkey (ON DELETE CASCADE)"),
        "{path}"
    );
    assert_eq!(intent["waiting"], 1);
}

#[tokio::test]
async fn a_table_in_reach_that_nobody_decided_about_refuses_the_plan_by_name_and_path() {
    let database = shop().await;
    let error = plan(&database, &with("\"sales.orders\"", "")).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Refused);
    assert!(
        error.cause.contains("sales.orders (public.users ← sales.orders"),
        "{error}"
    );
    assert!(error.cause.contains("ON DELETE CASCADE"), "{error}");
    assert!(!error.cause.contains("sales.lines ("), "it has an action: {error}");
    database
        .execute("CREATE TABLE notes (order_shop int, order_id int, note text, FOREIGN KEY (order_shop, order_id) REFERENCES sales.orders ON DELETE SET NULL)")
        .await;
    let error = plan(&database, SHOP_RULE).await.unwrap_err();
    assert!(error.cause.contains("notes (public.users ← sales.orders"), "{error}");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_remedy() {
    let database = shop().await;
    for (table, line, cause) in [
        (
            "sessions",
            "sessions = { action = \"mask\", set = { e_mail = \"null\" } }",
            "no column e_mail",
        ),
        (
            "\"sales.lines\"",
            "\"sales.lines\" = { action = \"keep\", basis = \"x\" }",
            "sales.lines is kept and refers to sales.orders",
        ),
        (
            "users",
            "users = { action = \"mask\", set = { id = \"null\" } }",
            "masks the subject's own key",
        ),
        (
            "users",
            "users = { action = \"delete\" }\n\"sales.oders\" = { action = \"delete\" }",
            "there is no table of this name",
        ),
        (
            "users",
            "users = { action = \"delete\", via = [\"nobody\"] }",
            "no column nobody",
        ),
        (
            "users",
            "users = { action = \"delete\" }\nlonely = { action = \"delete\" }",
            "no foreign key or edge leads there",
        ),
    ] {
        database.execute("CREATE TABLE IF NOT EXISTS lonely (id int)").await;
        let error = plan(&database, &with(table, line)).await.unwrap_err();
        assert_eq!(error.disposition, Disposition::Refused, "{error}");
        assert!(error.to_string().contains(cause), "{cause}: {error}");
        assert!(error.remedy.is_some(), "{error:?}");
    }
}

#[tokio::test]
async fn a_role_that_row_security_filters_or_that_lacks_a_right_is_refused() {
    let database = shop().await;
    database
        .execute(
            "CREATE ROLE eraser LOGIN; GRANT USAGE ON SCHEMA public, sales, pgreeve TO eraser;
             GRANT SELECT ON ALL TABLES IN SCHEMA public, sales TO eraser;
             GRANT ALL ON ALL TABLES IN SCHEMA pgreeve TO eraser",
        )
        .await;
    let setup = Setup {
        target: Some(pgreeve::postgres::connect::ConnectTarget {
            user: "eraser".to_owned(),
            ..database.target.clone()
        }),
        ..Setup::default()
    };
    let (job, _) = job(SHOP_RULE);
    let error = crate::support::context::refusal(&database, &job, &setup).await;
    assert!(
        error.remedy.unwrap().starts_with("GRANT "),
        "the statement that mends it"
    );
    database
        .execute("ALTER TABLE sales.orders ENABLE ROW LEVEL SECURITY")
        .await;
    let error = crate::support::context::refusal(&database, &job, &setup).await;
    assert!(
        error
            .cause
            .contains("row-level security would hide rows of sales.orders"),
        "{error}"
    );
    database.execute("DROP OWNED BY eraser; DROP ROLE eraser").await;
}

#[tokio::test]
async fn a_table_of_requests_without_rights_is_refused_with_the_grant_before_anybody_goes() {
    for right in ["SELECT", "UPDATE"] {
        let database = shop().await;
        let role = format!("{}_eraser", database.name);
        database
            .execute(&format!(
                "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA public, sales, pgreeve TO {role};
                 GRANT SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public, sales TO {role};
                 GRANT ALL ON ALL TABLES IN SCHEMA pgreeve TO {role}; REVOKE {right} ON requests FROM {role}"
            ))
            .await;
        let setup = Setup {
            target: Some(crate::support::cluster().await.target_as(&role, &database.name)),
            ..Setup::default()
        };
        let (job, _) = job(SHOP_RULE);
        let error = crate::support::context::refusal(&database, &job, &setup).await;
        let remedy = error.remedy.clone().unwrap();
        assert!(
            remedy.starts_with("GRANT ") && remedy.contains(right) && remedy.contains("\"public\".\"requests\""),
            "{error:?}"
        );
        assert!(!remedy.contains("sales"), "nothing else is missing: {remedy}");
        assert_eq!(count(&database, "users").await, 3);
        database.execute(&remedy).await;
        let report = run(&job, &mut context(&database, &job, &setup).await).await.unwrap();
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
        assert_eq!(count(&database, "users").await, 2);
        database
            .execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
            .await;
    }
}

#[tokio::test]
async fn a_schema_that_has_grown_stops_the_job_by_name_until_it_is_approved() {
    let database = shop().await;
    assert_eq!(erase(&database, SHOP_RULE).await.0.unwrap().outcome, Outcome::Succeeded);
    database
        .execute("ALTER TABLE events ADD note text; ALTER TABLE users ADD age int; INSERT INTO requests (id, who) VALUES (11, '2')")
        .await;
    let error = erase(&database, SHOP_RULE).await.0.unwrap_err();
    assert_eq!(error.disposition, Disposition::Refused);
    assert_eq!(
        error.cause,
        "new in reach of the subject: the column note of public.events"
    );
    assert_eq!(
        database
            .value::<String>("SELECT status FROM requests WHERE id = 11")
            .await,
        "pending"
    );
    // What `approve` does: today's plan is the approved one.
    let (job, _) = job(SHOP_RULE);
    let mut context = context(&database, &job, &Setup::default()).await;
    let intent = pgreeve::job::Job::plan(&job, &mut context).await.unwrap().intent();
    pgreeve::ledger::policies::approve(
        context.session.connection(),
        "policy",
        &"the-job".parse().unwrap(),
        &intent,
        "a test",
    )
    .await
    .unwrap();
    assert_eq!(run(&job, &mut context).await.unwrap().body["completed"], 1);
}

#[tokio::test]
async fn tables_that_refer_to_each_other_in_a_circle_go_together() {
    for constraint in ["", "DEFERRABLE", "ON DELETE RESTRICT", "ON DELETE CASCADE"] {
        let database = Database::create().await;
        database
            .execute(&format!(
                "CREATE TABLE users (id int PRIMARY KEY);
                 CREATE TABLE a (id int PRIMARY KEY, user_id int REFERENCES users, b_id int NOT NULL);
                 CREATE TABLE b (id int PRIMARY KEY, c_id int NOT NULL);
                 CREATE TABLE c (id int PRIMARY KEY, a_id int NOT NULL REFERENCES a {constraint});
                 INSERT INTO users VALUES (1), (2);
                 INSERT INTO a SELECT n, n % 2 + 1, n FROM generate_series(1, 6) n;
                 INSERT INTO b SELECT n, n FROM generate_series(1, 6) n;
                 INSERT INTO c SELECT n, n FROM generate_series(1, 6) n;
                 ALTER TABLE a ADD FOREIGN KEY (b_id) REFERENCES b {constraint};
                 ALTER TABLE b ADD FOREIGN KEY (c_id) REFERENCES c {constraint};"
            ))
            .await;
        pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
        let settings = r#"
            subject = { table = "users", key = "id" }
            [jobs.erase.erasure.tables]
            users = { action = "delete" }
            a = { action = "delete" }
            b = { action = "delete" }
            c = { action = "delete" }
        "#;
        super::ask(&database, settings, "1").await;
        let (report, witness) = erase(&database, settings).await;
        assert_eq!(report.unwrap().body["completed"], 1, "{constraint}");
        for table in ["a", "b", "c"] {
            assert_eq!(
                database.value::<i64>(&format!("SELECT count(*) FROM {table}")).await,
                3,
                "{constraint}"
            );
        }
        let asked = witness.asked();
        assert!(
            asked.certified[0]
                .steps
                .iter()
                .all(|step| step.rows == if step.table == "public.users" { 1 } else { 3 })
        );
    }
}

#[tokio::test]
async fn a_first_version_proposes_an_action_for_each_table_and_points_at_loose_ends() {
    let database = shop().await;
    database
        .execute("CREATE TABLE logins (user_id int, ip text); CREATE TABLE letters (email text)")
        .await;
    let rule = rule(
        "subject = { table = \"users\", key = \"id\", identifiers = [\"email\"] }\ntables = { users = { action = \"delete\" } }",
    );
    let mut connection = database.connect().await;
    let text = pgreeve::erasure::init::propose(&mut connection, &"erase".parse().unwrap(), &rule)
        .await
        .unwrap();
    for line in [
        "[jobs.erase.erasure.tables]\n",
        "users = { action = \"delete\" }\n",
        "\"sales.orders\" = { action = \"delete\" }\n",
        "\"sales.lines\" = { action = \"delete\" }\n",
        "logins.user_id = users.id",
        "letters.email = users.email",
        "events.payload is JSON",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}
