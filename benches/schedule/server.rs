//! The server: a small table for each job, and how much processor time it takes.

use pgreeve::postgres::cluster::Cluster;
use pgreeve::postgres::connect::ConnectTarget;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// Tables that one transaction makes: each locks several relations.
const TABLES_AT_ONCE: usize = 500;
/// In how many parts of a second Linux tells processor time.
const USER_HZ: f64 = 100.0;

pub(crate) struct Server {
    cluster: Cluster,
}

impl Server {
    /// A server with a database `app` of as many tables as there are jobs.
    pub(crate) async fn with_tables(settings: &str, jobs: usize) -> Self {
        let settings = format!("fsync = on\n{settings}");
        let cluster = tokio::task::spawn_blocking(move || Cluster::start(&settings).unwrap())
            .await
            .unwrap();
        let mut admin = cluster.target("postgres").connect("bench").await.unwrap();
        admin.execute("CREATE DATABASE app").await.unwrap();
        admin.close().await.unwrap();
        let server = Self { cluster };
        let mut app = server.connect().await;
        for first in (0..jobs).step_by(TABLES_AT_ONCE) {
            let last = (first + TABLES_AT_ONCE).min(jobs) - 1;
            let sql = format!(
                "DO $$ BEGIN FOR n IN {first}..{last} LOOP
                     EXECUTE format('CREATE TABLE t%s (created_at timestamptz NOT NULL)', n);
                     EXECUTE format('CREATE INDEX ON t%s (created_at)', n);
                     EXECUTE format('INSERT INTO t%s SELECT now() - i * interval ''1 day'' FROM generate_series(0, 5) i', n);
                 END LOOP; END $$"
            );
            app.execute(AssertSqlSafe(sql)).await.unwrap();
        }
        app.execute("VACUUM (ANALYZE)").await.unwrap();
        app.execute("CHECKPOINT").await.unwrap();
        app.close().await.unwrap();
        server
    }

    pub(crate) fn target(&self) -> ConnectTarget {
        self.cluster.target("app")
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        self.target().connect("bench").await.unwrap()
    }

    /// The server's socket.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.cluster.directory()
    }

    /// The processor time that the server has taken so far, in seconds.
    pub(crate) fn processor(&self) -> f64 {
        let pid = std::fs::read_to_string(self.directory().join("data/postmaster.pid")).unwrap();
        let postmaster: u32 = pid.lines().next().unwrap().trim().parse().unwrap();
        let children = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = Stat::of(pid)?;
            (stat.parent == postmaster).then_some(stat.own)
        });
        let ended = Stat::of(postmaster).map_or(0.0, |stat| stat.own + stat.of_ended_children);
        children.sum::<f64>() + ended
    }
}

/// What `/proc/PID/stat` tells of a process, in seconds of processor time.
pub(crate) struct Stat {
    parent: u32,
    pub(crate) own: f64,
    of_ended_children: f64,
}

impl Stat {
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // From the state on, after the name in parentheses.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            // proc(5): user, system; of children that have ended: user, system.
            own: (ticks(11)? + ticks(12)?) / USER_HZ,
            of_ended_children: (ticks(13)? + ticks(14)?) / USER_HZ,
        })
    }
}
