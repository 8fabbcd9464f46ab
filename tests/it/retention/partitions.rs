//! Whole partitions go by their bounds, and only when every row in them is due.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pgreeve::backup::compress::Packing;
use pgreeve::batch::{ArchiveFormat, PartitionMode};
use pgreeve::job::{Exclusion, Job, Outcome};
use pgreeve::jobs::retention::{ArchiveSettings, RetentionJob, RetentionSettings};
use pgreeve::ledger::{locks, migrate};
use pgreeve::postgres::catalog::partitions::{self, BoundType};
use serde_json::json;
use sqlx::postgres::types::Oid;
use sqlx::{Connection, Executor};

use super::archive::opening;
use super::contention::until_somebody_waits;
use super::holds::{place, place_within};
use super::{count, events, job, ledger_rows};
use crate::support::Database;
use crate::support::context::{Setup, context, refusal, run, run_once};
use crate::support::memory_store::MemoryStore;
use crate::support::process::until;

fn with_mode(mode: PartitionMode) -> RetentionJob {
    RetentionJob::new(RetentionSettings {
        partitions: Some(mode),
        ..events()
    })
}

/// Partitions whose names say the contrary of their bounds, a default partition, and rows in all.
async fn ranged() -> Database {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (id bigserial, created_at timestamptz, processed boolean DEFAULT true) PARTITION BY RANGE (created_at);
             CREATE TABLE events_2099 PARTITION OF events FOR VALUES FROM (MINVALUE) TO ('2001-01-01');
             CREATE TABLE events_2001 PARTITION OF events FOR VALUES FROM ('2001-01-01') TO ('2002-01-01');
             CREATE TABLE events_2000 PARTITION OF events FOR VALUES FROM ('2020-01-01') TO (MAXVALUE);
             CREATE TABLE events_rest PARTITION OF events DEFAULT;
             INSERT INTO events (created_at) SELECT '2000-01-01' FROM generate_series(1, 3);
             INSERT INTO events (created_at) SELECT '2001-05-05' FROM generate_series(1, 5);
             INSERT INTO events (created_at) SELECT '2010-01-01' FROM generate_series(1, 7);
             INSERT INTO events (created_at) VALUES ('2021-01-01'), (now()), (NULL)",
        )
        .await;
    database
}

async fn exists(database: &Database, table: &str) -> bool {
    database
        .value(&format!("SELECT to_regclass('public.{table}') IS NOT NULL"))
        .await
}

#[tokio::test]
async fn partitions_past_the_cutoff_are_dropped_and_the_rest_is_purged_by_rows() {
    let database = ranged().await;
    let job = job();
    let mut context = context(&database, &job, &Setup::default()).await;
    let intent = job.plan(&mut context).await.unwrap().intent();
    let due = intent["partitions"]["due"].as_array().unwrap();
    assert_eq!(
        due[0],
        json!({ "partition": "public.events_2099", "from": null, "to": "2001-01-01 00:00:00+00", "estimated_rows": 0 })
    );
    assert_eq!(due.len(), 2);
    assert!(exists(&database, "events_2099").await);
    let report = run(&job, &mut context).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    let partitions = &report.body["partitions"];
    assert_eq!(partitions["dropped"][0]["partition"], "public.events_2099");
    assert_eq!(
        (&partitions["dropped"][0]["rows"], &partitions["dropped"][1]["rows"]),
        (&3.into(), &5.into())
    );
    assert_eq!(partitions["dropped"][1]["estimated"], false);
    assert_eq!(partitions["rows_from_default"], 7);
    assert_eq!(report.body["rows"], 16);
    assert_eq!(ledger_rows(&database).await, 16);
    assert!(!exists(&database, "events_2099").await && !exists(&database, "events_2001").await);
    assert!(exists(&database, "events_2000").await);
    assert_eq!(count(&database, "events").await, 2);
}

