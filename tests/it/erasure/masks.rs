//! Masks on real columns.

use pgreeve::job::Disposition;
use serde_json::{Value, json};

use super::{ask, erase, job};
use crate::support::Database;
use crate::support::context::{Setup, refusal};

/// A table of people with one more column, and the settings that mask it.
async fn people(column: &str, values: &str, mask: &str) -> (Database, String) {
    let database = Database::create().await;
    database
        .execute(&format!(
            "CREATE TYPE mood AS ENUM ('glad', 'erased'); CREATE DOMAIN short AS varchar(12) CHECK (length(value) > 1);
             CREATE TABLE users (id int PRIMARY KEY, email text, {column});
             INSERT INTO users (id, email, it) SELECT n, 'person-' || n || '@example.org', v FROM (VALUES {values}) AS x (n, v)"
        ))
        .await;
    pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
    let settings = format!(
        "subject = {{ table = \"users\", key = \"id\", identifiers = [\"email\"] }}\n\
         tables = {{ users = {{ action = \"mask\", set = {{ email = \"email_token\", it = {} }} }} }}",
        json!(mask)
    );
    (database, settings)
}

#[tokio::test]
async fn each_mask_does_what_it_says_and_to_the_person_alone() {
    for (column, value, mask, masked) in [
        ("it text", "'secret'", "null", Value::Null),
        (
            "it text NOT NULL",
            "'secret'",
            "constant(Erased user)",
            json!("Erased user"),
        ),
        ("it mood", "'glad'::mood", "constant(erased)", json!("erased")),
        (
            "it date",
            "'1984-05-06'::date",
            "truncate_date(year)",
            json!("1984-01-01"),
        ),
        (
            "it timestamptz",
            "'1984-05-06T07:08:09Z'::timestamptz",
            "truncate_date(decade)",
            json!("1980-01-01T00:00:00+00:00"),
        ),
        (
            "it jsonb",
            r#"'{"a": {"mail": "x", "n": 1}}'::jsonb"#,
            "json_remove(a.mail)",
            json!({ "a": { "n": 1 } }),
        ),
        (
            "it json",
            r#"'[{"mail": "x", "b": [{"mail": {"deep": 1}, "n": 2}]}]'::json"#,
            "json_scrub(mail)",
            json!([{ "mail": null, "b": [{ "mail": null, "n": 2 }] }]),
        ),
        (
            "it jsonb",
            r#"'{"w": [{"who": 1, "name": "Jane"}, {"who": 2, "name": "John"}], "name": "draw"}'::jsonb"#,
            "json_scrub_own(name)",
            json!({ "w": [{ "who": 1, "name": null }, { "who": 2, "name": "John" }], "name": "draw" }),
        ),
        (
            "it text",
            "'write to PERSON-1@example.org, not person-2@example.org'",
            "text_replace",
            json!("write to [erased], not person-2@example.org"),
        ),
        (
            "it jsonb",
            r#"'{"t": "say \"person-1@example.org\"", "n": [1, 2]}'::jsonb"#,
            "text_replace",
            json!({ "t": "say \"[erased]\"", "n": [null, 2] }),
        ),
        (
            "it text[]",
            "ARRAY['a', 'Person-1@example.org', NULL, 'b']",
            "array_remove",
            json!(["a", null, "b"]),
        ),
    ] {
        let (database, settings) = people(column, &format!("(1, {value}), (2, {value})"), mask).await;
        ask(&database, &settings, "1").await;
        let (report, witness) = erase(&database, &settings).await;
        let report = report.unwrap_or_else(|error| panic!("{mask} on {column}: {error:?}"));
        assert_eq!(report.body["completed"], 1, "{mask} on {column}: {report:?}");
        let of = async |id: i32| {
            database
                .value::<Value>(&format!(
                    "SELECT jsonb_build_object('it', it) FROM users WHERE id = {id}"
                ))
                .await
        };
        assert_eq!(of(1).await["it"], masked, "{mask} on {column}");
        assert_ne!(of(2).await["it"], masked, "{mask} on {column}");
        assert_eq!(
            database.value::<String>("SELECT email FROM users WHERE id = 2").await,
            "person-2@example.org"
        );
        let step = witness.asked().certified[0].steps[0].clone();
        assert_eq!((step.action.as_str(), step.rows), ("mask", 1));
    }
}

