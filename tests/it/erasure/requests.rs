//! From a request to its end.

use pgreeve::erasure::RequestState;
use pgreeve::job::Outcome;
use serde_json::json;

use super::{SHOP_RULE, ask, count, erase, shop};
use crate::support::Database;

#[tokio::test]
async fn a_person_is_gone_from_every_table_and_nobody_else_is() {
    let database = shop().await;
    let (report, witness) = erase(&database, SHOP_RULE).await;
    let report = report.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(report.body["completed"], 1);
    assert_eq!(count(&database, "users").await, 2);
    assert_eq!(count(&database, "users WHERE id = 2 AND referred_by IS NULL").await, 1);
    assert_eq!(count(&database, "users WHERE id = 3 AND referred_by = 2").await, 1);
    assert_eq!(count(&database, "sales.orders").await, 2);
    assert_eq!(count(&database, "sales.lines").await, 8);
    assert_eq!(count(&database, "events").await, 10);
    assert_eq!(count(&database, "sessions").await, 4);
    assert_eq!(count(&database, "clicks").await, 18);
    assert_eq!(
        count(
            &database,
            "clicks c WHERE EXISTS (SELECT FROM sessions WHERE token = session_token)"
        )
        .await,
        12
    );
    assert_eq!(
        count(&database, "requests WHERE status = 'done' AND done_at IS NOT NULL").await,
        1
    );
    let asked = witness.asked();
    let [account] = asked.certified.as_slice() else {
        panic!("{asked:?}")
    };
    assert_eq!(account.state, RequestState::Completed);
    assert_eq!(account.found, Some(true));
    let steps: Vec<_> = account
        .steps
        .iter()
        .map(|step| (step.action.as_str(), step.table.as_str(), step.rows))
        .collect();
    let rows = |action: &str, table: &str| steps.iter().find(|step| (step.0, step.1) == (action, table)).unwrap().2;
    assert_eq!(rows("delete", "sales.lines"), 16);
    assert_eq!(rows("delete", "sales.orders"), 4);
    assert_eq!(rows("delete", "public.events"), 5);
    assert_eq!(rows("mask", "public.clicks"), 6);
    assert_eq!(rows("unlink", "public.users"), 1);
    assert_eq!(rows("delete", "public.users"), 1);
    assert_eq!(account.kept.len(), 1);
    assert_eq!(json!(account.kept[0].rows), 1);
    assert!(
        asked.remembered[0].steps.is_empty(),
        "it was remembered before the first step"
    );
    assert!(
        asked.searched[0]
            .0
            .iter()
            .any(|identifier| identifier.expose() == "jane@example.org")
    );
    for left in [
        "erasure_scope",
        "erasure_request WHERE subject_key IS NOT NULL OR mask_key IS NOT NULL",
    ] {
        assert_eq!(count(&database, &format!("pgreeve.{left}")).await, 0, "{left}");
    }
}

