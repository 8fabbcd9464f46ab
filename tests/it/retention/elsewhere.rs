//! Drivers beside age and blocks: keys that count up, tables of another server, and extensions.

use std::time::Duration;

use pgreeve::job::{Job, Outcome};
use pgreeve::jobs::retention::{RetentionJob, RetentionSettings};
use sqlx::{Connection, Executor};

use super::{count, events, job, ledger_rows};
use crate::support::context::{Setup, context, refusal, run, run_once};
use crate::support::{Database, cluster};

#[tokio::test]
async fn a_key_that_counts_up_leads_to_the_old_rows() {
    for key in [
        "bigserial PRIMARY KEY",
        "int GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "smallserial PRIMARY KEY",
    ] {
        let database = Database::create().await;
        // Ten thousand rows before and after the old ones, of one age and in no order.
        database
            .execute(&format!(
                "CREATE TABLE events (id {key}, created_at timestamptz);
                 INSERT INTO events (created_at) SELECT now() FROM generate_series(1, 10000);
                 INSERT INTO events (created_at) SELECT CASE WHEN n % 5 = 0 THEN now() ELSE '2001-01-01' END FROM generate_series(1, 6000) n;
                 INSERT INTO events (created_at) SELECT now() FROM generate_series(1, 10000); ANALYZE events"
            ))
            .await;
        let job = job();
        let mut context = context(&database, &job, &Setup::default()).await;
        let plan = job.plan(&mut context).await.unwrap();
        assert_eq!(plan.intent()["driver"], "key_range");
        assert!(
            plan.intent()["why"]
                .as_str()
                .unwrap()
                .contains("the primary key id counts up")
        );
        let report = plan.execute(&mut context).await.unwrap();
        assert_eq!(
            (report.outcome, &report.body["rows"]),
            (Outcome::Succeeded, &4800.into())
        );
        assert_eq!(ledger_rows(&database).await, 4800);
        // No key is kept.
        assert_eq!(
            count(&database, "pgreeve.run_batch WHERE low <> '' OR high <> ''").await,
            0
        );
    }
}

#[tokio::test]
async fn a_key_that_does_not_count_up_is_no_way() {
    for key in ["bigint PRIMARY KEY", "uuid PRIMARY KEY DEFAULT gen_random_uuid()"] {
        let database = Database::create().await;
        database
            .execute(&format!("CREATE TABLE events (id {key}, created_at timestamptz)"))
            .await;
        let job = job();
        let plan = job
            .plan(&mut context(&database, &job, &Setup::default()).await)
            .await
            .unwrap();
        assert_eq!(plan.intent()["driver"], "tid_range");
    }
}

/// A database that stores rows, and one that reaches them through `postgres_fdw`.
pub async fn two_databases(stored: &str) -> (Database, Database) {
    let (there, here) = (Database::create().await, Database::create().await);
    there.execute(stored).await;
    let socket = cluster().await.directory().display().to_string();
    here.execute(&format!(
        "CREATE EXTENSION postgres_fdw;
         CREATE SERVER there FOREIGN DATA WRAPPER postgres_fdw
             OPTIONS (host '{socket}', dbname '{}', options '-c lock_timeout=200ms');
         CREATE USER MAPPING FOR postgres SERVER there OPTIONS (user 'postgres')",
        there.name
    ))
    .await;
    (there, here)
}

pub const STORED: &str = "CREATE TABLE stored (id int PRIMARY KEY, created_at timestamptz, processed boolean DEFAULT true);
    INSERT INTO stored SELECT n, now() - interval '40 days' - n * interval '1 second' FROM generate_series(1, 5000) n;
    INSERT INTO stored SELECT -n, now() - interval '20 days' FROM generate_series(1, 10) n; CREATE INDEX ON stored (created_at);";

pub const FOREIGN: &str = "CREATE FOREIGN TABLE events (id int, created_at timestamptz, processed boolean) SERVER there OPTIONS (table_name 'stored')";

