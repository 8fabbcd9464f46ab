//! What is refused, by name, before anything is changed.

use pgreeve::jobs::rollup::RollupJob;
use pgreeve::rollup::Rollup;
use pgreeve::rollup::measure::Measure;
use pgreeve::rollup::spec::Source;

use super::{by_minute, events, initialise, with};
use crate::support::context::{Setup, refusal};
use crate::support::process::Host;
use crate::support::{Database, cluster};

/// What makes a rollup wrong.
type Change = fn(&mut Source);

async fn refused(database: &Database, rollup: &Rollup) -> String {
    let error = refusal(database, &RollupJob::new(rollup.clone()), &Setup::default()).await;
    format!("{error} / {}", error.remedy.clone().unwrap_or_default())
}

#[tokio::test]
async fn what_does_not_fit_is_refused_by_name() {
    let database = events().await;
    initialise(&database, &by_minute()).await;
    let cases: [(Change, &str); 8] = [
        (
            |source| source.source = "evnts".parse().unwrap(),
            "did you mean public.events?",
        ),
        (
            |source| source.time_column = "craeted_at".to_owned(),
            "did you mean created_at",
        ),
        (|source| source.time_column = "amount".to_owned(), "which tells no time"),
        (
            |source| source.group_by = vec!["compny".to_owned()],
            "did you mean company",
        ),
        (
            |source| source.measures = vec![Measure::new("events", "cuont(*)").unwrap()],
            "the measure events is refused",
        ),
        (
            |source| source.measures = vec![Measure::new("events", "amount").unwrap()],
            "the measure events is refused",
        ),
        (
            |source| source.predicate = Some("amuont > 0".to_owned()),
            "the condition is refused",
        ),
        (
            |source| source.source = "event_minutes".parse().unwrap(),
            "it is the source too",
        ),
    ];
    for (change, message) in cases {
        let text = refused(&database, &with(by_minute(), change)).await;
        assert!(text.contains(message), "{message}: {text}");
    }
    let other = with(by_minute(), |source| {
        source.measures = vec![Measure::new("events", "count(amount)").unwrap()];
    });
    assert!(refused(&database, &other).await.contains("adopts the new definition"));
}

#[tokio::test]
async fn a_target_without_column_or_key_is_refused() {
    let database = events().await;
    for (table, message) in [
        (
            "CREATE TABLE event_minutes (bucket timestamptz, company int, events int)",
            "there is no column total",
        ),
        ("CREATE TABLE event_minutes (bucket text)", "cannot tell one bucket"),
        ("CREATE VIEW event_minutes AS SELECT 1 AS bucket", "it is a view"),
        (
            "CREATE TABLE event_minutes (bucket timestamptz, company int, events int, total numeric, least numeric, paid int, people int, mean_sum numeric, mean_count int)",
            "CREATE UNIQUE INDEX ON \"public\".\"event_minutes\" (\"bucket\", \"company\")",
        ),
        (
            "CREATE TABLE event_minutes (bucket timestamptz, company int, events int, total numeric, least numeric, paid int, people int, mean_sum numeric, mean_count int, who text NOT NULL, UNIQUE (company, bucket))",
            "the column who takes no null",
        ),
        (
            "CREATE TABLE event_minutes (bucket timestamptz, company int, events json, total numeric, least numeric, paid int, people int, mean_sum numeric, mean_count int, UNIQUE (company, bucket))",
            "the result is refused: column \"events\" is of type json",
        ),
    ] {
        database
            .execute(&format!("DROP TABLE IF EXISTS event_minutes; {table}"))
            .await;
        let text = refused(&database, &by_minute()).await;
        assert!(text.contains(message), "{message}: {text}");
        if table.contains("VIEW") {
            database.execute("DROP VIEW event_minutes").await;
        }
    }
}

#[tokio::test]
async fn a_wall_clock_without_a_zone_and_a_date_in_hours_are_refused() {
    let database = events().await;
    database
        .execute("ALTER TABLE events ALTER created_at TYPE timestamp")
        .await;
    assert!(refused(&database, &by_minute()).await.contains("set `timezone`"));
    database.execute("ALTER TABLE events ALTER created_at TYPE date").await;
    let zoned = Rollup {
        timezone: Some("UTC".parse().unwrap()),
        ..by_minute()
    };
    assert!(refused(&database, &zoned).await.contains("is shorter"));
}

#[tokio::test]
async fn a_role_that_cannot_see_transactions_is_refused_with_the_grant() {
    let database = events().await;
    initialise(&database, &by_minute()).await;
    let role = format!("blind_{}", database.name);
    database
        .execute(&format!("CREATE ROLE {role} LOGIN; GRANT SELECT ON events TO {role}; GRANT SELECT, INSERT, DELETE ON event_minutes TO {role}"))
        .await;
    let target = cluster().await.target_as(&role, &database.name);
    let setup = Setup {
        target: Some(target),
        ..Setup::default()
    };
    let error = refusal(&database, &RollupJob::new(by_minute()), &setup).await;
    assert_eq!(error.remedy.unwrap(), format!("GRANT pg_read_all_stats TO \"{role}\""));
}

#[test]
fn what_makes_no_sense_is_refused_where_it_stands_in_the_file() {
    let good = [
        ("source", "\"events\""),
        ("time_column", "\"created_at\""),
        ("bucket", "\"1h\""),
        ("target", "\"event_hours\""),
        ("measures", "{ events = \"count(*)\" }"),
    ];
    for (key, value, message) in [
        ("bucket", "\"7m\"", "7 minutes do not divide an hour evenly"),
        ("bucket", "\"5h\"", "5 hours do not divide a day evenly"),
        ("bucket", "\"2w\"", "`2w` divides neither a week nor a month evenly"),
        (
            "timezone",
            "\"Europe/Pariss\"",
            "`Europe/Pariss` is not a time zone of this system",
        ),
        ("measures", "{}", "names no measure"),
        ("measures", "{ events = \"count(*\" }", "a `(` is never closed"),
        (
            "measures",
            "{ events = \"count(*), 1\" }",
            "makes a list, not one measure",
        ),
        (
            "measures",
            "{ a = \"avg(x)\", a_sum = \"sum(x)\" }",
            "`a_sum` would be there twice",
        ),
        ("measures", "{ bucket = \"count(*)\" }", "`bucket` would be there twice"),
        ("mode", "\"exactly\"", "did you mean `exact`?"),
        (
            "lateness",
            "\"2y\"",
            "has months or years, whose length depends on the date",
        ),
        ("query", "\"SELECT 1\"", "does not go with a `query`"),
    ] {
        let mut keys: Vec<(&str, &str)> = good.to_vec();
        keys.retain(|(good, _)| *good != key);
        keys.push((key, value));
        let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        let host = Host::new(&format!(
            "[databases.app]\nurl = \"postgresql://u@localhost/app\"\n[jobs.hours]\nschedule = \"@hourly\"\n[jobs.hours.rollup]\n{}\n",
            keys.join("\n")
        ));
        let found = host.run(&["check"]).expect_code(78).stderr;
        assert!(found.contains(message), "{key} = {value}: {found}");
    }
}
