//! Tables vacuumed and analyzed and indexes rebuilt on a real server.

use std::time::Duration;

use pgreeve::job::{Disposition, Exclusion, Job, JobReport, Outcome, RecoveryContext};
use pgreeve::jobs::upkeep::UpkeepJob;
use pgreeve::ledger::{locks, migrate};
use pgreeve::upkeep::{Action, Upkeep};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection};

use crate::support::context::{Setup, context, refusal, run, run_once};
use crate::support::process::{Host, until};
use crate::support::{Database, cluster};

fn upkeep(tables: &[&str]) -> Upkeep {
    Upkeep {
        tables: tables.iter().map(|table| table.parse().unwrap()).collect(),
        actions: Action::WORDS.into_iter().map(|(_, action)| action).collect(),
        dead_fraction: Upkeep::DEAD_FRACTION,
        bloat_fraction: Upkeep::BLOAT_FRACTION,
        min_index_size: 64 * 1024,
        window: None,
    }
}

fn job(tables: &[&str]) -> UpkeepJob {
    UpkeepJob::new(upkeep(tables))
}

/// A table that nobody else looks after, with 20,000 rows.
async fn events() -> Database {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE events (id bigint PRIMARY KEY, at timestamptz NOT NULL, note text) WITH (autovacuum_enabled = off);
             INSERT INTO events SELECT n, '2026-01-01'::timestamptz + n * interval '1 min', md5(n::text) FROM generate_series(1, 20000) n;
             CREATE INDEX events_note ON events (note)",
        )
        .await;
    database.execute("VACUUM (ANALYZE) events").await;
    database
}

/// `action relation` of each step of a plan or a report.
fn steps(value: &Value) -> Vec<String> {
    let steps = value["steps"].as_array().unwrap();
    let word = |step: &Value, key: &str| step[key].as_str().unwrap().to_owned();
    steps
        .iter()
        .map(|step| format!("{} {}", word(step, "action"), word(step, "relation")))
        .collect()
}

async fn planned(database: &Database, job: &UpkeepJob) -> Vec<String> {
    let mut context = context(database, job, &Setup::default()).await;
    steps(&job.plan(&mut context).await.unwrap().intent())
}

fn entry<'a>(report: &'a JobReport, action: &str) -> &'a Value {
    let steps = report.body["steps"].as_array().unwrap();
    steps.iter().find(|step| step["action"] == action).unwrap()
}

#[tokio::test]
async fn what_needs_nothing_is_left_alone_and_what_does_says_why() {
    let database = events().await;
    database
        .execute("CREATE TABLE quiet AS SELECT n FROM generate_series(1, 1000) n")
        .await;
    database.execute("VACUUM (ANALYZE) quiet").await;
    let job = job(&["events", "quiet"]);
    assert!(planned(&database, &job).await.is_empty());
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(
        (report.outcome, report.body["done"].clone()),
        (Outcome::Succeeded, json!(0))
    );

    database.execute("DELETE FROM events WHERE id <= 2000").await;
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(steps(&report.body), ["vacuum_analyze public.events"]);
    let step = entry(&report, "vacuum_analyze");
    assert_eq!(
        step["reason"],
        "2000 of its rows are dead, 10 %; 2000 of its rows changed since it was analyzed"
    );
    assert_eq!((&step["dead_before"], &step["dead_after"]), (&json!(2000), &json!(0)));
    let dead: i64 = database
        .value("SELECT pg_stat_get_dead_tuples('events'::regclass)")
        .await;
    assert_eq!(dead, 0);
    assert!(planned(&database, &job).await.is_empty());
}

