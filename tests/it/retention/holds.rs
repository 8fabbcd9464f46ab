//! Legal holds: placed, honoured, released.

use std::time::Duration;

use pgreeve::job::{Job, Outcome};
use pgreeve::ledger::holds::{self, NewHold};
use pgreeve::ledger::migrate;
use pgreeve::postgres::catalog;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

use super::contention::until_somebody_waits;
use super::{count, job, with_due_rows};
use crate::support::context::{Setup, context, refusal, run, run_once};
use crate::support::process::Host;
use crate::support::{Database, cluster};

/// Places a hold as `hold place` does.
pub async fn place(database: &Database, table: &str, predicate: &str) -> Uuid {
    let mut connection = database.connect().await;
    let mut transaction = connection.begin().await.unwrap();
    let hold_id = place_within(&mut transaction, table, predicate).await;
    transaction.commit().await.unwrap();
    hold_id
}

/// Places a hold that does not stand yet.
pub async fn place_within(transaction: &mut PgConnection, table: &str, predicate: &str) -> Uuid {
    let relation = catalog::resolve(&mut *transaction, &table.parse().unwrap())
        .await
        .unwrap();
    let hold_id = Uuid::now_v7();
    let hold = NewHold {
        hold_id,
        relation: &relation,
        predicate,
        reason: "a test",
        actor: "a test",
    };
    holds::place(transaction, &hold).await.unwrap();
    hold_id
}

async fn migrated(rows: u32, index: bool) -> Database {
    let database = with_due_rows(rows, index).await;
    migrate::apply(&database.target).await.unwrap();
    database
}

#[tokio::test]
async fn rows_under_a_hold_stay_and_the_run_is_green() {
    for index in [true, false] {
        let database = migrated(1000, index).await;
        let hold = place(&database, "events", "id <= 100 OR NULL").await;
        let job = job();
        let mut context = context(&database, &job, &Setup::default()).await;
        let plan = job.plan(&mut context).await.unwrap();
        assert_eq!(plan.intent()["holds"], json!([hold]));
        assert_eq!(plan.intent()["eligible"], 900);
        let shown = plan.intent()["where"].as_str().unwrap().to_owned();
        assert!(
            shown.contains(&hold.to_string()) && !shown.contains("<= 100"),
            "{shown}"
        );
        let report = plan.execute(&mut context).await.unwrap();
        assert_eq!(report.outcome, Outcome::Succeeded);
        assert_eq!((&report.body["rows"], &report.body["held"]), (&900.into(), &100.into()));
        assert_eq!(count(&database, "events WHERE id BETWEEN 1 AND 100").await, 100);
        let mut connection = database.connect().await;
        let mut transaction = connection.begin().await.unwrap();
        assert!(holds::release(&mut transaction, hold, "over", "a test").await.unwrap());
        assert!(!holds::release(&mut transaction, hold, "twice", "a test").await.unwrap());
        transaction.commit().await.unwrap();
        let report = run_once(&database, &super::job()).await.unwrap();
        assert_eq!((&report.body["rows"], &report.body["held"]), (&100.into(), &0.into()));
    }
}

#[tokio::test]
async fn a_hold_placed_in_the_middle_of_a_run_stops_the_deletion_of_its_rows() {
    for index in [true, false] {
        let database = migrated(20_000, index).await;
        database
            .execute(
                "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
                     $$ BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NULL; END $$;
                 CREATE TRIGGER wait AFTER DELETE ON events FOR EACH STATEMENT EXECUTE FUNCTION wait()",
            )
            .await;
        let mut holder = database.connect().await;
        holder.execute("SELECT pg_advisory_lock(4711)").await.unwrap();
        let setup = Setup {
            lock_timeout: Duration::from_secs(20),
            ..Setup::default()
        };
        let job = job();
        let mut context = context(&database, &job, &setup).await;
        let (report, held) = tokio::join!(run(&job, &mut context), async {
            // A batch has deleted rows and not committed: the new hold must wait for it.
            until_somebody_waits(&database).await;
            let placing = place(&database, "events", "id % 2 = 0");
            let release = async {
                until_two_wait(&database).await;
                holder.execute("SELECT pg_advisory_unlock(4711)").await.unwrap();
            };
            tokio::join!(placing, release);
            count(&database, "events WHERE id > 0 AND id % 2 = 0").await
        });
        let report = report.unwrap();
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
        assert!((1..10_000).contains(&held), "some rows were gone before: {held}");
        assert_eq!(count(&database, "events WHERE id > 0").await, held);
        assert_eq!(report.body["held"].as_u64().unwrap(), held);
    }
}