#[tokio::test]
async fn a_partition_that_ends_at_the_limit_is_past_it_and_one_microsecond_later_is_not() {
    for (kind, name) in [
        (BoundType::Timestamptz, "timestamptz"),
        (BoundType::Timestamp, "timestamp"),
    ] {
        let database = Database::create().await;
        database
            .execute(&format!(
                "CREATE TABLE events (created_at {name}) PARTITION BY RANGE (created_at);
                 CREATE TABLE a PARTITION OF events FOR VALUES FROM ('2001-01-01') TO ('2001-02-01 00:00:00.5');
                 CREATE TABLE b PARTITION OF events FOR VALUES FROM ('2001-02-01 00:00:00.5') TO ('2001-02-01 00:00:00.500001')"
            ))
            .await;
        let root: Oid = database.value("SELECT 'events'::regclass::oid").await;
        let mut connection = database.connect().await;
        connection
            .execute("SET TimeZone = UTC; SET search_path = pg_catalog")
            .await
            .unwrap();
        let found = partitions::of(&mut connection, root, "created_at", kind, "2001-02-01 00:00:00.5")
            .await
            .unwrap();
        let expired: Vec<(&str, bool)> = found.iter().map(|part| (part.name.as_str(), part.expired)).collect();
        assert_eq!(expired, [("a", true), ("b", false)], "{name}");
    }
    // The same from end to end, where a cutoff can be known before: in days.
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (created_at date) PARTITION BY RANGE (created_at);
             DO $$ DECLARE today date := (now() AT TIME ZONE 'UTC')::date; BEGIN
                 EXECUTE format('CREATE TABLE a PARTITION OF events FOR VALUES FROM (%L) TO (%L)', today - 40, today - 30);
                 EXECUTE format('CREATE TABLE b PARTITION OF events FOR VALUES FROM (%L) TO (%L)', today - 30, today - 29);
             END $$",
        )
        .await;
    let job = RetentionJob::new(RetentionSettings {
        timezone: Some("UTC".parse().unwrap()),
        ..events()
    });
    assert_eq!(run_once(&database, &job).await.unwrap().outcome, Outcome::Succeeded);
    assert!(!exists(&database, "a").await && exists(&database, "b").await);
}

#[tokio::test]
async fn a_partition_with_one_row_that_is_not_due_is_left_to_the_batches() {
    let database = ranged().await;
    database
        .execute("UPDATE events SET processed = false WHERE id = (SELECT min(id) FROM events_2001)")
        .await;
    let job = RetentionJob::new(RetentionSettings {
        predicate: Some("processed".to_owned()),
        ..events()
    });
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert!(!exists(&database, "events_2099").await);
    assert_eq!(count(&database, "events_2001").await, 1);
    assert_eq!((&report.body["rows"], &report.body["exempt"]), (&15.into(), &1.into()));
}

#[tokio::test]
async fn the_last_partition_is_emptied_and_stays() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (created_at timestamptz) PARTITION BY RANGE (created_at);
             CREATE TABLE a PARTITION OF events FOR VALUES FROM ('2001-01-01') TO ('2002-01-01');
             CREATE TABLE b PARTITION OF events FOR VALUES FROM ('2002-01-01') TO ('2003-01-01');
             CREATE TABLE rest PARTITION OF events DEFAULT;
             INSERT INTO events VALUES ('2001-05-01'), ('2002-05-01')",
        )
        .await;
    let report = run_once(&database, &job()).await.unwrap();
    assert_eq!((report.outcome, &report.body["rows"]), (Outcome::Succeeded, &2.into()));
    assert!(!exists(&database, "a").await && exists(&database, "b").await);
    assert_eq!(count(&database, "events").await, 0);
}

#[tokio::test]
async fn a_divided_partition_goes_with_all_below_it() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (brand int, created_at timestamptz) PARTITION BY LIST (brand);
             CREATE TABLE one PARTITION OF events FOR VALUES IN (1) PARTITION BY RANGE (created_at);
             CREATE TABLE one_old PARTITION OF one FOR VALUES FROM ('2001-01-01') TO ('2002-01-01') PARTITION BY HASH (created_at);
             CREATE TABLE one_old_0 PARTITION OF one_old FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE one_old_1 PARTITION OF one_old FOR VALUES WITH (MODULUS 2, REMAINDER 1);
             CREATE TABLE one_new PARTITION OF one DEFAULT;
             CREATE TABLE one_next PARTITION OF one FOR VALUES FROM ('2020-01-01') TO (MAXVALUE);
             CREATE TABLE two PARTITION OF events FOR VALUES IN (2);
             INSERT INTO events SELECT b, timestamptz '2001-01-01' + n * interval '1 h' FROM generate_series(1, 2) b, generate_series(1, 50) n",
        )
        .await;
    let report = run_once(&database, &job()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(report.body["partitions"]["dropped"][0]["rows"], 50);
    assert_eq!(report.body["rows"], 100);
    assert!(!exists(&database, "one_old").await && !exists(&database, "one_old_1").await);
}

