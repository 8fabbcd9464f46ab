//! Status sweeps on real tables.

use std::time::Duration;

use pgreeve::job::{Job, Outcome};
use pgreeve::jobs::transition::{FromState, TransitionJob, TransitionSettings};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sqlx::{Connection, Executor};

use crate::retention::contention::until_somebody_waits;
use crate::support::Database;
use crate::support::context::{Setup, context, refusal, run, run_once};

/// Sessions in progress without activity for two hours are abandoned.
fn sweep() -> TransitionSettings {
    TransitionSettings {
        table: "onboarding.sessions".parse().unwrap(),
        age_column: "last_activity_at".to_owned(),
        age_fallback: None,
        after: "2h".parse().unwrap(),
        from: FromState {
            column: "status".to_owned(),
            values: vec!["started".to_owned(), "in_progress".to_owned()],
        },
        set: [("status".to_owned(), "abandoned".to_owned())].into(),
        stamp: vec!["abandoned_at".to_owned()],
        predicate: None,
        timezone: None,
    }
}

fn job() -> TransitionJob {
    TransitionJob::new(sweep())
}

const SCHEMA: &str = "
    CREATE SCHEMA onboarding;
    CREATE TYPE onboarding.session_status AS ENUM ('started', 'in_progress', 'completed', 'abandoned');
    CREATE TABLE onboarding.sessions (
        id bigint PRIMARY KEY, status onboarding.session_status, last_activity_at timestamptz,
        abandoned_at timestamptz, pinned boolean DEFAULT false, token text GENERATED ALWAYS AS ('t' || id) STORED);";

async fn with_sessions(rows: &str) -> Database {
    let database = Database::create().await;
    database
        .execute(&format!(
            "{SCHEMA} INSERT INTO onboarding.sessions (id, status, last_activity_at, abandoned_at) VALUES {rows};"
        ))
        .await;
    database
}

async fn statuses(database: &Database) -> Vec<String> {
    database
        .value("SELECT array_agg(coalesce(status::text, 'null') ORDER BY id) FROM onboarding.sessions")
        .await
}

#[tokio::test]
async fn a_session_without_activity_goes_by_its_start_or_is_named() {
    let database = with_sessions("(1, 'in_progress', NULL, NULL), (2, 'completed', NULL, NULL)").await;
    database
        .execute(
            "ALTER TABLE onboarding.sessions ADD started_at timestamptz NOT NULL DEFAULT now();
             CREATE INDEX ON onboarding.sessions (last_activity_at);
             UPDATE onboarding.sessions SET started_at = now() - interval '3 hours';
             INSERT INTO onboarding.sessions (id, status, last_activity_at, started_at) VALUES
                 (3, 'in_progress', NULL, now() - interval '119 minutes'),
                 (4, 'in_progress', now() - interval '119 minutes', now() - interval '3 hours'),
                 (5, 'in_progress', now() - interval '121 minutes', now())",
        )
        .await;
    let without = run_once(&database, &job()).await.unwrap();
    assert_eq!(without.body["rows"], 1);
    let warnings = without.body["warnings"].to_string();
    assert!(
        warnings.contains("never due, having no last_activity_at: 2 rows; `age_fallback` names"),
        "{warnings}"
    );
    let by_start = TransitionSettings {
        age_fallback: Some("started_at".to_owned()),
        ..sweep()
    };
    let with = run_once(&database, &TransitionJob::new(by_start.clone()))
        .await
        .unwrap();
    assert_eq!((with.outcome, &with.body["rows"]), (Outcome::Succeeded, &1.into()));
    assert_eq!(with.body["warnings"].to_string(), "[]");
    assert_eq!(
        statuses(&database).await,
        ["abandoned", "completed", "in_progress", "in_progress", "abandoned"]
    );
    let of_another_type = TransitionSettings {
        age_fallback: Some("status".to_owned()),
        ..by_start
    };
    let refused = refusal(&database, &TransitionJob::new(of_another_type), &Setup::default()).await;
    assert!(
        refused.to_string().contains("cannot stand in for last_activity_at"),
        "{refused}"
    );
}