/// Waits until the batch waits for the test and the new hold waits for the batch.
async fn until_two_wait(database: &Database) {
    crate::support::process::until("the hold waits for the batch", async || {
        database
            .value::<bool>(
                "SELECT count(*) = 2 FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                 WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted",
            )
            .await
    })
    .await;
}

#[tokio::test]
async fn a_hold_counts_wherever_in_a_partitioned_table_it_was_placed() {
    let tables = "CREATE TABLE events (id int, created_at timestamptz) PARTITION BY LIST (id);
                  CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1);
                  CREATE TABLE events_2 PARTITION OF events DEFAULT;
                  INSERT INTO events SELECT n % 3, '2001-01-01' FROM generate_series(1, 9) n;";
    for (on, of, stay) in [
        ("events_1", "events", 3),
        ("events", "events_1", 3),
        ("events", "events", 9),
        ("events_2", "events_1", 0),
    ] {
        let database = Database::create().await;
        database.execute(tables).await;
        migrate::apply(&database.target).await.unwrap();
        place(&database, on, &format!("{on}.id >= 0")).await;
        let settings = pgreeve::jobs::retention::RetentionSettings {
            table: of.parse().unwrap(),
            ..super::events()
        };
        let job = pgreeve::jobs::retention::RetentionJob::new(settings);
        let report = run_once(&database, &job).await.unwrap();
        assert_eq!(report.outcome, Outcome::Succeeded);
        assert_eq!(report.body["held"], stay, "a hold on {on}, a job on {of}");
        assert_eq!(count(&database, of).await, stay);
    }
}

#[tokio::test]
async fn a_table_made_anew_under_a_held_name_is_held_too() {
    let database = migrated(10, true).await;
    place(&database, "events", "true").await;
    database
        .execute("ALTER TABLE events RENAME TO events_old; CREATE TABLE events (LIKE events_old); INSERT INTO events TABLE events_old")
        .await;
    for table in ["events", "events_old"] {
        let settings = pgreeve::jobs::retention::RetentionSettings {
            table: table.parse().unwrap(),
            ..super::events()
        };
        let job = pgreeve::jobs::retention::RetentionJob::new(settings);
        assert_eq!(run_once(&database, &job).await.unwrap().body["held"], 10);
    }
}

#[tokio::test]
async fn a_hold_that_the_table_has_outgrown_stops_the_run_and_is_not_quoted() {
    let database = migrated(10, true).await;
    let hold = place(&database, "events", "processed AND id <> 4242").await;
    database.execute("ALTER TABLE events DROP COLUMN processed").await;
    let error = refusal(&database, &job(), &Setup::default()).await;
    assert!(error.cause.contains(&hold.to_string()), "{error:?}");
    assert!(!error.cause.contains("4242"), "{error:?}");
}

#[tokio::test]
async fn rows_of_a_held_table_do_not_go_along_by_a_cascade() {
    let database = migrated(10, true).await;
    database
        .execute(
            "CREATE TABLE cases (id int PRIMARY KEY, event_id bigint REFERENCES events ON DELETE CASCADE);
             CREATE TABLE notes (case_id int REFERENCES cases ON DELETE SET NULL);
             CREATE TABLE others (event_id bigint REFERENCES events); INSERT INTO cases VALUES (1, 3); INSERT INTO notes VALUES (1)",
        )
        .await;
    place(&database, "others", "true").await;
    assert_eq!(
        job()
            .plan(&mut context(&database, &job(), &Setup::default()).await)
            .await
            .unwrap()
            .intent()["eligible"],
        10
    );
    let hold = place(&database, "notes", "true").await;
    let error = refusal(&database, &job(), &Setup::default()).await;
    assert!(
        error.cause.contains("rows of notes go or change along") && error.cause.contains(&hold.to_string()),
        "{error:?}"
    );
    let settings = pgreeve::jobs::retention::RetentionSettings {
        skip_if_referenced: true,
        ..super::events()
    };
    let job = pgreeve::jobs::retention::RetentionJob::new(settings);
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(
        (&report.body["rows"], &report.body["exempt_referenced"]),
        (&9.into(), &1.into())
    );
    assert_eq!(count(&database, "notes WHERE case_id = 1").await, 1);
}

