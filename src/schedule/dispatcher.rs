//! One database's dispatcher: it leads, evaluates schedules, writes slots' rows, and starts runs.
//!
//! The order is the promise: a slot's row is committed before its run starts, and the mark "slots
//! until here have rows" moves in the same transaction.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::{self, JoinSet};

use super::board::{Board, LiveRun};
use super::clock::{Clock, Jump};
use super::command::Command;
use super::forgetting::Forgetting;
use super::slots::{self, Admission, ScheduledJob};
use super::starting::{Active, HeldSince};
use super::trust::Trust;
use super::{marks, overlap, pausing, recovery};
use crate::audit::{AuditLog, Entry, RecordKind, RunRecorder};
use crate::job::{Outcome, RecoveryContext};
use crate::ledger::leader::{CONFIRM_EVERY, Campaign, Leader, Term};
use crate::ledger::pauses::{self, Pause};
use crate::ledger::runs::RunRecord;
use crate::ledger::{cancels, migrate};
use crate::postgres::connect::ConnectTarget;
use crate::postgres::sqlstate::DatabaseError;
use crate::runner::{RunRequest, Runner, Site, Stops};
use crate::telemetry;
use crate::values::{JobName, Name, RunId};

/// The longest one evaluation may take; a database that answers slower is treated as lost.
const TICK_LIMIT: Duration = Duration::from_secs(20);
/// The longest that taking the lead may take: migrating, reading the audit log and closing what is
/// open takes as long as there is much of it, and begins anew when it is cut short.
const LEAD_LIMIT: Duration = Duration::from_mins(10);
/// The longest that asking for the lead may take.
const CAMPAIGN_LIMIT: Duration = Duration::from_mins(1);
/// How long to wait before a lost or unreachable database is tried again.
const RECONNECT_PAUSE: Duration = Duration::from_secs(2);
/// How long a follower waits before it tries to lead.
const FOLLOW_PAUSE: Duration = Duration::from_secs(3);
/// How often the marks are moved on while nothing is due.
const SAVE_EVERY: Duration = Duration::from_mins(1);

/// How long nothing must have been heard of a run that is nobody's before it is closed: longer than
/// the longest pause between two attempts.
const STRAY_AFTER: Duration = Duration::from_mins(5);

/// How a dispatcher stands with its database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not yet known.
    Connecting,
    /// It cannot be reached, or not be used.
    Unreachable(String),
    /// It is a standby; nothing runs until it is promoted.
    Standby,
    /// Another instance leads.
    Following(String),
    /// We lead.
    Leading,
}

/// What others see of a dispatcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The database's name in the configuration.
    pub database: Name,
    /// How it stands.
    pub standing: Standing,
    /// The jobs that run now.
    pub running: Vec<JobName>,
}

