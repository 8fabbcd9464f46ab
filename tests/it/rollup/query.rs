//! The query form: figures of a day as rows of a table of the application, as a Prisma application has it.

use pgreeve::job::Outcome;
use pgreeve::jobs::rollup::RollupJob;
use pgreeve::rollup::spec::{Form, Query};
use pgreeve::rollup::{Rollup, Task};
use serde_json::json;

use super::{initialise, task};
use crate::support::Database;
use crate::support::context::{Setup, refusal, run_once};

/// Each figure with what it is of, by `{day}`, `{from}` and `{to}` for the bucket.
const FIGURES: [(&str, &str); 5] = [
    (
        "daily_draws",
        "SELECT count(*)::float8, NULL::float8, NULL::float8 FROM public.\"Draw\" WHERE {within}",
    ),
    (
        "user_signups",
        "SELECT count(*)::float8, NULL::float8, NULL::float8 FROM public.\"User\" WHERE {within}",
    ),
    (
        "revenue",
        "SELECT coalesce(sum(amount), 0)::float8, NULL::float8, NULL::float8 FROM public.\"Payment\" WHERE status = 'paid' AND {within}",
    ),
    (
        "avg_participants_per_draw",
        "SELECT avg(participants)::float8, sum(participants)::float8, count(participants)::float8 FROM public.\"Draw\" WHERE {within} HAVING count(participants) > 0",
    ),
    (
        "error_rate",
        "SELECT (100.0 * count(*) FILTER (WHERE status = 'failed') / count(*))::float8, NULL::float8, NULL::float8 FROM public.\"Draw\" WHERE {within} HAVING count(*) > 0",
    ),
];

/// What Prisma makes of its models: ids come from the client, times are UTC without zone.
async fn cleack() -> Database {
    let database = Database::create().await;
    database
        .execute(
            r#"CREATE TABLE "User" (id text PRIMARY KEY, created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP);
               CREATE TABLE "Draw" (id text PRIMARY KEY, status text NOT NULL, participants int, created_at timestamp(3) NOT NULL);
               CREATE TABLE "Payment" (id text PRIMARY KEY, status text NOT NULL, amount numeric(10, 2) NOT NULL, created_at timestamp(3) NOT NULL);
               CREATE TABLE "SystemMetrics" (id text PRIMARY KEY, metric_type text NOT NULL, value double precision NOT NULL, metadata jsonb, created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP);
               -- Paris changes its clocks on 29 March, and its days begin at 23:00 and 22:00 UTC.
               CREATE TEMP TABLE moments AS SELECT row_number() OVER () AS n, at FROM unnest(ARRAY[
                   '2026-03-27 22:59:59.999', '2026-03-27 23:00', '2026-03-28 12:00', '2026-03-28 22:59:59.999',
                   '2026-03-28 23:00', '2026-03-29 21:59:59.999', '2026-03-29 22:00', '2026-03-30 00:00']::timestamp[]) AS at;
               INSERT INTO "User" SELECT 'u' || n, at FROM moments;
               INSERT INTO "Draw" SELECT 'd' || n, CASE WHEN n % 3 = 0 THEN 'failed' ELSE 'completed' END, n * n, at FROM moments;
               INSERT INTO "Payment" SELECT 'p' || n, CASE WHEN n = 3 THEN 'refunded' ELSE 'paid' END, n + 0.25, at FROM moments;
               INSERT INTO "SystemMetrics" VALUES ('of the application', 'daily_draws', 47, '{"date": "2025-01-05"}'), ('another', 'page_views', 9, '{"date": "2026-03-28"}')"#,
        )
        .await;
    database
}

/// One figure by day, in Paris.
fn figure(name: &str) -> Rollup {
    let (_, of) = FIGURES.iter().find(|(figure, _)| *figure == name).unwrap();
    let within = "created_at >= (SELECT starts AT TIME ZONE 'UTC' FROM bucket) AND created_at < (SELECT ends AT TIME ZONE 'UTC' FROM bucket)";
    Rollup {
        bucket: "1d".parse().unwrap(),
        timezone: Some("Europe/Paris".parse().unwrap()),
        target: "SystemMetrics".parse().unwrap(),
        lateness: "10m".parse().unwrap(),
        form: Form::Query(Query {
            query: format!(
                "SELECT gen_random_uuid()::text AS id, '{name}' AS metric_type, f.value, \
                 jsonb_strip_nulls(jsonb_build_object('date', b.day, 'sum', f.sum, 'count', f.count)) AS metadata \
                 FROM bucket b, ({}) AS f (value, sum, count)",
                of.replace("{within}", within)
            ),
            key: vec!["metric_type".to_owned(), "metadata->>'date'".to_owned()],
        }),
    }
}