#[tokio::test]
async fn an_open_reader_is_tried_again_and_then_reported_with_the_partition_kept() {
    let database = ranged().await;
    let mut other = database.connect().await;
    let mut reading = other.begin().await.unwrap();
    reading.execute("SELECT FROM events").await.unwrap();
    let report = run_once(&database, &job()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    let deferred = report.body["partitions"]["deferred"].as_array().unwrap();
    assert_eq!(deferred.len(), 2);
    assert!(
        deferred[0]["reason"]
            .as_str()
            .unwrap()
            .starts_with("other sessions kept it locked"),
        "{report:?}"
    );
    assert!(
        report
            .reason
            .as_ref()
            .unwrap()
            .contains("partitions: 2 left for the next run"),
        "{report:?}"
    );
    // What can be done beside the reader is done.
    assert_eq!(
        (&report.body["rows"], &report.body["remaining"]),
        (&8.into(), &8.into())
    );
    reading.rollback().await.unwrap();
    // A reader that ends in time is waited for.
    let mut reading = other.begin().await.unwrap();
    reading.execute("SELECT FROM events").await.unwrap();
    let job = job();
    let mut context = context(&database, &job, &Setup::default()).await;
    let waiting = async {
        until("the drop waits", async || {
            count(&database, "pg_stat_activity WHERE query LIKE 'LOCK TABLE ONLY%' AND wait_event_type = 'Lock' AND datname = current_database()").await == 1
        })
        .await;
        reading.rollback().await.unwrap();
    };
    let (report, ()) = tokio::join!(run(&job, &mut context), waiting);
    assert_eq!(report.unwrap().outcome, Outcome::Succeeded);
    assert!(!exists(&database, "events_2099").await);
}

#[tokio::test]
async fn nothing_is_dropped_while_a_backup_runs() {
    let database = ranged().await;
    let job = job();
    let mut context = context(
        &database,
        &job,
        &Setup {
            time: Duration::from_secs(40),
            ..Setup::default()
        },
    )
    .await;
    let mut backup = database.connect().await;
    let key = locks::key(&Exclusion::Snapshot.lock_name());
    assert!(locks::try_lock(&mut backup, locks::EXCLUSION_CLASS, key).await.unwrap());
    let report = run(&job, &mut context).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(
        report.reason.as_ref().unwrap().contains("a backup holds its snapshot"),
        "{report:?}"
    );
    assert_eq!(count(&database, "events_2001").await, 5);
    assert!(locks::unlock(&mut backup, locks::EXCLUSION_CLASS, key).await.unwrap());
    assert_eq!(run_once(&database, &job).await.unwrap().outcome, Outcome::Succeeded);
    // The run gives the exclusion back when it is done with partitions.
    assert!(locks::try_lock(&mut backup, locks::EXCLUSION_CLASS, key).await.unwrap());
}

#[tokio::test]
async fn foreign_keys_triggers_and_publications_speak_against_a_drop() {
    for (obstacle, name, refused) in [
        (
            "ALTER TABLE events ADD UNIQUE (id, created_at);
             CREATE TABLE child (id bigint, at timestamptz, FOREIGN KEY (id, at) REFERENCES events (id, created_at))",
            "child",
            true,
        ),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';
             CREATE TRIGGER copies AFTER DELETE ON events FOR EACH ROW EXECUTE FUNCTION f()",
            "copies",
            false,
        ),
        (
            "ALTER TABLE events REPLICA IDENTITY FULL;
          ALTER TABLE events_2099 REPLICA IDENTITY FULL; ALTER TABLE events_2001 REPLICA IDENTITY FULL;
          ALTER TABLE events_2000 REPLICA IDENTITY FULL; ALTER TABLE events_rest REPLICA IDENTITY FULL;
          CREATE PUBLICATION subscribers FOR TABLE events",
            "subscribers",
            false,
        ),
    ] {
        let database = ranged().await;
        database.execute(obstacle).await;
        if refused {
            let error = refusal(&database, &with_mode(PartitionMode::Drop), &Setup::default()).await;
            assert_eq!(error.setting, Some("partitions"));
            assert!(error.cause.contains(name), "{error:?}");
        }
        let report = run_once(&database, &job()).await.unwrap();
        assert_eq!(
            (report.outcome, &report.body["rows"]),
            (Outcome::Succeeded, &16.into()),
            "{report:?}"
        );
        let warnings = report.body["warnings"].to_string();
        assert!(warnings.contains("row by row") && warnings.contains(name), "{warnings}");
        assert!(exists(&database, "events_2099").await);
    }
}