#[tokio::test]
async fn an_index_that_has_grown_is_rebuilt_beside_its_writers_and_not_again() {
    let database = events().await;
    database.execute("DELETE FROM events WHERE id % 5 <> 0").await;
    let job = job(&["events"]);
    let mut early = context(&database, &job, &Setup::default()).await;
    let intent = job.plan(&mut early).await.unwrap().intent();
    assert_eq!(steps(&intent), ["vacuum_analyze public.events"]);
    let warning = intent["warnings"][0].as_str().unwrap();
    assert!(
        warning.starts_with("public.events_note, public.events_pkey: the statistics of the table are too old"),
        "{warning}"
    );
    database.execute("VACUUM (ANALYZE) events").await;
    assert_eq!(
        planned(&database, &job).await,
        ["reindex public.events_note", "reindex public.events_pkey"]
    );
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    for step in report.body["steps"].as_array().unwrap() {
        assert!(
            step["statement"]
                .as_str()
                .unwrap()
                .starts_with("REINDEX INDEX CONCURRENTLY")
        );
        let bytes = |key: &str| step[key].as_u64().unwrap();
        assert!(bytes("bytes_after") * 3 < bytes("bytes_before"), "{step}");
    }
    // Its size is known now, however wrong the statistics may be.
    let rebuilt: i64 = database
        .value("SELECT count(*) FROM pgreeve.index_size WHERE rebuilt AND schema_name = 'public'")
        .await;
    assert_eq!(rebuilt, 2);
    let strict = UpkeepJob::new(Upkeep {
        bloat_fraction: 0.01,
        min_index_size: 1024,
        ..upkeep(&["events"])
    });
    assert!(planned(&database, &strict).await.is_empty());
}

#[tokio::test]
async fn estimates_of_fresh_indexes_are_near_what_the_server_builds() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE wide WITH (autovacuum_enabled = off) AS
             SELECT n::int4 AS number, n::int8 AS big, gen_random_uuid() AS key, md5(n::text) AS text,
                    (n % 50)::int4 AS few, (n % 7 = 0) AS flag, CASE WHEN n % 3 = 0 THEN n END AS gaps,
                    (n % 100)::numeric AS unlike, repeat('x', n % 300) AS long
             FROM generate_series(1, 60000) n;
             CREATE INDEX i1 ON wide (number); CREATE INDEX i2 ON wide (big); CREATE INDEX i3 ON wide (key);
             CREATE INDEX i4 ON wide (text); CREATE INDEX i5 ON wide (few); CREATE INDEX i6 ON wide (flag, big);
             CREATE INDEX i7 ON wide (gaps); CREATE INDEX i8 ON wide (unlike); CREATE INDEX i9 ON wide (lower(text));
             CREATE INDEX i10 ON wide (big) INCLUDE (text); CREATE INDEX i11 ON wide (big) WHERE flag;
             CREATE INDEX i12 ON wide (text) WITH (fillfactor = 60); CREATE UNIQUE INDEX i13 ON wide (key, number);
             CREATE INDEX i14 ON wide (few) WITH (deduplicate_items = off)",
        )
        .await;
    database.execute("VACUUM (ANALYZE) wide").await;
    let strict = |bloat_fraction| {
        UpkeepJob::new(Upkeep {
            bloat_fraction,
            min_index_size: 1024,
            ..upkeep(&["wide"])
        })
    };
    // None is a tenth smaller than the estimate of it.
    assert!(planned(&database, &strict(0.1)).await.is_empty());
    // And of each, when nine of ten rows are gone, it is seen that most is bloat.
    database.execute("DELETE FROM wide WHERE number % 10 <> 0").await;
    database.execute("VACUUM (ANALYZE) wide").await;
    assert_eq!(planned(&database, &strict(0.6)).await.len(), 14);
}

#[tokio::test]
async fn an_index_that_counts_keys_when_it_is_built_and_rows_later_is_not_rebuilt_for_that() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE tagged WITH (autovacuum_enabled = off) AS
             SELECT n, ARRAY(SELECT (n * 31 + i * 7) % 5000 FROM generate_series(1, 20) i) AS tags FROM generate_series(1, 20000) n",
        )
        .await;
    database.execute("VACUUM (ANALYZE) tagged").await;
    database
        .execute("CREATE INDEX tagged_tags ON tagged USING gin (tags)")
        .await;
    let job = job(&["tagged"]);
    assert_eq!(run_once(&database, &job).await.unwrap().outcome, Outcome::Succeeded);
    let known = "SELECT count(*) FROM pgreeve.index_size WHERE index_name = 'tagged_tags'";
    assert_eq!(database.value::<i64>(known).await, 1);
    database.execute("VACUUM (ANALYZE) tagged").await;
    assert!(planned(&database, &job).await.is_empty());
}