/// The same figure of each of the three days, by the wall clock of Paris.
async fn expected(database: &Database, name: &str) -> String {
    let (_, of) = FIGURES.iter().find(|(figure, _)| *figure == name).unwrap();
    let within = "(created_at AT TIME ZONE 'UTC' AT TIME ZONE 'Europe/Paris')::date = d.day";
    database
        .value(&format!(
            "SELECT string_agg(d.day || ' ' || f.value, ', ' ORDER BY d.day)
             FROM generate_series(date '2026-03-28', '2026-03-30', '1 day') AS s, date(s) AS d (day),
                  LATERAL ({}) AS f (value, sum, count)",
            of.replace("{within}", within)
        ))
        .await
}

async fn found(database: &Database, name: &str) -> String {
    database
        .value(&format!(
            "SELECT coalesce(string_agg(metadata->>'date' || ' ' || value, ', ' ORDER BY metadata->>'date'), '')
             FROM \"SystemMetrics\" WHERE metric_type = '{name}' AND id <> 'of the application'"
        ))
        .await
}

fn days() -> Task {
    Task::Backfill {
        from: "2026-03-27T23:00:00Z".parse().unwrap(),
        to: "2026-03-30T22:00:00Z".parse().unwrap(),
    }
}

/// What the application wrote itself.
const THEIRS: &str =
    "SELECT count(*) FROM \"SystemMetrics\" WHERE id IN ('of the application', 'another') AND value IN (47, 9)";

#[tokio::test]
async fn each_figure_is_that_of_its_day_and_running_it_again_never_doubles_it() {
    for unique in [false, true] {
        let database = cleack().await;
        if unique {
            database
                .execute("CREATE UNIQUE INDEX ON \"SystemMetrics\" (metric_type, (metadata->>'date'))")
                .await;
        }
        for (name, _) in FIGURES {
            let rollup = figure(name);
            initialise(&database, &rollup).await;
            for _ in 0..3 {
                let report = task(&database, &rollup, days()).await;
                assert_eq!(
                    (report.outcome, &report.body["buckets"], &report.body["rows_written"]),
                    (Outcome::Succeeded, &json!(3), &json!(3)),
                    "{report:?}"
                );
                assert_eq!(found(&database, name).await, expected(&database, name).await, "{name}");
            }
        }
        assert_eq!(database.value::<i64>(THEIRS).await, 2);
        assert_eq!(
            database.value::<i64>("SELECT count(*) FROM \"SystemMetrics\"").await,
            17
        );
    }
}

#[tokio::test]
async fn a_changed_source_changes_the_figure_and_a_mean_of_days_is_made_of_sums() {
    let database = cleack().await;
    let rollup = figure("avg_participants_per_draw");
    initialise(&database, &rollup).await;
    task(&database, &rollup, days()).await;
    database
        .execute("INSERT INTO \"Draw\" VALUES ('late', 'completed', 1000, '2026-03-28 10:00')")
        .await;
    task(&database, &rollup, days()).await;
    assert_eq!(
        found(&database, "avg_participants_per_draw").await,
        expected(&database, "avg_participants_per_draw").await
    );
    let (mean, of_sums, of_means): (f64, f64, f64) = (
        database
            .value("SELECT avg(participants)::float8 FROM \"Draw\" WHERE created_at >= '2026-03-27 23:00'")
            .await,
        database
            .value("SELECT sum((metadata->>'sum')::float8) / sum((metadata->>'count')::float8) FROM \"SystemMetrics\" WHERE metric_type LIKE 'avg%'")
            .await,
        database
            .value("SELECT avg(value) FROM \"SystemMetrics\" WHERE metric_type LIKE 'avg%'")
            .await,
    );
    assert!(
        (mean - of_sums).abs() < 1e-9 && (mean - of_means).abs() > 1.0,
        "{mean} {of_sums} {of_means}"
    );
}

#[tokio::test]
async fn runs_at_the_same_time_write_each_figure_once_without_a_unique_key() {
    let database = cleack().await;
    let rollup = figure("daily_draws");
    initialise(&database, &rollup).await;
    let runs = (0..6).map(|_| task(&database, &rollup, days()));
    for report in futures::future::join_all(runs).await {
        assert_eq!(report.outcome, Outcome::Succeeded);
    }
    assert_eq!(
        found(&database, "daily_draws").await,
        expected(&database, "daily_draws").await
    );
}

