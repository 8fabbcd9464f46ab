//! The one-second beat that wakes the dispatchers. The only file that names `tokio_cron_scheduler`.
//!
//! The crate is used as a clock, not as a scheduler: one UTC job that pokes. Its own zones freeze
//! the offset at creation, it starts overlapping runs, loses activations under load and knows
//! nothing after a restart; all of that is the dispatcher's and the ledger's. Should its actors
//! die, a timer of tokio's takes over and says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

/// How long the beat may be silent before the fallback takes over.
const SILENCE: Duration = Duration::from_secs(5);

/// A running heartbeat. Dropping it ends the fallback only; [`Heartbeat::stop`] ends both.
pub struct Heartbeat {
    scheduler: JobScheduler,
    fallback: JoinHandle<()>,
}

impl Heartbeat {
    /// Calls `poke` once a second. `poke` must not block.
    ///
    /// # Errors
    /// When the crate cannot start.
    pub async fn start(poke: impl Fn() + Send + Sync + 'static) -> Result<Self, JobSchedulerError> {
        let poke = Arc::new(poke);
        let beats = Arc::new(AtomicU64::new(0));
        let scheduler = JobScheduler::new().await?;
        let (job_poke, job_beats) = (Arc::clone(&poke), Arc::clone(&beats));
        let job = Job::new_async("* * * * * *", move |_, _| {
            job_beats.fetch_add(1, Ordering::Relaxed);
            job_poke();
            Box::pin(std::future::ready(()))
        })?;
        scheduler.add(job).await?;
        scheduler.start().await?;
        let fallback = tokio::spawn(async move {
            let mut last = 0;
            loop {
                tokio::time::sleep(SILENCE).await;
                let now = beats.load(Ordering::Relaxed);
                if now == last {
                    tracing::warn!(
                        "the heartbeat has been silent for {} s; poking without it",
                        SILENCE.as_secs()
                    );
                    poke();
                }
                last = now;
            }
        });
        Ok(Self { scheduler, fallback })
    }

    /// Stops the beat.
    pub async fn stop(mut self) {
        self.fallback.abort();
        if let Err(error) = self.scheduler.shutdown().await {
            tracing::debug!(error = ?error, "the heartbeat did not stop in good order");
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.fallback.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_heartbeat_pokes_until_it_is_stopped() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(8);
        let heartbeat = Heartbeat::start(move || {
            let _ = sender.try_send(());
        })
        .await
        .unwrap();
        for _ in 0..2 {
            tokio::time::timeout(Duration::from_secs(10), receiver.recv())
                .await
                .unwrap()
                .unwrap();
        }
        heartbeat.stop().await;
    }
}
