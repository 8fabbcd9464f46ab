//! The dispatchers, one for each database: started, given other jobs, retired.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

use super::{DaemonError, jobs_by_database};
use crate::audit::AuditLog;
use crate::config::Config;
use crate::http::View;
use crate::lifecycle;
use crate::postgres::connect::ConnectTarget;
use crate::runner::{Runner, Stops};
use crate::schedule::board::Board;
use crate::schedule::command::Command;
use crate::schedule::cron::Schedule;
use crate::schedule::dispatcher::{Dispatcher, Status};
use crate::schedule::slots::ScheduledJob;
use crate::telemetry;
use crate::values::{JobName, Name};

/// How many orders may wait for a dispatcher that is busy.
const WAITING_COMMANDS: usize = 32;

/// A dispatcher as the rest of the daemon reaches it.
#[derive(Clone)]
pub(super) struct Post {
    /// Which server it works with.
    pub(super) target: ConnectTarget,
    /// How it stands.
    pub(super) status: watch::Receiver<Status>,
    /// What it runs.
    pub(super) board: Board,
    /// How long ago its loop was last seen alive.
    pub(super) silent_for: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// Its jobs, and when each is due.
    pub(super) jobs: Vec<(JobName, Schedule)>,
    /// What it is told.
    pub(super) commands: mpsc::Sender<Command>,
    poke: mpsc::Sender<()>,
}

/// All dispatchers.
pub(super) struct Fleet {
    runner: Runner,
    audit: AuditLog,
    stops: Stops,
    tasks: TaskTracker,
    /// Whether a dispatcher broke.
    broken: Arc<AtomicBool>,
    posts: Mutex<BTreeMap<Name, Post>>,
    /// Counts the changes of the set.
    changes: watch::Sender<u64>,
}

