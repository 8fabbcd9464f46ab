//! The data set, its copies, and the server they are on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pgreeve::ledger::migrate;
use pgreeve::postgres::cluster::Cluster;
use pgreeve::postgres::connect::ConnectTarget;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::line;

/// Which rows are due.
pub(crate) const DUE: &str = "created_at < '2026-01-01'";

/// Durable, as in production; without a vacuum or a checkpoint in the middle of one of the runs.
const SETTINGS: &str = "fsync = on\nfull_page_writes = on\nshared_buffers = 1536MB\nautovacuum = off\n\
     max_wal_size = 32GB\ncheckpoint_timeout = 1h\nlog_checkpoints = off";

/// In how many parts of a second Linux tells processor time.
const USER_HZ: f64 = 100.0;

/// A server with the data set in the database `seed`.
pub(crate) struct Ground {
    cluster: Cluster,
    /// The process above all of the server's.
    postmaster: u32,
}

impl Ground {
    pub(crate) async fn lay() -> Self {
        let started = Instant::now();
        let rows: u32 = std::env::var("PGREEVE_BENCH_ROWS").map_or(3_000_000, |text| text.parse().unwrap());
        let cluster = tokio::task::spawn_blocking(|| Cluster::start(SETTINGS).unwrap())
            .await
            .unwrap();
        let pid = std::fs::read_to_string(cluster.directory().join("data/postmaster.pid")).unwrap();
        let ground = Self {
            postmaster: pid.lines().next().unwrap().trim().parse().unwrap(),
            cluster,
        };
        ground.admin("CREATE DATABASE seed").await;
        migrate::apply(&ground.cluster.target("seed")).await.unwrap();
        let mut seed = ground.cluster.target("seed").connect("bench").await.unwrap();
        for sql in [
            "CREATE TABLE events (id uuid NOT NULL DEFAULT gen_random_uuid(), company_id int NOT NULL, created_at timestamptz NOT NULL,
                                  type text NOT NULL, payload jsonb NOT NULL)",
            &format!(
                "INSERT INTO events (company_id, created_at, type, payload)
                 SELECT n % 1000, timestamptz '2026-01-01' + (n - {rows} * 0.45) * interval '1 second', 'type_' || n % 7,
                        jsonb_build_object('user_id', n % 50000, 'amount', n % 997, 'note', repeat('x', 60 + n % 80))
                 FROM generate_series(1, {rows}) n"
            ),
            "ALTER TABLE events ADD PRIMARY KEY (id)",
            "CREATE INDEX ON events (created_at)",
            "CREATE INDEX ON events (company_id, created_at)",
            "VACUUM (FREEZE, ANALYZE)",
        ] {
            seed.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
        }
        seed.close().await.unwrap();
        line(&format!(
            "{rows} events with a uuid key, a jsonb payload and three indexes, 45 of a hundred due; made in {:.0} s",
            started.elapsed().as_secs_f64()
        ));
        ground
    }

    async fn admin(&self, sql: &str) {
        let mut connection = self.cluster.target("postgres").connect("bench").await.unwrap();
        connection.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
        connection.close().await.unwrap();
    }

    /// A fresh copy in the server's memory, with nothing left to write from the one before.
    pub(crate) async fn copy(&self) -> ConnectTarget {
        self.admin("DROP DATABASE IF EXISTS copy").await;
        self.admin("CREATE DATABASE copy TEMPLATE seed STRATEGY file_copy")
            .await;
        self.admin("CHECKPOINT").await;
        let target = self.cluster.target("copy");
        let mut connection = target.connect("bench").await.unwrap();
        let warmed = connection
            .execute(
                "CREATE EXTENSION pg_prewarm;
                 SELECT pg_prewarm('events'::regclass);
                 SELECT pg_prewarm(indexrelid) FROM pg_index WHERE indrelid = 'events'::regclass",
            )
            .await;
        if let Err(error) = warmed {
            line(&format!("copies are not in the server's memory: {error}"));
        }
        connection.close().await.unwrap();
        // What was done here is no activity of others any more.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        target
    }

    /// The processor time that the server has taken so far, in seconds.
    pub(crate) fn processor(&self) -> f64 {
        let fields = |pid: &str| -> Option<Vec<f64>> {
            let stat = std::fs::read_to_string(PathBuf::from("/proc").join(pid).join("stat")).ok()?;
            // From the parent's number on, after the name in parentheses and the state.
            let (_, rest) = stat.rsplit_once(')')?;
            Some(
                rest.split_whitespace()
                    .skip(1)
                    .filter_map(|field| field.parse().ok())
                    .collect(),
            )
        };
        let mut ticks = 0.0;
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(fields) = fields(&name) else { continue };
            // proc(5): user, system; of children that have ended: user, system.
            let times = |range: std::ops::Range<usize>| fields.get(range).unwrap_or_default().iter().sum::<f64>();
            if name == self.postmaster.to_string() {
                ticks += times(10..14);
            } else if fields.first() == Some(&f64::from(self.postmaster)) {
                ticks += times(10..12);
            }
        }
        ticks / USER_HZ
    }
}