#[tokio::test]
async fn only_listed_states_that_are_old_enough_move_and_are_stamped_once() {
    let database = with_sessions(
        "(1, 'in_progress', now() - interval '3 hours', NULL), (2, 'started', now() - interval '3 hours', '2001-01-01'),
         (3, 'completed', now() - interval '3 hours', NULL), (4, 'in_progress', now() - interval '1 hour', NULL),
         (5, 'in_progress', NULL, NULL), (6, NULL, '-infinity', NULL), (7, 'started', '-infinity', NULL)",
    )
    .await;
    let report = run_once(&database, &job()).await.unwrap();
    assert_eq!((report.outcome, &report.body["rows"]), (Outcome::Succeeded, &3.into()));
    assert_eq!(
        statuses(&database).await,
        [
            "abandoned",
            "abandoned",
            "completed",
            "in_progress",
            "in_progress",
            "null",
            "abandoned"
        ]
    );
    let stamps: Vec<bool> = database
        .value("SELECT array_agg(abandoned_at > now() - interval '1 minute' ORDER BY id) FROM onboarding.sessions WHERE status = 'abandoned'")
        .await;
    assert_eq!(stamps, [true, false, true]);
    assert_eq!(database.value::<i64>("SELECT count(*) FROM pgreeve.purge").await, 0);
    // Nobody moves twice.
    assert_eq!(run_once(&database, &job()).await.unwrap().body["rows"], 0);
}

#[tokio::test]
async fn a_session_exactly_as_old_as_the_limit_stays_one_microsecond_more_moves_it() {
    let database = Database::create().await;
    database.execute(SCHEMA).await;
    let job = job();
    let mut context = context(&database, &job, &Setup::default()).await;
    let plan = job.plan(&mut context).await.unwrap();
    let cutoff = plan.intent()["cutoff"].as_str().unwrap().to_owned();
    database
        .execute(&format!(
            "INSERT INTO onboarding.sessions (id, status, last_activity_at)
             SELECT n, 'started', timestamptz '{cutoff}' + n * interval '1 microsecond' FROM generate_series(-1, 1) n"
        ))
        .await;
    assert_eq!(plan.execute(&mut context).await.unwrap().outcome, Outcome::Succeeded);
    assert_eq!(statuses(&database).await, ["abandoned", "started", "started"]);
}

#[tokio::test]
async fn a_session_that_becomes_active_again_meanwhile_is_not_touched() {
    for index in ["", "CREATE INDEX ON onboarding.sessions (last_activity_at)"] {
        let database = with_sessions(
            "(1, 'started', now() - interval '3 hours', NULL), (2, 'started', now() - interval '3 hours', NULL),
             (3, 'started', now() - interval '3 hours', NULL)",
        )
        .await;
        database.execute(index).await;
        let mut application = database.connect().await;
        let mut active = application.begin().await.unwrap();
        active
            .execute("UPDATE onboarding.sessions SET last_activity_at = now() WHERE id = 2")
            .await
            .unwrap();
        let setup = Setup {
            lock_timeout: Duration::from_secs(20),
            ..Setup::default()
        };
        let job = job();
        let mut context = context(&database, &job, &setup).await;
        let (report, ()) = tokio::join!(run(&job, &mut context), async {
            until_somebody_waits(&database).await;
            active.commit().await.unwrap();
        });
        let report = report.unwrap();
        assert_eq!(
            (report.outcome, &report.body["rows"]),
            (Outcome::Succeeded, &2.into()),
            "{report:?}"
        );
        assert_eq!(statuses(&database).await, ["abandoned", "started", "abandoned"]);
    }
}

/// What is wrong with a policy.
type Mistake = fn(&mut TransitionSettings);

