//! Many small batches must do what one naive statement would have done.

use pgreeve::job::{Job, Outcome};
use pgreeve::jobs::retention::RetentionJob;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{count, events, ledger_rows};
use crate::support::Database;
use crate::support::context::{Setup, context};

#[derive(Debug, Clone, Copy)]
enum Layout {
    Indexed,
    Bare,
    Partitioned,
    Inherited,
}

#[derive(Debug, Clone)]
struct Case {
    layout: Layout,
    /// The age column's type, and the zone it needs.
    age: (&'static str, &'static str),
    /// Microseconds from the cutoff, and the state; `None` is null.
    near: Vec<(i64, Option<bool>)>,
    /// Hours before now.
    far: Vec<(i32, Option<bool>)>,
    /// So many rows of one and the same old age.
    crowd: u32,
    /// Each third row is exempt, or all may go.
    predicate: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    let layout = prop_oneof![
        Just(Layout::Indexed),
        Just(Layout::Bare),
        Just(Layout::Partitioned),
        Just(Layout::Inherited)
    ];
    let age = prop_oneof![
        Just(("timestamptz", "UTC")),
        Just(("timestamp", "America/New_York")),
        Just(("timestamp", "Asia/Tokyo")),
        Just(("date", "Pacific/Auckland"))
    ];
    let state = || prop::option::of(any::<bool>());
    let near = prop::collection::vec((-3_i64..4, state()), 0..12);
    let far = prop::collection::vec((0_i32..2000, state()), 0..400);
    let crowd = prop_oneof![Just(0_u32), Just(60), Just(4500)];
    (layout, age, near, far, crowd, any::<bool>()).prop_map(|(layout, age, near, far, crowd, predicate)| Case {
        layout,
        age,
        near,
        far,
        crowd,
        predicate,
    })
}

/// The table of a case: dead rows, exempt rows and rows without a finite age are always among it.
fn setup(case: &Case) -> String {
    let (age, zone) = case.age;
    let tables = match case.layout {
        Layout::Indexed => format!(
            "CREATE TABLE events (id bigserial, created_at {age}, processed boolean); CREATE INDEX ON events (created_at DESC);"
        ),
        Layout::Bare => format!(
            "CREATE TABLE events (id bigserial, created_at {age}, processed boolean);
             CREATE INDEX ON events (created_at) WHERE processed; CREATE INDEX ON events (id, created_at);"
        ),
        Layout::Partitioned => format!(
            "CREATE TABLE events (id bigserial, created_at {age}, processed boolean) PARTITION BY LIST (processed);
             CREATE TABLE events_true PARTITION OF events FOR VALUES IN (true);
             CREATE TABLE events_other PARTITION OF events DEFAULT PARTITION BY HASH (id);
             CREATE TABLE events_0 (processed boolean, id bigint NOT NULL DEFAULT 0, created_at {age});
             ALTER TABLE events_other ATTACH PARTITION events_0 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE events_1 PARTITION OF events_other FOR VALUES WITH (MODULUS 2, REMAINDER 1);
             CREATE INDEX ON events_true (created_at); CREATE INDEX ON events_1 (created_at);"
        ),
        Layout::Inherited => format!(
            "CREATE TABLE events (id bigserial, created_at {age}, processed boolean);
             CREATE TABLE \"Heir.1\" (extra text) INHERITS (events);
             CREATE INDEX ON \"Heir.1\" (created_at);
             CREATE RULE to_heir AS ON INSERT TO events WHERE id % 2 = 0 DO INSTEAD
                 INSERT INTO \"Heir.1\" (id, created_at, processed) VALUES (NEW.id, NEW.created_at, NEW.processed);"
        ),
    };
    let far: Vec<String> = case
        .far
        .iter()
        .map(|(hours, state)| {
            format!(
                "({hours}, {})",
                state.map_or("NULL".to_owned(), |state| state.to_string())
            )
        })
        .collect();
    let far = if far.is_empty() {
        "(0, NULL::boolean)".to_owned()
    } else {
        far.join(", ")
    };
    format!(
        "DROP TABLE IF EXISTS events, reference CASCADE; DELETE FROM pgreeve.run_batch; {tables}
         INSERT INTO events (created_at, processed)
             SELECT (now() - hours * interval '1 hour') AT TIME ZONE '{zone}', state FROM (VALUES {far}) AS v (hours, state);
         INSERT INTO events (created_at, processed) SELECT '2001-02-03', n % 3 <> 0 FROM generate_series(1, {crowd}) n;
         INSERT INTO events (created_at, processed) VALUES ('-infinity', true), ('infinity', true), (NULL, true);",
        crowd = case.crowd
    )
}

async fn check(database: &Database, case: &Case) {
    database.execute(&setup(case)).await;
    let (age, zone) = case.age;
    let job = RetentionJob::new(pgreeve::jobs::retention::RetentionSettings {
        predicate: case.predicate.then(|| "events.processed -- a comment".to_owned()),
        timezone: (age != "timestamptz").then(|| zone.parse().unwrap()),
        ..events()
    });
    let mut context = context(database, &job, &Setup::default()).await;
    let plan = job.plan(&mut context).await.unwrap();
    let cutoff = plan.intent()["cutoff"].as_str().unwrap().to_owned();
    // The cutoff is fixed: rows around it, and one that only a scan of every leaf finds, come now.
    for (microseconds, state) in &case.near {
        let state = state.map_or("NULL".to_owned(), |state| state.to_string());
        database
            .execute(&format!(
                "INSERT INTO events (created_at, processed) VALUES
                 ((timestamptz '{cutoff}' + {microseconds} * interval '1 microsecond') AT TIME ZONE '{zone}', {state})"
            ))
            .await;
    }
    let constant = match age {
        "timestamptz" => format!("timestamptz '{cutoff}'"),
        "timestamp" => format!("timestamptz '{cutoff}' AT TIME ZONE '{zone}'"),
        _ => format!("(timestamptz '{cutoff}' AT TIME ZONE '{zone}')::date"),
    };
    let condition = if case.predicate { "AND processed" } else { "" };
    database
        .execute(&format!(
            "CREATE TABLE reference AS SELECT id, created_at, processed FROM events;
             DELETE FROM reference WHERE created_at < {constant} {condition};"
        ))
        .await;
    let before = count(database, "events").await;
    let left = count(database, "reference").await;
    let exempt = count(database, &format!("reference WHERE created_at < {constant}")).await;
    let report = plan.execute(&mut context).await.unwrap();
    let same = "((SELECT id FROM events EXCEPT ALL SELECT id FROM reference)
                 UNION ALL (SELECT id FROM reference EXCEPT ALL SELECT id FROM events)) AS difference";
    assert_eq!(count(database, same).await, 0);
    assert_eq!(count(database, "events").await, left);
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(report.body["rows"].as_u64().unwrap(), before - left);
    assert_eq!(report.body["remaining"].as_u64().unwrap(), 0);
    assert_eq!(report.body["exempt"].as_u64().unwrap(), exempt);
    assert_eq!(ledger_rows(database).await, before - left);
    context.session.close().await;
}

#[test]
fn batches_delete_what_one_statement_would() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let database = runtime.block_on(async {
        let database = Database::create().await;
        pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
        database
    });
    let mut runner = TestRunner::new(Config {
        cases: 32,
        failure_persistence: None,
        max_shrink_iters: 64,
        ..Config::default()
    });
    runner
        .run(&cases(), |case| {
            runtime.block_on(check(&database, &case));
            Ok(())
        })
        .unwrap();
}
