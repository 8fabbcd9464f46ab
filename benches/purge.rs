//! How fast, how even and how gentle a purge is, beside what people write themselves.
//!
//! All runs work on copies of one database, one after the other, on one throwaway server, and what is
//! printed is ratios: the machine's speed is none of their business. `PGREEVE_BENCH_ROWS` sets the
//! number of rows, a million by default; nine of ten are due.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark fails by panicking, and rounds"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use pgreeve::batch::Throttle;
use pgreeve::job::{Job, JobContext, Outcome, Progress, RecordError, Recorder};
use pgreeve::jobs::retention::{RetentionJob, RetentionSettings};
use pgreeve::ledger::leader::Fence;
use pgreeve::ledger::migrate;
use pgreeve::postgres::cluster::Cluster;
use pgreeve::postgres::connect::{ConnectTarget, Session, SessionSettings};
use pgreeve::values::RunId;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio_util::sync::CancellationToken;

/// Rows of a batch of the loops.
const BATCH: u32 = 5000;
const DUE: &str = "created_at < '2026-01-01'";
/// How often each is run.
const REPEATS: u32 = 3;
/// How many changes a second are made beside a purge.
const LOAD: u32 = 200;

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let bench = Bench::set_up().await;
        bench.speed().await;
        bench.gentleness().await;
    });
}

fn line(text: &str) {
    println!("{text}");
}

struct Bench {
    cluster: Cluster,
    rows: u32,
}

/// How one run went.
struct Ran {
    seconds: f64,
    /// The part of it in batches, where more is done.
    batches: Option<f64>,
    /// Time per row of the last tenth of the batches by that of the first.
    slope: Option<f64>,
}

impl Bench {
    async fn set_up() -> Self {
        let rows = std::env::var("PGREEVE_BENCH_ROWS").map_or(1_000_000, |text| text.parse().unwrap());
        let settings = "autovacuum = off\nshared_buffers = 256MB\nmax_wal_size = 16GB\ncheckpoint_timeout = 1h";
        let cluster = tokio::task::spawn_blocking(move || Cluster::start(settings).unwrap())
            .await
            .unwrap();
        let bench = Self { cluster, rows };
        bench.admin("CREATE DATABASE seed").await;
        migrate::apply(&bench.cluster.target("seed")).await.unwrap();
        let mut seed = bench.cluster.target("seed").connect("bench").await.unwrap();
        seed.execute(AssertSqlSafe(format!(
            "CREATE TABLE events (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), company int NOT NULL, created_at timestamptz NOT NULL, payload text);
             INSERT INTO events (company, created_at, payload)
                 SELECT n % 1000, timestamptz '2026-01-01' + (n - {rows} * 0.9) * interval '1 second', repeat('x', 200)
                 FROM generate_series(1, {rows}) n;
             CREATE INDEX ON events (created_at); CREATE INDEX ON events (company, created_at);
             CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
             INSERT INTO accounts SELECT n, 0 FROM generate_series(1, 100000) n"
        )))
        .await
        .unwrap();
        seed.execute("VACUUM (FREEZE, ANALYZE)").await.unwrap();
        seed.close().await.unwrap();
        bench
    }

    async fn admin(&self, sql: &str) {
        let mut connection = self.cluster.target("postgres").connect("bench").await.unwrap();
        connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
        connection.close().await.unwrap();
    }

    /// A fresh copy, with nothing left to write from the one before.
    async fn copy(&self) -> ConnectTarget {
        self.admin("DROP DATABASE IF EXISTS copy").await;
        self.admin("CREATE DATABASE copy TEMPLATE seed").await;
        self.admin("CHECKPOINT").await;
        self.cluster.target("copy")
    }

    async fn speed(&self) {
        line(&format!(
            "{} rows, nine of ten due; time by that of one DELETE on an idle server",
            self.rows
        ));
        line(&format!(
            "{:<44} {:>8} {:>8} {:>16}",
            "", "idle", "pinned", "slope, pinned"
        ));
        let mut unit = None;
        for strategy in Strategy::ALL {
            let mut cells = Vec::new();
            let (mut slope, mut alone) = (None, Vec::new());
            for pinned in [false, true] {
                let ran = self.best(strategy, pinned).await;
                cells.push(ran.seconds / *unit.get_or_insert(ran.seconds));
                alone.extend(ran.batches.map(|seconds| seconds / unit.unwrap_or(seconds)));
                slope = ran.slope;
            }
            let slope = slope.map_or_else(|| "-".to_owned(), |slope| format!("{slope:.1}"));
            line(&format!(
                "{:<44} {:>8.2} {:>8.2} {slope:>16}",
                strategy.name(),
                cells[0],
                cells[1]
            ));
            if let [idle, pinned] = alone[..] {
                line(&format!("{:<44} {idle:>8.2} {pinned:>8.2}", "  of that in batches"));
            }
        }
    }

    /// The quickest of some runs: what other work on the machine adds is noise.
    async fn best(&self, strategy: Strategy, pinned: bool) -> Ran {
        let mut best: Option<Ran> = None;
        for _ in 0..REPEATS {
            let target = self.copy().await;
            let mut old = target.connect("pgreeve:bench").await.unwrap();
            if pinned {
                old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
                old.execute("SELECT count(*) FROM accounts").await.unwrap();
            }
            let ran = strategy.run(&target).await;
            old.close().await.unwrap();
            if best.as_ref().is_none_or(|best| ran.seconds < best.seconds) {
                best = Some(ran);
            }
        }
        best.unwrap()
    }

