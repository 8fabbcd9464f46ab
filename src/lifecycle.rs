//! Signals, draining, and what systemd is told.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::stops::Stops;

/// How long runs may go on after the first signal. Those that are ended then may take another 40 s,
/// and their records some more; the unit's `TimeoutStopSec` is longer than all of it.
pub const DRAIN_LIMIT: Duration = Duration::from_mins(1);

/// Waits for SIGTERM or SIGINT, then asks all runs to end at their next safe point; at the second
/// signal, or when the drain limit is reached, ends them now.
///
/// # Errors
/// When the signals cannot be listened to.
pub fn listen(stops: Stops) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(
            limit_s = DRAIN_LIMIT.as_secs(),
            "stopping: running jobs end at their next safe point; a second signal ends them now"
        );
        notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
        stops.soft.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = tokio::time::sleep(DRAIN_LIMIT) => tracing::warn!("the drain limit is reached; ending what still runs"),
        }
        stops.hard.cancel();
    });
    Ok(())
}

/// Calls `reload` at each SIGHUP, one after the other.
///
/// # Errors
/// When the signal cannot be listened to.
pub fn on_hangup<F: Future<Output = ()> + Send>(reload: impl Fn() -> F + Send + 'static) -> std::io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reload().await;
        }
    });
    Ok(())
}

/// Tells the service manager that a reload has begun. [`NotifyState::Ready`] ends it, whatever came
/// of it: without that, the service manager would wait for ever.
pub fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(error = %error, "the service manager was not told of the reload"),
    }
}

/// Tells the service manager, if there is one.
pub fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(error = %error, "the service manager could not be told");
    }
}

/// How often the service manager wants a sign of life: half of its `WatchdogSec`.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}
