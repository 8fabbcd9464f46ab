//! The ways to erase people that are compared.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use pgreeve::audit::{AuditLog, RunRecorder};
use pgreeve::config::Config;
use pgreeve::erasure::host::{HostProof, HostSettings};
use pgreeve::erasure::objects::Removed;
use pgreeve::erasure::proof::{Account, Proof, ProofError, Residue, Search, Subject, SubjectToken};
use pgreeve::erasure::request::RequestId;
use pgreeve::erasure::rule::Rule;
use pgreeve::job::{Job, JobContext, Outcome, Progress};
use pgreeve::jobs::KindSettings;
use pgreeve::jobs::erasure::ErasureJob;
use pgreeve::ledger::leader::Fence;
use pgreeve::postgres::connect::{Session, SessionSettings};
use pgreeve::store::ObjectKey;
use pgreeve::values::{Name, RunId, Timezone};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::ground::Ground;

/// The same in both ways.
const CONFIG: &str = r#"
[databases.bench]
url = "postgresql:///bench?user=bench"
[jobs.erase]
schedule = "*/15 * * * *"
[jobs.erase.erasure]
requests = { table = "requests", id = "id", subject = "user_id", status = "status", pending = "pending", done = "done", failed = "failed", received_at = "created_at", finished_at = "done_at" }
subject  = { table = "users", key = "id", identifiers = ["email"] }
edges    = ["events.payload->>'user_id' = users.id"]
[jobs.erase.erasure.tables]
users    = { action = "delete" }
orders   = { action = "delete" }
lines    = { action = "delete" }
events   = { action = "delete" }
clicks   = { action = "mask", set = { user_id = "null", address = "null" } }
requests = { action = "keep", basis = "Art. 5(2)" }
"#;

/// What somebody writes who knows the schema: children first, each by an index, one transaction a person.
const BY_HAND: [&str; 6] = [
    "DELETE FROM lines WHERE order_id IN (SELECT id FROM orders WHERE user_id = $1)",
    "DELETE FROM orders WHERE user_id = $1",
    "DELETE FROM events WHERE payload ->> 'user_id' = $1::bigint::text",
    "UPDATE clicks SET user_id = NULL, address = NULL WHERE user_id = $1",
    "DELETE FROM users WHERE id = $1",
    "UPDATE requests SET status = 'done', done_at = now() WHERE user_id = $1",
];

/// Erases people by hand; answers with the seconds.
pub(crate) async fn by_hand(ground: &Ground, people: Vec<i64>) -> f64 {
    ask(ground, &people).await;
    let mut connection = ground.target.connect("bench").await.unwrap();
    let started = Instant::now();
    for person in people {
        let mut transaction = connection.begin().await.unwrap();
        for sql in BY_HAND {
            sqlx::query(sql).bind(person).execute(&mut *transaction).await.unwrap();
        }
        transaction.commit().await.unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    connection.close().await.unwrap();
    seconds
}

async fn ask(ground: &Ground, people: &[i64]) {
    let mut connection = ground.target.connect("bench").await.unwrap();
    sqlx::query("INSERT INTO requests (user_id) SELECT unnest($1::int8[])")
        .bind(people)
        .execute(&mut connection)
        .await
        .unwrap();
    connection
        .execute("CREATE INDEX IF NOT EXISTS requests_user ON requests (user_id)")
        .await
        .unwrap();
    connection.execute("ANALYZE requests").await.unwrap();
    connection.execute("CHECKPOINT").await.unwrap();
    connection.close().await.unwrap();
}

/// How a run of pgreeve went.
pub(crate) struct Ran {
    /// From the plan to the report.
    pub(crate) seconds: f64,
    /// The part of them in which every text of the database was searched.
    pub(crate) search: f64,
    /// The time of the last tenth of the requests by that of the first, of their steps.
    pub(crate) steps: f64,
    /// The same of what closes them.
    pub(crate) closing: f64,
    /// The seconds from the first step of all to the last.
    pub(crate) stepping: f64,
    /// Those from the first group that is closed to the last.
    pub(crate) ending: f64,
}

/// Erases people as the program does it, with its audit log, its ledger and its certificates on disk.
pub(crate) async fn pgreeve(ground: &Ground, people: Vec<i64>) -> Ran {
    ask(ground, &people).await;
    let state = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let run = begun(ground).await;
    let log = AuditLog::open(&state.path().join("audit"), "bench").unwrap();
    let proof = Arc::new(Timed {
        proof: HostProof::open(HostSettings {
            state_dir: state.path().to_path_buf(),
            instance: "bench".to_owned(),
            backups: Vec::new(),
            exports: Vec::new(),
            recipients: std::collections::BTreeMap::default(),
            stores: std::collections::BTreeMap::default(),
            archive_keeps: std::collections::BTreeMap::default(),
        })
        .unwrap(),
        search: Mutex::default(),
    });
    let mut context = context(ground, run, log).await;
    let opened = Arc::clone(&proof);
    let job = ErasureJob::new(
        rule(state.path()),
        Timezone::utc(),
        Arc::new(move || {
            let proof = Arc::clone(&opened);
            Box::pin(async move { Ok(proof as Arc<dyn Proof>) })
        }),
    );
    let started = Instant::now();
    let plan = job.plan(&mut context).await.unwrap();
    let report = plan.execute(&mut context).await.unwrap();
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(report.outcome, Outcome::Succeeded, "{report:?}");
    assert_eq!(report.body["completed"], people.len());
    context.session.close().await;
    let search = *proof.search.lock().unwrap();
    Ran {
        seconds,
        search: search.as_secs_f64(),
        steps: slope(
            ground,
            "SELECT max(committed_at) AS at FROM pgreeve.erasure_step GROUP BY request_id",
        )
        .await,
        closing: slope(ground, "SELECT finished_at AS at FROM pgreeve.erasure_request").await,
        stepping: span(ground, "committed_at", "step").await,
        ending: span(ground, "finished_at", "request").await,
    }
}

/// The seconds between the first and the last instant of a kind.
async fn span(ground: &Ground, column: &str, table: &str) -> f64 {
    let mut connection = ground.target.connect("bench").await.unwrap();
    let seconds = sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT extract(epoch FROM max({column}) - min({column}))::float8 FROM pgreeve.erasure_{table}"
    )))
    .fetch_one(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    seconds
}

