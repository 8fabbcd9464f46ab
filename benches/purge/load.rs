//! An application at work: `pgbench`, with so many small transactions a second, each at its time. In a
//! process of its own, so that it waits for nothing of what is measured beside it.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgreeve::postgres::connect::ConnectTarget;
use pgreeve::postgres::programs;
use sqlx::{Connection, Executor};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// Transactions a second.
pub(crate) const RATE: u32 = 200;

/// Events that are not due, by number.
const SETUP: &str = "
    CREATE TABLE seen AS
    SELECT row_number() OVER () AS n, id FROM events
    WHERE created_at >= '2026-01-01' AND created_at < timestamptz '2026-01-01' + interval '1 day' LIMIT 20000;
    ALTER TABLE seen ADD PRIMARY KEY (n);
    ANALYZE seen";

/// Half of them insert, a quarter each updates and reads.
const SCRIPTS: [(&str, &str); 3] = [
    (
        "insert.sql@2",
        "INSERT INTO events (company_id, created_at, type, payload)
         VALUES (1, now(), 'load', jsonb_build_object('user_id', 1, 'note', repeat('y', 80)));",
    ),
    (
        "update.sql@1",
        "\\set n random(1, 20000)
         UPDATE events SET payload = payload || '{\"seen\": true}' WHERE id = (SELECT id FROM seen WHERE n = :n);",
    ),
    (
        "select.sql@1",
        "\\set n random(1, 20000)
         SELECT * FROM events WHERE id = (SELECT id FROM seen WHERE n = :n);",
    ),
];

/// A load that goes on until it is stopped.
pub(crate) struct Load {
    directory: TempDir,
    target: ConnectTarget,
    ended: JoinHandle<()>,
}

/// When a transaction was due, and how long after that it was done, in ms.
pub(crate) struct Sample {
    pub(crate) due: SystemTime,
    pub(crate) took: f64,
}

impl Load {
    /// Starts inserts of events, and updates and reads of events that are not due.
    pub(crate) async fn start(target: &ConnectTarget) -> Self {
        let mut connection = target.connect("load").await.unwrap();
        connection.execute(SETUP).await.unwrap();
        connection.close().await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut pgbench = Command::new(programs::find("pgbench").unwrap());
        for (name, script) in SCRIPTS {
            fs::write(directory.path().join(name.split('@').next().unwrap()), script).unwrap();
            pgbench.args(["--file", name]);
        }
        let mut pgbench = pgbench
            .args([
                "--no-vacuum",
                "--protocol=prepared",
                "--client=4",
                "--time=600",
                "--log",
            ])
            .arg(format!("--rate={RATE}"))
            .envs([("PGHOST", &target.host), ("PGDATABASE", &target.dbname)])
            .envs([("PGUSER", "postgres"), ("PGAPPNAME", "load")])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // How it ends says nothing: it is made to.
        let ended = tokio::task::spawn_blocking(move || {
            let _ = pgbench.wait().unwrap();
        });
        Self {
            directory,
            target: target.clone(),
            ended,
        }
    }

    /// Ends it; all that was measured.
    pub(crate) async fn end(self) -> Vec<Sample> {
        let mut connection = self.target.connect("bench").await.unwrap();
        // Its log is whole only when it ends by itself, as it does without its connections.
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'load'";
        connection.execute(end).await.unwrap();
        connection.close().await.unwrap();
        self.ended.await.unwrap();
        let files = fs::read_dir(self.directory.path()).unwrap().flatten();
        let log = files
            .map(|file| file.path())
            .find(|path| path.to_string_lossy().contains("pgbench_log"));
        let log = fs::read_to_string(log.unwrap()).unwrap();
        log.lines().filter_map(sample).collect()
    }
}

/// From a line of `pgbench --log --rate`: client, number, time, script, seconds, microseconds, lag. With a rate,
/// times count from when a transaction was due, at random moments: one that comes late because the one
/// before was slow is late all the same.
fn sample(line: &str) -> Option<Sample> {
    let fields: Vec<u64> = line.split(' ').map_while(|field| field.parse().ok()).collect();
    let [_, _, took, _, seconds, microseconds, _] = fields[..] else {
        return None;
    };
    let done = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(microseconds);
    Some(Sample {
        due: done - Duration::from_micros(took),
        took: took as f64 / 1000.0,
    })
}