#[tokio::test]
async fn dead_rows_that_a_snapshot_keeps_are_not_green_and_the_session_is_named() {
    let database = events().await;
    let mut reader = database.connect().await;
    let pid: i32 = {
        sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM events LIMIT 1")
            .execute(&mut reader)
            .await
            .unwrap();
        sqlx::query_scalar("SELECT pg_backend_pid()")
            .fetch_one(&mut reader)
            .await
            .unwrap()
    };
    database.execute("DELETE FROM events WHERE id <= 2000").await;
    let report = run_once(&database, &job(&["events"])).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial, "{report:?}");
    let reason = report.reason.unwrap();
    assert!(
        reason.starts_with(&format!(
            "public.events: 2000 dead rows are left, kept by the session {pid} (client backend)"
        )),
        "{reason}"
    );
    sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
    assert_eq!(
        run_once(&database, &job(&["events"])).await.unwrap().outcome,
        Outcome::Succeeded
    );
}

#[tokio::test]
async fn what_an_interrupted_rebuild_left_is_dropped_and_any_other_invalid_index_is_named() {
    let database = events().await;
    let mut other = database.connect().await;
    sqlx::raw_sql("SET lock_timeout = '50ms'")
        .execute(&mut other)
        .await
        .unwrap();
    // A lock is in the way of dropping the old index, a snapshot in that of using the new one.
    for (begin, statement) in [
        ("BEGIN", "REINDEX INDEX CONCURRENTLY events_pkey"),
        (
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            "REINDEX INDEX CONCURRENTLY events_note",
        ),
        (
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            "CREATE INDEX CONCURRENTLY events_at ON events (at)",
        ),
    ] {
        let mut reader = database.connect().await;
        sqlx::raw_sql(AssertSqlSafe(format!("{begin}; SELECT 1 FROM events LIMIT 1")))
            .execute(&mut reader)
            .await
            .unwrap();
        sqlx::raw_sql(statement).execute(&mut other).await.unwrap_err();
        reader.close().await.unwrap();
    }
    let report = run_once(&database, &job(&["events"])).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(
        steps(&report.body),
        [
            "drop_leftover public.events_note_ccnew",
            "drop_leftover public.events_pkey_ccold"
        ]
    );
    let warnings = report.body["warnings"].to_string();
    assert!(warnings.contains("public.events_at is invalid"), "{warnings}");
    let invalid: Vec<String> =
        sqlx::query_scalar("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")
            .fetch_all(&mut other)
            .await
            .unwrap();
    assert_eq!(invalid, ["events_at"]);
}

#[tokio::test]
async fn a_rebuild_that_is_cancelled_leaves_nothing_for_long() {
    let database = events().await;
    database.execute("DELETE FROM events WHERE id % 5 <> 0").await;
    database.execute("VACUUM (ANALYZE) events").await;
    let job = job(&["events"]);
    let mut context = context(&database, &job, &Setup::default()).await;
    let (target, fence, recorder) = (context.target.clone(), context.fence, context.recorder.clone());
    let pid = context.session.backend_pid();
    let mut reader = database.connect().await;
    sqlx::raw_sql("BEGIN; SELECT 1 FROM events LIMIT 1")
        .execute(&mut reader)
        .await
        .unwrap();
    let running = tokio::spawn(async move { run(&job, &mut context).await });
    until("the rebuild waits for the reader", async || {
        database
            .value::<bool>(&format!(
                "SELECT EXISTS (SELECT FROM pg_stat_progress_create_index WHERE pid = {pid} AND phase LIKE 'waiting%')"
            ))
            .await
    })
    .await;
    let invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
    assert_eq!(database.value::<i64>(invalid).await, 1);
    assert!(
        database
            .value::<bool>(&format!("SELECT pg_cancel_backend({pid})"))
            .await
    );
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(error.sqlstate.as_deref(), Some("57014"), "{error:?}");
    sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
    // What could not be dropped at once is dropped when a database's lead is taken.
    UpkeepJob::new(upkeep(&["events"]))
        .clean_up(RecoveryContext {
            job: "upkeep".parse().unwrap(),
            database: database.name.clone(),
            target,
            fence,
            recorder,
        })
        .await
        .unwrap();
    assert_eq!(database.value::<i64>(invalid).await, 0);
}

