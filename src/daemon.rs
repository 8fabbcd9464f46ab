//! The daemon: the start sequence in one readable function, and the only place that sees every
//! part.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::audit::{AuditError, AuditLog, Entry, RecordKind};
use crate::config::{Config, JobSettings};
use crate::http::{self, Liveness, Sight};
use crate::job::Approval;
use crate::jobs::KindSettings;
use crate::jobs::build::{Surroundings, build};
use crate::lifecycle;
use crate::runner::{RunnableJob, Runner, SameJob, Sharing, Stops};
use crate::schedule::dispatcher::{Dispatcher, Standing, Status};
use crate::schedule::heartbeat::Heartbeat;
use crate::schedule::policy::{Overlap, start_delay};
use crate::schedule::slots::ScheduledJob;
use crate::telemetry;
use crate::values::Name;

/// How often the audit log is sealed with a signed checkpoint, also when nothing happens.
const CHECKPOINT_EVERY: Duration = Duration::from_hours(1);
/// How long the daemon waits for its databases' first answers before it says it is ready.
const FIRST_ANSWERS: Duration = Duration::from_secs(20);
/// A dispatcher's loop that was not seen alive for so long has stopped; the watchdog may bite.
const DEAD_LOOP: Duration = Duration::from_secs(90);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The audit log cannot be written, so nothing may run.
    #[error("{0}")]
    Audit(#[from] AuditError),
    /// Signals cannot be listened to.
    #[error("listen to signals: {0}")]
    Signals(#[source] std::io::Error),
    /// The address of `listen` cannot be bound.
    #[error("listen on {0}: {1}")]
    Listen(std::net::SocketAddr, #[source] std::io::Error),
    /// Metrics cannot be collected.
    #[error("collect metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// A dispatcher ended by a defect; the jobs of its database would not run any more.
    #[error("a database's dispatcher panicked; the log names the line")]
    Dispatcher,
    /// The heartbeat cannot start.
    #[error("start the heartbeat: {0}")]
    Heartbeat(String),
}

/// Runs until it is asked to stop.
///
/// # Errors
/// When it cannot start; nothing has run then. Also when a dispatcher broke: what ran has ended in
/// good order, and the service manager starts the daemon anew.
pub async fn run(config: &Config) -> Result<(), DaemonError> {
    let audit = AuditLog::open(&config.daemon.state_dir.join("audit"), &config.daemon.instance)?;
    let actor = format!("daemon:{}", config.daemon.instance);
    announce(&audit, config, &actor).await?;

    let metrics = telemetry::metrics::start()?;
    for job in config.jobs.keys() {
        telemetry::metrics::job_known(job.as_str());
    }
    let stops = Stops::default();
    lifecycle::listen(stops.clone()).map_err(DaemonError::Signals)?;

    let runner = Runner::new(audit.clone());
    let mut dispatchers = JoinSet::new();
    let (mut senders, mut states, mut liveness) = (Vec::new(), Vec::new(), Vec::new());
    for (database, jobs) in jobs_by_database(config) {
        let target = config.databases[database].target.clone();
        let instance = config.daemon.instance.clone();
        let dispatcher = Dispatcher::new(
            database.clone(),
            target,
            instance,
            jobs,
            runner.clone(),
            audit.clone(),
            stops.clone(),
        )
        .within(
            usize::try_from(config.databases[database].max_runs).unwrap_or(usize::MAX),
            config.daemon.history_keep,
        );
        let (sender, receiver) = mpsc::channel(1);
        senders.push(sender);
        states.push(dispatcher.status());
        let probe: Liveness = Arc::new(dispatcher.liveness());
        liveness.push(probe);
        dispatchers.spawn(dispatcher.run(receiver));
    }
    if let Some(address) = config.daemon.listen {
        let jobs = config
            .jobs
            .values()
            .map(|job| (job.name.clone(), job.database.clone(), job.schedule.clone()));
        let sight = Sight {
            instance: config.daemon.instance.clone(),
            states: states.clone(),
            liveness: liveness.clone(),
            jobs: jobs.collect(),
            metrics,
        };
        http::serve(address, sight, stops.soft.clone())
            .await
            .map_err(|error| DaemonError::Listen(address, error))?;
    }
    let heartbeat = Heartbeat::start(move || {
        for sender in &senders {
            // A full channel means that the dispatcher has a poke waiting already.
            let _ = sender.try_send(());
        }
    })
    .await
    .map_err(|error| DaemonError::Heartbeat(error.to_string()))?;

    let first_answers = states.clone();
    let soft = stops.soft.clone();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            // READY after STOPPING would say the opposite of the truth.
            () = soft.cancelled() => return,
            _ = tokio::time::timeout(FIRST_ANSWERS, wait_for_answers(first_answers)) => {}
        }
        lifecycle::notify(&[NotifyState::Ready]);
        tracing::info!("ready");
    });
    tokio::spawn(publish_status(states));
    tokio::spawn(keep_watchdog_quiet(liveness));
    let sealing = tokio::spawn(seal_hourly(audit.clone()));

    let whole = wait_for_all(&mut dispatchers, &stops).await;
    heartbeat.stop().await;
    sealing.abort();
    audit
        .append(Entry::new(RecordKind::DaemonStop, json!({})).actor(actor))
        .await?;
    audit.append_checkpoint().await?;
    tracing::info!("stopped");
    whole
}

