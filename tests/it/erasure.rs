//! Erasure on real tables.

mod crashes;
mod deadlines;
mod examples;
mod groups;
mod holds;
mod masks;
mod plans;
mod property;
mod requests;

use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use pgreeve::erasure::objects::Removed;
use pgreeve::erasure::rule::Rule;
use pgreeve::erasure::{Account, Identifiers, Proof, ProofError, RequestId, Residue, Search, Subject, SubjectToken};
use pgreeve::job::{JobError, JobReport};
use pgreeve::jobs::erasure::ErasureJob;
use pgreeve::store::ObjectKey;
use pgreeve::values::{Name, Timezone, fingerprint};
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::support::Database;
use crate::support::context::{Setup, context, run};

/// What the engine asked to be proved, in order.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Before the first step.
    pub remembered: Vec<Account>,
    /// After the last.
    pub certified: Vec<Account>,
    /// What each scan was to look for.
    pub searched: Vec<Identifiers>,
}

/// Keeps what it is asked, so that a test can look at the engine alone.
#[derive(Debug, Default)]
pub struct Witness(pub Mutex<Asked>);

impl Witness {
    /// What it was asked so far.
    pub fn asked(&self) -> Asked {
        self.0.lock().unwrap().clone()
    }
}

impl Proof for Witness {
    fn token(&self, subject: &Subject<'_>) -> Result<SubjectToken, ProofError> {
        Ok(SubjectToken {
            key_id: "test".to_owned(),
            token: fingerprint(&format!("{}/{}", subject.table, subject.key.expose())),
        })
    }

    fn remember<'a>(&'a self, accounts: &'a [Account]) -> BoxFuture<'a, Result<Vec<Value>, ProofError>> {
        self.0.lock().unwrap().remembered.extend_from_slice(accounts);
        Box::pin(async move { Ok(vec![json!({}); accounts.len()]) })
    }

    fn scan<'a>(
        &'a self,
        _connection: &'a mut PgConnection,
        searches: &'a [Search],
    ) -> BoxFuture<'a, Result<Vec<Residue>, ProofError>> {
        let mut asked = self.0.lock().unwrap();
        asked
            .searched
            .extend(searches.iter().map(|search| search.identifiers.clone()));
        let found = searches.iter().map(|_| Residue::default()).collect();
        Box::pin(async move { Ok(found) })
    }

    fn seal<'a>(
        &'a self,
        searches: &'a [(RequestId, &'a Search)],
    ) -> BoxFuture<'a, Result<Vec<Option<Vec<u8>>>, ProofError>> {
        Box::pin(async move { Ok(vec![None; searches.len()]) })
    }

    fn remove<'a>(&'a self, _store: &'a Name, keys: Vec<ObjectKey>) -> BoxFuture<'a, Result<Removed, ProofError>> {
        let gone = keys.len() as u64;
        Box::pin(async move { Ok(Removed { gone, versions: 0 }) })
    }

    fn certify<'a>(&'a self, accounts: &'a [Account]) -> BoxFuture<'a, Result<Vec<Value>, ProofError>> {
        self.0.lock().unwrap().certified.extend_from_slice(accounts);
        Box::pin(async move { Ok(vec![json!({}); accounts.len()]) })
    }
}

/// A job of settings as they stand in a configuration.
pub fn job(settings: &str) -> (ErasureJob, Arc<Witness>) {
    job_of(rule(settings))
}

/// A job of a rule.
pub fn job_of(rule: Rule) -> (ErasureJob, Arc<Witness>) {
    let witness = Arc::new(Witness::default());
    let proof: Arc<dyn Proof> = witness.clone();
    let job = ErasureJob::new(
        rule,
        Timezone::utc(),
        Arc::new(move || {
            let proof = Arc::clone(&proof);
            Box::pin(async move { Ok(proof) })
        }),
    );
    (job, witness)
}

/// Settings as they stand in a configuration.
pub fn rule(settings: &str) -> Rule {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    let text = format!(
        "[databases.app]\nurl = \"postgresql:///x?user=x\"\n[jobs.erase]\nschedule = \"*/15 * * * *\"\n[jobs.erase.erasure]\n{settings}"
    );
    std::fs::write(&file, text).unwrap();
    let (config, _) = pgreeve::config::Config::load(&file).unwrap_or_else(|findings| panic!("{findings:#?}"));
    match &config.jobs.values().next().unwrap().kind {
        pgreeve::jobs::KindSettings::Erasure(rule) => rule.as_ref().clone(),
        other => panic!("{other:?}"),
    }
}

