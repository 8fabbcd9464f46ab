//! Buckets where clocks change.

use pgreeve::rollup::Rollup;

use super::{by_minute, events, initialise, refresh, with};

/// The lengths of the buckets in the target, in hours, with how many rows each has. There is a row
/// every ten minutes.
async fn days(zone: &str, from: &str, to: &str, column: &str) -> Vec<String> {
    let database = events().await;
    if column != "timestamptz" {
        database
            .execute(&format!(
                "ALTER TABLE events ALTER created_at TYPE {column} USING created_at AT TIME ZONE 'UTC'"
            ))
            .await;
    }
    database
        .execute(&format!(
            "INSERT INTO events (created_at) SELECT t {} FROM generate_series('{from}'::timestamptz, '{to}'::timestamptz - interval '10 minutes', '10 minutes') t",
            if column == "timestamptz" { "" } else { "AT TIME ZONE 'UTC'" }
        ))
        .await;
    let rollup = Rollup {
        bucket: "1d".parse().unwrap(),
        timezone: Some(zone.parse().unwrap()),
        ..with(by_minute(), |source| {
            source.group_by.clear();
            source.column_timezone = (column != "timestamptz").then(|| "UTC".parse().unwrap());
        })
    };
    initialise(&database, &rollup).await;
    refresh(&database, &rollup).await;
    let mut connection = database.connect().await;
    sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
        "SELECT to_char(bucket AT TIME ZONE '{zone}', 'YYYY-MM-DD HH24:MI') || ' ' || events / 6.0::float8 FROM event_minutes ORDER BY bucket"
    )))
    .fetch_all(&mut connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn days_of_clock_changes_have_their_rows_in_new_york_and_lord_howe() {
    for column in ["timestamptz", "timestamp"] {
        let york = "America/New_York";
        assert_eq!(
            days(york, "2025-03-08T05:00:00Z", "2025-03-11T04:00:00Z", column).await,
            ["2025-03-08 00:00 24", "2025-03-09 00:00 23", "2025-03-10 00:00 24"]
        );
        assert_eq!(
            days(york, "2025-11-01T04:00:00Z", "2025-11-04T05:00:00Z", column).await,
            ["2025-11-01 00:00 24", "2025-11-02 00:00 25", "2025-11-03 00:00 24"]
        );
        let howe = "Australia/Lord_Howe";
        assert_eq!(
            days(howe, "2025-04-04T13:00:00Z", "2025-04-06T13:30:00Z", column).await,
            ["2025-04-05 00:00 24", "2025-04-06 00:00 24.5"]
        );
        assert_eq!(
            days(howe, "2025-10-03T13:30:00Z", "2025-10-05T13:00:00Z", column).await,
            ["2025-10-04 00:00 24", "2025-10-05 00:00 23.5"]
        );
    }
}
