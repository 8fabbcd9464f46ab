//! One database's dispatcher: it leads, evaluates schedules, writes slots' rows, and starts runs.
//!
//! The order is the promise: a slot's row is committed before its run starts, and the mark "slots
//! until here have rows" moves in the same transaction.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::{self, JoinSet};

use super::board::{Board, LiveRun};
use super::clock::Clock;
use super::command::Command;
use super::forgetting::Forgetting;
use super::rows::Admission;
use super::slots::ScheduledJob;
pub use super::standing::{Standing, Status};
use super::starting::{Active, HeldSince};
use super::trust::Trust;
use crate::audit::AuditLog;
use crate::ledger::leader::{CONFIRM_EVERY, Leader, Term};
use crate::ledger::runs::RunRecord;
use crate::postgres::connect::ConnectTarget;
use crate::runner::{RunRequest, Runner, Site, Stops};
use crate::values::{JobName, Name, RunId};

/// How long to wait before a lost or unreachable database is tried again.
pub(super) const RECONNECT_PAUSE: Duration = Duration::from_secs(2);

/// What a dispatcher is made of.
pub struct Dispatcher {
    pub(super) database: Name,
    pub(super) target: ConnectTarget,
    pub(super) instance: String,
    /// In the order of their names.
    pub(super) jobs: Vec<ScheduledJob>,
    runner: Runner,
    pub(super) audit: AuditLog,
    pub(super) stops: Stops,
    pub(super) status: watch::Sender<Status>,
    /// Milliseconds of the daemon's life at which the loop was last seen alive.
    alive: Arc<AtomicU64>,
    born: Instant,
    pub(super) lead: Option<Leader>,
    pub(super) last_term: Option<Term>,
    pub(super) trust: Option<Trust>,
    pub(super) migrated: bool,
    pub(super) try_again: Instant,
    pub(super) confirmed: Instant,
    pub(super) saved: Instant,
    /// When the next slot comes due, where that is known.
    pub(super) next_start: Option<Timestamp>,
    pub(super) active: HashMap<JobName, Active>,
    /// What each task runs.
    tasks: HashMap<task::Id, RunId>,
    pub(super) queued: HashMap<JobName, VecDeque<Admission>>,
    pub(super) held: HashMap<JobName, HeldSince>,
    pub(super) max_runs: usize,
    pub(super) clock: Clock,
    pub(super) forgetting: Forgetting,
    runs: JoinSet<RunRecord>,
    pub(super) board: Board,
    /// The ledger does not know the present set of jobs yet; these were taken out of it.
    pub(super) unsettled: Option<Vec<JobName>>,
}

impl Dispatcher {
    /// A dispatcher for one database and its jobs; nothing is connected yet.
    #[must_use]
    pub fn new(
        database: Name,
        target: ConnectTarget,
        instance: String,
        mut jobs: Vec<ScheduledJob>,
        runner: Runner,
        audit: AuditLog,
        stops: Stops,
    ) -> Self {
        jobs.sort_by(|one, other| one.runnable.name.cmp(&other.runnable.name));
        let status = Status {
            database: database.clone(),
            standing: Standing::Connecting,
            running: Vec::new(),
        };
        let now = Instant::now();
        Self {
            database,
            target,
            instance,
            jobs,
            runner,
            audit,
            stops,
            status: watch::Sender::new(status),
            alive: Arc::new(AtomicU64::new(0)),
            born: now,
            lead: None,
            last_term: None,
            trust: None,
            migrated: false,
            try_again: now,
            confirmed: now,
            saved: now,
            next_start: None,
            active: HashMap::new(),
            tasks: HashMap::new(),
            queued: HashMap::new(),
            held: HashMap::new(),
            max_runs: usize::MAX,
            clock: Clock::new(Timestamp::now(), now),
            forgetting: Forgetting::new(Duration::from_hours(24 * 400)),
            runs: JoinSet::new(),
            board: Board::default(),
            unsettled: None,
        }
    }

    /// The same with limits: how many runs at the same time, and how long the ledger keeps what ended.
    #[must_use]
    pub fn within(self, max_runs: usize, history_keep: Duration) -> Self {
        Self {
            max_runs,
            forgetting: Forgetting::new(history_keep),
            ..self
        }
    }

