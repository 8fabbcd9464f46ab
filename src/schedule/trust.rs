//! How long a term may be believed in: its runs end when the lead could not be confirmed in time,
//! whatever the dispatcher itself is waiting for.

use std::time::Instant;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::ledger::leader::TRUST;
use crate::runner::Stops;

/// One term's trust, and the stops of its runs.
pub(super) struct Trust {
    until: watch::Sender<Instant>,
    stops: Stops,
    watcher: JoinHandle<()>,
}

impl Trust {
    /// Begins with a confirmation that was asked for at an instant.
    pub(super) fn begin(asked: Instant, parent: &Stops, database: String) -> Self {
        let (until, deadline) = watch::channel(asked + TRUST);
        let stops = parent.child();
        let watcher = tokio::spawn(watch_over(deadline, stops.clone(), database));
        Self { until, stops, watcher }
    }

    /// Goes on after another confirmation. One that took long counts from when it was asked for.
    pub(super) fn extend(&self, asked: Instant) {
        self.until.send_modify(|until| *until = (*until).max(asked + TRUST));
    }

    /// Whether runs may be started and go on.
    pub(super) fn holds(&self) -> bool {
        !self.stops.hard.is_cancelled() && Instant::now() < *self.until.borrow()
    }

    /// What the term's runs are ended by.
    pub(super) fn stops(&self) -> &Stops {
        &self.stops
    }
}

impl Drop for Trust {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

async fn watch_over(mut until: watch::Receiver<Instant>, stops: Stops, database: String) {
    loop {
        let deadline = *until.borrow_and_update();
        tokio::select! {
            changed = until.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(deadline.into()) => {
                tracing::error!(database, "the lead could not be confirmed in time; this term's runs are ended");
                stops.end_now("pgreeve, which could not confirm its lead in time");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_millis(300);

    /// When a confirmation was asked for whose trust is over soon.
    fn long_ago() -> Instant {
        Instant::now().checked_sub(TRUST).unwrap() + SOON
    }

    #[tokio::test]
    async fn a_slow_confirmation_does_not_prolong_the_trust() {
        let parent = Stops::default();
        let asked = long_ago();
        let trust = Trust::begin(asked, &parent, "app".to_owned());
        assert!(trust.holds());
        // Answered now, asked for before.
        trust.extend(asked.checked_sub(SOON).unwrap());
        tokio::time::timeout(SOON * 20, trust.stops().hard.cancelled())
            .await
            .unwrap();
        assert!(!trust.holds());
        assert!(trust.stops().reason().unwrap().contains("lead"));
        assert!(!parent.hard.is_cancelled(), "only this term's runs end");
    }

    #[tokio::test]
    async fn a_confirmed_term_goes_on() {
        let trust = Trust::begin(long_ago(), &Stops::default(), "app".to_owned());
        trust.extend(Instant::now());
        let ended = tokio::time::timeout(SOON * 3, trust.stops().hard.cancelled()).await;
        assert!(ended.is_err() && trust.holds());
    }

    #[tokio::test]
    async fn a_daemons_stop_ends_the_terms_runs_too() {
        let parent = Stops::default();
        let trust = Trust::begin(Instant::now(), &parent, "app".to_owned());
        parent.hard.cancel();
        assert!(!trust.holds());
    }
}
