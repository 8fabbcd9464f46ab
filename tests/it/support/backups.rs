//! What the tests of backups and restores share.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use age::secrecy::ExposeSecret;
use futures::FutureExt;
use futures::future::BoxFuture;
use pgreeve::backup::compress::Packing;
use pgreeve::backup::form::Format;
use pgreeve::backup::parts::PartSizes;
use pgreeve::backup::program::Programs;
use pgreeve::job::{Job, JobContext, JobError, JobReport, Progress, RecordError, Recorder};
use pgreeve::jobs::backup::{BackupJob, BackupSettings, Keep};
use pgreeve::ledger::leader::Fence;
use pgreeve::ledger::migrate;
use pgreeve::postgres::connect::{ConnectTarget, Session, SessionSettings};
use pgreeve::store::Store;
use pgreeve::values::{RunId, Timezone};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Database;

/// Keeps the records of a run.
#[derive(Debug, Default)]
pub struct Records(Mutex<Vec<(&'static str, Value)>>);

impl Records {
    pub fn kinds(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().iter().map(|(kind, _)| *kind).collect()
    }

    pub fn body(&self, kind: &str) -> Value {
        let records = self.0.lock().unwrap();
        records.iter().find(|(found, _)| *found == kind).unwrap().1.clone()
    }
}

impl Recorder for Records {
    fn record<'a>(&'a self, kind: &'static str, body: Value) -> BoxFuture<'a, Result<(), RecordError>> {
        async move {
            self.0.lock().unwrap().push((kind, body));
            Ok(())
        }
        .boxed()
    }
}

/// A database with a ledger, and a backup job on it.
pub struct Bench {
    pub database: Database,
    pub job: BackupJob,
    pub stop: CancellationToken,
    pub records: Arc<Records>,
}

impl Bench {
    /// A bench whose job writes to `store` in parts of 16 KiB.
    pub async fn new(store: Arc<dyn Store>) -> Self {
        let database = Database::create().await;
        migrate::apply(&database.target).await.unwrap();
        let job = BackupJob {
            settings: BackupSettings {
                store: "offsite".parse().unwrap(),
                format: Format::Custom,
                compress: Packing::Gzip(4),
                threads: 1,
                parallel: 1,
                bandwidth: None,
                max_duration: None,
                encrypt: Vec::new(),
                schema_only: false,
                globals: true,
                include: Vec::new(),
                exclude: Vec::new(),
                standby: None,
                keep: None,
            },
            open_store: Arc::new(move || {
                let store = Arc::clone(&store);
                async move { Ok(store) }.boxed()
            }),
            instance: "test".to_owned(),
            timezone: Timezone::utc(),
            programs: None,
            sizes: PartSizes {
                part_bytes: 16 * 1024,
                max_parts: 9000,
            },
            erasures: None,
        };
        Self {
            database,
            job,
            stop: CancellationToken::new(),
            records: Arc::default(),
        }
    }

    /// A table of rows that gzip cannot make small: about 3 MiB of them.
    pub async fn with_bulk(self) -> Self {
        self.database
            .execute(
                "CREATE TABLE bulk (id int PRIMARY KEY, noise text);
                 INSERT INTO bulk SELECT n, (SELECT string_agg(md5(n::text || k), '') FROM generate_series(1, 8) k)
                 FROM generate_series(1, 12000) n",
            )
            .await;
        self
    }

    /// Replaces `pg_dump` by a script; `$REAL` is the real one. `--version` is answered by that.
    pub fn with_pg_dump(mut self, directory: &tempfile::TempDir, script: &str) -> Self {
        let mut programs = Programs::find().unwrap();
        let real = programs.pg_dump.display();
        let text = format!("#!/bin/sh\nREAL={real}\n[ \"$1\" = --version ] && exec $REAL --version\n{script}\n");
        programs.pg_dump = executable(directory, "pg_dump", &text);
        self.job.programs = Some(programs);
        self
    }

    pub fn with_keep(mut self, last: u32, min: u32) -> Self {
        self.job.settings.keep = Some(Keep {
            last,
            daily: 0,
            weekly: 0,
            monthly: 0,
            yearly: 0,
            within: None,
            min,
            max_age: None,
        });
        self
    }

    pub async fn context(&self, target: &ConnectTarget) -> JobContext {
        JobContext {
            run: RunId::new(),
            attempt: 1,
            job: "nightly".parse().unwrap(),
            database: "main".to_owned(),
            target: target.clone(),
            session: Session::open(target, &SessionSettings::control("test")).await.unwrap(),
            fence: Fence { epoch: 0 },
            stop: self.stop.clone(),
            deadline: Instant::now() + Duration::from_mins(2),
            recorder: Arc::clone(&self.records) as Arc<dyn Recorder>,
            progress: Progress::new(),
        }
    }

    pub async fn run(&self) -> Result<JobReport, JobError> {
        self.run_as(&self.database.target).await
    }

    pub async fn run_as(&self, target: &ConnectTarget) -> Result<JobReport, JobError> {
        let mut context = self.context(target).await;
        let plan = self.job.plan(&mut context).await?;
        plan.execute(&mut context).await
    }

    /// The states of all backups in the journal.
    pub async fn states(&self) -> Vec<String> {
        self.database
            .value("SELECT coalesce(array_agg(state ORDER BY started_at), '{}') FROM pgreeve.backup")
            .await
    }
}

/// Writes a program into a directory.
pub fn executable(directory: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let file = directory.path().join(name);
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A new pair of keys of age: the recipient, the secret, and a file with the secret.
pub fn key() -> (String, String, tempfile::NamedTempFile) {
    let identity = age::x25519::Identity::generate();
    let secret = identity.to_string().expose_secret().to_owned();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("# created: now\n{secret}\n")).unwrap();
    (identity.to_public().to_string(), secret, file)
}