/// Waits until every dispatcher has ended. When one breaks, the others drain as at a shutdown: a
/// daemon that goes on without it would look healthy and leave its database's jobs undone.
async fn wait_for_all(dispatchers: &mut JoinSet<()>, stops: &Stops) -> Result<(), DaemonError> {
    let mut whole = Ok(());
    while let Some(ended) = dispatchers.join_next().await {
        if let Err(error) = ended {
            tracing::error!(error = %error, "a dispatcher broke; stopping, so that the service manager starts the daemon anew");
            whole = Err(DaemonError::Dispatcher);
            stops.soft.cancel();
            let hard = stops.hard.clone();
            tokio::spawn(async move {
                tokio::time::sleep(lifecycle::DRAIN_LIMIT).await;
                hard.cancel();
            });
        }
    }
    whole
}

/// A job of the configuration, ready to run.
#[must_use]
pub fn runnable(config: &Config, settings: &JobSettings) -> RunnableJob {
    let store = match &settings.kind {
        KindSettings::Backup(backup) => config.stores.get(&backup.store).cloned(),
        KindSettings::Retention(_) | KindSettings::Transition(_) => None,
    };
    let surroundings = Surroundings {
        instance: config.daemon.instance.clone(),
        timezone: settings.schedule.timezone().clone(),
        store,
        throttle: settings.throttle.clone(),
    };
    RunnableJob {
        name: settings.name.clone(),
        job: build(&settings.kind, &surroundings),
        policy: settings.kind.fingerprint(),
        approval_required: settings.approval == Approval::Required,
        run_timeout: settings.run_timeout,
        lock_timeout: settings.lock_timeout,
        retries: settings.retries,
        sharing: Sharing {
            groups: settings.groups.clone(),
            start_deadline: settings.start_deadline,
            same_job: match settings.overlap {
                Overlap::Skip => SameJob::Skip,
                Overlap::QueueOne => SameJob::Wait,
                Overlap::CancelRunning => SameJob::Replace,
            },
        },
    }
}

/// Every database of the configuration, with its jobs; also those without one, so that their
/// records are mended.
fn jobs_by_database(config: &Config) -> BTreeMap<&Name, Vec<ScheduledJob>> {
    let mut jobs: BTreeMap<&Name, Vec<ScheduledJob>> = config.databases.keys().map(|name| (name, Vec::new())).collect();
    for settings in config.jobs.values() {
        let job = ScheduledJob::new(
            runnable(config, settings),
            settings.schedule.clone(),
            settings.missed,
            settings.catch_up_window,
        )
        .with(
            settings.overlap,
            start_delay(settings.jitter, &config.daemon.instance, &settings.name),
        );
        jobs.entry(&settings.database).or_default().push(job);
    }
    jobs
}