#[tokio::test]
async fn a_schedule_computes_the_days_that_are_over_and_a_purge_waits_for_them() {
    let database = cleack().await;
    let rollup = figure("daily_draws");
    database
        .execute("INSERT INTO \"Draw\" SELECT 'n' || n, 'completed', 1, now() AT TIME ZONE 'UTC' - n * interval '1 hour' FROM generate_series(0, 71) n")
        .await;
    initialise(&database, &rollup).await;
    let purge = pgreeve::jobs::retention::RetentionJob::new(pgreeve::jobs::retention::RetentionSettings {
        table: "Draw".parse().unwrap(),
        keep: "1h".parse().unwrap(),
        timezone: Some("UTC".parse().unwrap()),
        predicate: None,
        ..crate::retention::events()
    });
    let rows = async || database.value::<i64>("SELECT count(*) FROM \"Draw\"").await;
    assert_eq!(run_once(&database, &purge).await.unwrap().outcome, Outcome::Gated);
    assert_eq!(rows().await, 80);
    for _ in 0..2 {
        let report = run_once(&database, &RollupJob::new(rollup.clone())).await.unwrap();
        assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    }
    // Yesterday, by the wall clock of Paris; today is not over.
    let kept: String = found(&database, "daily_draws").await;
    let yesterday: String = database
        .value("SELECT day || ' ' || (SELECT count(*) FROM \"Draw\" WHERE (created_at AT TIME ZONE 'UTC' AT TIME ZONE 'Europe/Paris')::date = day) FROM date((now() - interval '10 minutes') AT TIME ZONE 'Europe/Paris' - interval '1 day') AS d (day)")
        .await;
    assert_eq!(kept, yesterday);
    run_once(&database, &purge).await.unwrap();
    let before: i64 = database
        .value(
            "SELECT count(*) FROM \"Draw\", pgreeve.rollup WHERE \"Draw\".created_at AT TIME ZONE 'UTC' < sealed_until",
        )
        .await;
    assert_eq!((before, rows().await < 80), (0, true));
    // What was counted stays as it is when its rows are gone.
    run_once(&database, &RollupJob::new(rollup.clone())).await.unwrap();
    assert_eq!(found(&database, "daily_draws").await, kept);
}

#[tokio::test]
async fn a_query_that_does_not_fit_its_table_is_refused_by_name() {
    let database = cleack().await;
    let with = |query: &str, key: &[&str]| Rollup {
        form: Form::Query(Query {
            query: query.to_owned(),
            key: key.iter().map(|key| (*key).to_owned()).collect(),
        }),
        ..figure("revenue")
    };
    let figure = "SELECT 'x' AS id, 'revenue' AS metric_type, 1.5 AS value FROM bucket";
    for (query, key, setting, cause) in [
        (
            "SELECT 'revenue' AS metric_type, 1 AS value FROM bucket",
            "metric_type",
            "target",
            "the column id takes no null",
        ),
        (
            "SELECT 1 AS vlaue FROM bucket",
            "metric_type",
            "query",
            "there is no column vlaue",
        ),
        (
            "SELECT sum(amuont) AS value FROM public.\"Payment\"",
            "metric_type",
            "query",
            "amuont",
        ),
        (
            "SELECT 'x' AS id, 'revenue' AS metric_type, 'much' AS value FROM public.payments",
            "metric_type",
            "query",
            "does not exist",
        ),
        (figure, "metric_tpye", "key", "the key metric_tpye is refused"),
        (figure, "metadata->>'date'", "key", "metadata"),
    ] {
        let rollup = with(query, &[key]);
        let error = refusal(&database, &RollupJob::new(rollup), &Setup::default()).await;
        assert!(
            error.cause.contains(cause) && error.setting == Some(setting) && error.remedy.is_some(),
            "{query}: {error:?}"
        );
    }
    let missing = Rollup {
        target: "Metrics".parse().unwrap(),
        ..with(figure, &["metric_type"])
    };
    let error = refusal(&database, &RollupJob::new(missing), &Setup::default()).await;
    assert!(error.cause.contains("there is no such table") && error.remedy.unwrap().contains("make the table"));
}

#[tokio::test]
async fn the_example_of_a_prisma_application_keeps_its_figures() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/cleack-prisma.toml");
    let (config, _) = pgreeve::config::Config::load(&file).unwrap();
    let pgreeve::jobs::KindSettings::Rollup(rollup) = &config.jobs[&"daily-metrics".parse().unwrap()].kind else {
        panic!("a rollup")
    };
    let database = cleack().await;
    initialise(&database, rollup).await;
    for _ in 0..2 {
        assert_eq!(task(&database, rollup, days()).await.outcome, Outcome::Succeeded);
        for name in ["daily_draws", "user_signups", "error_rate"] {
            assert_eq!(found(&database, name).await, expected(&database, name).await, "{name}");
        }
    }
}
