//! The stage: a temporary directory, a server, an S3 server, a configuration, and the daemon as a
//! process of its own. All of it is gone when the stage is dropped.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use sqlx::AssertSqlSafe;

use super::s3_server::S3Server;
use crate::postgres::cluster::Cluster;
use crate::postgres::connect::ConnectTarget;
use crate::postgres::quote;
use crate::store::S3Settings;

/// The sample's database.
pub(super) const DATABASE: &str = "churn_saver";
/// What all keys in the bucket start with.
const PREFIX: &str = "database";
/// The role the daemon works as.
const ROLE: &str = "pgreeve";
/// Schedules lie at least so far ahead, so that the daemon is up when they come.
const LEAD_TIME: Duration = Duration::from_secs(6);
/// How long the daemon may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// Why the demonstration cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DemoError(pub String);

impl DemoError {
    pub(super) fn of<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Self + '_ {
        move |error| Self(format!("{what}: {error}"))
    }
}

/// Everything the demonstration runs on.
pub(super) struct Stage {
    daemon: Option<Child>,
    s3: S3Server,
    cluster: Cluster,
    directory: TempDir,
}

impl Stage {
    /// Starts the servers.
    pub(super) async fn set_up() -> Result<Self, DemoError> {
        let directory = tempfile::Builder::new()
            .prefix("pgreeve-demo-")
            .tempdir()
            .map_err(DemoError::of("make a temporary directory"))?;
        let objects = directory.path().join("s3");
        std::fs::create_dir(&objects).map_err(DemoError::of("make the S3 server's directory"))?;
        let s3 = S3Server::start(&objects)
            .await
            .map_err(DemoError::of("start the S3 server"))?;
        let cluster = tokio::task::spawn_blocking(|| Cluster::start("max_wal_size = 4GB"))
            .await
            .map_err(DemoError::of("start PostgreSQL"))?
            .map_err(DemoError::of("start PostgreSQL"))?;
        Ok(Self {
            daemon: None,
            s3,
            cluster,
            directory,
        })
    }

    /// How to connect as the superuser.
    pub(super) fn superuser(&self, dbname: &str) -> ConnectTarget {
        self.cluster.target(dbname)
    }

    /// Makes the sample's empty database.
    pub(super) async fn create_database(&self) -> Result<(), DemoError> {
        let mut connection = self
            .superuser("postgres")
            .connect("pgreeve:demo")
            .await
            .map_err(DemoError::of("connect"))?;
        let sql = format!("CREATE DATABASE {}", quote::identifier(DATABASE));
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .map_err(DemoError::of("create the database"))?;
        Ok(())
    }

    /// The store, as the configuration has it.
    pub(super) fn store(&self) -> S3Settings {
        self.s3.settings(PREFIX)
    }

    pub(super) fn s3_endpoint(&self) -> String {
        self.s3.endpoint()
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.directory.path().to_path_buf()
    }

    pub(super) fn config_file(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    /// Writes the configuration: purges at the next full minute, the backup one minute later.
    /// Answers the two slots.
    pub(super) fn configure(&self) -> Result<[Timestamp; 2], DemoError> {
        let now = Timestamp::now();
        let minute = 60_i64;
        let lead = i64::try_from(LEAD_TIME.as_secs()).unwrap_or(6);
        let first = (now.as_second() + lead).div_euclid(minute) * minute + minute;
        let slots = [first, first + minute].map(|second| Timestamp::from_second(second).unwrap_or(now));
        let [purge, backup] = slots.map(|slot| {
            let local = slot.to_zoned(TimeZone::UTC);
            format!("{} {} * * *", local.minute(), local.hour())
        });
        let root = self.directory.path().display();
        let text = format!(
            r#"[daemon]
instance    = "demo"
state_dir   = "{root}/state"
runtime_dir = "{root}/run"
listen      = "off"

[databases.churn_saver]
url = "{url}"

[stores.offsite]
url              = "s3://{bucket}/{PREFIX}"
endpoint         = "{endpoint}"
region           = "us-east-1"
path_style       = true
credentials_file = "{credentials}"

[defaults]
approval = "none"   # a demonstration; leave it at "required" where the rows are yours

[jobs.purge-events]
schedule  = "{purge}"
retention = {{ table = "events", age_column = "created_at", keep = "90d", where = "processed", max_fraction = 1 }}

[jobs.purge-exports]
schedule  = "{purge}"
retention = {{ table = "data_exports", age_column = "created_at", keep = "30d", where = "status = 'completed'", max_fraction = 1 }}

[jobs.purge-consents]
schedule  = "{purge}"
retention = {{ table = "consent_records", age_column = "revoked_at", keep = "7y", max_fraction = 1 }}

[jobs.abandon-sessions]
schedule   = "{purge}"
transition = {{ table = "onboarding.sessions", age_column = "last_activity_at", after = "2h", from = {{ status = ["in_progress"] }}, set = {{ status = "abandoned" }}, stamp = ["abandoned_at"] }}

[jobs.nightly-backup]
schedule = "{backup}"
backup   = {{ store = "offsite", format = "custom", compress = "gzip:4" }}
"#,
            url = self.cluster.url_as(ROLE, DATABASE),
            bucket = self.s3.bucket(),
            endpoint = self.s3.endpoint(),
            credentials = self.s3.credentials_file().display(),
        );
        for name in ["state", "run"] {
            std::fs::create_dir_all(self.directory.path().join(name)).map_err(DemoError::of("make a directory"))?;
        }
        std::fs::write(self.config_file(), text).map_err(DemoError::of("write the configuration"))?;
        Ok(slots)
    }

    /// Starts the daemon, as systemd would: the same program, a process of its own.
    pub(super) fn start_daemon(&mut self) -> Result<(), DemoError> {
        let log = std::fs::File::create(self.directory.path().join("daemon.log"))
            .map_err(DemoError::of("open the daemon's log"))?;
        let program = std::env::current_exe().map_err(DemoError::of("find the program"))?;
        let daemon = Command::new(program)
            .arg("--config")
            .arg(self.config_file())
            .arg("daemon")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(DemoError::of("start the daemon"))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Fails when the daemon has ended by itself.
    pub(super) fn check_daemon(&mut self) -> Result<(), DemoError> {
        if let Some(daemon) = &mut self.daemon
            && let Ok(Some(status)) = daemon.try_wait()
        {
            return Err(DemoError(format!(
                "the daemon ended ({status}):\n{}",
                self.daemon_log()
            )));
        }
        Ok(())
    }

    /// SIGTERM, and waits for the daemon to drain.
    pub(super) async fn stop_daemon(&mut self) -> Result<(), DemoError> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        if let Some(pid) = daemon
            .id()
            .and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()))
        {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                .map_err(DemoError::of("stop the daemon"))?;
        }
        let status = tokio::time::timeout(STOP_LIMIT, daemon.wait())
            .await
            .map_err(DemoError::of("stop the daemon"))?
            .map_err(DemoError::of("stop the daemon"))?;
        if status.success() {
            return Ok(());
        }
        Err(DemoError(format!(
            "the daemon did not end well ({status}):\n{}",
            self.daemon_log()
        )))
    }

    pub(super) fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("daemon.log")).unwrap_or_default()
    }
}
