//! The server, the events on it, and the view that rollups are compared with.

use std::time::Instant;

use pgreeve::ledger::migrate;
use pgreeve::postgres::cluster::Cluster;
use pgreeve::postgres::connect::ConnectTarget;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::line;

/// Durable, as in production; without a vacuum or a checkpoint in the middle of one of the runs.
const SETTINGS: &str = "fsync = on\nfull_page_writes = on\nshared_buffers = 1536MB\nautovacuum = off\n\
     max_wal_size = 32GB\ncheckpoint_timeout = 1h\nlog_checkpoints = off\nwal_level = minimal\nmax_wal_senders = 0";

/// What the view keeps, and each rollup.
pub(crate) const QUERY: &str =
    "SELECT date_trunc('hour', created_at, 'UTC') AS bucket, company_id, type, count(*) AS events, sum(amount) AS total
     FROM {table} GROUP BY 1, 2, 3";

/// A server with the events.
pub(crate) struct Ground {
    // Ends the server when it is dropped.
    _cluster: Cluster,
    pub(crate) target: ConnectTarget,
    rows: u64,
}

impl Ground {
    /// Lays 99 of a hundred events, up to a day ago, and a view of them.
    pub(crate) async fn lay() -> Self {
        let started = Instant::now();
        let rows: u64 = std::env::var("PGREEVE_BENCH_ROWS").map_or(10_000_000, |text| text.parse().unwrap());
        let cluster = tokio::task::spawn_blocking(|| Cluster::start(SETTINGS).unwrap())
            .await
            .unwrap();
        let admin = cluster.target("postgres");
        admin
            .connect("bench")
            .await
            .unwrap()
            .execute("CREATE DATABASE bench")
            .await
            .unwrap();
        let ground = Self {
            target: cluster.target("bench"),
            _cluster: cluster,
            rows,
        };
        migrate::apply(&ground.target).await.unwrap();
        // A hundredth of the rows a day.
        ground
            .execute("CREATE TABLE day_ago AS SELECT date_trunc('hour', now()) - interval '24 hours' AS at")
            .await;
        for (table, rows) in [("events", rows / 100 * 99), ("recent", rows / 1000 * 99)] {
            ground
                .execute(&format!(
                    "CREATE TABLE {table} AS {};
                     CREATE INDEX ON {table} (created_at);
                     VACUUM (FREEZE, ANALYZE) {table}",
                    ground.events(1, rows, "-")
                ))
                .await;
        }
        ground
            .execute(&format!(
                "CREATE MATERIALIZED VIEW hours AS {}; CREATE UNIQUE INDEX ON hours (bucket, company_id, type); ANALYZE hours",
                QUERY.replace("{table}", "events")
            ))
            .await;
        line(&format!(
            "{rows} events, a hundredth of them new; made in {:.0} s",
            started.elapsed().as_secs_f64()
        ));
        ground
    }

    /// Events before or after a day ago, as close as a hundredth of them fills a day.
    fn events(&self, first: u64, last: u64, sign: &str) -> String {
        let seconds = 86_400.0 / f64::from(u32::try_from(self.rows / 100).unwrap());
        format!(
            "SELECT n AS id, (n % 50)::int AS company_id, 'type_' || n % 4 AS type, (n % 997)::numeric AS amount,
                    (SELECT at FROM day_ago) {sign} (n - 0.5) * interval '{seconds} seconds' AS created_at
             FROM generate_series({first}::bigint, {last}) n"
        )
    }

    /// Adds the last hundredth to both tables.
    pub(crate) async fn add_the_new_rows(&self) {
        for table in ["events", "recent"] {
            let rows = self.events(1, self.rows / 100, "+");
            self.execute(&format!("INSERT INTO {table} {rows}; ANALYZE {table}"))
                .await;
        }
        self.execute("CHECKPOINT").await;
    }

    /// Refreshes the view; answers with the seconds.
    pub(crate) async fn refresh_the_view(&self) -> f64 {
        let mut connection = self.target.connect("bench").await.unwrap();
        let started = Instant::now();
        connection
            .execute("REFRESH MATERIALIZED VIEW CONCURRENTLY hours")
            .await
            .unwrap();
        let seconds = started.elapsed().as_secs_f64();
        connection.close().await.unwrap();
        seconds
    }

    /// Statements, one after another.
    pub(crate) async fn execute(&self, sql: &str) {
        let mut connection = self.target.connect("bench").await.unwrap();
        for statement in sql.split(';') {
            connection.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
        }
        connection.close().await.unwrap();
    }

    pub(crate) async fn count(&self, sql: String) -> i64 {
        let mut connection = self.target.connect("bench").await.unwrap();
        let count = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        count
    }
}
