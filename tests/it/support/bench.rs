//! A runner on a bench: a migrated database, an audit log, a lead, and jobs that do what a test
//! says.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use pgreeve::audit::AuditLog;
use pgreeve::job::{Exclusion, Job, JobContext, JobError, JobReport, Kind, Outcome, Plan, Progress, Trigger};
use pgreeve::ledger::leader::{Campaign, Leader};
use pgreeve::ledger::migrate;
use pgreeve::ledger::runs::{self, NewRun, RunRecord};
use pgreeve::runner::{RunRequest, RunnableJob, Runner, Site, Stops};
use pgreeve::values::RunId;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Database;

/// What a scripted job does when it is executed.
pub type Script = dyn for<'a> Fn(&'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>> + Send + Sync;

/// A job that runs a script.
pub struct Scripted {
    pub kind: Kind,
    pub exclusions: Vec<Exclusion>,
    pub script: Arc<Script>,
}

struct ScriptedPlan(Arc<Script>);

impl Job for Scripted {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn exclusions(&self) -> Vec<Exclusion> {
        self.exclusions.clone()
    }

    fn plan<'a>(&'a self, _: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        let plan: Box<dyn Plan> = Box::new(ScriptedPlan(Arc::clone(&self.script)));
        Box::pin(std::future::ready(Ok(plan)))
    }
}

impl Plan for ScriptedPlan {
    fn intent(&self) -> Value {
        json!({ "what": "a test's script" })
    }

    fn execute<'a>(self: Box<Self>, context: &'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>>
    where
        Self: 'a,
    {
        Box::pin(async move { (self.0)(context).await })
    }
}

/// A green report.
pub fn green() -> JobReport {
    JobReport {
        outcome: Outcome::Succeeded,
        reason: None,
        body: json!({ "done": true }),
    }
}

/// Everything a run needs.
pub struct Bench {
    pub database: Database,
    pub directory: TempDir,
    pub audit: AuditLog,
    pub lead: Leader,
    pub site: Site,
}

impl Bench {
    /// A migrated database that we lead, and an empty audit log.
    pub async fn set_up() -> Self {
        let database = Database::create().await;
        migrate::apply(&database.target).await.unwrap();
        let Campaign::Won(lead) = Leader::campaign(&database.target, "bench", None).await.unwrap() else {
            panic!("nobody else leads")
        };
        let directory = tempfile::tempdir().unwrap();
        let audit = AuditLog::open(&directory.path().join("audit"), "bench").unwrap();
        let site = Site {
            database: database.name.clone(),
            target: database.target.clone(),
            system_identifier: lead.term.cluster.clone(),
            fence: lead.term.fence,
        };
        Self {
            database,
            directory,
            audit,
            lead,
            site,
        }
    }

    /// A job with short limits.
    pub fn job(name: &str, script: Arc<Script>) -> RunnableJob {
        RunnableJob {
            name: name.parse().unwrap(),
            job: Arc::new(Scripted {
                kind: Kind::Backup,
                exclusions: Vec::new(),
                script,
            }),
            policy: "sha256:test".to_owned(),
            approval_required: false,
            run_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(2),
            retries: 0,
            sharing: pgreeve::runner::Sharing::default(),
        }
    }

    /// Admits a manual run of a job and runs it.
    pub async fn run(&self, job: RunnableJob) -> RunRecord {
        self.run_with(job, Stops::default()).await
    }

    /// The same, with stops the test holds.
    pub async fn run_with(&self, job: RunnableJob, stops: Stops) -> RunRecord {
        let request = self.admit(job, stops).await;
        Runner::new(self.audit.clone()).execute(request).await
    }

    /// Opens the ledger's row of a manual run.
    pub async fn admit(&self, job: RunnableJob, stops: Stops) -> RunRequest {
        let row = NewRun {
            run: RunId::new(),
            job: job.name.clone(),
            kind: job.job.kind(),
            scheduled_for: None,
            timezone: "UTC".to_owned(),
            adjusted: None,
            trigger: Trigger::Manual,
            actor: "test".to_owned(),
            instance: "bench".to_owned(),
            epoch: self.site.fence.epoch,
            policy: job.policy.clone(),
        };
        assert!(runs::admit(&mut self.database.connect().await, &row).await.unwrap());
        RunRequest {
            run: row.run,
            job,
            site: self.site.clone(),
            scheduled_for: None,
            trigger: Trigger::Manual,
            actor: row.actor,
            note: None,
            stops,
            progress: Progress::new(),
            retry_until: None,
        }
    }

    /// The audit log's records, in order.
    pub fn audit_records(&self) -> Vec<Value> {
        let mut files: Vec<_> = std::fs::read_dir(self.directory.path().join("audit"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
            .collect();
        files.sort();
        let lines = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
        lines
            .flat_map(|text| {
                text.lines()
                    .map(|line| serde_json::from_str(line).unwrap())
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// The kinds of the audit log's records about runs, in order.
    pub fn audit_kinds(&self) -> Vec<String> {
        let records = self.audit_records();
        let about_runs = records.iter().filter(|record| record.get("run").is_some());
        about_runs
            .map(|record| record["kind"].as_str().unwrap().to_owned())
            .collect()
    }
}