impl Fleet {
    pub(super) fn new(audit: AuditLog, stops: Stops) -> Self {
        Self {
            runner: Runner::new(audit.clone()),
            audit,
            stops,
            tasks: TaskTracker::new(),
            broken: Arc::default(),
            posts: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// The dispatchers of now, by their database's name.
    pub(super) fn posts(&self) -> BTreeMap<Name, Post> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What monitoring sees of the dispatchers of now.
    pub(super) fn view(&self) -> View {
        let posts = self.posts();
        let jobs = posts.iter().flat_map(|(database, post)| {
            let jobs = post.jobs.iter();
            jobs.map(|(job, schedule)| (job.clone(), database.clone(), schedule.clone()))
        });
        let mut jobs: Vec<_> = jobs.collect();
        jobs.sort_by(|(one, ..), (other, ..)| one.cmp(other));
        View {
            states: posts.values().map(|post| post.status.borrow().clone()).collect(),
            silent_for: posts.values().map(|post| (post.silent_for)()).collect(),
            jobs,
        }
    }

    /// Follows changes of the set.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Wakes every dispatcher. Does not block.
    pub(super) fn poke(&self) {
        for post in self.posts.lock().unwrap_or_else(PoisonError::into_inner).values() {
            // A full channel means that the dispatcher has a poke waiting already.
            let _ = post.poke.try_send(());
        }
    }

    /// Brings the dispatchers in line with a configuration: one whose server is the same gets other
    /// jobs, one whose server has changed or gone retires when its runs have ended.
    pub(super) async fn apply(&self, config: &Config) {
        let mut old = self.posts();
        let known: Vec<JobName> = old
            .values()
            .flat_map(|post| post.jobs.iter().map(|(job, _)| job.clone()))
            .collect();
        let mut wanted = BTreeMap::new();
        let mut told = Vec::new();
        for (name, jobs) in jobs_by_database(config) {
            let target = &config.databases[name].target;
            // What a job counts begins with nothing, once.
            let seen = |name: &JobName| known.iter().any(|job| job == name);
            for job in jobs.iter().filter(|job| !seen(&job.runnable.name)) {
                telemetry::metrics::job_known(job.runnable.name.as_str());
            }
            let post = match old.remove(name) {
                Some(post) if post.target == *target => {
                    let (done, answer) = oneshot::channel();
                    let schedules = schedules(&jobs);
                    let max_runs = max_runs(config, name);
                    let order = Command::Replace { jobs, max_runs, done };
                    if post.commands.send(order).await.is_ok() {
                        told.push(answer);
                    }
                    Post {
                        jobs: schedules,
                        ..post
                    }
                }
                other => {
                    old.extend(other.map(|post| (name.clone(), post)));
                    self.start(config, name, jobs)
                }
            };
            wanted.insert(name.clone(), post);
        }
        // Pokes go on reaching those that retire: what they still run keeps its lead.
        for (name, post) in old {
            tracing::info!(database = %name, "the database left the configuration; its runs end, no others begin");
            let _ = post.commands.send(Command::Retire).await;
            self.tasks.spawn(poke_until_gone(post));
        }
        *self.posts.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
        self.changes.send_modify(|count| *count += 1);
        for answer in told {
            // An error means that the dispatcher has ended, for the daemon stops.
            let _ = answer.await;
        }
    }

    /// Waits until the daemon is to stop and all dispatchers have ended.
    ///
    /// # Errors
    /// When one of them broke. The others drain then as at a shutdown: a daemon that goes on
    /// without it would look healthy and leave its database's jobs undone.
    pub(super) async fn end(&self) -> Result<(), DaemonError> {
        self.stops.soft.cancelled().await;
        self.tasks.close();
        self.tasks.wait().await;
        if self.broken.load(Ordering::Relaxed) {
            Err(DaemonError::Dispatcher)
        } else {
            Ok(())
        }
    }

    fn start(&self, config: &Config, name: &Name, jobs: Vec<ScheduledJob>) -> Post {
        let target = &config.databases[name].target;
        let known = schedules(&jobs);
        let dispatcher = Dispatcher::new(
            name.clone(),
            target.clone(),
            config.daemon.instance.clone(),
            jobs,
            self.runner.clone(),
            self.audit.clone(),
            self.stops.clone(),
        )
        .within(max_runs(config, name), config.daemon.history_keep);
        let (poke, pokes) = mpsc::channel(1);
        let (commands, orders) = mpsc::channel(WAITING_COMMANDS);
        let post = Post {
            target: target.clone(),
            status: dispatcher.status(),
            board: dispatcher.board(),
            silent_for: Arc::new(dispatcher.liveness()),
            jobs: known,
            commands,
            poke,
        };
        self.tasks.spawn(guard(
            dispatcher.run(pokes, orders),
            self.stops.clone(),
            Arc::clone(&self.broken),
        ));
        post
    }
}

/// Runs a dispatcher; when it breaks, stops the daemon and notes why.
async fn guard(dispatcher: impl Future<Output = ()> + Send + 'static, stops: Stops, broken: Arc<AtomicBool>) {
    if let Err(error) = tokio::spawn(dispatcher).await {
        tracing::error!(error = %error, "a dispatcher broke; stopping, so that the service manager starts the daemon anew");
        broken.store(true, Ordering::Relaxed);
        stops.soft.cancel();
        tokio::spawn(async move {
            tokio::time::sleep(lifecycle::DRAIN_LIMIT).await;
            stops.hard.cancel();
        });
    }
}

fn schedules(jobs: &[ScheduledJob]) -> Vec<(JobName, Schedule)> {
    let jobs = jobs.iter();
    jobs.map(|job| (job.runnable.name.clone(), job.schedule.clone()))
        .collect()
}

fn max_runs(config: &Config, database: &Name) -> usize {
    usize::try_from(config.databases[database].max_runs).unwrap_or(usize::MAX)
}

async fn poke_until_gone(post: Post) {
    while !post.poke.is_closed() {
        let _ = post.poke.try_send(());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dispatcher_that_breaks_stops_the_others_and_is_noted() {
        let (stops, broken) = (Stops::default(), Arc::new(AtomicBool::new(false)));
        guard(async {}, stops.clone(), Arc::clone(&broken)).await;
        assert!(!stops.soft.is_cancelled() && !broken.load(Ordering::Relaxed));
        guard(async { panic!("a test's panic") }, stops.clone(), Arc::clone(&broken)).await;
        assert!(stops.soft.is_cancelled() && broken.load(Ordering::Relaxed));
    }
}
