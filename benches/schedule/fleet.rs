//! The daemon with its file of jobs.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use sqlx::Connection;
use tempfile::TempDir;

use crate::IDLE;
use crate::server::{Server, Stat};

/// The compressed hour: twelve minutes; a sixth of it is watched.
const HOUR_MINUTES: usize = 12;
const WATCHED: SignedDuration = SignedDuration::from_mins(2);
/// How long the last slots may take to come to their end.
const PATIENCE: Duration = Duration::from_mins(2);

const YEARLY: &str = "0 0 1 1 *";

/// How often each job is due.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    /// Never while it is watched.
    Yearly,
    /// Once in the compressed hour, each job at a second of its own.
    Hourly,
}

impl Pace {
    fn schedule(self, job: usize) -> String {
        match self {
            Self::Yearly => YEARLY.to_owned(),
            Self::Hourly => format!("{} {}-59/{HOUR_MINUTES} * * * *", job % 60, job / 60 % HOUR_MINUTES),
        }
    }
}

/// What an idle daemon takes, as parts of a core, and of memory.
pub(crate) struct Idle {
    pub(crate) daemon: f64,
    pub(crate) server: f64,
    pub(crate) peak_kib: u64,
}

/// What became of the slots of the watched time.
pub(crate) struct Busy {
    pub(crate) seconds: f64,
    pub(crate) due: usize,
    /// Those that have a row with an end.
    pub(crate) accounted: usize,
    /// How many seconds after its slot each run that ended well began.
    pub(crate) delays: Vec<f64>,
}

pub(crate) struct Fleet {
    directory: TempDir,
    database: String,
    jobs: usize,
    daemon: Option<Child>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Fleet {
    pub(crate) fn on(server: &Server, jobs: usize, pace: Pace) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let database = format!("postgresql:///app?host={}&user=postgres", server.directory().display());
        let fleet = Self {
            directory,
            database,
            jobs,
            daemon: None,
        };
        fleet.configure(pace);
        fleet
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    fn configure(&self, pace: Pace) {
        let root = self.directory.path().display();
        let mut text = format!(
            "[daemon]\ninstance = \"bench\"\nstate_dir = \"{root}/state\"\nruntime_dir = \"{root}/run\"\nlisten = \"off\"\n\n[databases.app]\nurl = \"{}\"\n\n[defaults]\napproval = \"none\"\n",
            self.database
        );
        for job in 0..self.jobs {
            write!(
                text,
                "\n[jobs.purge-{job}]\nschedule  = \"{}\"\nretention = {{ table = \"t{job}\", age_column = \"created_at\", keep = \"90d\" }}\n",
                pace.schedule(job)
            )
            .unwrap();
        }
        for directory in ["state", "run"] {
            std::fs::create_dir_all(self.directory.path().join(directory)).unwrap();
        }
        std::fs::write(self.file(), text).unwrap();
        std::fs::set_permissions(self.file(), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn file_size(&self) -> u64 {
        std::fs::metadata(self.file()).unwrap().len()
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgreeve"));
        command
            .args([verb, "--config"])
            .arg(self.file())
            .env("PGREEVE_DEMO_SECONDS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    pub(crate) fn check(&self) {
        assert!(self.command("check").status().unwrap().success());
    }

    /// Starts the daemon and waits until it leads and every schedule of this pace is known to it.
    async fn start(&mut self, server: &Server, pace: Pace) {
        let log = std::fs::File::create(self.directory.path().join("daemon.log")).unwrap();
        self.daemon = Some(self.command("daemon").stderr(log).spawn().unwrap());
        let example = pace.schedule(0);
        let known = format!(
            "SELECT count(*) = {} FROM pgreeve.schedule WHERE (schedule = '{YEARLY}') = ('{example}' = '{YEARLY}')",
            self.jobs
        );
        let started = Instant::now();
        let mut connection = server.connect().await;
        // Until the daemon has made its schema the question is an error.
        while !sqlx::query_scalar::<_, bool>(sqlx::AssertSqlSafe(known.clone()))
            .fetch_one(&mut connection)
            .await
            .unwrap_or(false)
        {
            assert!(
                started.elapsed() < PATIENCE,
                "the daemon does not know its jobs:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        connection.close().await.unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("daemon.log")).unwrap_or_default()
    }

    fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(daemon.wait().unwrap().success(), "{}", self.log());
    }

    pub(crate) async fn idle(&mut self, server: &Server) -> Idle {
        self.start(server, Pace::Yearly).await;
        let processor = |fleet: &Self| (Stat::of(fleet.pid()).unwrap().own, server.processor());
        // What a start does once is over.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = processor(self);
        tokio::time::sleep(IDLE).await;
        let after = processor(self);
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let peak = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        let peak_kib = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
        self.stop();
        Idle {
            daemon: (after.0 - before.0) / IDLE.as_secs_f64(),
            server: (after.1 - before.1) / IDLE.as_secs_f64(),
            peak_kib,
        }
    }

    pub(crate) async fn busy(&mut self, server: &Server) -> Busy {
        self.configure(Pace::Hourly);
        self.start(server, Pace::Hourly).await;
        let from = Timestamp::now();
        let until = from + WATCHED;
        let wait = Timestamp::now().duration_until(until);
        tokio::time::sleep(Duration::try_from(wait).unwrap()).await;
        // Worked out here, not asked of what is measured.
        let due = (from.as_second() + 1..=until.as_second())
            .map(|at| usize::try_from(at).unwrap())
            .flat_map(|at| {
                (0..self.jobs)
                    .filter(move |job| (at % 60, at / 60 % HOUR_MINUTES) == (job % 60, job / 60 % HOUR_MINUTES))
            })
            .count();
        let bounds = format!("scheduled_for > '{from}' AND scheduled_for <= '{until}'");
        let mut connection = server.connect().await;
        let count = format!("SELECT count(*) FROM pgreeve.run WHERE {bounds} AND outcome IS NOT NULL");
        let waited = Instant::now();
        let accounted = loop {
            let ended: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(count.clone()))
                .fetch_one(&mut connection)
                .await
                .unwrap();
            let ended = usize::try_from(ended).unwrap();
            if ended >= due || waited.elapsed() > PATIENCE {
                break ended;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let delays = format!(
            "SELECT extract(epoch FROM started_at - scheduled_for)::float8 FROM pgreeve.run WHERE {bounds} AND outcome = 'succeeded'"
        );
        let delays = sqlx::query_scalar(sqlx::AssertSqlSafe(delays))
            .fetch_all(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        self.stop();
        Busy {
            seconds: WATCHED.as_secs_f64(),
            due,
            accounted,
            delays,
        }
    }
}
