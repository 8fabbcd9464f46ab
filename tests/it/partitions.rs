//! Partitions are made ahead, by bounds, and nothing is ever dropped.

use pgreeve::job::{Job, Outcome};
use pgreeve::jobs::partitions::{PartitionsJob, PartitionsSettings};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::support::Database;
use crate::support::context::{Setup, context, refusal, run, run_once};
use crate::support::process::until;

fn job(interval: &str, zone: Option<&str>) -> PartitionsJob {
    PartitionsJob::new(PartitionsSettings {
        table: "events".parse().unwrap(),
        premake: 3,
        interval: interval.parse().unwrap(),
        timezone: zone.map(|zone| zone.parse().unwrap()),
    })
}

async fn table(age: &str) -> Database {
    let database = Database::create().await;
    database
        .execute(&format!(
            "CREATE TABLE events (id bigserial, created_at {age} NOT NULL, note text DEFAULT 'n' CHECK (note <> ''),
                 PRIMARY KEY (id, created_at)) PARTITION BY RANGE (created_at)"
        ))
        .await;
    database
}

/// Bounds of all partitions in UTC, in the order of their names.
async fn bounds(database: &Database) -> Vec<String> {
    let mut connection = database.connect().await;
    connection.execute("SET TimeZone = UTC").await.unwrap();
    sqlx::query_scalar(
        "SELECT relname || ' ' || pg_get_expr(relpartbound, oid) FROM pg_class
         WHERE relispartition AND relkind = 'r' ORDER BY relname",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn months_are_made_ahead_once_and_a_second_run_finds_nothing_to_do() {
    let database = table("timestamptz").await;
    let job = job("1mo", None);
    let mut first = context(&database, &job, &Setup::default()).await;
    let intent = job.plan(&mut first).await.unwrap().intent();
    assert_eq!(intent["create"].as_array().unwrap().len(), 4);
    assert!(bounds(&database).await.is_empty());
    let report = run(&job, &mut first).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(report.body["created"], intent["create"]);
    let expected: Vec<String> = sqlx::query_scalar(
        "SELECT format('events_p%s FOR VALUES FROM (''%s 00:00:00+00'') TO (''%s 00:00:00+00'')',
                       to_char(m, 'YYYYMM'), m::date, (m + interval '1 month')::date)
         FROM generate_series(date_trunc('month', now() AT TIME ZONE 'UTC'),
                              date_trunc('month', now() AT TIME ZONE 'UTC') + interval '3 months', interval '1 month') m ORDER BY m",
    )
    .fetch_all(&mut database.connect().await)
    .await
    .unwrap();
    assert_eq!(bounds(&database).await, expected);
    let again = run_once(&database, &job).await.unwrap();
    assert_eq!(
        (again.outcome, &again.body["created"]),
        (Outcome::Succeeded, &json!([]))
    );
    assert_eq!(bounds(&database).await, expected);
    // A partition has what its table has, and takes rows.
    database
        .execute("INSERT INTO events (created_at) VALUES (now()), (now() + interval '3 months')")
        .await;
    let keys: i64 = database
        .value("SELECT count(*) FROM pg_constraint c JOIN pg_class p ON p.oid = conrelid WHERE p.relispartition AND contype IN ('p', 'c')")
        .await;
    assert_eq!(keys, 8);
    let note: String = database.value("SELECT DISTINCT note FROM events").await;
    assert_eq!(note, "n");
}

#[tokio::test]
async fn days_in_new_york_have_23_and_25_hours_where_the_clock_changes() {
    for (last, expected) in [
        // The clock goes forward on 2099-03-08, and back on 2099-11-01, in a year that is always ahead.
        (
            "2099-03-06 05:00:00+00",
            [
                "2099-03-07 05:00:00+00",
                "2099-03-08 05:00:00+00",
                "2099-03-09 04:00:00+00",
            ],
        ),
        (
            "2099-10-30 04:00:00+00",
            [
                "2099-10-31 04:00:00+00",
                "2099-11-01 04:00:00+00",
                "2099-11-02 05:00:00+00",
            ],
        ),
    ] {
        let database = table("timestamptz").await;
        database
            .execute(&format!(
                "CREATE TABLE present PARTITION OF events FOR VALUES FROM ('2001-01-01') TO ('{last}')"
            ))
            .await;
        let report = run_once(&database, &job("1d", Some("America/New_York"))).await.unwrap();
        assert_eq!(report.outcome, Outcome::Succeeded);
        let created = report.body["created"].as_array().unwrap();
        let ends: Vec<&str> = created.iter().map(|part| part["to"].as_str().unwrap()).collect();
        assert_eq!(ends, expected);
        assert_eq!(created[0]["from"], last);
        let name = created[2]["partition"].as_str().unwrap();
        assert_eq!(name, format!("public.events_p{}", &expected[1][..10].replace('-', "")));
    }
}