#[tokio::test]
async fn each_bad_request_has_its_own_answer_and_the_others_go_on() {
    let database = shop().await;
    database
        .execute(
            "DELETE FROM requests;
             INSERT INTO requests (id, who, status) VALUES
                 (1, '999', 'pending'), (2, 'jane', 'pending'), (3, '1; DROP TABLE users', 'pending'), (4, NULL, 'pending'),
                 (5, '1', 'pending'), (6, '1', 'pending'), (7, '2', 'penidng'), (8, '2', 'done'), (9, '2', 'x y 1'), (10, '99999999999', 'pending')",
        )
        .await;
    let (report, witness) = erase(&database, SHOP_RULE).await;
    let report = report.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    let expected = json!({
        "received": 7, "completed": 3, "failed": 4, "not_found": 2, "duplicates": 1, "open": 0,
        "unmapped": { "penidng": 1, "(not a word)": 1 },
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&report.body[key], value, "{key} of {}", report.body);
    }
    assert!(report.reason.unwrap().contains("penidng"));
    let statuses: String = database
        .value("SELECT string_agg(id || ' ' || status, ', ' ORDER BY id) FROM requests")
        .await;
    assert_eq!(
        statuses,
        "1 done, 2 failed, 3 failed, 4 failed, 5 done, 6 done, 7 penidng, 8 done, 9 x y 1, 10 failed"
    );
    let reasons: Vec<Option<String>> = {
        let mut connection = database.connect().await;
        sqlx::query_scalar("SELECT reason FROM pgreeve.erasure_request ORDER BY source_id::int")
            .fetch_all(&mut connection)
            .await
            .unwrap()
    };
    let reasons: Vec<&str> = reasons.iter().map(|reason| reason.as_deref().unwrap_or("-")).collect();
    let malformed = "the subject's key is not of the key's type";
    assert_eq!(
        reasons[..4],
        ["not_found", malformed, malformed, "the request names no subject"]
    );
    assert_eq!(reasons[4], "-");
    assert!(reasons[5].starts_with("duplicate of "), "{reasons:?}");
    assert_eq!(reasons[6], malformed);
    let asked = witness.asked();
    let unknown = asked
        .certified
        .iter()
        .find(|account| account.reason.as_deref() == Some("not_found"))
        .unwrap();
    assert_eq!(unknown.found, Some(false));
    assert!(unknown.steps.iter().all(|step| step.rows == 0));
    assert_eq!(count(&database, "users").await, 2);
}

#[tokio::test]
async fn a_request_of_an_unknown_sender_waits_until_the_application_knows_them() {
    let database = shop().await;
    let settings = SHOP_RULE.replace(
        "done = \"done\"",
        "done = \"done\", awaiting_identity = \"unproven\", processing = \"working\"",
    );
    database.execute("UPDATE requests SET status = 'unproven'").await;
    let report = erase(&database, &settings).await.0.unwrap();
    assert_eq!(
        (
            &report.body["received"],
            &report.body["completed"],
            &report.body["open"]
        ),
        (&1.into(), &0.into(), &1.into())
    );
    assert_eq!(
        database
            .value::<String>("SELECT state FROM pgreeve.erasure_request")
            .await,
        "awaiting_identity"
    );
    assert_eq!(count(&database, "users").await, 3);
    database.execute("UPDATE requests SET status = 'pending'").await;
    let report = erase(&database, &settings).await.0.unwrap();
    assert_eq!(
        (&report.body["received"], &report.body["completed"]),
        (&0.into(), &1.into())
    );
    assert_eq!(count(&database, "users").await, 2);
}

#[tokio::test]
async fn two_workers_do_each_request_once() {
    let database = shop().await;
    database
        .execute(
            "INSERT INTO users SELECT n, 'u' || n || '@example.org' FROM generate_series(100, 130) n;
             INSERT INTO events (payload) SELECT jsonb_build_object('user_id', u) FROM generate_series(100, 130) u, generate_series(1, 3);
             INSERT INTO requests (id, who) SELECT n, n FROM generate_series(100, 130) n",
        )
        .await;
    let (one, other) = tokio::join!(erase(&database, SHOP_RULE), erase(&database, SHOP_RULE));
    let completed = |report: &Result<pgreeve::job::JobReport, pgreeve::job::JobError>| {
        let report = report.as_ref().unwrap_or_else(|error| panic!("{error:?}"));
        report.body["completed"].as_u64().unwrap()
    };
    assert_eq!(completed(&one.0) + completed(&other.0), 32);
    assert_eq!(
        count(
            &database,
            "pgreeve.erasure_request WHERE attempt = 1 AND state = 'completed'"
        )
        .await,
        32
    );
    assert_eq!(
        database
            .value::<i64>("SELECT sum(rows)::int8 FROM pgreeve.erasure_step WHERE relation = 'public.events'")
            .await,
        5 + 31 * 3
    );
    assert_eq!(count(&database, "users").await, 2);
}