#[tokio::test]
async fn an_explicit_mode_is_refused_where_there_is_nothing_to_drop() {
    let database = super::with_due_rows(3, true).await;
    let error = refusal(&database, &with_mode(PartitionMode::Drop), &Setup::default()).await;
    assert_eq!(error.setting, Some("partitions"));
    assert_eq!(
        run_once(&database, &with_mode(PartitionMode::Rows))
            .await
            .unwrap()
            .outcome,
        Outcome::Succeeded
    );
}

#[tokio::test]
async fn a_detached_partition_keeps_its_rows_and_the_report_says_so() {
    let database = ranged().await;
    let report = run_once(&database, &with_mode(PartitionMode::Detach)).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(
        report.body["partitions"]["detached"],
        json!(["public.events_2099", "public.events_2001"])
    );
    assert!(report.body["warnings"].to_string().contains("hidden, not erased"));
    // Rows that are stored are not counted as deleted.
    assert_eq!(report.body["rows"], 8);
    assert_eq!(ledger_rows(&database).await, 8);
    assert_eq!(count(&database, "events_2001").await, 5);
}

#[tokio::test]
async fn an_interrupted_detach_is_finalized_and_reported_as_hidden_not_erased() {
    let database = ranged().await;
    database.execute("DROP TABLE events_rest").await;
    let mut other = database.connect().await;
    let mut reading = other.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    reading.execute("SELECT FROM events").await.unwrap();
    let mut detacher = database.connect().await;
    detacher.execute("SET lock_timeout = '100ms'").await.unwrap();
    detacher
        .execute("ALTER TABLE events DETACH PARTITION events_2001 CONCURRENTLY")
        .await
        .unwrap_err();
    reading.rollback().await.unwrap();
    assert_eq!(count(&database, "events WHERE created_at < '2002-01-01'").await, 3);
    let report = run_once(&database, &job()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert_eq!(report.body["hidden_not_erased"], json!(["public.events_2001"]));
    assert_eq!(report.body["partitions"]["finalized"], json!(["public.events_2001"]));
    assert!(
        report
            .reason
            .as_ref()
            .unwrap()
            .contains("the interrupted detach of public.events_2001 is final now"),
        "{report:?}"
    );
    assert_eq!(count(&database, "pg_inherits WHERE inhdetachpending").await, 0);
    assert_eq!(count(&database, "events_2001").await, 5);
}

#[tokio::test]
async fn archived_rows_go_by_batches_and_their_empty_partition_is_dropped() {
    let database = ranged().await;
    let store = MemoryStore::default();
    let settings = RetentionSettings {
        archive: Some(ArchiveSettings {
            store: "offsite".parse().unwrap(),
            format: ArchiveFormat::Csv,
            compress: Packing::Gzip(4),
            keep: None,
        }),
        ..events()
    };
    let job = RetentionJob::new(settings).with_stores(BTreeMap::from([("offsite".parse().unwrap(), opening(&store))]));
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(
        (&report.body["rows"], &report.body["archive"]["rows"]),
        (&16.into(), &16.into())
    );
    assert!(!exists(&database, "events_2099").await && !exists(&database, "events_2001").await);
    // One object for each leaf that had rows, and the manifest.
    assert_eq!(store.keys().len(), 5);
}

#[tokio::test]
async fn a_role_that_does_not_own_the_partitions_deletes_by_rows() {
    let database = ranged().await;
    pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
    let role = format!("{}_reeve", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT, DELETE ON ALL TABLES IN SCHEMA public TO {role};
             GRANT USAGE ON SCHEMA pgreeve TO {role}; GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA pgreeve TO {role}"
        ))
        .await;
    let mut target = database.target.clone();
    target.user = role;
    let setup = Setup {
        target: Some(target),
        ..Setup::default()
    };
    let error = refusal(&database, &with_mode(PartitionMode::Drop), &setup).await;
    assert!(error.cause.contains("owns"), "{error:?}");
    let job = job();
    let mut context = context(&database, &job, &setup).await;
    let report = run(&job, &mut context).await.unwrap();
    assert_eq!(
        (report.outcome, &report.body["rows"]),
        (Outcome::Succeeded, &16.into()),
        "{report:?}"
    );
    assert!(exists(&database, "events_2001").await);
}

