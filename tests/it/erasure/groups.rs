//! Several requests together: each comes out as if it were alone.

use std::fmt::Write;
use std::time::Duration;

use pgreeve::job::Outcome;
use sqlx::{Connection, Executor};

use super::{SHOP_RULE, count, erase, job, shop};
use crate::retention::holds::place;
use crate::support::Database;
use crate::support::context::{Setup, context, run};

/// People 101 to 108, each with orders and events; neighbours share a friendship, a letter and whom they
/// were referred by. What each transaction of steps did is told by its number.
async fn crowd() -> Database {
    let database = shop().await;
    database
        .execute(
            "DELETE FROM requests; ALTER TABLE events DROP at;
             INSERT INTO users SELECT n, 'person-' || n || '@example.org', CASE WHEN n > 101 THEN n - 1 END FROM generate_series(101, 108) n;
             INSERT INTO sales.orders SELECT 1, n, n FROM generate_series(101, 108) n;
             INSERT INTO sales.lines SELECT 1, n, p, 'thing' FROM generate_series(101, 108) n, generate_series(1, 2) p;
             INSERT INTO events (payload) SELECT jsonb_build_object('user_id', u) FROM generate_series(101, 108) u, generate_series(1, u - 100);
             CREATE TABLE friends (one int NOT NULL REFERENCES users, other int NOT NULL REFERENCES users);
             INSERT INTO friends SELECT n, n + 1 FROM generate_series(101, 107) n;
             CREATE INDEX ON friends (one); CREATE INDEX ON friends (other);
             CREATE TABLE letters (writer int, reader int, words text);
             INSERT INTO letters SELECT n, n + 1, 'person-' || n || '@example.org to person-' || n + 1 || '@example.org' FROM generate_series(101, 107) n;
             CREATE TABLE told (transaction xid8, request uuid, rows bigint);
             CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO public.told SELECT pg_current_xact_id(), request_id, sum(rows) FROM changed GROUP BY request_id; RETURN NULL; END $$;
             CREATE TRIGGER tell AFTER INSERT ON pgreeve.erasure_step REFERENCING NEW TABLE AS changed
                 FOR EACH STATEMENT EXECUTE FUNCTION tell()",
        )
        .await;
    database
}

fn rule() -> String {
    let rule = SHOP_RULE.replace(
        "edges    = [",
        "edges = [\"letters.writer = users.id\", \"letters.reader = users.id\", ",
    );
    format!(
        "{rule}\nfriends = {{ action = \"delete\" }}\nletters = {{ action = \"mask\", set = {{ words = \"text_replace\" }} }}"
    )
}

async fn ask(database: &Database, people: std::ops::RangeInclusive<i32>) {
    let (first, last) = people.into_inner();
    database
        .execute(&format!(
            "INSERT INTO requests (id, who, created_at) SELECT n, n, now() - interval '1 hour' + n * interval '1 second' FROM generate_series({first}, {last}) n"
        ))
        .await;
}

/// What was counted for each request, step by step, and what its certificate says of it.
async fn counted(database: &Database) -> String {
    database
        .value(
            "SELECT string_agg(concat_ws(' ', r.source_id, r.state, r.reason, r.found, s.step, s.action, s.relation, s.rows, s.state), E'\n'
                               ORDER BY r.source_id, s.step)
             FROM pgreeve.erasure_request r JOIN pgreeve.erasure_step s USING (request_id)",
        )
        .await
}

/// All rows of the application, but for the times at which it was answered.
async fn rows(database: &Database) -> String {
    let tables = [
        "users",
        "sales.orders",
        "sales.lines",
        "events",
        "sessions",
        "friends",
        "letters",
    ];
    let mut text = String::new();
    for table in tables {
        let rows: Option<String> = database
            .value(&format!(
                "SELECT string_agg(t::text, E'\n' ORDER BY t::text) FROM {table} t"
            ))
            .await;
        writeln!(text, "{table}\n{}", rows.unwrap_or_default()).unwrap();
    }
    text
}

/// In how many transactions the steps of requests were done.
async fn transactions(database: &Database) -> i64 {
    count(database, "(SELECT DISTINCT transaction FROM told) t").await
}

#[tokio::test]
async fn requests_in_a_group_count_and_leave_what_they_would_one_after_the_other() {
    let together = crowd().await;
    ask(&together, 101..=106).await;
    let (report, witness) = erase(&together, &rule()).await;
    assert_eq!(report.unwrap().body["completed"], 6);
    assert_eq!(transactions(&together).await, 1, "they were done together");
    let asked = witness.asked();
    assert_eq!((asked.remembered.len(), asked.certified.len()), (6, 6));

    let apart = crowd().await;
    for person in 101..=106 {
        ask(&apart, person..=person).await;
        assert_eq!(erase(&apart, &rule()).await.0.unwrap().body["completed"], 1);
    }
    assert_eq!(transactions(&apart).await, 6);
    assert_eq!(counted(&together).await, counted(&apart).await);
    assert_eq!(rows(&together).await, rows(&apart).await);
    let letters: String = together
        .value("SELECT string_agg(words, ', ' ORDER BY writer) FROM letters WHERE writer >= 105")
        .await;
    assert_eq!(
        letters,
        "[erased] to [erased], [erased] to person-107@example.org, person-107@example.org to person-108@example.org"
    );
}