#[tokio::test]
async fn a_midnight_that_a_clock_change_skips_does_not_move_the_days_after_it() {
    // In Beirut the clock goes from 00:00 to 01:00 on the last Sunday of March.
    let database = table("timestamptz").await;
    database
        .execute(
            "CREATE TABLE present PARTITION OF events FOR VALUES FROM ('2001-01-01') TO ('2099-03-27 22:00:00+00')",
        )
        .await;
    let job = job("1d", Some("Asia/Beirut"));
    run_once(&database, &job).await.unwrap();
    // The next run begins at the odd bound of the first.
    database.execute("DROP TABLE events_p20990330, events_p20990329").await;
    let report = run_once(&database, &job).await.unwrap();
    let created = report.body["created"].as_array().unwrap();
    let local: Vec<String> = {
        let mut local = Vec::new();
        for part in created {
            let sql = format!(
                "SELECT to_char(timestamptz '{}' AT TIME ZONE 'Asia/Beirut', 'MM-DD HH24:MI')",
                part["to"].as_str().unwrap()
            );
            local.push(database.value::<String>(&sql).await);
        }
        local
    };
    assert_eq!(local, ["03-30 00:00", "03-31 00:00"]);
}

#[tokio::test]
async fn bounds_are_of_the_columns_type_and_zone() {
    for (age, from) in [("date", "2099-01-01"), ("timestamp", "2099-01-01 00:00:00")] {
        let database = table(age).await;
        let error = refusal(&database, &job("1w", None), &Setup::default()).await;
        assert!(error.cause.contains("no time zone"), "{error:?}");
        database
            .execute("CREATE TABLE present PARTITION OF events FOR VALUES FROM (MINVALUE) TO ('2099-01-01')")
            .await;
        let report = run_once(&database, &job("1w", Some("Asia/Tokyo"))).await.unwrap();
        assert_eq!(report.body["created"][0]["from"], from);
        assert_eq!(report.body["created"][1]["from"].as_str().unwrap()[..10], *"2099-01-08");
    }
    let database = table("date").await;
    let error = refusal(&database, &job("6h", Some("UTC")), &Setup::default()).await;
    assert_eq!(error.setting, Some("interval"));
}

#[tokio::test]
async fn a_hole_ahead_is_filled_and_a_hole_in_the_past_is_reported() {
    let database = table("timestamptz").await;
    database
        .execute(
            "CREATE TABLE a PARTITION OF events FOR VALUES FROM ('2001-01-01') TO ('2001-02-01');
             CREATE TABLE b PARTITION OF events FOR VALUES FROM ('2001-03-01') TO ('2099-01-01');
             CREATE TABLE c PARTITION OF events FOR VALUES FROM ('2099-01-15') TO ('2099-02-01');
             CREATE TABLE events_p209902 (taken int)",
        )
        .await;
    let report = run_once(&database, &job("1mo", None)).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(
        report.body["gaps"],
        json!([{ "from": "2001-02-01 00:00:00+00", "to": "2001-03-01 00:00:00+00" }])
    );
    let created: Vec<(&str, &str)> = report.body["created"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| (part["partition"].as_str().unwrap(), part["to"].as_str().unwrap()))
        .collect();
    assert_eq!(
        created,
        [
            ("public.events_p209901", "2099-01-15 00:00:00+00"),
            // The table of this name is somebody else's.
            ("public.events_p209902_2", "2099-03-01 00:00:00+00")
        ]
    );
}

#[tokio::test]
async fn rows_in_the_default_partition_that_block_a_new_one_are_named() {
    let database = table("timestamptz").await;
    database
        .execute(
            "CREATE TABLE present PARTITION OF events FOR VALUES FROM ('2001-01-01') TO ('2099-01-01');
             CREATE TABLE rest PARTITION OF events DEFAULT;
             INSERT INTO events (created_at) VALUES ('2099-02-10'), ('2099-02-11')",
        )
        .await;
    let job = job("1mo", None);
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert_eq!(report.body["created"].as_array().unwrap().len(), 2);
    assert_eq!(report.body["blocked"][0]["rows"], 2);
    let reason = report.reason.unwrap();
    assert!(
        reason.contains("public.rest") && reason.contains("2099-02-01 00:00:00+00"),
        "{reason}"
    );
    // When that is all there is to do, the run is refused.
    let error = refusal(&database, &job, &Setup::default()).await;
    assert!(error.cause.contains("public.rest"), "{error:?}");
    database.execute("DELETE FROM rest").await;
    assert_eq!(run_once(&database, &job).await.unwrap().outcome, Outcome::Succeeded);
    assert_eq!(bounds(&database).await.len(), 5);
}