    /// What runs now.
    #[must_use]
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Follows the dispatcher's standing.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// A probe that answers how long ago the loop was last seen alive.
    pub fn liveness(&self) -> impl Fn() -> Duration + Send + Sync + 'static {
        let (alive, born) = (Arc::clone(&self.alive), self.born);
        move || {
            born.elapsed()
                .saturating_sub(Duration::from_millis(alive.load(Ordering::Relaxed)))
        }
    }

    /// Runs until asked to stop; then admits nothing more, waits for what runs, and resigns.
    pub async fn run(mut self, mut pokes: mpsc::Receiver<()>, mut commands: mpsc::Receiver<Command>) {
        let soft = self.stops.soft.clone();
        loop {
            self.beat();
            let due = self.due();
            tokio::select! {
                biased;
                () = soft.cancelled() => break,
                Some(done) = self.runs.join_next_with_id(), if !self.runs.is_empty() => self.note_end(done),
                Some(command) = commands.recv() => if !self.obey(command).await {
                    // What waited for its turn is closed by the next leader.
                    self.queued.clear();
                    break;
                },
                Some(()) = pokes.recv() => self.tick().await,
                () = due => self.tick().await,
            }
        }
        drop(commands);
        self.close_what_waits().await;
        // What runs keeps its lead meanwhile.
        while !self.runs.is_empty() {
            self.beat();
            tokio::select! {
                biased;
                Some(done) = self.runs.join_next_with_id() => self.note_end(done),
                Some(()) = pokes.recv() => self.keep_the_lead().await,
            }
        }
        if let Some(lead) = self.lead.take() {
            lead.resign().await;
        }
    }

    /// Ends when the next slot comes due, so that its run need not wait for a beat; never where that
    /// is not known. A clock that is set meanwhile is noticed at the next beat.
    fn due(&self) -> impl Future<Output = ()> + Send + 'static {
        let next = self.next_start.filter(|_| self.lead.is_some());
        let left = next.and_then(|next| Duration::try_from(Timestamp::now().duration_until(next)).ok());
        async move {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        }
    }

    fn beat(&self) {
        self.alive.store(
            u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    /// Shows that the loop is alive while a step takes long. Never ends.
    pub(super) fn beating(&self) -> impl Future<Output = ()> + Send + 'static {
        let (alive, born) = (Arc::clone(&self.alive), self.born);
        async move {
            loop {
                tokio::time::sleep(CONFIRM_EVERY).await;
                let now = u64::try_from(born.elapsed().as_millis()).unwrap_or(u64::MAX);
                alive.store(now, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn actor(&self) -> String {
        format!("daemon:{}", self.instance)
    }

    pub(super) fn site(&self, term: &Term) -> Site {
        Site {
            database: self.database.to_string(),
            target: self.target.clone(),
            system_identifier: term.cluster.clone(),
            fence: term.fence,
        }
    }

    /// Starts an admitted run.
    pub(super) fn launch(&mut self, request: RunRequest) -> LiveRun {
        // A manual run beside another of its job meets the job's lock; the other one counts.
        self.active
            .entry(request.job.name.clone())
            .or_insert_with(|| Active::of(&request));
        let (live, seat) = self.board.seat(&request);
        let runner = self.runner.clone();
        let run = request.run;
        let task = self.runs.spawn(async move {
            let record = runner.execute(request).await;
            seat.end(&record);
            record
        });
        self.tasks.insert(task.id(), run);
        self.publish_running();
        live
    }

    fn note_end(&mut self, done: Result<(task::Id, RunRecord), task::JoinError>) {
        match done {
            Ok((task, record)) => {
                self.tasks.remove(&task);
                self.active.retain(|_, active| active.run != record.run_id);
                if let Some(term) = self.last_term.clone() {
                    self.start_ready(&term);
                }
            }
            Err(error) => {
                // Its row is closed like that of any run nobody works on any more.
                tracing::error!(error = %error, "the runner ended without a record; its run is closed in a few minutes");
                // Another run of the same job may be under way beside it.
                if let Some(run) = self.tasks.remove(&error.id()) {
                    self.active.retain(|_, active| active.run != run);
                }
            }
        }
        self.publish_running();
    }
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;

    use super::*;
    use crate::job::{Exclusion, Job, JobContext, JobError, Kind, Plan, Progress, Trigger};
    use crate::ledger::leader::Fence;
    use crate::runner::{RunnableJob, Sharing};

    struct Nothing;

    impl Job for Nothing {
        fn kind(&self) -> Kind {
            Kind::Backup
        }

        fn exclusions(&self) -> Vec<Exclusion> {
            Vec::new()
        }

        fn plan<'a>(&'a self, _: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
            Box::pin(std::future::ready(Err(JobError::permanent("plan", "nothing"))))
        }
    }

    fn dispatcher(directory: &std::path::Path) -> Dispatcher {
        let audit = AuditLog::open(directory, "test").unwrap();
        let target = ConnectTarget::parse("postgresql:///nowhere?host=/nowhere&user=nobody").unwrap();
        let (name, runner) = ("app".parse().unwrap(), Runner::new(audit.clone()));
        Dispatcher::new(
            name,
            target,
            "test".to_owned(),
            Vec::new(),
            runner,
            audit,
            Stops::default(),
        )
    }

    fn request(of: &Dispatcher) -> RunRequest {
        let job = RunnableJob {
            name: "purge".parse().unwrap(),
            job: Arc::new(Nothing),
            policy: String::new(),
            approval_required: false,
            run_timeout: Duration::from_secs(1),
            lock_timeout: Duration::from_secs(1),
            retries: 0,
            sharing: Sharing::default(),
        };
        let site = Site {
            database: of.database.to_string(),
            target: of.target.clone(),
            system_identifier: String::new(),
            fence: Fence { epoch: 1 },
        };
        RunRequest {
            run: RunId::new(),
            job,
            site,
            scheduled_for: None,
            trigger: Trigger::Manual,
            actor: String::new(),
            note: None,
            stops: Stops::default(),
            progress: Progress::new(),
            retry_until: None,
        }
    }

    #[tokio::test]
    async fn a_task_that_breaks_ends_its_own_run_and_not_another_one_of_the_job() {
        let directory = tempfile::tempdir().unwrap();
        let mut dispatcher = dispatcher(directory.path());
        let request = request(&dispatcher);
        let name = request.job.name.clone();
        dispatcher.active.insert(name.clone(), Active::of(&request));
        let break_as = async |dispatcher: &mut Dispatcher, run: RunId| {
            let task = dispatcher.runs.spawn(async { panic!("a test's panic") });
            dispatcher.tasks.insert(task.id(), run);
            let done = dispatcher.runs.join_next_with_id().await.unwrap();
            dispatcher.note_end(done);
        };
        break_as(&mut dispatcher, RunId::new()).await;
        assert!(dispatcher.active.contains_key(&name), "it was the other run's task");
        break_as(&mut dispatcher, request.run).await;
        assert!(dispatcher.active.is_empty() && dispatcher.tasks.is_empty());
    }
}