#[tokio::test]
async fn rows_of_a_foreign_table_are_deleted_by_age_on_their_server() {
    let (there, here) = two_databases(STORED).await;
    // More rows of one age than a batch has: there are no blocks to walk instead.
    there
        .execute("INSERT INTO stored SELECT 10000 + n, '2001-01-01' FROM generate_series(1, 6000) n; UPDATE stored SET processed = false WHERE id = 7")
        .await;
    here.execute(FOREIGN).await;
    let job = RetentionJob::new(RetentionSettings {
        predicate: Some("processed".to_owned()),
        ..events()
    });
    let mut context = context(&here, &job, &Setup::default()).await;
    let plan = job.plan(&mut context).await.unwrap();
    assert_eq!(
        (&plan.intent()["driver"], &plan.intent()["eligible"]),
        (&"time_range".into(), &10_999.into())
    );
    assert!(
        plan.intent()["warnings"]
            .to_string()
            .contains("public.events is on another server")
    );
    let report = plan.execute(&mut context).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(
        (&report.body["rows"], &report.body["exempt"]),
        (&10_999.into(), &1.into())
    );
    assert_eq!(ledger_rows(&here).await, 10_999);
    assert_eq!(count(&there, "stored").await, 11);
}

#[tokio::test]
async fn a_hold_covers_rows_of_a_foreign_table_too() {
    let (there, here) = two_databases(STORED).await;
    here.execute(FOREIGN).await;
    pgreeve::ledger::migrate::apply(&here.target).await.unwrap();
    here.execute(
        "INSERT INTO pgreeve.hold (hold_id, table_oid, table_name, predicate, reason, placed_by)
         VALUES (gen_random_uuid(), 'events'::regclass, 'public.events', 'id % 10 = 0', 'x', 'x')",
    )
    .await;
    let report = run_once(&here, &job()).await.unwrap();
    assert_eq!(
        (&report.body["rows"], &report.body["held"]),
        (&4500.into(), &500.into())
    );
    assert_eq!(count(&there, "stored WHERE id > 0").await, 500);
}

#[tokio::test]
async fn a_row_that_is_locked_on_the_other_server_is_left_and_counted() {
    let (there, here) = two_databases(STORED).await;
    here.execute(FOREIGN).await;
    let mut holder = there.connect().await;
    let mut holding = holder.begin().await.unwrap();
    holding
        .execute("SELECT FROM stored WHERE id = 2500 FOR UPDATE")
        .await
        .unwrap();
    let setup = Setup {
        lock_timeout: Duration::from_millis(50),
        ..Setup::default()
    };
    let report = run(&job(), &mut context(&here, &job(), &setup).await).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(report.reason.unwrap().starts_with("locked: "));
    let left = count(&there, "stored WHERE id > 0").await;
    assert!((1..=1000).contains(&left), "{left}");
    assert_eq!(report.body["locked"].as_u64().unwrap(), left);
    holding.rollback().await.unwrap();
    assert_eq!(run_once(&here, &job()).await.unwrap().outcome, Outcome::Succeeded);
    assert_eq!(count(&there, "stored").await, 10);
}

#[tokio::test]
async fn a_foreign_partition_is_purged_with_the_local_ones() {
    let (there, here) = two_databases(
        "CREATE TABLE stored (id int, created_at timestamptz); INSERT INTO stored VALUES (2, '2001-01-01'), (2, now())",
    )
    .await;
    here.execute(
        "CREATE TABLE events (id int, created_at timestamptz) PARTITION BY LIST (id);
         CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1);
         CREATE FOREIGN TABLE events_2 PARTITION OF events FOR VALUES IN (2) SERVER there OPTIONS (table_name 'stored');
         INSERT INTO events_1 VALUES (1, '2001-01-01')",
    )
    .await;
    let report = run_once(&here, &job()).await.unwrap();
    assert_eq!((report.outcome, &report.body["rows"]), (Outcome::Succeeded, &2.into()));
    assert_eq!(report.body["driver"], "mixed");
    assert_eq!(count(&there, "stored").await, 1);
}