#[tokio::test]
async fn misspelt_states_and_columns_are_refused() {
    let database = with_sessions("(1, 'started', now(), NULL)").await;
    let cases: [(Mistake, &str, &str); 9] = [
        (
            |s| s.from.values.push("in_progres".to_owned()),
            "'in_progres' is not a value of status (onboarding.session_status)",
            "did you mean in_progress?",
        ),
        (
            |s| drop(s.set.insert("status".to_owned(), "gone".to_owned())),
            "'gone' is not a value of status",
            "its values are started, in_progress, completed, abandoned",
        ),
        (
            |s| drop(s.set.insert("status".to_owned(), "started".to_owned())),
            "one of the states to move from",
            "not in `from`",
        ),
        (
            |s| s.set = [("pinned".to_owned(), "true".to_owned())].into(),
            "would be due again",
            "set status",
        ),
        (
            |s| s.from.column = "statuz".to_owned(),
            "no column statuz",
            "did you mean status?",
        ),
        (
            |s| drop(s.set.insert("token".to_owned(), "x".to_owned())),
            "token is generated",
            "generated from",
        ),
        (
            |s| drop(s.set.insert("pinned".to_owned(), "perhaps".to_owned())),
            "'perhaps' is not a value of pinned (boolean)",
            "boolean",
        ),
        (
            |s| s.stamp.push("pinned".to_owned()),
            "pinned of `stamp` is of type boolean",
            "timestamptz",
        ),
        (
            |s| drop(s.set.insert("abandoned_at".to_owned(), "2020-01-01".to_owned())),
            "both in `set` and in `stamp`",
            "one of them",
        ),
    ];
    for (change, cause, remedy) in cases {
        let mut settings = sweep();
        change(&mut settings);
        let error = refusal(&database, &TransitionJob::new(settings), &Setup::default()).await;
        assert!(error.cause.contains(cause), "{error:?}");
        assert!(error.remedy.as_deref().unwrap().contains(remedy), "{error:?}");
    }
    assert_eq!(statuses(&database).await, ["started"]);
}

#[tokio::test]
async fn a_state_that_decides_the_partition_is_refused_and_any_other_moves() {
    let partitioned = |by: &str| {
        format!(
            "CREATE SCHEMA onboarding; CREATE TABLE onboarding.sessions (
                 id int, status text, last_activity_at timestamptz, abandoned_at timestamptz) PARTITION BY {by};
             CREATE TABLE onboarding.sessions_all PARTITION OF onboarding.sessions DEFAULT;
             INSERT INTO onboarding.sessions VALUES (1, 'started', '2001-01-01')"
        )
    };
    for by in ["LIST (status)", "LIST (lower(status))"] {
        let database = Database::create().await;
        database.execute(&partitioned(by)).await;
        let error = refusal(&database, &job(), &Setup::default()).await;
        assert!(error.cause.contains("partitioned by status"), "{error:?}");
    }
    let database = Database::create().await;
    database.execute(&partitioned("RANGE (last_activity_at)")).await;
    let report = run_once(&database, &job()).await.unwrap();
    assert_eq!((report.outcome, &report.body["rows"]), (Outcome::Succeeded, &1.into()));
    assert_eq!(statuses(&database).await, ["abandoned"]);
}

#[tokio::test]
async fn a_text_state_that_no_row_has_is_a_warning_and_a_long_one_is_refused() {
    let database = Database::create().await;
    database
        .execute(
            "CREATE SCHEMA onboarding; CREATE TABLE onboarding.sessions (
                 id int, status varchar(11), last_activity_at timestamptz, abandoned_at timestamp);
             INSERT INTO onboarding.sessions VALUES (1, 'started', '2001-01-01')",
        )
        .await;
    let zoned = TransitionSettings {
        timezone: Some("Asia/Tokyo".parse().unwrap()),
        ..sweep()
    };
    let job = TransitionJob::new(zoned.clone());
    let mut context = context(&database, &job, &Setup::default()).await;
    let plan = job.plan(&mut context).await.unwrap();
    let warnings = plan.intent()["warnings"].to_string();
    assert!(
        warnings.contains("status = 'in_progress'") && !warnings.contains("'started'"),
        "{warnings}"
    );
    assert_eq!(plan.execute(&mut context).await.unwrap().body["rows"], 1);
    let stamped: bool = database
        .value("SELECT abandoned_at AT TIME ZONE 'Asia/Tokyo' > now() - interval '1 minute' FROM onboarding.sessions")
        .await;
    assert!(stamped);
    // Without a zone nobody knows what to stamp.
    let error = refusal(&database, &TransitionJob::new(sweep()), &Setup::default()).await;
    assert!(error.cause.contains("has no time zone"), "{error:?}");
    let mut long = zoned;
    long.set.insert("status".to_owned(), "discontinued".to_owned());
    let error = refusal(&database, &TransitionJob::new(long), &Setup::default()).await;
    assert!(
        error
            .cause
            .contains("'discontinued' does not fit status (character varying(11))"),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_right_to_update_is_needed_on_the_changed_columns_only() {
    let database = with_sessions("(1, 'started', '2001-01-01', NULL)").await;
    pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
    let role = format!("{}_reeve", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA onboarding, pgreeve TO {role};
             GRANT ALL ON ALL TABLES IN SCHEMA pgreeve TO {role}; GRANT SELECT ON onboarding.sessions TO {role};
             GRANT UPDATE (status) ON onboarding.sessions TO {role}"
        ))
        .await;
    let setup = Setup {
        target: Some(crate::support::cluster().await.target_as(&role, &database.name)),
        ..Setup::default()
    };
    let error = refusal(&database, &job(), &setup).await;
    let remedy = error.remedy.unwrap();
    assert_eq!(
        remedy,
        format!("GRANT UPDATE (\"status\", \"abandoned_at\") ON \"onboarding\".\"sessions\" TO \"{role}\"")
    );
    database.execute(&remedy).await;
    let report = run(&job(), &mut context(&database, &job(), &setup).await)
        .await
        .unwrap();
    assert_eq!((report.outcome, &report.body["rows"]), (Outcome::Succeeded, &1.into()));
}

