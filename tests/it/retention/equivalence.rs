//! Many small batches must do what one naive statement would have done.

use std::time::Duration;

use pgreeve::job::{Job, Outcome};
use pgreeve::jobs::retention::RetentionJob;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sqlx::{AssertSqlSafe, Connection};

use super::{count, events, ledger_rows};
use crate::support::Database;
use crate::support::backups::until;
use crate::support::context::{Setup, context, run};

#[derive(Debug, Clone, Copy)]
enum Layout {
    /// With an index by age and no key.
    Indexed,
    /// With a key that counts up.
    Keyed,
    /// With a random key, and an index by age.
    Random,
    /// With a key of two columns.
    Composite,
    /// With neither key nor index that helps.
    Bare,
    Partitioned,
    Inherited,
    Ranged,
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
    /// The newest row of each user stays.
    keep_latest: bool,
    /// Which of [`HOLDS`] stand.
    holds: Vec<usize>,
    /// Rows that others reference: by which action of the key, if there is one; and whether they stay.
    referenced: Option<&'static str>,
    /// What runs before the last one meet.
    troubles: Vec<Trouble>,
}

/// What keeps a run from its end.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// Its process is gone after so many milliseconds; the server's half ends when it notices.
    Dies(u64),
    /// Another session holds each so manieth row.
    Locked(u32),
}

/// Holds: the table they are placed on, and their condition. One is null for most rows, one on a
/// part.
const HOLDS: [(&str, &str); 3] = [
    ("events", "events.user_id = 1"),
    ("events", "CASE WHEN id % 7 = 0 THEN true END -- a comment\n"),
    ("events_1", "events_1.user_id > 1"),
];