#[tokio::test]
async fn a_daemon_killed_in_the_middle_of_a_rebuild_drops_what_it_left_when_it_is_back() {
    let database = events().await;
    database.execute("DELETE FROM events WHERE id % 5 <> 0").await;
    database.execute("VACUUM (ANALYZE) events").await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.weekly]\nschedule = \"0 4 1 1 *\"\nupkeep = {{ min_index_size = \"64kB\" }}\n"
    ));
    let mut reader = database.connect().await;
    sqlx::raw_sql("BEGIN; SELECT 1 FROM events LIMIT 1")
        .execute(&mut reader)
        .await
        .unwrap();
    let daemon = host.daemon();
    until("the daemon leads", async || {
        daemon.log().contains("leading the database")
    })
    .await;
    let mut client = host.command(&["run", "weekly"]).spawn().unwrap();
    let rebuilding = "SELECT EXISTS (SELECT FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%' AND datname = current_database())";
    until("a rebuild waits for the reader", async || {
        database.value::<bool>(rebuilding).await
    })
    .await;
    daemon.kill();
    client.wait().unwrap();
    // The server notices after a while, and gives the rebuild up; what is left is dropped with the reader gone.
    let daemon = host.daemon();
    until("the server has noticed", async || {
        !database.value::<bool>(rebuilding).await
    })
    .await;
    let invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
    assert_eq!(database.value::<i64>(invalid).await, 1);
    sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
    until("nothing is left", async || database.value::<i64>(invalid).await == 0).await;
    until("the dead run is closed", async || {
        database
            .value::<bool>("SELECT NOT EXISTS (SELECT FROM pgreeve.run WHERE outcome IS NULL)")
            .await
    })
    .await;
    assert_eq!(daemon.stop(), 0);
    host.run(&["run", "weekly"]).expect_code(0);
    host.run(&["audit", "verify"]).expect_code(0);
}

#[tokio::test]
async fn a_backup_keeps_a_vacuum_and_a_rebuild_apart_and_an_analyze_goes_on() {
    let database = events().await;
    database.execute("DELETE FROM events WHERE id <= 2000").await;
    database
        .execute("CREATE TABLE fresh WITH (autovacuum_enabled = off) AS SELECT n FROM generate_series(1, 40) n")
        .await;
    migrate::apply(&database.target).await.unwrap();
    // As a run of a backup holds it.
    let mut backup = database.connect().await;
    let key = locks::key(&Exclusion::Snapshot.lock_name());
    assert!(locks::try_lock(&mut backup, locks::EXCLUSION_CLASS, key).await.unwrap());
    let job = job(&["events", "fresh"]);
    let setup = Setup {
        time: Duration::from_secs(3),
        ..Setup::default()
    };
    let report = run(&job, &mut context(&database, &job, &setup).await).await.unwrap();
    assert_eq!(
        (report.outcome, report.reason.as_deref()),
        (Outcome::Partial, Some("public.events: a backup holds its snapshot"))
    );
    assert_eq!(entry(&report, "analyze")["done"], true);
    assert!(locks::unlock(&mut backup, locks::EXCLUSION_CLASS, key).await.unwrap());
    let mut finished = context(&database, &job, &setup).await;
    assert_eq!(run(&job, &mut finished).await.unwrap().outcome, Outcome::Succeeded);
    // And the run has given its exclusion back.
    assert!(locks::try_lock(&mut backup, locks::EXCLUSION_CLASS, key).await.unwrap());
    backup.close().await.unwrap();
}

#[tokio::test]
async fn a_rebuild_keeps_apart_from_runs_on_the_rows_of_its_table() {
    let database = events().await;
    database.execute("DELETE FROM events WHERE id % 5 <> 0").await;
    database.execute("VACUUM (ANALYZE) events").await;
    migrate::apply(&database.target).await.unwrap();
    let mut purge = database.connect().await;
    let table = database.value("SELECT 'events'::regclass::oid").await;
    let key = locks::rows_key(table);
    assert!(locks::try_lock(&mut purge, locks::EXCLUSION_CLASS, key).await.unwrap());
    let job = job(&["events"]);
    let setup = Setup {
        time: Duration::from_secs(3),
        ..Setup::default()
    };
    let error = run(&job, &mut context(&database, &job, &setup).await)
        .await
        .unwrap_err();
    assert!(
        error
            .cause
            .contains("public.events_note: another run works on the rows of its table"),
        "{error:?}"
    );
    purge.close().await.unwrap();
    assert_eq!(run_once(&database, &job).await.unwrap().outcome, Outcome::Succeeded);
}