#[tokio::test]
async fn a_transition_leaves_held_rows_as_they_are() {
    let database = Database::create().await;
    database
        .execute("CREATE TABLE sessions (id int, status text, at timestamptz); INSERT INTO sessions SELECT n, 'open', '2001-01-01' FROM generate_series(1, 10) n")
        .await;
    migrate::apply(&database.target).await.unwrap();
    place(&database, "sessions", "id > 7").await;
    let job = pgreeve::jobs::transition::TransitionJob::new(pgreeve::jobs::transition::TransitionSettings {
        age_fallback: None,
        table: "sessions".parse().unwrap(),
        age_column: "at".to_owned(),
        after: "2h".parse().unwrap(),
        from: pgreeve::jobs::transition::FromState {
            column: "status".to_owned(),
            values: vec!["open".to_owned()],
        },
        set: [("status".to_owned(), "left".to_owned())].into(),
        stamp: Vec::new(),
        predicate: None,
        timezone: None,
    });
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!((&report.body["rows"], &report.body["held"]), (&7.into(), &3.into()));
    assert_eq!(count(&database, "sessions WHERE status = 'open'").await, 3);
}

#[tokio::test]
async fn holds_are_placed_listed_and_released_by_the_program_and_stand_in_the_record() {
    let database = with_due_rows(20, true).await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.purge]\nschedule = \"0 0 1 1 *\"\napproval = \"none\"\n\
         retention = {{ table = \"events\", age_column = \"created_at\", keep = \"30d\", max_fraction = 1 }}\n"
    ));
    let condition = "events.id = 7 AND 'jane@example.org' <> ''";
    let place = [
        "hold", "place", "--table", "events", "--where", condition, "--reason", "case 12", "--json",
    ];
    let placed = host.run(&place).expect_code(0).json();
    let id = placed["hold"]["hold_id"].as_str().unwrap().to_owned();
    assert_eq!(placed["hold"]["rows"], 1);
    let run = host.run(&["run", "purge", "--json"]).expect_code(0).json();
    assert_eq!(
        (&run["run"]["report"]["rows"], &run["run"]["report"]["held"]),
        (&19.into(), &1.into())
    );
    let list = host.run(&["hold", "list", "--json"]).expect_code(0).json();
    assert_eq!(list["holds"][0]["where"], condition);
    assert_eq!(list["holds"][0]["reason"], "case 12");
    assert_eq!(list["holds"][0]["released_at"], serde_json::Value::Null);
    assert!(host.run(&["hold", "list"]).expect_code(0).stdout.contains(&id));

    host.run(&["hold", "release", &id, "--reason", "case 12 is closed"])
        .expect_code(0);
    host.run(&["hold", "release", &id, "--reason", "again"]).expect_code(2);
    let run = host.run(&["run", "purge", "--json"]).expect_code(0).json();
    assert_eq!(run["run"]["report"]["rows"], 1);
    let late = host
        .run(&[
            "hold", "place", "--table", "events", "--where", "id = 7", "--reason", "case 13",
        ])
        .expect_code(0);
    assert!(late.stdout.contains("covers no row now"), "{}", late.stdout);

    let records = host.audit_records();
    let of = |kind: &str| records.iter().find(|record| record["kind"] == kind).unwrap();
    assert_eq!(of("hold.placed")["body"]["hold"], id.as_str());
    assert_eq!(of("hold.placed")["body"]["table"], "public.events");
    assert_eq!(of("hold.released")["body"]["reason"], "case 12 is closed");
    // What a hold says may be about a person.
    assert!(!serde_json::to_string(&records).unwrap().contains("jane"));
    host.run(&["audit", "verify"]).expect_code(0);
}

#[tokio::test]
async fn a_hold_that_makes_no_sense_is_refused() {
    let database = with_due_rows(1, true).await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&format!("[databases.app]\nurl = \"{url}\"\n"));
    for (table, condition, reason, message) in [
        ("evnts", "true", "x", "did you mean public.events?"),
        ("events", "true) OR (true", "x", "closes nothing"),
        ("events", "idd = 1", "x", "column \"idd\" does not exist"),
        ("events", "id", "x", "42804"),
        ("events", "true", " ", "the reason is empty"),
    ] {
        let place = [
            "hold", "place", "--table", table, "--where", condition, "--reason", reason,
        ];
        let refused = host.run(&place).expect_code(2);
        assert!(refused.stderr.contains(message), "{}", refused.stderr);
    }
    assert_eq!(count(&database, "pgreeve.hold").await, 0);
}