#[tokio::test]
async fn tokens_are_unique_for_each_value_and_equal_for_equal_ones() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE users (id int PRIMARY KEY);
             CREATE TABLE mails (user_id int REFERENCES users, email varchar(60) NOT NULL UNIQUE, copy text, code varchar(12));
             INSERT INTO users VALUES (1), (2);
             INSERT INTO mails SELECT n % 2 + 1, 'm' || n || '@example.org', 'm' || n || '@example.org', 'code' || n % 4 FROM generate_series(1, 8) n",
        )
        .await;
    pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
    let settings = r#"
        subject = { table = "users", key = "id" }
        [jobs.erase.erasure.tables]
        users = { action = "mask", set = { } }
        mails = { action = "mask", set = { email = "email_token", copy = "email_token", code = "hmac(12)" } }
    "#
    .replace(
        "users = { action = \"mask\", set = { } }",
        "users = { action = \"keep\", basis = \"x\" }",
    );
    ask(&database, &settings, "2").await;
    erase(&database, &settings).await.0.unwrap();
    let masked = "FROM mails WHERE user_id = 2 AND email ~ '^erased\\+[0-9a-f]{16}@invalid\\.invalid$' AND email = copy AND code ~ '^[0-9a-f]{12}$'";
    assert_eq!(
        database
            .value::<i64>(&format!("SELECT count(DISTINCT email) {masked}"))
            .await,
        4
    );
    assert_eq!(
        database
            .value::<i64>(&format!("SELECT count(DISTINCT code) {masked}"))
            .await,
        2
    );
    assert_eq!(
        database
            .value::<i64>("SELECT count(*) FROM mails WHERE user_id = 1 AND email LIKE 'm%'")
            .await,
        4
    );
}

#[tokio::test]
async fn a_mask_that_its_table_does_not_take_is_refused_before_the_first_request() {
    for (column, value, mask, cause) in [
        ("it text NOT NULL", "'x' || n", "null", "takes no null"),
        ("it text UNIQUE", "'x' || n", "constant(gone)", "23505"),
        ("it varchar(20)", "'x'", "email_token", "makes 39 characters"),
        ("it varchar(6)", "'x'", "hmac(8)", "makes 8 characters"),
        ("it varchar(6)", "'x'", "constant(far too long)", "22001"),
        ("it short", "'xx'", "constant(y)", "23514"),
        ("it mood", "'glad'::mood", "constant(sad)", "22P02"),
        ("it int CHECK (it > 0)", "n", "constant(0)", "23514"),
        ("it int", "n", "hmac(8)", "makes text"),
        ("it int", "n", "truncate_date(year)", "needs a date"),
        ("it text", "'x'", "json_scrub(a)", "needs json"),
        ("it text", "'x'", "array_remove", "needs an array"),
        (
            "base text DEFAULT 'x', it text GENERATED ALWAYS AS (base || 'y') STORED",
            "NULL",
            "null",
            "the server alone sets it",
        ),
    ] {
        let database = Database::create().await;
        let generated = column.contains("GENERATED");
        let it = if generated { "base" } else { "it" };
        database
            .execute(&format!(
                "CREATE TYPE mood AS ENUM ('glad', 'erased'); CREATE DOMAIN short AS varchar(12) CHECK (length(value) > 1);
                 CREATE TABLE users (id int PRIMARY KEY, email text, {column});
                 INSERT INTO users (id, {it}) SELECT n, {value} FROM generate_series(1, 3) n"
            ))
            .await;
        pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
        let settings = format!(
            "subject = {{ table = \"users\", key = \"id\" }}\ntables = {{ users = {{ action = \"mask\", set = {{ it = {} }} }} }}",
            json!(mask)
        );
        let error = refusal(&database, &job(&settings).0, &Setup::default()).await;
        assert_eq!(error.disposition, Disposition::Refused);
        assert!(
            error.cause.contains("public.users.it") && error.cause.contains(cause),
            "{mask} on {column}: {error}"
        );
        assert_eq!(
            database
                .value::<i64>("SELECT count(*) FROM pgreeve.erasure_request")
                .await,
            0,
            "nothing is left of the trial"
        );
    }
}

#[tokio::test]
async fn a_trigger_that_refuses_a_mask_is_found_before_and_its_message_is_not_repeated() {
    let (database, settings) = people("it text", "(1, 'x')", "null").await;
    database
        .execute(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no, %', OLD.email; END $$;
             CREATE TRIGGER no BEFORE UPDATE OF it ON users FOR EACH ROW EXECUTE FUNCTION no()",
        )
        .await;
    let error = refusal(&database, &job(&settings).0, &Setup::default()).await;
    assert!(error.cause.contains("P0001"), "{error}");
    assert!(!format!("{error:?}").contains("person-1"), "{error:?}");
}
