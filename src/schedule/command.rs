//! What a dispatcher is told while it works: another set of jobs, a run now, its end.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::Connection;
use tokio::sync::oneshot;

use super::board::LiveRun;
use super::dispatcher::Dispatcher;
use super::recovery::RecoveryError;
use super::slots::ScheduledJob;
use crate::audit::{Entry, RecordKind};
use crate::job::{Outcome, Progress, Trigger};
use crate::ledger::leader::Leader;
use crate::ledger::runs::{self, NewRun, RunEnd};
use crate::ledger::slots as marks;
use crate::postgres::sqlstate::DatabaseError;
use crate::runner::RunRequest;
use crate::values::{JobName, RunId};

/// How long the ledger may take to admit a run.
const ADMIT_LIMIT: Duration = Duration::from_secs(10);

/// An order to a dispatcher.
pub enum Command {
    /// Work with these jobs from now on. Runs that are under way keep their settings.
    Replace {
        /// The jobs.
        jobs: Vec<ScheduledJob>,
        /// How many runs there may be at the same time.
        max_runs: usize,
        /// Told when it is done.
        done: oneshot::Sender<()>,
    },
    /// Run a job once, now.
    Run(RunNow, oneshot::Sender<Result<LiveRun, RunRefusal>>),
    /// Start nothing more, wait for what runs, give up the lead.
    Retire,
}

/// A run that an operator asks for.
#[derive(Debug, Clone)]
pub struct RunNow {
    /// The job.
    pub job: JobName,
    /// The settings that the operator means, by fingerprint.
    pub policy: String,
    /// Why.
    pub note: Option<String>,
    /// Who asks.
    pub actor: String,
}

/// Why a run was not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunRefusal {
    /// The dispatcher has no such job.
    UnknownJob,
    /// The dispatcher's job has other settings: their fingerprint.
    OtherPolicy(String),
    /// The dispatcher does not lead, or not surely enough.
    NotLeading,
    /// The ledger did not take it.
    Ledger(DatabaseError),
}

impl Dispatcher {
    /// Obeys; `false` when it is to retire.
    pub(super) async fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Replace { jobs, max_runs, done } => {
                self.replace(jobs, max_runs).await;
                let _ = done.send(());
            }
            Command::Run(ask, answer) => {
                let _ = answer.send(self.run_now(ask).await);
            }
            Command::Retire => return false,
        }
        true
    }

    /// Slots that came due until now belong to the old schedules and are written first; then an
    /// unchanged schedule goes on where it is, and a changed one begins now.
    async fn replace(&mut self, mut jobs: Vec<ScheduledJob>, max_runs: usize) {
        self.tick().await;
        let kept: BTreeSet<&JobName> = jobs.iter().map(|job| &job.runnable.name).collect();
        let gone = self.jobs.iter().map(|job| &job.runnable.name);
        let gone: Vec<JobName> = gone.filter(|name| !kept.contains(name)).cloned().collect();
        jobs.sort_by(|one, other| one.runnable.name.cmp(&other.runnable.name));
        for job in &mut jobs {
            if let Some(old) = self.job(&job.runnable.name) {
                job.go_on_from(old);
            }
        }
        self.jobs = jobs;
        self.max_runs = max_runs;
        self.unsettled.get_or_insert_default().extend(gone);
        // Settles at once where we lead, else when we do.
        self.tick().await;
    }

    /// Brings the ledger in line with a new set of jobs.
    pub(super) async fn settle(&mut self, lead: &mut Leader) -> Result<(), RecoveryError> {
        let Some(gone) = self.unsettled.clone() else {
            return Ok(());
        };
        for name in &gone {
            self.held.remove(name);
            for admission in self.queued.remove(name).unwrap_or_default() {
                let reason = "the job was taken out of the configuration before the run began";
                self.drop_admitted(lead, name, admission.run, Outcome::Skipped, reason)
                    .await?;
            }
            // Was it to come back, the time in between would not be its.
            marks::forget(lead.connection(), name).await?;
        }
        super::marks::first_seen(lead.connection(), &mut self.jobs, &self.audit, jiff::Timestamp::now()).await?;
        self.unsettled = None;
        Ok(())
    }

    /// Closes a run that was admitted and never began.
    pub(super) async fn drop_admitted(
        &self,
        lead: &mut Leader,
        job: &JobName,
        run: RunId,
        outcome: Outcome,
        reason: &str,
    ) -> Result<(), RecoveryError> {
        let kind = match outcome {
            Outcome::Skipped => RecordKind::Skipped,
            Outcome::Missed => RecordKind::Missed,
            _ => RecordKind::RunEnd,
        };
        let body = serde_json::json!({ "outcome": outcome, "reason": reason });
        let entry = Entry::new(kind, body)
            .run(run)
            .job(job.clone())
            .database(lead.term.cluster.clone())
            .actor(self.actor());
        self.audit.append(entry).await?;
        runs::finish(lead.connection(), run, &RunEnd::without_report(outcome, reason)).await?;
        Ok(())
    }

    async fn run_now(&mut self, ask: RunNow) -> Result<LiveRun, RunRefusal> {
        let job = self.job(&ask.job).ok_or(RunRefusal::UnknownJob)?;
        if job.runnable.policy != ask.policy {
            return Err(RunRefusal::OtherPolicy(job.runnable.policy.clone()));
        }
        if !self.may_start() {
            return Err(RunRefusal::NotLeading);
        }
        let (runnable, timezone) = (job.runnable.clone(), job.schedule.timezone().name().to_owned());
        let mut lead = self.lead.take().ok_or(RunRefusal::NotLeading)?;
        let term = lead.term.clone();
        let row = NewRun {
            run: RunId::new(),
            job: runnable.name.clone(),
            kind: runnable.job.kind(),
            scheduled_for: None,
            timezone,
            adjusted: None,
            trigger: Trigger::Manual,
            actor: ask.actor,
            instance: self.instance.clone(),
            epoch: term.fence.epoch,
            policy: runnable.policy.clone(),
        };
        match tokio::time::timeout(ADMIT_LIMIT, admit(&mut lead, &row)).await {
            Ok(Ok(())) => self.lead = Some(lead),
            Ok(Err(error)) => {
                self.lose(&error.to_string());
                return Err(RunRefusal::Ledger(error));
            }
            Err(_) => {
                let error = DatabaseError::passing("the database did not answer in time");
                self.lose(&error.to_string());
                return Err(RunRefusal::Ledger(error));
            }
        }
        Ok(self.launch(RunRequest {
            run: row.run,
            job: runnable,
            site: self.site(&term),
            scheduled_for: None,
            trigger: Trigger::Manual,
            actor: row.actor,
            note: ask.note,
            stops: self.run_stops(),
            progress: Progress::new(),
            retry_until: None,
        }))
    }
}

async fn admit(lead: &mut Leader, row: &NewRun) -> Result<(), DatabaseError> {
    let fence = lead.term.fence;
    let mut transaction = lead.connection().begin().await?;
    fence.hold(&mut transaction).await?;
    runs::admit(&mut transaction, row).await?;
    transaction.commit().await?;
    Ok(())
}