/// Runs settings once on a database.
pub async fn erase(database: &Database, settings: &str) -> (Result<JobReport, JobError>, Arc<Witness>) {
    let (job, witness) = job(settings);
    let mut context = context(database, &job, &Setup::default()).await;
    (run(&job, &mut context).await, witness)
}

/// A shop: people, their orders with lines, notes that point in a circle, events with JSON, and the
/// requests. Jane is 1, John is 2.
pub const SHOP: &str = "
    CREATE TABLE users (id int PRIMARY KEY, email text NOT NULL UNIQUE, referred_by int REFERENCES users);
    CREATE SCHEMA sales;
    CREATE TABLE sales.orders (shop int, id int, user_id int NOT NULL REFERENCES users ON DELETE CASCADE, PRIMARY KEY (shop, id));
    CREATE TABLE sales.lines (shop int, order_id int, place int, what text,
                              FOREIGN KEY (shop, order_id) REFERENCES sales.orders);
    CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY, payload jsonb, at timestamptz DEFAULT now());
    CREATE TABLE sessions (token text PRIMARY KEY, email text);
    CREATE TABLE clicks (session_token varchar(40), what text);
    CREATE TABLE requests (id int PRIMARY KEY, who text, status text DEFAULT 'pending', created_at timestamptz DEFAULT now(), done_at timestamptz);
    INSERT INTO users VALUES (1, 'jane@example.org', NULL), (2, 'john@example.org', 1), (3, 'jo@example.org', 2);
    INSERT INTO sales.orders SELECT s, n, u FROM generate_series(1, 3) n, generate_series(1, 2) s, LATERAL (SELECT CASE n WHEN 3 THEN 2 ELSE 1 END) AS o (u);
    INSERT INTO sales.lines SELECT shop, id, p, 'thing' FROM sales.orders, generate_series(1, 4) p;
    INSERT INTO events (payload) SELECT jsonb_build_object('user_id', u, 'n', n) FROM generate_series(1, 3) u, generate_series(1, 5) n;
    INSERT INTO sessions SELECT 'session-' || n, (SELECT email FROM users WHERE id = n % 3 + 1) FROM generate_series(1, 6) n;
    INSERT INTO clicks SELECT token, 'here' FROM sessions, generate_series(1, 3);
    INSERT INTO requests (id, who) VALUES (10, '1');
    ANALYZE";

/// What happens in the shop.
pub const SHOP_RULE: &str = r#"
    requests = { table = "requests", id = "id", subject = "who", status = "status", pending = "pending", done = "done", failed = "failed", received_at = "created_at", finished_at = "done_at" }
    subject  = { table = "users", key = "id", identifiers = ["email"] }
    edges    = ["events.payload->>'user_id' = users.id", "sessions.email = users.email", "clicks.session_token = sessions.token"]
    [jobs.erase.erasure.tables]
    users          = { action = "delete" }
    "sales.orders" = { action = "delete" }
    "sales.lines"  = { action = "delete" }
    events         = { action = "delete" }
    sessions       = { action = "delete" }
    clicks         = { action = "mask", set = { session_token = "hmac(20)" } }
    requests       = { action = "keep", basis = "Art. 5(2)" }
"#;

/// A shop with its ledger.
pub async fn shop() -> Database {
    let database = Database::create().await;
    database.execute(SHOP).await;
    pgreeve::ledger::migrate::apply(&database.target).await.unwrap();
    database
}

/// An operator's request for a person.
pub async fn ask(database: &Database, settings: &str, key: &str) {
    ask_at(database, settings, key, jiff::Timestamp::now()).await;
}

/// The same, received at another time.
pub async fn ask_at(database: &Database, settings: &str, key: &str, received_at: jiff::Timestamp) {
    let rule = rule(settings);
    let mut connection = database.connect().await;
    let asked = pgreeve::erasure::desk::Asked {
        job: "the-job",
        database: &database.name,
        rule: &rule,
        zone: &jiff::tz::TimeZone::UTC,
        key: &pgreeve::erasure::SubjectKey::new(key.to_owned()),
        received_at,
        requested_by: "a test",
    };
    pgreeve::erasure::desk::receive(&mut connection, &asked, &Witness::default())
        .await
        .unwrap();
}

/// How many rows there are.
pub async fn count(database: &Database, what: &str) -> i64 {
    database.value(&format!("SELECT count(*) FROM {what}")).await
}
