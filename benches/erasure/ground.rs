//! The server, and the shop on it.

use std::time::Instant;

use pgreeve::ledger::migrate;
use pgreeve::postgres::cluster::Cluster;
use pgreeve::postgres::connect::ConnectTarget;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::line;

/// How many people go each way.
pub(crate) const REQUESTS: usize = 1000;

/// How many rows a person has: themselves, 5 orders with 3 lines each, 19 events, 10 clicks.
const ROWS_EACH: u64 = 50;

/// Durable, as in production; without a vacuum or a checkpoint in the middle of one of the ways.
const SETTINGS: &str = "fsync = on\nfull_page_writes = on\nshared_buffers = 1536MB\nautovacuum = off\n\
     max_wal_size = 32GB\ncheckpoint_timeout = 1h\nlog_checkpoints = off\nwal_level = minimal\nmax_wal_senders = 0";

const TABLES: &str = "
    CREATE TABLE users AS SELECT n AS id, 'person-' || n || '@example.org' AS email FROM generate_series(1::bigint, {people}) n;
    CREATE TABLE orders AS SELECT n AS id, (n - 1) / 5 + 1 AS user_id, now() AS made_at FROM generate_series(1::bigint, {people} * 5) n;
    CREATE TABLE lines AS SELECT n AS id, (n - 1) / 3 + 1 AS order_id, 'thing ' || n % 997 AS what FROM generate_series(1::bigint, {people} * 15) n;
    CREATE TABLE events AS SELECT n AS id, jsonb_build_object('user_id', n % {people} + 1, 'type', 'type_' || n % 4) AS payload
        FROM generate_series(1::bigint, {people} * 19) n;
    CREATE TABLE clicks AS SELECT n AS id, n % {people} + 1 AS user_id, '10.0.0.' || n % 251 AS address
        FROM generate_series(1::bigint, {people} * 10) n;
    CREATE TABLE requests (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id bigint NOT NULL,
        status text NOT NULL DEFAULT 'pending', created_at timestamptz NOT NULL DEFAULT now(), done_at timestamptz);
    ALTER TABLE users ADD PRIMARY KEY (id);
    ALTER TABLE orders ADD PRIMARY KEY (id);
    ALTER TABLE lines ADD PRIMARY KEY (id);
    ALTER TABLE events ADD PRIMARY KEY (id);
    ALTER TABLE clicks ADD PRIMARY KEY (id);
    CREATE UNIQUE INDEX ON users (email);
    CREATE INDEX ON orders (user_id);
    CREATE INDEX ON lines (order_id);
    CREATE INDEX ON events ((payload ->> 'user_id'));
    CREATE INDEX ON clicks (user_id);
    ALTER TABLE orders ADD FOREIGN KEY (user_id) REFERENCES users;
    ALTER TABLE lines ADD FOREIGN KEY (order_id) REFERENCES orders;
    ALTER TABLE clicks ADD FOREIGN KEY (user_id) REFERENCES users;
    VACUUM (FREEZE, ANALYZE);
    CHECKPOINT";

/// A server with the shop.
pub(crate) struct Ground {
    // Ends the server when it is dropped.
    _cluster: Cluster,
    pub(crate) target: ConnectTarget,
    people: u64,
}

impl Ground {
    pub(crate) async fn lay() -> Self {
        let started = Instant::now();
        let rows: u64 = std::env::var("PGREEVE_BENCH_ROWS").map_or(5_000_000, |text| text.parse().unwrap());
        let people = (rows / ROWS_EACH).max(REQUESTS as u64 * 3);
        let cluster = tokio::task::spawn_blocking(|| Cluster::start(SETTINGS).unwrap())
            .await
            .unwrap();
        let admin = cluster.target("postgres");
        let mut connection = admin.connect("bench").await.unwrap();
        connection.execute("CREATE DATABASE bench").await.unwrap();
        connection.close().await.unwrap();
        let ground = Self {
            target: cluster.target("bench"),
            _cluster: cluster,
            people,
        };
        migrate::apply(&ground.target).await.unwrap();
        for statement in TABLES.replace("{people}", &people.to_string()).split(';') {
            ground.execute(statement).await;
        }
        line(&format!(
            "{} rows of {people} people, {ROWS_EACH} each; made in {:.0} s",
            people * ROWS_EACH,
            started.elapsed().as_secs_f64()
        ));
        ground
    }

    /// Some people, spread over all of them; nobody is in two groups.
    pub(crate) fn people(&self, group: u64, count: usize) -> Vec<i64> {
        let apart = self.people / REQUESTS as u64;
        (0..count as u64)
            .map(|n| i64::try_from(n * apart + group).unwrap())
            .collect()
    }

    /// Fails the benchmark unless just as many rows are gone as two thousand people had.
    pub(crate) async fn assert_erased(&self) {
        let left = self.people - 2 * REQUESTS as u64;
        for (what, each) in [
            ("users", 1),
            ("orders", 5),
            ("lines", 15),
            ("events", 19),
            ("clicks WHERE user_id IS NOT NULL AND address IS NOT NULL", 10),
        ] {
            let rows = self.count(&format!("SELECT count(*) FROM {what}")).await;
            assert_eq!(rows, i64::try_from(left * each).unwrap(), "{what}");
        }
        let done = self
            .count("SELECT count(*) FROM requests WHERE status = 'done' AND done_at IS NOT NULL")
            .await;
        assert_eq!(done, i64::try_from(2 * REQUESTS).unwrap());
    }

    pub(crate) async fn execute(&self, sql: &str) {
        let mut connection = self.target.connect("bench").await.unwrap();
        connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
        connection.close().await.unwrap();
    }

    pub(crate) async fn count(&self, sql: &str) -> i64 {
        let mut connection = self.target.connect("bench").await.unwrap();
        let count = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        count
    }
}