/// What a dispatcher is made of.
pub struct Dispatcher {
    database: Name,
    target: ConnectTarget,
    pub(super) instance: String,
    pub(super) jobs: Vec<ScheduledJob>,
    runner: Runner,
    pub(super) audit: AuditLog,
    stops: Stops,
    status: watch::Sender<Status>,
    /// Milliseconds of the daemon's life at which the loop was last seen alive.
    alive: Arc<AtomicU64>,
    born: Instant,
    pub(super) lead: Option<Leader>,
    last_term: Option<Term>,
    trust: Option<Trust>,
    migrated: bool,
    try_again: Instant,
    confirmed: Instant,
    saved: Instant,
    pub(super) active: HashMap<JobName, Active>,
    /// Which task runs which job.
    tasks: HashMap<task::Id, JobName>,
    pub(super) queued: HashMap<JobName, VecDeque<Admission>>,
    pub(super) held: HashMap<JobName, HeldSince>,
    pub(super) max_runs: usize,
    clock: Clock,
    forgetting: Forgetting,
    runs: JoinSet<RunRecord>,
    board: Board,
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
        jobs: Vec<ScheduledJob>,
        runner: Runner,
        audit: AuditLog,
        stops: Stops,
    ) -> Self {
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

    fn beat(&self) {
        self.alive.store(
            u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    /// Shows that the loop is alive while a step takes long. Never ends.
    fn beating(&self) -> impl Future<Output = ()> + Send + 'static {
        let (alive, born) = (Arc::clone(&self.alive), self.born);
        async move {
            loop {
                tokio::time::sleep(CONFIRM_EVERY).await;
                let now = u64::try_from(born.elapsed().as_millis()).unwrap_or(u64::MAX);
                alive.store(now, Ordering::Relaxed);
            }
        }
    }

    pub(super) async fn tick(&mut self) {
        self.step().await;
        let epoch = self.lead.as_ref().map(|lead| lead.term.fence.epoch);
        telemetry::metrics::evaluated(self.database.as_str(), epoch);
    }

    async fn step(&mut self) {
        self.keep_the_lead().await;
        if let Some(mut lead) = self.lead.take() {
            match tokio::time::timeout(TICK_LIMIT, self.evaluate(&mut lead)).await {
                Ok(Ok(())) => self.lead = Some(lead),
                Ok(Err(error)) => self.lose(&error.explain()),
                Err(_) => self.lose("the database did not answer in time"),
            }
        }
    }

    /// Takes the lead where it can be had, and confirms it in time where we have it.
    async fn keep_the_lead(&mut self) {
        if self.lead.is_none() && Instant::now() >= self.try_again {
            let (beating, soft) = (self.beating(), self.stops.soft.clone());
            let taken = tokio::select! {
                taken = tokio::time::timeout(LEAD_LIMIT, self.take_the_lead()) => taken,
                () = beating => return,
                () = soft.cancelled() => return,
            };
            match taken {
                Ok(Ok(standing)) => self.stand(standing),
                Ok(Err(error)) => self.lose(&error.explain()),
                Err(_) => self.lose("the database did not answer in time"),
            }
        }
        if self.confirmed.elapsed() < CONFIRM_EVERY {
            return;
        }
        if let Some(mut lead) = self.lead.take() {
            let asked = Instant::now();
            match self.confirm(&mut lead).await {
                Ok(()) if self.may_start() => {
                    self.confirmed = asked;
                    self.lead = Some(lead);
                }
                Ok(()) => self.lose("the lead could not be confirmed in time"),
                Err(error) => self.lose(&error.explain()),
            }
        }
    }

    /// Asks whether we lead, and which runs are to end.
    async fn confirm(&mut self, lead: &mut Leader) -> Result<(), recovery::RecoveryError> {
        let asked = Instant::now();
        lead.confirm().await?;
        if let Some(trust) = &self.trust {
            trust.extend(asked);
        }
        for request in cancels::requested(lead.connection()).await? {
            if let Some(live) = self.board.find(request.run) {
                live.stops.end_now(&request.actor);
                continue;
            }
            if let Some(name) = self.take_back(request.run) {
                let reason = format!("cancelled by {} before it began", request.actor);
                self.drop_admitted(lead, &name, request.run, Outcome::Cancelled, &reason)
                    .await?;
            }
        }
        Ok(())
    }

    /// Closes the runs that were admitted and never began. Where the ledger cannot be reached now, the
    /// next leader does.
    async fn close_what_waits(&mut self) {
        let waiting = std::mem::take(&mut self.queued);
        let Some(mut lead) = self.lead.take() else {
            return;
        };
        let reason = "pgreeve was stopped before the run began";
        let close = async {
            for (name, admissions) in &waiting {
                for admission in admissions {
                    self.drop_admitted(&mut lead, name, admission.run, Outcome::Missed, reason)
                        .await?;
                }
            }
            Ok::<_, recovery::RecoveryError>(())
        };
        match tokio::time::timeout(TICK_LIMIT, close).await {
            Ok(Ok(())) => self.lead = Some(lead),
            Ok(Err(error)) => self.lose(&error.explain()),
            Err(_) => self.lose("the database did not answer in time"),
        }
    }

    /// Whether runs may be started: we lead, and know it from a short while ago.
    pub(super) fn may_start(&self) -> bool {
        self.trust.as_ref().is_some_and(Trust::holds)
    }

    /// What a run of this term is ended by.
    pub(super) fn run_stops(&self) -> Stops {
        self.trust
            .as_ref()
            .map_or_else(|| self.stops.child(), |trust| trust.stops().child())
    }

    /// Campaigns, and when the campaign is won mends what an earlier process left open.
    async fn take_the_lead(&mut self) -> Result<Standing, recovery::RecoveryError> {
        if !self.migrated {
            if in_time(recovery::is_standby(&self.target)).await? {
                self.try_again = Instant::now() + FOLLOW_PAUSE;
                return Ok(Standing::Standby);
            }
            migrate::apply(&self.target).await?;
            self.migrated = true;
        }
        let asked = Instant::now();
        let campaign = Leader::campaign(&self.target, &self.instance, self.last_term.as_ref());
        let mut lead = match in_time(campaign).await? {
            Campaign::Won(lead) => lead,
            Campaign::Held { instance, .. } => {
                self.try_again = Instant::now() + FOLLOW_PAUSE;
                return Ok(Standing::Following(instance));
            }
            Campaign::Standby => {
                self.try_again = Instant::now() + FOLLOW_PAUSE;
                return Ok(Standing::Standby);
            }
        };
        if self.last_term.as_ref() == Some(&lead.term) && self.may_start() {
            if let Some(trust) = &self.trust {
                trust.extend(asked);
            }
        } else {
            // Runs of an earlier term, or of one that could not be confirmed, end.
            if let Some(trust) = self.trust.take() {
                trust.stops().end_now("pgreeve, which lost the lead in the meantime");
            }
            self.trust = Some(Trust::begin(asked, &self.stops, self.database.to_string()));
        }
        if self.last_term.as_ref() != Some(&lead.term) {
            // Their rows are closed just below.
            self.queued.clear();
            self.held.clear();
            recovery::recover(&mut lead, &self.audit, self.database.as_str()).await?;
            marks::first_seen(lead.connection(), &mut self.jobs, &self.audit, Timestamp::now()).await?;
            self.clean_up(&lead.term);
            // What the old term admitted and did not begin has just been closed.
            self.queued.clear();
        }
        self.last_term = Some(lead.term.clone());
        self.confirmed = asked;
        let term = lead.term.clone();
        self.lead = Some(lead);
        self.start_ready(&term);
        Ok(Standing::Leading)
    }

    /// Lets each job remove what a dead process left outside the database. Other work goes on
    /// meanwhile; a job that cannot clean up now does so at its next run.
    fn clean_up(&self, term: &Term) {
        for job in &self.jobs {
            let context = RecoveryContext {
                job: job.runnable.name.clone(),
                database: self.database.to_string(),
                target: self.target.clone(),
                fence: term.fence,
                recorder: Arc::new(RunRecorder {
                    log: self.audit.clone(),
                    run: None,
                    job: job.runnable.name.clone(),
                    database: Some(term.cluster.clone()),
                    policy: Some(job.runnable.policy.clone()),
                    actor: Some(self.actor()),
                }),
            };
            let runnable = job.runnable.clone();
            tokio::spawn(async move {
                if let Err(error) = runnable.job.clean_up(context).await {
                    tracing::warn!(job.name = %runnable.name, error = %error, "what an earlier run left behind could not be removed yet");
                }
            });
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

    async fn evaluate(&mut self, lead: &mut Leader) -> Result<(), recovery::RecoveryError> {
        self.settle(lead).await?;
        let now = Timestamp::now();
        if let Some(jump) = self.clock.read(now, Instant::now()) {
            self.note_jump(lead, jump).await?;
        }
        let save = self.saved.elapsed() >= SAVE_EVERY;
        let mut known_pauses: Option<Vec<Pause>> = None;
        for index in 0..self.jobs.len() {
            let job = &mut self.jobs[index];
            let name = job.runnable.name.clone();
            marks::rewind(lead.connection(), job, &self.audit, now).await?;
            let mut found = job.found_until(now);
            if found.slots.is_empty() && !save {
                continue;
            }
            let known = match &known_pauses {
                Some(known) => known,
                None => known_pauses.insert(pauses::load(lead.connection()).await?),
            };
            let (free, mut paused) = pausing::split(known, &name, std::mem::take(&mut found.slots));
            found.slots = free;
            let until = found.until;
            let mut decision = self.jobs[index].decide(found);
            pausing::hold_back(known, &name, now, &mut decision.run, &mut paused);
            let overlapping = overlap::decide(self.jobs[index].overlap, &self.busy(&name), decision.run.len());
            let replaced = overlapping.cancels;
            let writer = slots::Writer {
                audit: &self.audit,
                instance: &self.instance,
                term: &lead.term.clone(),
                job: &mut self.jobs[index],
            };
            let admitted = writer
                .write(lead.connection(), decision, paused, Some(overlapping), until)
                .await?;
            // Only a slot of our own may end a run: one that has a row already was somebody else's.
            if let Some(run) = replaced.filter(|_| !admitted.is_empty()) {
                self.replace_running(run);
            }
            self.queued.entry(name).or_default().extend(admitted);
        }
        self.start_ready(&lead.term.clone());
        self.give_up_late(lead).await?;
        self.forgetting.go_on(lead, &self.instance).await?;
        if save {
            self.forgetting.look(lead, &self.audit).await?;
            let queued = self.queued.values().flatten().map(|admission| admission.run);
            let live = self.board.list().into_iter().map(|live| live.run);
            let known: Vec<RunId> = live.chain(queued).collect();
            recovery::close_strays(lead, &self.audit, &known, STRAY_AFTER).await?;
            self.saved = Instant::now();
        }
        Ok(())
    }

    /// The slots in between are those of a downtime, or have their rows.
    async fn note_jump(&self, lead: &Leader, jump: Jump) -> Result<(), recovery::RecoveryError> {
        let seconds = jump.by().as_secs();
        tracing::warn!(database = %self.database, seconds, "the host's clock was set, or the host was asleep");
        let body = json!({ "seconds": seconds, "expected": jump.expected, "found": jump.found });
        let entry = Entry::new(RecordKind::ClockJump, body).database(lead.term.cluster.clone());
        self.audit.append(entry).await?;
        Ok(())
    }

    /// Starts an admitted run.
    pub(super) fn launch(&mut self, request: RunRequest) -> LiveRun {
        // A manual run beside another of its job meets the job's lock; the other one counts.
        self.active
            .entry(request.job.name.clone())
            .or_insert_with(|| Active::of(&request));
        let (live, seat) = self.board.seat(&request);
        let runner = self.runner.clone();
        let name = request.job.name.clone();
        let task = self.runs.spawn(async move {
            let record = runner.execute(request).await;
            seat.end(&record);
            record
        });
        self.tasks.insert(task.id(), name);
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
                if let Some(job) = self.tasks.remove(&error.id()) {
                    self.active.remove(&job);
                }
            }
        }
        self.publish_running();
    }

    fn publish_running(&self) {
        let mut running: Vec<JobName> = self.active.keys().cloned().collect();
        running.sort();
        self.status.send_if_modified(|status| {
            let changed = status.running != running;
            status.running = running;
            changed
        });
    }

    fn stand(&self, standing: Standing) {
        self.status.send_if_modified(|status| {
            let changed = status.standing != standing;
            if changed {
                match &standing {
                    Standing::Leading => tracing::info!(database = %self.database, "leading the database"),
                    Standing::Following(leader) => {
                        tracing::info!(database = %self.database, leader, "another instance leads the database; following");
                    }
                    Standing::Standby => tracing::info!(database = %self.database, "the database is a standby; waiting for its promotion"),
                    Standing::Unreachable(error) => {
                        tracing::error!(database = %self.database, error, "the database cannot be used; its jobs wait, others go on");
                    }
                    Standing::Connecting => {}
                }
                status.standing = standing;
            }
            changed
        });
    }

    pub(super) fn lose(&mut self, error: &str) {
        self.lead = None;
        // It may be another database when it comes back: restored, or made anew.
        self.migrated = false;
        self.try_again = Instant::now() + RECONNECT_PAUSE;
        self.stand(Standing::Unreachable(error.to_owned()));
    }
}

/// Waits for an answer on the way to the lead, but not for ever.
async fn in_time<T>(step: impl Future<Output = Result<T, DatabaseError>>) -> Result<T, DatabaseError> {
    tokio::time::timeout(CAMPAIGN_LIMIT, step)
        .await
        .unwrap_or_else(|_| Err(DatabaseError::local("the database did not answer in time")))
}

impl From<&Standing> for String {
    fn from(standing: &Standing) -> Self {
        match standing {
            Standing::Connecting => "connecting".to_owned(),
            Standing::Unreachable(error) => format!("unreachable: {error}"),
            Standing::Standby => "standby".to_owned(),
            Standing::Following(leader) => format!("following {leader}"),
            Standing::Leading => "leading".to_owned(),
        }
    }
}