fn cases() -> impl Strategy<Value = Case> {
    let layout = prop_oneof![
        Just(Layout::Indexed),
        Just(Layout::Keyed),
        Just(Layout::Random),
        Just(Layout::Composite),
        Just(Layout::Bare),
        Just(Layout::Partitioned),
        Just(Layout::Inherited),
        Just(Layout::Ranged)
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
    let keeps = (
        any::<bool>(),
        prop::sample::subsequence(vec![0, 1, 2], 0..=3),
        prop_oneof![Just(None), Just(Some("NO ACTION")), Just(Some("CASCADE"))],
    );
    let trouble = prop_oneof![
        (0_u64..80).prop_map(Trouble::Dies),
        (2_u32..40).prop_map(Trouble::Locked)
    ];
    let troubles = prop_oneof![Just(Vec::new()), prop::collection::vec(trouble, 1..3)];
    (layout, age, near, far, crowd, any::<bool>(), keeps, troubles).prop_map(
        |(layout, age, near, far, crowd, predicate, (keep_latest, holds, referenced), troubles)| Case {
            layout,
            age,
            // A later run has a later cutoff, and the rows near the first one would all be due.
            near: if troubles.is_empty() { near } else { Vec::new() },
            far,
            crowd,
            predicate,
            keep_latest,
            // Only one layout has the part.
            holds: holds
                .into_iter()
                .filter(|hold| *hold < 2 || matches!(layout, Layout::Partitioned))
                .collect(),
            // Only a table with a unique key can be referenced.
            referenced: referenced
                .filter(|_| !matches!(layout, Layout::Partitioned | Layout::Inherited | Layout::Ranged)),
            troubles,
        },
    )
}

/// The table of a case: dead rows, exempt rows and rows without a finite age are always among it.
fn setup(case: &Case) -> String {
    let (age, zone) = case.age;
    let tables = match case.layout {
        Layout::Indexed => format!(
            "CREATE TABLE events (id bigserial, created_at {age}, processed boolean, user_id int); CREATE INDEX ON events (created_at DESC); CREATE INDEX ON events (user_id, created_at);"
        ),
        Layout::Keyed => {
            format!("CREATE TABLE events (id bigserial PRIMARY KEY, created_at {age}, processed boolean, user_id int);")
        }
        Layout::Random => format!(
            "CREATE TABLE events (id bigserial, created_at {age}, processed boolean, user_id int, key uuid PRIMARY KEY DEFAULT gen_random_uuid());
             CREATE INDEX ON events (created_at, user_id);"
        ),
        Layout::Composite => format!(
            "CREATE TABLE events (id bigserial, created_at {age}, processed boolean, user_id int, part int NOT NULL DEFAULT 7, PRIMARY KEY (part, id));"
        ),
        Layout::Bare => format!(
            "CREATE TABLE events (id bigserial, created_at {age}, processed boolean, user_id int);
             CREATE INDEX ON events (created_at) WHERE processed; CREATE INDEX ON events (id, created_at);"
        ),
        Layout::Partitioned => format!(
            "CREATE TABLE events (id bigserial, created_at {age}, processed boolean, user_id int) PARTITION BY LIST (processed);
             CREATE TABLE events_true PARTITION OF events FOR VALUES IN (true);
             CREATE TABLE events_other PARTITION OF events DEFAULT PARTITION BY HASH (id);
             CREATE TABLE events_0 (user_id int, processed boolean, id bigint NOT NULL DEFAULT 0, created_at {age});
             ALTER TABLE events_other ATTACH PARTITION events_0 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE events_1 PARTITION OF events_other FOR VALUES WITH (MODULUS 2, REMAINDER 1);
             CREATE INDEX ON events_true (created_at); CREATE INDEX ON events_1 (created_at);"
        ),
        Layout::Ranged => format!(
            "CREATE TABLE events (id bigserial, created_at {age}, processed boolean, user_id int) PARTITION BY RANGE (created_at);
             CREATE TABLE events_rest PARTITION OF events DEFAULT;
             CREATE TABLE a PARTITION OF events FOR VALUES FROM ('2001-01-01') TO ('2002-01-01');
             DO $$ BEGIN
                 EXECUTE format('CREATE TABLE b PARTITION OF events FOR VALUES FROM (%L) TO (%L)', now() - interval '80 days', now() - interval '60 days');
                 EXECUTE format('CREATE TABLE c PARTITION OF events FOR VALUES FROM (%L) TO (%L) PARTITION BY LIST (processed)', now() - interval '60 days', now() - interval '40 days');
                 EXECUTE format('CREATE TABLE d PARTITION OF events FOR VALUES FROM (%L) TO (%L)', now() - interval '40 days', now() - interval '10 days');
             END $$;
             CREATE TABLE c_yes PARTITION OF c FOR VALUES IN (true); CREATE TABLE c_other PARTITION OF c DEFAULT;
             CREATE INDEX ON events (created_at);"
        ),
        Layout::Inherited => format!(
            "CREATE TABLE events (id bigserial, created_at {age}, processed boolean, user_id int);
             CREATE TABLE \"Heir.1\" (extra text) INHERITS (events);
             CREATE INDEX ON \"Heir.1\" (created_at);
             CREATE RULE to_heir AS ON INSERT TO events WHERE id % 2 = 0 DO INSTEAD
                 INSERT INTO \"Heir.1\" (id, created_at, processed, user_id) VALUES (NEW.id, NEW.created_at, NEW.processed, NEW.user_id);"
        ),
    };
    let far: Vec<String> = case
        .far
        .iter()
        .map(|(hours, state)| {
            format!(
                "({hours}, {}::boolean)",
                state.map_or("NULL".to_owned(), |state| state.to_string())
            )
        })
        .collect();
    let far = if far.is_empty() {
        "(0, NULL::boolean)".to_owned()
    } else {
        far.join(", ")
    };
    let references = case.referenced.map_or(String::new(), |action| {
        format!(
            "ALTER TABLE events ADD UNIQUE (id); CREATE TABLE child (event_id bigint REFERENCES events (id) ON DELETE {action});
             CREATE INDEX ON child (event_id); INSERT INTO child SELECT id FROM events WHERE id % 5 = 0;"
        )
    });
    format!(
        "DROP TABLE IF EXISTS events, child, reference, kept CASCADE; DELETE FROM pgreeve.run_batch; DELETE FROM pgreeve.hold; {tables}
         INSERT INTO events (created_at, processed, user_id)
             SELECT (now() - hours * interval '1 hour') AT TIME ZONE '{zone}', state, nullif(hours % 5, 4)
             FROM (VALUES {far}) AS v (hours, state);
         INSERT INTO events (created_at, processed, user_id) SELECT '2001-02-03', n % 3 <> 0, n % 3 FROM generate_series(1, {crowd}) n;
         INSERT INTO events (created_at, processed) VALUES ('-infinity', true), ('infinity', true), (NULL, true);
         {references} {holds}",
        crowd = case.crowd,
        holds = case.holds.iter().map(|hold| place(HOLDS[*hold])).collect::<String>(),
    )
}

fn place((table, condition): (&str, &str)) -> String {
    format!(
        "INSERT INTO pgreeve.hold (hold_id, table_oid, table_name, predicate, reason, placed_by)
         VALUES (gen_random_uuid(), '{table}'::regclass, 'public.{table}', '{condition}', 'a test', 'a test');"
    )
}

/// Why each row would stay but for its age, by one naive query; each old row is in one class at most.
fn reference(case: &Case) -> String {
    let or_false = |texts: Vec<String>| {
        if texts.is_empty() {
            "false".to_owned()
        } else {
            texts.join(" OR ")
        }
    };
    let held = case.holds.iter().map(|hold| match hold {
        0 => "user_id = 1".to_owned(),
        1 => "id % 7 = 0".to_owned(),
        _ => "tableoid = 'events_1'::regclass AND user_id > 1".to_owned(),
    });
    format!(
        "CREATE TABLE reference AS
         SELECT id, created_at, processed, {met} AND NOT newest AS met, coalesce({held}, false) AS held, {referenced} AS referenced
         FROM (SELECT *, tableoid, {keep_latest} AND row_number() OVER (
                   PARTITION BY user_id ORDER BY created_at DESC NULLS LAST, {key} tableoid DESC, ctid DESC) = 1 AS newest
               FROM events) AS events",
        met = if case.predicate {
            "coalesce(processed, false)"
        } else {
            "true"
        },
        keep_latest = case.keep_latest,
        key = match case.layout {
            Layout::Keyed | Layout::Composite => "id DESC,",
            Layout::Random => "key DESC,",
            _ => "",
        },
        held = or_false(held.collect()),
        referenced = if case.referenced.is_some() {
            "EXISTS (SELECT FROM child WHERE event_id = events.id)"
        } else {
            "false"
        },
    )
}

async fn check(database: &Database, case: &Case) {
    database.execute(&setup(case)).await;
    let (age, zone) = case.age;
    let job = RetentionJob::new(pgreeve::jobs::retention::RetentionSettings {
        predicate: case.predicate.then(|| "events.processed -- a comment".to_owned()),
        timezone: (age != "timestamptz").then(|| zone.parse().unwrap()),
        keep_latest_per: if case.keep_latest {
            vec!["user_id".to_owned()]
        } else {
            Vec::new()
        },
        skip_if_referenced: case.referenced.is_some(),
        ..events()
    });
    // With trouble ahead the reference is taken before; no row comes later then.
    if !case.troubles.is_empty() {
        database.execute(&reference(case)).await;
    }
    let mut before = count(database, "events").await;
    for trouble in &case.troubles {
        meet(database, &job, *trouble).await;
    }
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
    if case.troubles.is_empty() {
        before = count(database, "events").await;
        database.execute(&reference(case)).await;
    }
    database
        .execute(&format!(
            "ALTER TABLE reference ADD old boolean; UPDATE reference SET old = coalesce(created_at < {constant}, false);
             CREATE TABLE kept AS SELECT id FROM reference WHERE NOT (old AND met AND NOT held AND NOT referenced)"
        ))
        .await;
    let left = count(database, "kept").await;
    let exempt = count(database, "reference WHERE old AND NOT met").await;
    let held = count(database, "reference WHERE old AND met AND held").await;
    let referenced = count(database, "reference WHERE old AND met AND NOT held AND referenced").await;
    let report = plan.execute(&mut context).await.unwrap();
    let same = "((SELECT id FROM events EXCEPT ALL SELECT id FROM kept)
                 UNION ALL (SELECT id FROM kept EXCEPT ALL SELECT id FROM events)) AS difference";
    assert_eq!(count(database, same).await, 0);
    assert_eq!(count(database, "events").await, left);
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(report.body["remaining"].as_u64().unwrap(), 0);
    assert_eq!(report.body["exempt"].as_u64().unwrap(), exempt);
    assert_eq!(report.body["held"].as_u64().unwrap(), held);
    assert_eq!(report.body["exempt_referenced"].as_u64().unwrap(), referenced);
    let gone = before - left;
    assert_eq!(ledger_rows(database).await, gone);
    if case.troubles.is_empty() {
        assert_eq!(report.body["rows"].as_u64().unwrap(), gone);
    }
    context.session.close().await;
}

