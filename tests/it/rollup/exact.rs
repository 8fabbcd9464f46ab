//! The exact mode: triggers note what writers change.

use pgreeve::rollup::Rollup;
use pgreeve::rollup::spec::Mode;
use sqlx::Connection;

use super::{by_minute, events, initialise, refresh, with};
use crate::support::Database;

fn exact() -> Rollup {
    with(by_minute(), |source| source.mode = Mode::Exact)
}

async fn wrong(database: &Database) -> i64 {
    database
        .value(
            "SELECT count(*) FROM (
                 (SELECT date_trunc('minute', created_at, 'UTC'), company, count(*), sum(amount) FROM events GROUP BY 1, 2
                  EXCEPT ALL SELECT bucket, company, events, total FROM event_minutes)
                 UNION ALL
                 (SELECT bucket, company, events, total FROM event_minutes
                  EXCEPT ALL SELECT date_trunc('minute', created_at, 'UTC'), company, count(*), sum(amount) FROM events GROUP BY 1, 2)) AS d",
        )
        .await
}

#[tokio::test]
async fn changes_of_any_age_are_noticed_and_only_their_buckets_are_computed() {
    let database = events().await;
    database
        .execute("INSERT INTO events (company, person, amount, created_at) SELECT n % 3, n, n, now() - interval '3 hours' + n * interval '1 minute' FROM generate_series(1, 300) n")
        .await;
    initialise(&database, &exact()).await;
    refresh(&database, &exact()).await;
    assert_eq!(wrong(&database).await, 0);
    for (change, buckets) in [
        (
            "INSERT INTO events (company, amount, created_at) VALUES (9, 1, now() - interval '10 days')",
            1,
        ),
        (
            "UPDATE events SET created_at = created_at - interval '1 day' WHERE id <= 2",
            4,
        ),
        ("UPDATE events SET amount = 0 WHERE company = 9", 1),
        ("DELETE FROM events WHERE company = 9", 1),
        (
            "INSERT INTO events (id, created_at) OVERRIDING SYSTEM VALUE VALUES (5, NULL) ON CONFLICT (id) DO UPDATE SET created_at = now() - interval '20 days'",
            2,
        ),
        (
            "INSERT INTO events (created_at) VALUES ('infinity'), (NULL), ('-infinity')",
            0,
        ),
        (
            "DELETE FROM events WHERE created_at IS NULL OR NOT isfinite(created_at)",
            0,
        ),
    ] {
        database.execute(change).await;
        let report = refresh(&database, &exact()).await;
        assert_eq!(report.body["buckets"], buckets, "{change}: {report:?}");
        if !change.contains("infinity") {
            assert_eq!(wrong(&database).await, 0, "{change}");
        }
    }
    assert_eq!(wrong(&database).await, 0);
}

#[tokio::test]
async fn writers_do_not_wait_for_each_other_and_a_late_commit_is_counted() {
    let database = events().await;
    initialise(&database, &exact()).await;
    refresh(&database, &exact()).await;
    let mut late = database.connect().await;
    let mut transaction = late.begin().await.unwrap();
    let insert = "INSERT INTO events (company, amount, created_at) VALUES (1, 1, now() - interval '1 hour')";
    sqlx::query(insert).execute(&mut *transaction).await.unwrap();
    // The same bucket, while the other transaction is open.
    database.execute(&format!("SET lock_timeout = '1s'; {insert}")).await;
    assert_eq!(refresh(&database, &exact()).await.body["noted"], 1);
    transaction.commit().await.unwrap();
    assert_eq!(refresh(&database, &exact()).await.body["noted"], 1);
    assert_eq!(wrong(&database).await, 0);
}

#[tokio::test]
async fn the_application_needs_no_rights_on_the_ledger_and_a_partition_is_seen_too() {
    let database = Database::create().await;
    let role = format!("app_{}", database.name);
    database
        .execute(&format!(
            "CREATE TABLE events (id int, company int, person int, amount numeric, created_at timestamptz) PARTITION BY LIST (company);
             CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1);
             CREATE TABLE events_2 PARTITION OF events FOR VALUES IN (2);
             CREATE ROLE {role} LOGIN; GRANT ALL ON events, events_1 TO {role}"
        ))
        .await;
    initialise(&database, &exact()).await;
    refresh(&database, &exact()).await;
    let mut application = crate::support::cluster()
        .await
        .target_as(&role, &database.name)
        .connect("app")
        .await
        .unwrap();
    for change in [
        "INSERT INTO events VALUES (1, 1, 1, 1, now() - interval '1 day'), (2, 2, 1, 1, now() - interval '2 days')",
        "INSERT INTO events_1 VALUES (3, 1, 1, 1, now() - interval '1 day')",
        // From one partition into the other.
        "UPDATE events SET company = 2 WHERE id = 3",
    ] {
        sqlx::query(change).execute(&mut application).await.unwrap();
        assert!(
            refresh(&database, &exact()).await.body["noted"].as_u64() > Some(0),
            "{change}"
        );
        assert_eq!(wrong(&database).await, 0, "{change}");
    }
}

#[tokio::test]
async fn triggers_that_are_gone_are_missed_put_back_and_removed() {
    let database = events().await;
    initialise(&database, &exact()).await;
    refresh(&database, &exact()).await;
    database.execute("ALTER TABLE events DISABLE TRIGGER USER").await;
    let job = pgreeve::jobs::rollup::RollupJob::new(exact());
    let error = crate::support::context::refusal(&database, &job, &crate::support::context::Setup::default()).await;
    assert!(error.cause.contains("gone or disabled"), "{error:?}");
    let recompute = by_minute();
    initialise(&database, &recompute).await;
    let triggers = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal";
    assert_eq!(database.value::<i64>(triggers).await, 0);
    refresh(&database, &recompute).await;
    initialise(&database, &exact()).await;
    assert_eq!(database.value::<i64>(triggers).await, 3);
    refresh(&database, &exact()).await;
}
