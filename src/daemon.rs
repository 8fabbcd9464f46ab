//! The daemon: the start sequence in one readable function, and the only place that sees every
//! part.

mod desk;
mod fleet;
pub mod proof;
mod reload;
mod stores;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use sd_notify::NotifyState;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::desk::Office;
use self::fleet::Fleet;

use crate::audit::{AuditError, AuditLog, Entry, RecordKind};
use crate::config::{Config, JobSettings};
use crate::control::{self, ControlSocket, SocketError};
use crate::http::{self, Sight};
use crate::job::Approval;
use crate::jobs::KindSettings;
use crate::jobs::build::{Surroundings, build};
use crate::lifecycle;
use crate::runner::{RunnableJob, SameJob, Sharing, Stops};
use crate::schedule::dispatcher::{Standing, Status};
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
    /// The control socket cannot be made, or another daemon has it.
    #[error("{0}")]
    Control(#[from] SocketError),
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
    let socket = ControlSocket::bind(&config.daemon.runtime_dir).await?;
    let actor = format!("daemon:{}", config.daemon.instance);
    announce(&audit, config, &actor).await?;

    let metrics = telemetry::metrics::start()?;
    let stops = Stops::default();
    lifecycle::listen(stops.clone()).map_err(DaemonError::Signals)?;

    let probing = tokio::spawn(stores::probe(config.clone(), audit.clone(), actor.clone()));
    let fleet = Arc::new(Fleet::new(audit.clone(), stops.clone()));
    fleet.apply(config).await;
    if let Some(address) = config.daemon.listen {
        let seen = Arc::clone(&fleet);
        let sight = Sight {
            instance: config.daemon.instance.clone(),
            view: Arc::new(move || seen.view()),
            metrics,
        };
        http::serve(address, sight, stops.soft.clone())
            .await
            .map_err(|error| DaemonError::Listen(address, error))?;
    }
    let poked = Arc::clone(&fleet);
    let heartbeat = Heartbeat::start(move || poked.poke())
        .await
        .map_err(|error| DaemonError::Heartbeat(error.to_string()))?;

    let office = Office::new(config.clone(), audit.clone(), Arc::clone(&fleet));
    let on_hangup = office.clone();
    lifecycle::on_hangup(move || {
        let office = on_hangup.clone();
        async move {
            // What is wrong is in the log and in the audit log.
            let _ = office.reload("signal:SIGHUP").await;
        }
    })
    .map_err(DaemonError::Signals)?;
    let closing = CancellationToken::new();
    let serving = tokio::spawn(control::serve(socket, Arc::new(office.clone()), closing.clone()));

    let first_answers = fleet.posts().into_values().map(|post| post.status).collect();
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
    tokio::spawn(publish_status(Arc::clone(&fleet), office.verdict()));
    tokio::spawn(keep_watchdog_quiet(Arc::clone(&fleet)));
    let sealing = tokio::spawn(seal_hourly(audit.clone()));

    let whole = fleet.end().await;
    heartbeat.stop().await;
    sealing.abort();
    probing.abort();
    closing.cancel();
    if let Err(error) = serving.await {
        tracing::error!(error = %error, "the control socket's task did not end well");
    }
    audit
        .append(Entry::new(RecordKind::DaemonStop, json!({})).actor(actor))
        .await?;
    audit.append_checkpoint().await?;
    tracing::info!("stopped");
    whole
}

/// A job of the configuration, ready to run.
#[must_use]
pub fn runnable(config: &Config, settings: &JobSettings) -> RunnableJob {
    let named = settings.kind.stores().into_iter();
    let stores = named.filter_map(|(_, name)| Some((name.clone(), config.stores.get(name)?.clone())));
    let surroundings = Surroundings {
        instance: config.daemon.instance.clone(),
        timezone: settings.schedule.timezone().clone(),
        stores: stores.collect(),
        throttle: settings.throttle.clone(),
        erasures: matches!(settings.kind, KindSettings::Backup(_)).then(|| proof::ledger(config)),
        proof: matches!(settings.kind, KindSettings::Erasure(_)).then(|| proof::of(config, settings)),
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
    let (policies, schedules) = policies_and_schedules(config);
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

/// Each job's policy, and its schedule with its zone, as the audit log keeps them.
fn policies_and_schedules(config: &Config) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let of_job = |value: fn(&JobSettings) -> String| {
        let jobs = config.jobs.values();
        jobs.map(|job| (job.name.to_string(), value(job))).collect()
    };
    let policies = of_job(|job| job.kind.fingerprint());
    let schedules = of_job(|job| format!("{} {}", job.schedule, job.schedule.timezone().name()));
    (policies, schedules)
}

async fn wait_for_answers(states: Vec<watch::Receiver<Status>>) {
    for mut state in states {
        // An error means the dispatcher has ended, which is an answer too.
        let _ = state.wait_for(|status| status.standing != Standing::Connecting).await;
    }
}

/// Keeps `systemctl status` informed.
async fn publish_status(fleet: Arc<Fleet>, mut verdict: watch::Receiver<Option<String>>) {
    let mut set = fleet.changes();
    loop {
        let mut states: Vec<_> = fleet.posts().into_values().map(|post| post.status).collect();
        let text = {
            let all: Vec<_> = states
                .iter_mut()
                .map(|state| state.borrow_and_update().clone())
                .collect();
            let mut text = status_text(&all);
            if let Some(verdict) = verdict.borrow_and_update().as_deref() {
                text = format!("{text}; {verdict}");
            }
            text
        };
        lifecycle::notify(&[NotifyState::Status(&text)]);
        // A dispatcher that has ended changes no more; the others may.
        let mut next_standing: FuturesUnordered<_> = states
            .iter_mut()
            .filter(|state| state.has_changed().is_ok())
            .map(watch::Receiver::changed)
            .collect();
        tokio::select! {
            changed = set.changed() => if changed.is_err() { return },
            changed = verdict.changed() => if changed.is_err() { return },
            Some(_) = next_standing.next() => {}
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
async fn keep_watchdog_quiet(fleet: Arc<Fleet>) {
    let Some(interval) = lifecycle::watchdog_interval() else {
        return;
    };
    loop {
        tokio::time::sleep(interval).await;
        if fleet.posts().values().all(|post| (post.silent_for)() < DEAD_LOOP) {
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