#[tokio::test]
async fn a_partition_with_a_held_row_is_purged_around_it_and_stays() {
    let database = ranged().await;
    migrate::apply(&database.target).await.unwrap();
    place(
        &database,
        "events",
        "created_at = '2001-05-05' AND id = (SELECT min(id) FROM public.events_2001)",
    )
    .await;
    let report = run_once(&database, &job()).await.unwrap();
    assert_eq!((report.outcome, &report.body["held"]), (Outcome::Succeeded, &1.into()));
    assert_eq!(count(&database, "events_2001").await, 1);
    assert!(!exists(&database, "events_2099").await);
}

#[tokio::test]
async fn a_hold_placed_after_the_plan_keeps_its_partition() {
    let database = ranged().await;
    let job = job();
    let setup = Setup {
        lock_timeout: Duration::from_secs(20),
        ..Setup::default()
    };
    let mut context = context(&database, &job, &setup).await;
    let plan = job.plan(&mut context).await.unwrap();
    assert_eq!(plan.intent()["partitions"]["due"].as_array().unwrap().len(), 2);
    let mut other = database.connect().await;
    let mut placing = other.begin().await.unwrap();
    place_within(&mut placing, "events_2099", "true").await;
    let placed = async {
        until_somebody_waits(&database).await;
        placing.commit().await.unwrap();
    };
    let (report, ()) = tokio::join!(plan.execute(&mut context), placed);
    let report = report.unwrap();
    assert_eq!((report.outcome, &report.body["held"]), (Outcome::Succeeded, &3.into()));
    assert_eq!(count(&database, "events_2099").await, 3);
    assert!(!exists(&database, "events_2001").await);
}

#[tokio::test]
async fn a_partition_that_holds_the_newest_row_of_a_group_stays() {
    let database = ranged().await;
    database
        .execute("ALTER TABLE events ADD user_id int DEFAULT 1; UPDATE events SET user_id = 2 WHERE created_at = '2001-05-05'")
        .await;
    let job = RetentionJob::new(RetentionSettings {
        keep_latest_per: vec!["user_id".to_owned()],
        ..events()
    });
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(count(&database, "events_2001").await, 1);
    assert!(!exists(&database, "events_2099").await);
}

#[tokio::test]
async fn nobody_is_killed_for_a_partition_that_is_to_go() {
    let database = ranged().await;
    // It has the table, and will want the partition while the run has the partition and wants the table.
    let mut other = database.connect().await;
    let mut writing = other.begin().await.unwrap();
    writing
        .execute("INSERT INTO events (created_at) VALUES (now())")
        .await
        .unwrap();
    let job = job();
    let mut context = context(&database, &job, &Setup::default()).await;
    let writer = async {
        until_somebody_waits(&database).await;
        writing
            .execute("INSERT INTO events (created_at) VALUES ('2001-06-06'), ('2000-06-06')")
            .await
            .unwrap();
        writing.commit().await.unwrap();
    };
    let (report, ()) = tokio::join!(run(&job, &mut context), writer);
    let report = report.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    // The late rows are counted too.
    assert_eq!(report.body["rows"], 18);
    assert!(!exists(&database, "events_2001").await);
}