/// The time between the instants of the last tenth by that of the first tenth.
async fn slope(ground: &Ground, instants: &str) -> f64 {
    let mut connection = ground.target.connect("bench").await.unwrap();
    let slope = sqlx::query_scalar(AssertSqlSafe(format!(
        "WITH placed AS (SELECT extract(epoch FROM at)::float8 AS at, ntile(10) OVER (ORDER BY at) AS tenth FROM ({instants}) AS i),
              tenths AS (SELECT tenth, max(at) - min(at) AS seconds FROM placed GROUP BY tenth)
         SELECT (SELECT seconds FROM tenths WHERE tenth = 10) / (SELECT seconds FROM tenths WHERE tenth = 1)"
    )))
    .fetch_one(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    slope
}

fn rule(directory: &Path) -> Rule {
    let file = directory.join("config.toml");
    std::fs::write(&file, CONFIG).unwrap();
    let (config, _) = Config::load(&file).unwrap();
    match &config.jobs.values().next().unwrap().kind {
        KindSettings::Erasure(rule) => rule.as_ref().clone(),
        other => panic!("{other:?}"),
    }
}

async fn begun(ground: &Ground) -> RunId {
    let run = RunId::new();
    let mut connection = ground.target.connect("bench").await.unwrap();
    sqlx::query(
        "INSERT INTO pgreeve.run (run_id, job, kind, timezone, trigger, actor, instance, epoch, policy, attempt, started_at)
         VALUES ($1, 'erase', 'erasure', 'UTC', 'manual', 'bench', 'bench', 0, 'bench', 1, now())",
    )
    .bind(run.0)
    .execute(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    run
}

async fn context(ground: &Ground, run: RunId, log: AuditLog) -> JobContext {
    let (lock, statement) = (Duration::from_secs(2), Duration::from_mins(10));
    let settings = SessionSettings::run(format!("pgreeve:erase:{run}"), lock, statement);
    JobContext {
        run,
        attempt: 1,
        job: "erase".parse().unwrap(),
        database: "bench".to_owned(),
        target: ground.target.clone(),
        session: Session::open(&ground.target, &settings).await.unwrap(),
        fence: Fence { epoch: 0 },
        stop: CancellationToken::new(),
        deadline: Instant::now() + Duration::from_hours(1),
        recorder: Arc::new(RunRecorder {
            log,
            run: Some(run),
            job: "erase".parse().unwrap(),
            database: Some("bench".to_owned()),
            policy: Some("bench".to_owned()),
            actor: Some("bench".to_owned()),
        }),
        progress: Progress::new(),
    }
}

/// The proof of a host, and how long it searched.
struct Timed {
    proof: HostProof,
    search: Mutex<Duration>,
}

impl Proof for Timed {
    fn token(&self, subject: &Subject<'_>) -> Result<SubjectToken, ProofError> {
        self.proof.token(subject)
    }

    fn remember<'a>(&'a self, accounts: &'a [Account]) -> BoxFuture<'a, Result<Vec<Value>, ProofError>> {
        self.proof.remember(accounts)
    }

    fn scan<'a>(
        &'a self,
        connection: &'a mut PgConnection,
        searches: &'a [Search],
    ) -> BoxFuture<'a, Result<Vec<Residue>, ProofError>> {
        Box::pin(async move {
            let started = Instant::now();
            let residues = self.proof.scan(connection, searches).await;
            *self.search.lock().unwrap() += started.elapsed();
            residues
        })
    }

    fn seal<'a>(
        &'a self,
        searches: &'a [(RequestId, &'a Search)],
    ) -> BoxFuture<'a, Result<Vec<Option<Vec<u8>>>, ProofError>> {
        self.proof.seal(searches)
    }

    fn remove<'a>(&'a self, store: &'a Name, keys: Vec<ObjectKey>) -> BoxFuture<'a, Result<Removed, ProofError>> {
        self.proof.remove(store, keys)
    }

    fn certify<'a>(&'a self, accounts: &'a [Account]) -> BoxFuture<'a, Result<Vec<Value>, ProofError>> {
        self.proof.certify(accounts)
    }

    fn attend<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Value, pgreeve::job::JobError>> {
        self.proof.attend(context)
    }
}
