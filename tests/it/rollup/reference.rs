//! Rollups against the plain GROUP BY that they stand for.

use pgreeve::rollup::Rollup;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{by_minute, events, initialise, refresh, with};
use crate::support::Database;

/// The same measures by `date_trunc`, which agrees with our buckets in these zones.
async fn expected(database: &Database, unit: &str, zone: &str, condition: &str) -> String {
    database
        .value(&format!(
            "SELECT coalesce(string_agg(t::text, ' ' ORDER BY t::text), '') FROM (
                 SELECT date_trunc('{unit}', created_at, '{zone}') AS bucket, company, count(*) AS events, min(amount) AS least,
                        count(amount) AS mean_count, sum(amount) AS mean_sum, count(*) FILTER (WHERE amount > 0) AS paid,
                        count(DISTINCT person) AS people, sum(amount) AS total
                 FROM events WHERE isfinite(created_at) AND ({condition}) GROUP BY 1, 2) AS t"
        ))
        .await
}

async fn found(database: &Database) -> String {
    database
        .value(
            "SELECT coalesce(string_agg(t::text, ' ' ORDER BY t::text), '') FROM (
                 SELECT bucket, company, events, least, mean_count, mean_sum, paid, people, total FROM event_minutes) AS t",
        )
        .await
}

/// One row: seconds before now, company, person, amount.
type Row = (u32, Option<i32>, i32, i32);

fn insert(rows: &[Row]) -> String {
    let values: Vec<String> = rows
        .iter()
        .map(|(ago, company, person, amount)| {
            let company = company.map_or("NULL".to_owned(), |company| company.to_string());
            format!("({company}::int, {person}, {amount}, now() - interval '3 minutes' - interval '{ago} seconds')")
        })
        .collect();
    format!(
        "INSERT INTO events (company, person, amount, created_at) VALUES {}, (1, 1, 1, 'infinity'), (1, 1, 1, NULL), (1, 1, 1, '-infinity')",
        values.join(", ")
    )
}

#[test]
fn a_rollup_is_the_group_by_that_it_stands_for() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let row = (0_u32..90 * 86_400, proptest::option::of(0..3), 0..4, -5..5);
    let rows = proptest::collection::vec(row, 1..60);
    let widths = prop::sample::select(vec![
        ("1m", "minute"),
        ("1h", "hour"),
        ("1d", "day"),
        ("1w", "week"),
        ("1mo", "month"),
        ("3mo", "quarter"),
    ]);
    let zones = prop::sample::select(vec!["UTC", "America/New_York", "Asia/Kathmandu"]);
    let strategy = (rows.clone(), rows, widths, zones, any::<bool>(), any::<bool>());
    let mut runner = TestRunner::new(Config {
        cases: 12,
        // A case takes a database; the first failure tells enough.
        max_shrink_iters: 0,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&strategy, |(first, second, (width, unit), zone, index, condition)| {
            runtime.block_on(async {
                let database = events().await;
                if !index {
                    database.execute("DROP INDEX events_created_at_idx").await;
                }
                let rollup = Rollup {
                    bucket: width.parse().unwrap(),
                    timezone: Some(zone.parse().unwrap()),
                    ..with(by_minute(), |source| {
                        source.predicate = condition.then(|| "events.amount <> 3 OR person = 1".to_owned());
                    })
                };
                let condition = if condition { "amount <> 3 OR person = 1" } else { "true" };
                database.execute(&insert(&first)).await;
                initialise(&database, &rollup).await;
                refresh(&database, &rollup).await;
                assert_eq!(found(&database).await, expected(&database, unit, zone, condition).await);
                // What was written late is found by a backfill, wherever it is.
                database.execute(&insert(&second)).await;
                let range = pgreeve::rollup::Task::Backfill {
                    from: jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * 100),
                    to: jiff::Timestamp::now(),
                };
                super::task(&database, &rollup, range).await;
                refresh(&database, &rollup).await;
                assert_eq!(found(&database).await, expected(&database, unit, zone, condition).await);
            });
            Ok(())
        })
        .unwrap();
}