#[tokio::test]
async fn a_foreign_partition_that_may_not_be_changed_is_left_and_named() {
    let (there, here) = two_databases(
        "CREATE TABLE stored (id int, created_at timestamptz); INSERT INTO stored VALUES (2, '2001-01-01')",
    )
    .await;
    here.execute(
        "CREATE TABLE events (id int, created_at timestamptz) PARTITION BY LIST (id);
         CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1);
         CREATE FOREIGN TABLE events_2 PARTITION OF events FOR VALUES IN (2)
             SERVER there OPTIONS (table_name 'stored', updatable 'false');
         INSERT INTO events_1 VALUES (1, '2001-01-01')",
    )
    .await;
    let report = run_once(&here, &job()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert_eq!(
        (&report.body["rows"], &report.body["remaining"]),
        (&1.into(), &1.into())
    );
    assert!(
        report.body["warnings"]
            .to_string()
            .contains("public.events_2 is a foreign table")
    );
    assert_eq!(count(&there, "stored").await, 1);
}

#[tokio::test]
async fn the_newest_of_a_group_is_not_looked_for_on_another_server() {
    let (_there, here) = two_databases(STORED).await;
    here.execute(FOREIGN).await;
    let job = RetentionJob::new(RetentionSettings {
        keep_latest_per: vec!["processed".to_owned()],
        ..events()
    });
    let error = refusal(&here, &job, &Setup::default()).await;
    assert!(error.cause.contains("on another server (public.events)"), "{error:?}");
}

/// Rows of the catalog as an extension would have made them.
fn pretend(extension: &str) -> String {
    format!(
        "SET allow_system_table_mods = on;
         INSERT INTO pg_extension VALUES (99999, '{extension}', 10, 2200, false, '1', NULL, NULL);"
    )
}

#[tokio::test]
async fn a_hypertable_is_refused_with_the_statement_that_does_it() {
    let tables = format!(
        "CREATE TABLE events (id int, created_at timestamptz); CREATE TABLE others (id int, created_at timestamptz);
         CREATE SCHEMA _timescaledb_internal; CREATE TABLE _timescaledb_internal.chunk_1 () INHERITS (events);
         CREATE SCHEMA _timescaledb_catalog; CREATE TABLE _timescaledb_catalog.hypertable (id int, schema_name name, table_name name);
         INSERT INTO _timescaledb_catalog.hypertable VALUES (1, 'public', 'events');
         {}",
        pretend("timescaledb")
    );
    let database = Database::create().await;
    database.execute(&tables).await;
    for table in ["events", "_timescaledb_internal.chunk_1"] {
        let job = RetentionJob::new(RetentionSettings {
            table: table.parse().unwrap(),
            ..events()
        });
        let error = refusal(&database, &job, &Setup::default()).await;
        assert!(error.cause.contains("hypertable of TimescaleDB"), "{error:?}");
        let remedy = error.remedy.unwrap();
        assert!(
            remedy.contains("drop_chunks(") && remedy.contains("30 days"),
            "{remedy}"
        );
    }
    let other = RetentionJob::new(RetentionSettings {
        table: "others".parse().unwrap(),
        ..events()
    });
    assert_eq!(run_once(&database, &other).await.unwrap().outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn a_distributed_table_is_refused_by_name() {
    let database = Database::create().await;
    database
        .execute(&format!(
            "CREATE TABLE events (id int, created_at timestamptz); {}
             CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass, partmethod \"char\");
             INSERT INTO pg_catalog.pg_dist_partition VALUES ('events', 'h')",
            pretend("citus")
        ))
        .await;
    let error = refusal(&database, &job(), &Setup::default()).await;
    assert!(error.cause.contains("distributed by Citus"), "{error:?}");
    assert!(error.remedy.unwrap().contains("drop_old_time_partitions"));
}