async fn announce(audit: &AuditLog, config: &Config, actor: &str) -> Result<(), AuditError> {
    let files: Vec<String> = config.files.iter().map(|file| file.display().to_string()).collect();
    let policies: BTreeMap<&str, String> = config
        .jobs
        .values()
        .map(|job| (job.name.as_str(), job.kind.fingerprint()))
        .collect();
    let schedules: BTreeMap<&str, String> = config
        .jobs
        .values()
        .map(|job| {
            (
                job.name.as_str(),
                format!("{} {}", job.schedule, job.schedule.timezone().name()),
            )
        })
        .collect();
    let start =
        json!({ "version": env!("CARGO_PKG_VERSION"), "instance": config.daemon.instance, "pid": std::process::id() });
    audit
        .append(Entry::new(RecordKind::DaemonStart, start).actor(actor))
        .await?;
    let applied = json!({
        "files": files, "fingerprint": config.fingerprint, "policies": policies, "schedules": schedules,
    });
    audit
        .append(Entry::new(RecordKind::ConfigApplied, applied).actor(actor))
        .await?;
    audit.append_checkpoint().await?;
    Ok(())
}

async fn wait_for_answers(states: Vec<watch::Receiver<Status>>) {
    for mut state in states {
        // An error means the dispatcher has ended, which is an answer too.
        let _ = state.wait_for(|status| status.standing != Standing::Connecting).await;
    }
}

/// Keeps `systemctl status` informed.
async fn publish_status(mut states: Vec<watch::Receiver<Status>>) {
    loop {
        let text = {
            let all: Vec<_> = states.iter().map(|state| state.borrow().clone()).collect();
            status_text(&all)
        };
        lifecycle::notify(&[NotifyState::Status(&text)]);
        let changes = states.iter_mut().map(|state| Box::pin(state.changed()));
        let (first, _, _) = futures::future::select_all(changes).await;
        if first.is_err() {
            return;
        }
    }
}

fn status_text(all: &[Status]) -> String {
    let leading = all.iter().filter(|status| status.standing == Standing::Leading).count();
    let mut parts = vec![format!("leading {leading} of {} databases", all.len())];
    let others = all.iter().filter(|status| status.standing != Standing::Leading);
    parts.extend(others.map(|status| format!("{} {}", status.database, String::from(&status.standing))));
    let running: Vec<&str> = all
        .iter()
        .flat_map(|status| &status.running)
        .map(Name::as_str)
        .collect();
    if !running.is_empty() {
        parts.push(format!("running {}", running.join(", ")));
    }
    parts.join("; ")
}

/// Tells the service manager that the dispatchers' loops are alive. A database that is down does
/// not count: the loop goes on without it, and a restart would not bring it back.
async fn keep_watchdog_quiet(liveness: Vec<Liveness>) {
    let Some(interval) = lifecycle::watchdog_interval() else {
        return;
    };
    loop {
        tokio::time::sleep(interval).await;
        if liveness.iter().all(|silent_for| silent_for() < DEAD_LOOP) {
            lifecycle::notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("a dispatcher's loop has stopped; the service manager will restart the daemon");
        }
    }
}

async fn seal_hourly(audit: AuditLog) {
    loop {
        tokio::time::sleep(CHECKPOINT_EVERY).await;
        if let Err(error) = audit.append_checkpoint().await {
            tracing::error!(error = %error, "the audit log could not be sealed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dispatcher_that_breaks_stops_the_others_and_the_daemon_with_an_error() {
        let stops = Stops::default();
        let mut dispatchers = JoinSet::new();
        let soft = stops.soft.clone();
        dispatchers.spawn(async move { soft.cancelled().await });
        dispatchers.spawn(async { panic!("a test's panic") });
        let ended = wait_for_all(&mut dispatchers, &stops).await;
        assert!(matches!(ended, Err(DaemonError::Dispatcher)), "{ended:?}");
        let mut dispatchers = JoinSet::new();
        dispatchers.spawn(async {});
        assert!(wait_for_all(&mut dispatchers, &stops).await.is_ok());
    }
}