#[tokio::test]
async fn a_table_that_somebody_has_locked_holds_up_no_other() {
    let database = events().await;
    database.execute("DELETE FROM events WHERE id <= 2000").await;
    database
        .execute("CREATE TABLE other WITH (autovacuum_enabled = off) AS SELECT n FROM generate_series(1, 40) n")
        .await;
    let job = job(&["events", "other"]);
    let setup = Setup {
        lock_timeout: Duration::from_millis(100),
        ..Setup::default()
    };
    let mut context = context(&database, &job, &setup).await;
    let mut owner = database.connect().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE events")
        .execute(&mut owner)
        .await
        .unwrap();
    let report = run(&job, &mut context).await.unwrap();
    assert_eq!(report.outcome, Outcome::Partial);
    assert_eq!(entry(&report, "analyze")["relation"], "public.other");
    let reason = report.reason.unwrap();
    assert!(
        reason.starts_with("public.events: other sessions kept it locked"),
        "{reason}"
    );
    owner.close().await.unwrap();
}

#[tokio::test]
async fn after_the_window_nothing_more_is_begun() {
    let database = events().await;
    database.execute("DELETE FROM events WHERE id <= 2000").await;
    let over = UpkeepJob::new(Upkeep {
        window: Some("1ms".parse().unwrap()),
        ..upkeep(&["events"])
    });
    let error = run_once(&database, &over).await.unwrap_err();
    assert_eq!(error.cause, "public.events: the window was over");
    let report = error.partial.unwrap();
    assert_eq!((&report["done"], &report["left"]), (&json!(0), &json!(1)));
    assert_eq!(planned(&database, &over).await, ["vacuum_analyze public.events"]);
}

#[tokio::test]
async fn a_divided_table_gets_statistics_as_a_whole_and_a_materialized_view_is_kept_too() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE parts (at date NOT NULL, n int) PARTITION BY RANGE (at);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-02-01') WITH (autovacuum_enabled = off);
             CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') WITH (autovacuum_enabled = off);
             INSERT INTO parts SELECT '2026-01-01'::date + n % 59, n FROM generate_series(1, 1000) n;
             CREATE MATERIALIZED VIEW sums WITH (autovacuum_enabled = off) AS SELECT at, sum(n) AS n FROM parts GROUP BY at",
        )
        .await;
    let job = job(&["parts", "sums"]);
    let report = run_once(&database, &job).await.unwrap();
    assert_eq!(
        steps(&report.body),
        [
            "vacuum public.parts_1",
            "vacuum public.parts_2",
            "vacuum_analyze public.sums",
            "analyze public.parts"
        ],
        "{report:?}"
    );
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    let whole: i64 = database
        .value("SELECT count(*) FROM pg_stats WHERE tablename = 'parts' AND inherited")
        .await;
    assert_eq!(whole, 2);
    assert!(planned(&database, &job).await.is_empty());
    database
        .execute("INSERT INTO parts SELECT '2026-02-10', n FROM generate_series(1, 300) n")
        .await;
    assert_eq!(planned(&database, &job).await, ["analyze public.parts"]);
}