#[tokio::test]
async fn a_row_that_comes_while_a_person_is_erased_goes_too() {
    let database = shop().await;
    // An order is made the moment the lines of the others are gone.
    database
        .execute(
            "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NOT EXISTS (SELECT FROM sales.orders WHERE id = 77) THEN
                     INSERT INTO sales.orders VALUES (1, 77, 1); INSERT INTO sales.lines VALUES (1, 77, 1, 'late');
                 END IF; RETURN NULL; END $$;
             CREATE TRIGGER late AFTER DELETE ON sales.lines FOR EACH STATEMENT EXECUTE FUNCTION late()",
        )
        .await;
    let (report, witness) = erase(&database, SHOP_RULE).await;
    assert_eq!(report.unwrap().body["completed"], 1);
    assert_eq!(count(&database, "users WHERE id = 1").await, 0);
    assert_eq!(
        count(&database, "sales.lines WHERE what = 'late'").await
            + count(&database, "sales.orders WHERE id = 77").await,
        0
    );
    let asked = witness.asked();
    let rows = |table: &str| {
        asked.certified[0]
            .steps
            .iter()
            .filter(|step| step.table == table)
            .map(|step| step.rows)
            .sum::<u64>()
    };
    assert_eq!((rows("sales.orders"), rows("sales.lines")), (5, 17));
}

#[tokio::test]
async fn many_rows_go_in_batches_also_from_partitions() {
    let database = shop().await;
    database
        .execute(
            "CREATE TABLE visits (user_id int REFERENCES users, n int) PARTITION BY LIST (n);
             CREATE TABLE visits_0 PARTITION OF visits FOR VALUES IN (0);
             CREATE TABLE visits_1 PARTITION OF visits FOR VALUES IN (1);
             INSERT INTO visits SELECT 1 + (n / 2) % 2, n % 2 FROM generate_series(1, 24000) n; CREATE INDEX ON visits (user_id)",
        )
        .await;
    let settings = format!("{SHOP_RULE}\nvisits = {{ action = \"delete\" }}");
    let (report, witness) = erase(&database, &settings).await;
    assert_eq!(report.unwrap().body["completed"], 1);
    assert_eq!(count(&database, "visits WHERE user_id = 1").await, 0);
    assert_eq!(count(&database, "visits WHERE user_id = 2").await, 12_000);
    let asked = witness.asked();
    let step = asked.certified[0]
        .steps
        .iter()
        .find(|step| step.table == "public.visits")
        .unwrap();
    assert_eq!(step.rows, 12_000);
}

#[tokio::test]
async fn many_rows_are_masked_in_batches_and_each_once() {
    let database = shop().await;
    database
        .execute(
            "CREATE TABLE visits (user_id int REFERENCES users, city text); CREATE INDEX ON visits (user_id);
             CREATE TABLE told (rows int);
             INSERT INTO visits SELECT 1 + n % 2, 'Springfield' FROM generate_series(1, 24000) n;
             CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO public.told SELECT count(*) FROM changed; RETURN NULL; END $$;
             CREATE TRIGGER tell AFTER UPDATE ON visits REFERENCING NEW TABLE AS changed
                 FOR EACH STATEMENT EXECUTE FUNCTION tell()",
        )
        .await;
    // Jane's row stays, so that the masked ones keep whom they belong to.
    let settings = SHOP_RULE.replace(
        "users          = { action = \"delete\" }",
        "users = { action = \"mask\", set = { email = \"email_token\" } }\nvisits = { action = \"mask\", set = { city = \"null\" } }",
    );
    let (report, witness) = erase(&database, &settings).await;
    assert_eq!(report.unwrap().body["completed"], 1);
    assert_eq!(
        count(&database, "visits WHERE user_id = 1 AND city IS NULL").await,
        12_000
    );
    assert_eq!(
        count(&database, "visits WHERE user_id = 2 AND city = 'Springfield'").await,
        12_000
    );
    let asked = witness.asked();
    let step = asked.certified[0]
        .steps
        .iter()
        .find(|step| step.table == "public.visits");
    assert_eq!(step.unwrap().rows, 12_000);
    let batches: String = database
        .value("SELECT string_agg(rows::text, ' ' ORDER BY rows DESC) FROM told WHERE rows > 0")
        .await;
    assert_eq!(batches, "5000 5000 2000");
}