    async fn gentleness(&self) {
        line("");
        line(&format!(
            "{LOAD} changes a second beside it; by the purge that does not yield"
        ));
        line(&format!("{:<44} {:>8} {:>8}", "", "p99", "time"));
        let mut unit = None;
        for (name, yielding) in [
            ("no purge", None),
            ("pgreeve, not yielding", Some(false)),
            ("pgreeve", Some(true)),
        ] {
            let target = self.copy().await;
            let stop = CancellationToken::new();
            let load = tokio::spawn(load(target.clone(), stop.clone()));
            tokio::time::sleep(Duration::from_secs(2)).await;
            let seconds = match yielding {
                None => {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    None
                }
                Some(yield_to_others) => Some(pgreeve(&target, yield_to_others).await.seconds),
            };
            stop.cancel();
            let p99 = load.await.unwrap();
            if yielding == Some(false) {
                unit = Some((p99, seconds.unwrap()));
            }
            let row = (name, p99, seconds);
            if let (Some((p99_unit, seconds_unit)), (name, p99, Some(seconds))) = (unit, row) {
                line(&format!(
                    "{name:<44} {:>8.2} {:>8.2}",
                    p99 / p99_unit,
                    seconds / seconds_unit
                ));
            } else {
                line(&format!(
                    "{name:<44} {:>8} {:>8}",
                    format!("{:.1} ms", p99 * 1000.0),
                    "-"
                ));
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Strategy {
    Single,
    Limit,
    Ctid,
    Pgreeve,
}

impl Strategy {
    const ALL: [Self; 4] = [Self::Single, Self::Limit, Self::Ctid, Self::Pgreeve];

    fn name(self) -> &'static str {
        match self {
            Self::Single => "one DELETE",
            Self::Limit => "loop: id IN (… ORDER BY created_at LIMIT n)",
            Self::Ctid => "loop: ctid = ANY (ARRAY(… ORDER BY …))",
            Self::Pgreeve => "pgreeve, planned and verified",
        }
    }

    async fn run(self, target: &ConnectTarget) -> Ran {
        let mut connection = target.connect("pgreeve:bench").await.unwrap();
        let one = |column: &str| {
            format!(
                "DELETE FROM events WHERE {column} = ANY (ARRAY(SELECT {column} FROM events WHERE {DUE} ORDER BY created_at LIMIT {BATCH}))"
            )
        };
        match self {
            Self::Single => {
                let started = Instant::now();
                connection
                    .execute(AssertSqlSafe(format!("DELETE FROM events WHERE {DUE}")))
                    .await
                    .unwrap();
                Ran {
                    seconds: started.elapsed().as_secs_f64(),
                    batches: None,
                    slope: None,
                }
            }
            Self::Limit => repeat(&mut connection, &one("id")).await,
            Self::Ctid => repeat(&mut connection, &one("ctid")).await,
            Self::Pgreeve => pgreeve(target, true).await,
        }
    }
}

async fn repeat(connection: &mut PgConnection, sql: &str) -> Ran {
    let started = Instant::now();
    let mut batches = Vec::new();
    loop {
        let batch = Instant::now();
        let done = connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
        if done.rows_affected() == 0 {
            break;
        }
        batches.push(batch.elapsed().as_secs_f64() / done.rows_affected() as f64);
    }
    Ran {
        seconds: started.elapsed().as_secs_f64(),
        batches: None,
        slope: slope(&batches),
    }
}

/// The middle of the last tenth by the middle of the first.
fn slope(times: &[f64]) -> Option<f64> {
    let tenth = (times.len() / 10).max(1);
    let median = |part: &[f64]| {
        let mut part = part.to_vec();
        part.sort_by(f64::total_cmp);
        part.get(part.len() / 2).copied()
    };
    Some(median(times.rchunks(tenth).next()?)? / median(times.chunks(tenth).next()?)?)
}

struct Nowhere;

impl Recorder for Nowhere {
    fn record<'a>(&'a self, _: &'static str, _: serde_json::Value) -> BoxFuture<'a, Result<(), RecordError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// The whole run: plan, batches, verification.
async fn pgreeve(target: &ConnectTarget, yield_to_others: bool) -> Ran {
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
        max_fraction: None,
        max_rows: None,
        archive: None,
        objects: None,
        partitions: None,
    })
    .with_throttle(Throttle {
        yield_to_others,
        ..Throttle::default()
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
    let batches: Vec<f64> =
        sqlx::query_scalar("SELECT milliseconds::float8 / rows FROM pgreeve.run_batch WHERE rows > 0 ORDER BY seq")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    let work: f64 = sqlx::query_scalar("SELECT sum(milliseconds)::float8 / 1000 FROM pgreeve.run_batch")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    Ran {
        seconds,
        batches: Some(work),
        slope: slope(&batches),
    }
}

/// Small changes at even times until stopped; the 99th of a hundred, in seconds from when it was due.
async fn load(target: ConnectTarget, stop: CancellationToken) -> f64 {
    let mut connection = target.connect("load").await.unwrap();
    let mut times = Vec::new();
    let mut due = tokio::time::interval(Duration::from_secs(1) / LOAD);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    while !stop.is_cancelled() {
        let at = due.tick().await;
        let account = i32::try_from(times.len() % 100_000).unwrap() + 1;
        sqlx::query("UPDATE accounts SET balance = balance + 1 WHERE id = $1")
            .bind(account)
            .execute(&mut connection)
            .await
            .unwrap();
        times.push(at.elapsed().as_secs_f64());
    }
    connection.close().await.unwrap();
    // The first two seconds are before the purge.
    let mut times = times.split_off(times.len().min(2 * LOAD as usize));
    times.sort_by(f64::total_cmp);
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}