/// One run that does not come to its end, or not to the end of its work.
async fn meet(database: &Database, job: &RetentionJob, trouble: Trouble) {
    let setup = Setup {
        lock_timeout: Duration::from_millis(20),
        ..Setup::default()
    };
    let mut context = context(database, job, &setup).await;
    match trouble {
        Trouble::Dies(after) => {
            let pid = context.session.backend_pid();
            let died = tokio::time::timeout(Duration::from_millis(after), run(job, &mut context)).await;
            if let Ok(ended) = died {
                assert_eq!(ended.unwrap().outcome, Outcome::Succeeded);
            }
            drop(context);
            // What it had begun is over when the server has noticed.
            until("the server has noticed", async || {
                database
                    .value(&format!(
                        "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid})"
                    ))
                    .await
            })
            .await;
        }
        Trouble::Locked(each) => {
            let mut holder = database.connect().await;
            let mut holding = holder.begin().await.unwrap();
            let sql = format!("SELECT id FROM events WHERE id % {each} = 0 FOR UPDATE");
            let held: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
                .fetch_all(&mut *holding)
                .await
                .unwrap();
            let report = run(job, &mut context).await.unwrap();
            let locked = report.body["locked"].as_u64().unwrap();
            let remaining = report.body["remaining"].as_u64().unwrap();
            // Who holds rows of a partition keeps it from being dropped, also when nothing due is in it.
            let deferred = report.body["partitions"]["deferred"].as_array();
            let all_gone = remaining == 0 && deferred.is_none_or(Vec::is_empty);
            assert_eq!(report.outcome == Outcome::Succeeded, all_gone, "{report:?}");
            assert!(locked >= remaining.min(1) && locked <= held.len() as u64, "{report:?}");
            holding.rollback().await.unwrap();
            let there: i64 = sqlx::query_scalar("SELECT count(*) FROM events WHERE id = ANY($1)")
                .bind(&held)
                .fetch_one(&mut holder)
                .await
                .unwrap();
            assert_eq!(there.unsigned_abs(), held.len() as u64, "no held row went");
            context.session.close().await;
        }
    }
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
        cases: 40,
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
