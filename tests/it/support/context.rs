//! A run's surroundings without a runner: what a job is given, made by hand.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use pgreeve::job::{Job, JobContext, JobError, JobReport, Progress, RecordError, Recorder};
use pgreeve::ledger::leader::Fence;
use pgreeve::ledger::migrate;
use pgreeve::postgres::connect::{ConnectTarget, Session, SessionSettings};
use pgreeve::values::RunId;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Database;

/// Keeps what a job records.
#[derive(Debug, Default)]
pub struct Recording(Mutex<Vec<(&'static str, Value)>>);

impl Recording {
    /// All records so far.
    pub fn records(&self) -> Vec<(&'static str, Value)> {
        self.0.lock().unwrap().clone()
    }
}

impl Recorder for Recording {
    fn record<'a>(&'a self, kind: &'static str, body: Value) -> BoxFuture<'a, Result<(), RecordError>> {
        Box::pin(async move {
            self.0.lock().unwrap().push((kind, body));
            Ok(())
        })
    }
}

/// How a test's run differs from the usual one.
#[derive(Clone)]
pub struct Setup {
    /// How long a statement may wait for a lock.
    pub lock_timeout: Duration,
    /// How long a statement may run.
    pub statement_timeout: Duration,
    /// How long the run may take.
    pub time: Duration,
    /// As whom it connects, if not as the superuser.
    pub target: Option<ConnectTarget>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            lock_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(30),
            time: Duration::from_mins(5),
            target: None,
        }
    }
}

/// A context for one run of `job` on a database, with the ledger in place and the run's row in it.
pub async fn context(database: &Database, job: &dyn Job, setup: &Setup) -> JobContext {
    migrate::apply(&database.target).await.unwrap();
    let run = RunId::new();
    let mut connection = database.connect().await;
    sqlx::query(
        "INSERT INTO pgreeve.run (run_id, job, kind, timezone, trigger, actor, instance, epoch, policy, attempt, started_at)
         VALUES ($1, 'the-job', $2, 'UTC', 'manual', 'test', 'test', 0, 'policy', 1, now())",
    )
    .bind(run.0)
    .bind(job.kind().as_str())
    .execute(&mut connection)
    .await
    .unwrap();
    let target = setup.target.clone().unwrap_or_else(|| database.target.clone());
    let settings = SessionSettings {
        lock_timeout: setup.lock_timeout,
        statement_timeout: setup.statement_timeout,
        ..SessionSettings::control(format!("pgreeve:the-job:{run}"))
    };
    JobContext {
        run,
        attempt: 1,
        job: "the-job".parse().unwrap(),
        database: database.name.clone(),
        session: Session::open(&target, &settings).await.unwrap(),
        target,
        fence: Fence { epoch: 0 },
        stop: CancellationToken::new(),
        deadline: Instant::now() + setup.time,
        recorder: Arc::new(Recording::default()),
        progress: Progress::new(),
    }
}

/// Plans and executes a job, as the runner would.
pub async fn run(job: &dyn Job, context: &mut JobContext) -> Result<JobReport, JobError> {
    job.plan(context).await?.execute(context).await
}

/// Plans and executes a job in a context of its own.
pub async fn run_once(database: &Database, job: &dyn Job) -> Result<JobReport, JobError> {
    run(job, &mut context(database, job, &Setup::default()).await).await
}

/// Why a job is refused.
pub async fn refusal(database: &Database, job: &dyn Job, setup: &Setup) -> JobError {
    let mut context = context(database, job, setup).await;
    let Err(error) = job.plan(&mut context).await else {
        panic!("the plan was not refused");
    };
    assert_eq!(error.disposition, pgreeve::job::Disposition::Refused, "{error:?}");
    error
}