#[tokio::test]
async fn a_request_that_cannot_be_done_does_not_stop_its_group() {
    let database = crowd().await;
    // 102 is refused by a trigger, 103 is locked by somebody, 104 gets an order meanwhile, and 105 has
    // many rows.
    database
        .execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'this one stays'; END $$;
             CREATE TRIGGER refuse BEFORE DELETE ON users FOR EACH ROW WHEN (old.id = 102) EXECUTE FUNCTION refuse();
             CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NOT EXISTS (SELECT FROM sales.orders WHERE id = 777) THEN
                     INSERT INTO sales.orders VALUES (1, 777, 104); INSERT INTO sales.lines VALUES (1, 777, 1, 'late');
                 END IF; RETURN NULL; END $$;
             CREATE TRIGGER late AFTER DELETE ON sales.lines FOR EACH ROW WHEN (old.order_id = 104) EXECUTE FUNCTION late();
             INSERT INTO events (payload) SELECT jsonb_build_object('user_id', 105) FROM generate_series(1, 6000)",
        )
        .await;
    ask(&database, 101..=106).await;
    let mut locker = database.connect().await;
    let mut transaction = locker.begin().await.unwrap();
    transaction
        .execute("SELECT FROM users WHERE id = 103 FOR KEY SHARE")
        .await
        .unwrap();
    let (job, witness) = job(&rule());
    let setup = Setup {
        lock_timeout: Duration::from_millis(300),
        ..Setup::default()
    };
    let mut context = context(&database, &job, &setup).await;
    let report = run(&job, &mut context).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert_eq!(
        (&report.body["completed"], &report.body["failed"], &report.body["retry"]),
        (&4.into(), &1.into(), &1.into()),
        "{}",
        report.body
    );
    let ends: String = database
        .value("SELECT string_agg(source_id || ' ' || state || coalesce(' ' || substring(reason FROM 'SQLSTATE (.....)'), ''), ', ' ORDER BY source_id) FROM pgreeve.erasure_request")
        .await;
    assert_eq!(
        ends,
        "101 completed, 102 failed P0001, 103 retry 55P03, 104 completed, 105 completed, 106 completed"
    );
    assert_eq!(
        count(&database, "users WHERE id > 100").await,
        4,
        "102, 103, 107 and 108"
    );
    assert_eq!(
        count(&database, "events WHERE payload ->> 'user_id' IN ('104', '105')").await
            + count(&database, "sales.lines WHERE what = 'late'").await,
        0
    );
    let events = |person: usize| {
        let account = &witness.asked().certified[person];
        account
            .steps
            .iter()
            .find(|step| step.table == "public.events")
            .unwrap()
            .rows
    };
    assert_eq!([events(0), events(1), events(2), events(3)], [1, 4, 6005, 6]);
    let shared: Vec<i64> = {
        let mut connection = database.connect().await;
        sqlx::query_scalar("SELECT count(DISTINCT request) FROM told GROUP BY transaction ORDER BY 1 DESC")
            .fetch_all(&mut connection)
            .await
            .unwrap()
    };
    assert_eq!(shared[0], 2, "101 and 106 were done together: {shared:?}");
}

#[tokio::test]
async fn a_hold_on_one_person_of_a_group_keeps_that_person_alone() {
    let database = crowd().await;
    ask(&database, 101..=104).await;
    place(&database, "sales.orders", "user_id = 103").await;
    let report = erase(&database, &rule()).await.0.unwrap();
    assert_eq!(
        (&report.body["completed"], &report.body["on_hold"]),
        (&3.into(), &1.into()),
        "{}",
        report.body
    );
    assert_eq!(count(&database, "sales.orders WHERE user_id = 103").await, 1);
    assert_eq!(count(&database, "users WHERE id BETWEEN 101 AND 104").await, 1);
}

#[tokio::test]
async fn a_group_with_many_rows_takes_several_transactions() {
    let database = crowd().await;
    database
        .execute("INSERT INTO events (payload) SELECT jsonb_build_object('user_id', u) FROM generate_series(101, 108) u, generate_series(1, 1500)")
        .await;
    ask(&database, 101..=108).await;
    assert_eq!(erase(&database, &rule()).await.0.unwrap().body["completed"], 8);
    let rows: String = database
        .value("SELECT string_agg(t.rows::text, ' ') FROM (SELECT sum(rows) AS rows FROM told GROUP BY transaction ORDER BY transaction) t")
        .await;
    let rows: Vec<u64> = rows.split(' ').map(|rows| rows.parse().unwrap()).collect();
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert!(rows.iter().all(|rows| *rows <= 5000 + 8), "{rows:?}");
}