#[tokio::test]
async fn a_table_that_the_role_may_not_maintain_is_refused_by_name_and_told_where_all_are_meant() {
    let database = events().await;
    let role = format!("role_{}", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {} TO {role};
             CREATE TABLE own WITH (autovacuum_enabled = off) AS SELECT n FROM generate_series(1, 1000) n; ALTER TABLE own OWNER TO {role}",
            database.name
        ))
        .await;
    let setup = Setup {
        target: Some(cluster().await.target_as(&role, &database.name)),
        ..Setup::default()
    };
    let error = refusal(&database, &job(&["events", "own"]), &setup).await;
    assert_eq!(error.setting, Some("tables"));
    assert!(
        error.cause.ends_with("the role may not maintain public.events"),
        "{error:?}"
    );
    assert_eq!(
        error.remedy.unwrap(),
        format!("ALTER TABLE \"public\".\"events\" OWNER TO \"{role}\"")
    );
    database
        .execute(&format!(
            "GRANT ALL ON ALL TABLES IN SCHEMA pgreeve TO {role}; GRANT USAGE ON SCHEMA pgreeve TO {role}"
        ))
        .await;
    let all = job(&[]);
    let mut context = context(&database, &all, &setup).await;
    let report = run(&all, &mut context).await.unwrap();
    // What it may not look after is not passed over in silence.
    assert_eq!(report.outcome, Outcome::Partial, "{report:?}");
    assert_eq!(steps(&report.body), ["vacuum_analyze public.own"]);
    assert_eq!(entry(&report, "vacuum_analyze")["done"], true);
    assert!(
        report
            .reason
            .unwrap()
            .contains("the role may not maintain public.events: ALTER TABLE"),
    );
    let grants = job(&["own", "events"])
        .grants(context.session.connection())
        .await
        .unwrap()
        .unwrap();
    let held: Vec<bool> = grants.iter().map(|grant| grant.held).collect();
    assert_eq!(held, [false, true], "{grants:?}");
}

#[tokio::test]
async fn a_server_that_counts_nothing_is_refused() {
    let database = events().await;
    let name = &database.name;
    database
        .execute(&format!("ALTER DATABASE {name} SET track_counts = off"))
        .await;
    let error = refusal(&database, &job(&["events"]), &Setup::default()).await;
    assert!(error.cause.starts_with("track_counts is off"), "{error:?}");
}

#[tokio::test]
async fn names_that_are_no_tables_are_refused() {
    let database = events().await;
    database.execute("CREATE VIEW seen AS SELECT * FROM events").await;
    for (table, cause, remedy) in [
        ("evens", "there is no table of this name", "did you mean public.events?"),
        ("seen", "it is a view", "name a table that is stored here"),
    ] {
        let error = refusal(&database, &job(&["events", table]), &Setup::default()).await;
        assert_eq!((error.cause.as_str(), error.setting), (cause, Some("tables")));
        assert_eq!(error.remedy.as_deref(), Some(remedy));
    }
}

#[tokio::test]
async fn a_run_that_has_lost_the_lead_does_nothing_more() {
    let database = events().await;
    database.execute("DELETE FROM events WHERE id <= 2000").await;
    let job = job(&["events"]);
    let mut context = context(&database, &job, &Setup::default()).await;
    let plan = job.plan(&mut context).await.unwrap();
    database.execute("UPDATE pgreeve.leader SET epoch = epoch + 1").await;
    let error = plan.execute(&mut context).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::Displaced, "{error:?}");
    assert_eq!(planned(&database, &job).await, ["vacuum_analyze public.events"]);
}

#[tokio::test]
async fn the_program_checks_plans_and_runs_it() {
    let database = events().await;
    database.execute("DELETE FROM events WHERE id <= 2000").await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.weekly]\nschedule = \"0 4 * * 0\"\nupkeep = {{ tables = [\"events\"], min_index_size = \"64kB\", window = \"2h\" }}\n"
    ));
    host.run(&["check", "--connect"]).expect_code(0);
    // Also before there is a ledger.
    let text = host.run(&["plan", "weekly"]).expect_code(0).stdout;
    assert!(
        text.contains("steps              action vacuum_analyze, reason 2000 of its rows are dead, 10 %;"),
        "{text}"
    );
    let plan = host.run(&["plan", "weekly", "--json"]).expect_code(0).json();
    assert_eq!(steps(&plan["plan"]["intent"]), ["vacuum_analyze public.events"]);
    let done = host.run(&["run", "weekly", "--json"]).expect_code(0).json();
    assert_eq!(
        (
            &done["run"]["kind"],
            &done["run"]["outcome"],
            &done["run"]["report"]["done"]
        ),
        (&json!("upkeep"), &json!("succeeded"), &json!(1))
    );
    let records = host.audit_records();
    let start = records.iter().find(|record| record["kind"] == "run.start").unwrap();
    assert_eq!(
        start["body"]["intent"]["steps"][0]["statement"],
        "VACUUM (ANALYZE) \"public\".\"events\""
    );
}