#[tokio::test]
async fn two_years_of_partitions_go_and_no_insert_waits_longer_for_them_than_the_lock_timeout() {
    const LOCK_TIMEOUT: Duration = Duration::from_millis(300);
    const SLACK: Duration = Duration::from_millis(1200);
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (id bigserial, created_at timestamptz NOT NULL, body text) PARTITION BY RANGE (created_at);
             DO $$ DECLARE month timestamptz; BEGIN
                 FOR n IN 0..25 LOOP
                     month := date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - (26 - n) * interval '1 month';
                     EXECUTE format('CREATE TABLE %I PARTITION OF events FOR VALUES FROM (%L) TO (%L)', 'p' || n, month,
                                    month + CASE WHEN n = 25 THEN interval '10 years' ELSE interval '1 month' END);
                 END LOOP;
             END $$;
             INSERT INTO events (created_at, body)
             SELECT now() - interval '26 months' + n * interval '1 h', 'x' FROM generate_series(1, 18000) n;
             CREATE INDEX ON events (created_at); ANALYZE events;
             UPDATE pg_class SET reltuples = 4200000 WHERE relispartition AND relkind = 'r'",
        )
        .await;
    let job = RetentionJob::new(RetentionSettings {
        keep: "61d".parse().unwrap(),
        ..events()
    });
    let setup = Setup {
        lock_timeout: LOCK_TIMEOUT,
        ..Setup::default()
    };
    let mut context = context(&database, &job, &setup).await;
    let plan = job.plan(&mut context).await.unwrap();
    let due = plan.intent()["partitions"]["due"].as_array().unwrap().clone();
    let estimated: u64 = due.iter().map(|entry| entry["estimated_rows"].as_u64().unwrap()).sum();
    assert!(
        (23..=24).contains(&due.len()) && estimated > 96_000_000,
        "{} {estimated}",
        due.len()
    );

    let mut other = database.connect().await;
    let mut reading = other.begin().await.unwrap();
    reading.execute("SELECT count(*) FROM events").await.unwrap();
    let since = Instant::now();
    // The reader outlives two waits of the run and every bound that is asserted.
    let reader = async {
        for _ in 0..2 {
            until_somebody_waits(&database).await;
            until("the run has given up", async || waiting(&database).await == 0).await;
        }
        until("the reader was long", async || {
            since.elapsed() > 2 * (LOCK_TIMEOUT + SLACK)
        })
        .await;
        reading.rollback().await.unwrap();
    };
    let inserting = insert_until_dropped(&database);
    let (report, (), (inserted, longest)) = tokio::join!(plan.execute(&mut context), reader, inserting);
    let report = report.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    let dropped = report.body["partitions"]["dropped"].as_array().unwrap();
    assert_eq!(dropped.len(), due.len());
    assert!(dropped.iter().all(|entry| entry["estimated"] == false));
    assert!(inserted > 50, "{inserted}");
    assert!(longest < LOCK_TIMEOUT + SLACK, "an insert waited for {longest:?}");
    assert_eq!(count(&database, "events WHERE body = 'streamed'").await, inserted);
}

/// How many runs wait for a lock.
async fn waiting(database: &Database) -> u64 {
    count(
        database,
        "pg_stat_activity WHERE application_name LIKE 'pgreeve:%' AND wait_event_type = 'Lock' AND datname = current_database()",
    )
    .await
}

/// Inserts one row after the other until the oldest partitions are gone; answers how many, and how
/// long the slowest took.
async fn insert_until_dropped(database: &Database) -> (u64, Duration) {
    let mut connection = database.connect().await;
    let (mut inserted, mut longest) = (0, Duration::ZERO);
    loop {
        let began = Instant::now();
        connection
            .execute("INSERT INTO events (created_at, body) VALUES (now(), 'streamed')")
            .await
            .unwrap();
        longest = longest.max(began.elapsed());
        inserted += 1;
        let gone: bool =
            sqlx::query_scalar("SELECT count(*) < 4 FROM pg_inherits WHERE inhparent = 'events'::regclass")
                .fetch_one(&mut connection)
                .await
                .unwrap();
        if gone {
            return (inserted, longest);
        }
    }
}
