//! What is to be run, where, and by which right.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::job::{Exclusion, Job, Progress, Trigger};
use crate::ledger::leader::Fence;
use crate::postgres::connect::ConnectTarget;
use crate::stops::Stops;
use crate::values::{JobName, Name, RunId};

/// A job with the limits of its configuration.
#[derive(Clone)]
pub struct RunnableJob {
    /// Its name.
    pub name: JobName,
    /// What it does.
    pub job: Arc<dyn Job>,
    /// The fingerprint of its settings.
    pub policy: String,
    /// Whether a destructive policy must be approved before it acts.
    pub approval_required: bool,
    /// How long a run may take, all attempts together; waiting for other runs does not count.
    pub run_timeout: Duration,
    /// How long a statement may wait for a lock.
    pub lock_timeout: Duration,
    /// How many attempts may follow the first.
    pub retries: u32,
    /// What it shares with other runs.
    pub sharing: Sharing,
}

impl RunnableJob {
    /// What no other run may use meanwhile, by name, in the order in which all runs take it, so that
    /// two of them never wait for each other.
    #[must_use]
    pub fn resources(&self) -> Vec<String> {
        let exclusions = self.job.exclusions();
        let groups = self.sharing.groups.iter().map(|group| format!("group {group}"));
        let mut names: Vec<String> = exclusions.iter().map(Exclusion::lock_name).chain(groups).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// How a run goes about what it shares with others.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// Jobs of one database that share a group never run at the same time.
    pub groups: Vec<Name>,
    /// How long it may wait for what another run uses.
    pub start_deadline: Duration,
    /// What it does when another session runs the same job.
    pub same_job: SameJob,
}

/// What a run does when another session, such as an operator's, runs the same job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameJob {
    /// It does not run.
    Skip,
    /// It waits.
    Wait,
    /// It ends the other one.
    Replace,
}

impl Default for Sharing {
    fn default() -> Self {
        Self {
            groups: Vec::new(),
            start_deadline: Duration::from_mins(10),
            same_job: SameJob::Skip,
        }
    }
}

/// Where a run happens, and by which right.
#[derive(Debug, Clone)]
pub struct Site {
    /// The database's name in the configuration.
    pub database: String,
    /// How to reach it.
    pub target: ConnectTarget,
    /// Which cluster it is.
    pub system_identifier: String,
    /// The right to write.
    pub fence: Fence,
}

/// One execution of a job, whose ledger row is open.
pub struct RunRequest {
    /// Its identity.
    pub run: RunId,
    /// Its job.
    pub job: RunnableJob,
    /// Where.
    pub site: Site,
    /// Its slot.
    pub scheduled_for: Option<Timestamp>,
    /// What started it.
    pub trigger: Trigger,
    /// Who asked.
    pub actor: String,
    /// Why, in the operator's words.
    pub note: Option<String>,
    /// How it is asked to end early.
    pub stops: Stops,
    /// Who is told how far it is.
    pub progress: Progress,
    /// No further attempt begins at or after this instant: the next slot's run is due.
    pub retry_until: Option<Timestamp>,
}