#[tokio::test]
async fn requests_of_more_than_one_group_are_each_done_once() {
    let database = shop().await;
    // 70 people in three groups, and one of them asks again within a group.
    database
        .execute(
            "INSERT INTO users SELECT n, 'person-' || n || '@example.org' FROM generate_series(101, 170) n;
             INSERT INTO requests (id, who) SELECT n, n::text FROM generate_series(101, 170) n;
             INSERT INTO requests (id, who) VALUES (171, '170')",
        )
        .await;
    let (report, witness) = erase(&database, SHOP_RULE).await;
    let body = report.unwrap().body;
    assert_eq!(
        (&body["completed"], &body["duplicates"]),
        (&72.into(), &1.into()),
        "{body}"
    );
    assert_eq!(count(&database, "users WHERE id > 100 OR id = 1").await, 0);
    assert_eq!(
        count(&database, "requests WHERE status = 'done' AND done_at IS NOT NULL").await,
        72
    );
    assert_eq!(count(&database, "pgreeve.erasure_request WHERE attempt = 1").await, 72);
    let asked = witness.asked();
    assert_eq!((asked.remembered.len(), asked.certified.len()), (72, 72));
}

#[tokio::test]
async fn a_row_that_others_still_need_fails_its_request_and_names_the_constraint_alone() {
    let database = shop().await;
    database
        .execute(
            "ALTER TABLE users ADD best_order int, ADD best_shop int;
             UPDATE users SET best_shop = 1, best_order = 1 WHERE id = 2;
             UPDATE users SET best_shop = 1, best_order = 3 WHERE id <> 2;
             ALTER TABLE users ALTER best_order SET NOT NULL, ALTER best_shop SET NOT NULL,
                 ADD CONSTRAINT best FOREIGN KEY (best_shop, best_order) REFERENCES sales.orders",
        )
        .await;
    let report = erase(&database, SHOP_RULE).await.0.unwrap();
    assert_eq!(
        (&report.body["failed"], &report.body["retry"]),
        (&0.into(), &1.into()),
        "{}",
        report.body
    );
    let reason: String = database.value("SELECT reason FROM pgreeve.erasure_request").await;
    assert!(reason.contains("23503") && reason.contains("best"), "{reason}");
    assert_eq!(database.value::<String>("SELECT status FROM requests").await, "pending");
}

#[tokio::test]
async fn a_person_whose_key_is_text_of_a_fixed_length_is_found() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE users (id char(8) PRIMARY KEY, email varchar(40));
             CREATE TABLE orders (id int PRIMARY KEY, user_id char(8) REFERENCES users);
             CREATE INDEX ON orders (user_id);
             INSERT INTO users VALUES ('jane', 'jane@example.org'), ('john', 'john@example.org'), ('j', 'j@example.org');
             INSERT INTO orders SELECT n, CASE n % 2 WHEN 0 THEN 'jane' ELSE 'john' END FROM generate_series(1, 6) n",
        )
        .await;
    pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
    let settings = r#"
        subject = { table = "users", key = "id", identifiers = ["email"] }
        [jobs.erase.erasure.tables]
        users  = { action = "delete" }
        orders = { action = "delete" }
    "#;
    ask(&database, settings, "jane").await;
    let (report, witness) = erase(&database, settings).await;
    assert_eq!(report.unwrap().body["completed"], 1);
    assert_eq!(witness.asked().certified[0].found, Some(true));
    let left: String = database
        .value("SELECT string_agg(trim(id), ' ' ORDER BY id) || ' ' || (SELECT count(*) FROM orders) FROM users")
        .await;
    assert_eq!(left, "j john 3");
}