#[tokio::test]
async fn a_table_that_cannot_be_divided_so_is_refused() {
    for ddl in [
        "CREATE TABLE events (created_at timestamptz)",
        "CREATE TABLE events (created_at timestamptz) PARTITION BY HASH (created_at)",
        "CREATE TABLE events (id int, created_at timestamptz) PARTITION BY RANGE (id)",
        "CREATE TABLE events (id int, created_at timestamptz) PARTITION BY RANGE (created_at, id)",
        "CREATE TABLE events (id int, created_at timestamptz) PARTITION BY RANGE (created_at);
         CREATE TABLE a PARTITION OF events FOR VALUES FROM ('2001-01-01') TO ('2002-01-01') PARTITION BY HASH (id)",
    ] {
        let database = Database::create().await;
        database.execute(ddl).await;
        refusal(&database, &job("1mo", None), &Setup::default()).await;
    }
}

#[tokio::test]
async fn readers_and_writers_do_not_wait_for_a_partition_that_is_made() {
    let database = table("timestamptz").await;
    let job = job("1mo", None);
    run_once(&database, &job).await.unwrap();
    let names: Vec<String> = bounds(&database).await;
    let last = names.last().unwrap().split(' ').next().unwrap().to_owned();
    database.execute(&format!("DROP TABLE {last}")).await;
    // A transaction that has written and read goes on while the partition is attached.
    let mut other = database.connect().await;
    let mut writing = other.begin().await.unwrap();
    writing
        .execute("INSERT INTO events (created_at) VALUES (now())")
        .await
        .unwrap();
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(
        (report.outcome, report.body["created"].as_array().unwrap().len()),
        (Outcome::Succeeded, 1)
    );
    writing.commit().await.unwrap();
    // A change of the table's shape is waited for, in small portions.
    database.execute(&format!("DROP TABLE {last}")).await;
    let mut changing = other.begin().await.unwrap();
    changing
        .execute("LOCK TABLE ONLY events IN SHARE UPDATE EXCLUSIVE MODE")
        .await
        .unwrap();
    let mut context = context(&database, &job, &Setup::default()).await;
    let ending = async {
        until("the run waits", async || {
            database.value::<i64>("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE%' AND datname = current_database()").await == 1
        })
        .await;
        changing.rollback().await.unwrap();
    };
    let (report, ()) = tokio::join!(run(&job, &mut context), ending);
    assert_eq!(report.unwrap().outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn the_tables_owner_owns_its_partitions() {
    let database = table("timestamptz").await;
    let (owner, reeve) = (format!("{}_owner", database.name), format!("{}_reeve", database.name));
    pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
    database
        .execute(&format!(
            "CREATE ROLE {owner}; CREATE ROLE {reeve} LOGIN; ALTER TABLE events OWNER TO {owner};
             GRANT CREATE, USAGE ON SCHEMA public TO {owner};
             GRANT USAGE ON SCHEMA pgreeve TO {reeve}; GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA pgreeve TO {reeve}"
        ))
        .await;
    let mut target = database.target.clone();
    target.user.clone_from(&reeve);
    let setup = Setup {
        target: Some(target),
        ..Setup::default()
    };
    let job = job("1y", None);
    let error = refusal(&database, &job, &setup).await;
    assert!(error.remedy.as_ref().unwrap().contains(&owner), "{error:?}");
    database.execute(&format!("GRANT {owner} TO {reeve}")).await;
    let mut context = context(&database, &job, &setup).await;
    assert_eq!(run(&job, &mut context).await.unwrap().outcome, Outcome::Succeeded);
    let sql = format!(
        "SELECT count(*) FROM pg_class WHERE relispartition AND relkind = 'r' AND relowner <> '{owner}'::regrole"
    );
    let strangers: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(&mut database.connect().await)
        .await
        .unwrap();
    assert_eq!((strangers, bounds(&database).await.len()), (0, 4));
}