/// Minutes since the last activity, the state's number, and whether it is pinned.
type Session = (Option<i32>, Option<u8>, Option<bool>);

async fn check(database: &Database, sessions: &[Session], index: bool, predicate: bool) {
    let rows: Vec<String> = sessions
        .iter()
        .enumerate()
        .map(|(id, (minutes, state, pinned))| {
            let show = |text: Option<String>| text.unwrap_or_else(|| "NULL".to_owned());
            let activity = show(minutes.map(|minutes| format!("now() - interval '{minutes} minutes'")));
            let state =
                show(state.map(|state| format!("(enum_range(NULL::onboarding.session_status))[{}]", state + 1)));
            format!(
                "({id}, {state}, {activity}, NULL, {})",
                show(pinned.map(|pinned| pinned.to_string()))
            )
        })
        .collect();
    let index = if index {
        "CREATE INDEX ON onboarding.sessions (last_activity_at);"
    } else {
        ""
    };
    database
        .execute(&format!(
            "DROP SCHEMA IF EXISTS onboarding CASCADE; {SCHEMA} {index}
             INSERT INTO onboarding.sessions VALUES {}",
            rows.join(", ")
        ))
        .await;
    let job = TransitionJob::new(TransitionSettings {
        predicate: predicate.then(|| "NOT pinned".to_owned()),
        ..sweep()
    });
    let mut context = context(database, &job, &Setup::default()).await;
    let plan = job.plan(&mut context).await.unwrap();
    let cutoff = plan.intent()["cutoff"].as_str().unwrap().to_owned();
    let condition = if predicate { "AND NOT pinned" } else { "" };
    database
        .execute(&format!(
            "CREATE TABLE onboarding.reference AS TABLE onboarding.sessions;
             UPDATE onboarding.reference SET status = 'abandoned'
             WHERE status IN ('started', 'in_progress') AND last_activity_at < '{cutoff}' {condition}"
        ))
        .await;
    let report = plan.execute(&mut context).await.unwrap();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    let differences: i64 = database
        .value(
            "SELECT count(*) FROM onboarding.sessions s FULL JOIN onboarding.reference r USING (id)
             WHERE s.status IS DISTINCT FROM r.status",
        )
        .await;
    assert_eq!(differences, 0);
    let stamped: i64 = database
        .value("SELECT count(*) FROM onboarding.sessions WHERE abandoned_at IS NOT NULL")
        .await;
    assert_eq!(report.body["rows"].as_i64().unwrap(), stamped);
    context.session.close().await;
}

#[test]
fn batches_move_what_one_statement_would() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let database = runtime.block_on(Database::create());
    let session = (
        prop::option::weighted(0.9, 0_i32..300),
        prop::option::weighted(0.9, 0_u8..4),
        prop::option::of(any::<bool>()),
    );
    let sessions = prop::collection::vec(session, 1..300);
    let mut runner = TestRunner::new(Config {
        cases: 16,
        failure_persistence: None,
        max_shrink_iters: 64,
        ..Config::default()
    });
    runner
        .run(
            &(sessions, any::<bool>(), any::<bool>()),
            |(sessions, index, predicate)| {
                runtime.block_on(check(&database, &sessions, index, predicate));
                Ok(())
            },
        )
        .unwrap();
}
