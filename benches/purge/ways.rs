//! The ways to purge that are compared.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use pgreeve::job::{Job, JobContext, Outcome, Progress, RecordError, Recorder};
use pgreeve::jobs::retention::{RetentionJob, RetentionSettings};
use pgreeve::ledger::leader::Fence;
use pgreeve::postgres::connect::{ConnectTarget, Session, SessionSettings};
use pgreeve::values::RunId;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::figures::slope;
use crate::ground::DUE;

/// One way to delete what is due.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// One statement.
    Single,
    /// The oldest 5000 by their places, again and again.
    Ordered,
    /// Any 10,000 by their keys, again and again, each in a transaction of its own within the server.
    Cron,
    /// Planned, deleted, verified.
    Pgreeve,
}

/// How one run went.
pub(crate) struct Ran {
    pub(crate) seconds: f64,
    /// Time per row of the last tenth of the batches by that of the first.
    pub(crate) slope: f64,
}

/// How one run went, and what was seen of it from outside.
pub(crate) struct Watched {
    pub(crate) ran: Ran,
    /// The longest transaction that held locks on rows, and the longest that only read.
    pub(crate) longest: (f64, f64),
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Single => "one DELETE",
            Self::Ordered => "loop: ctid = ANY (… ORDER BY … LIMIT 5000)",
            Self::Cron => "loop as with pg_cron: id IN (… LIMIT 10000)",
            Self::Pgreeve => "pgreeve, planned and verified",
        }
    }

    /// Runs it once, and watches its transactions from outside.
    pub(crate) async fn watched(self, target: &ConnectTarget) -> Watched {
        let stop = CancellationToken::new();
        let watch = tokio::spawn(watch(target.clone(), stop.clone()));
        let ran = self.run(target).await;
        stop.cancel();
        Watched {
            ran,
            longest: watch.await.unwrap(),
        }
    }

    /// Runs it once.
    pub(crate) async fn run(self, target: &ConnectTarget) -> Ran {
        let mut connection = target.connect("purge").await.unwrap();
        let started = Instant::now();
        let batches = match self {
            Self::Single => {
                let sql = format!("DELETE FROM events WHERE {DUE}");
                connection.execute(AssertSqlSafe(sql)).await.unwrap();
                Vec::new()
            }
            Self::Ordered => ordered(&mut connection).await,
            Self::Cron => cron(&mut connection).await,
            Self::Pgreeve => Vec::new(),
        };
        let (seconds, batches) = if self == Self::Pgreeve {
            connection.close().await.unwrap();
            pgreeve(target).await
        } else {
            let seconds = started.elapsed().as_secs_f64();
            connection.close().await.unwrap();
            (seconds, batches)
        };
        Ran {
            seconds,
            slope: slope(&batches),
        }
    }
}

async fn ordered(connection: &mut PgConnection) -> Vec<(f64, f64)> {
    let sql = format!(
        "DELETE FROM events WHERE ctid = ANY (ARRAY(SELECT ctid FROM events WHERE {DUE} ORDER BY created_at LIMIT 5000))"
    );
    let mut batches = Vec::new();
    loop {
        let batch = Instant::now();
        let done = connection.execute(AssertSqlSafe(sql.clone())).await.unwrap();
        if done.rows_affected() == 0 {
            return batches;
        }
        batches.push((done.rows_affected() as f64, batch.elapsed().as_secs_f64()));
    }
}

async fn cron(connection: &mut PgConnection) -> Vec<(f64, f64)> {
    let procedure = format!(
        "CREATE PROCEDURE purge(INOUT batches jsonb) LANGUAGE plpgsql AS $$
         DECLARE done bigint; began timestamptz;
         BEGIN
             LOOP
                 began := clock_timestamp();
                 DELETE FROM events WHERE id IN (SELECT id FROM events WHERE {DUE} LIMIT 10000);
                 GET DIAGNOSTICS done = ROW_COUNT;
                 EXIT WHEN done = 0;
                 COMMIT;
                 batches := batches || jsonb_build_array(jsonb_build_array(done, extract(epoch FROM clock_timestamp() - began)));
             END LOOP;
         END $$"
    );
    connection.execute(AssertSqlSafe(procedure)).await.unwrap();
    let batches: serde_json::Value = sqlx::query_scalar("CALL purge('[]')")
        .fetch_one(connection)
        .await
        .unwrap();
    serde_json::from_value(batches).unwrap()
}

struct Nowhere;

impl Recorder for Nowhere {
    fn record<'a>(&'a self, _: &'static str, _: serde_json::Value) -> BoxFuture<'a, Result<(), RecordError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// The whole run as the default settings have it, but for the brake that so large a part of a table
/// would trip.
async fn pgreeve(target: &ConnectTarget) -> (f64, Vec<(f64, f64)>) {
    let run = RunId::new();
    let mut connection = target.connect("pgreeve:bench").await.unwrap();
    sqlx::query(
        "INSERT INTO pgreeve.run (run_id, job, kind, timezone, trigger, actor, instance, epoch, policy, attempt, started_at)
         VALUES ($1, 'bench', 'retention', 'UTC', 'manual', 'bench', 'bench', 0, 'bench', 1, now())",
    )
    .bind(run.0)
    .execute(&mut connection)
    .await
    .unwrap();
    let keep: i64 = sqlx::query_scalar("SELECT extract(epoch FROM now() - '2026-01-01')::int8")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let job = RetentionJob::new(RetentionSettings {
        table: "events".parse().unwrap(),
        age_column: "created_at".to_owned(),
        keep: format!("{keep}s").parse().unwrap(),
        predicate: None,
        timezone: None,
        keep_latest_per: Vec::new(),
        skip_if_referenced: false,
        after: Vec::new(),
        max_fraction: Some(1.0),
        max_rows: None,
        archive: None,
        objects: None,
        partitions: None,
    });
    let (lock, statement) = (Duration::from_secs(2), Duration::from_mins(1));
    let settings = SessionSettings::run(format!("pgreeve:bench:{run}"), lock, statement);
    let mut context = JobContext {
        run,
        attempt: 1,
        job: "bench".parse().unwrap(),
        database: "bench".to_owned(),
        target: target.clone(),
        session: Session::open(target, &settings).await.unwrap(),
        fence: Fence { epoch: 0 },
        stop: CancellationToken::new(),
        deadline: Instant::now() + Duration::from_hours(1),
        recorder: Arc::new(Nowhere),
        progress: Progress::new(),
    };
    let started = Instant::now();
    let plan = job.plan(&mut context).await.unwrap();
    let report = plan.execute(&mut context).await.unwrap();
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    context.session.close().await;
    let batches: Vec<(f64, f64)> = sqlx::query_as(
        "SELECT rows::float8, milliseconds::float8 / 1000 FROM pgreeve.run_batch WHERE rows > 0 ORDER BY seq",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    (seconds, batches)
}

/// The longest transactions that are seen from outside, looking a hundred times a second: with an
/// identity, so with locks on rows, and without.
async fn watch(target: ConnectTarget, stop: CancellationToken) -> (f64, f64) {
    let mut connection = target.connect("pgreeve:watch").await.unwrap();
    let mut longest = (0.0_f64, 0.0_f64);
    while !stop.is_cancelled() {
        let (writing, reading): (f64, f64) = sqlx::query_as(
            "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)) FILTER (WHERE backend_xid IS NOT NULL), 0)::float8,
                    coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)) FILTER (WHERE backend_xid IS NULL), 0)::float8
             FROM pg_stat_activity
             WHERE datname = current_database() AND (application_name = 'purge' OR application_name LIKE 'pgreeve:bench:%')",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        longest = (longest.0.max(writing), longest.1.max(reading));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    connection.close().await.unwrap();
    longest
}
