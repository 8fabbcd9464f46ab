//! What runs now, for whoever asks: `status`, `cancel`, the metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::job::{Progress, Trigger};
use crate::ledger::runs::RunRecord;
use crate::runner::{RunRequest, Stops};
use crate::values::{JobName, RunId};

/// A run that is under way.
#[derive(Debug, Clone)]
pub struct LiveRun {
    /// Its identity.
    pub run: RunId,
    /// Its job.
    pub job: JobName,
    /// What started it.
    pub trigger: Trigger,
    /// Its slot.
    pub scheduled_for: Option<Timestamp>,
    /// Who asked for it.
    pub actor: String,
    /// When it began here.
    pub since: Timestamp,
    /// How far it is.
    pub progress: Progress,
    /// How it is ended early.
    pub stops: Stops,
    /// Its record, once it has ended.
    ended: watch::Receiver<Option<RunRecord>>,
}

impl LiveRun {
    /// Waits until the run is closed. `None` when its records could not be closed here.
    pub async fn end(mut self) -> Option<RunRecord> {
        self.ended
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|record| record.clone())
    }
}

/// The runs of one dispatcher. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<BTreeMap<RunId, LiveRun>>>);

impl Board {
    /// All runs, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<LiveRun> {
        self.locked(|runs| runs.values().cloned().collect())
    }

    /// One run.
    #[must_use]
    pub fn find(&self, run: RunId) -> Option<LiveRun> {
        self.locked(|runs| runs.get(&run).cloned())
    }

    /// Puts a run up that is about to begin; it is taken off when the seat is dropped.
    pub(super) fn seat(&self, request: &RunRequest) -> (LiveRun, Seat) {
        let (ended, watched) = watch::channel(None);
        let live = LiveRun {
            run: request.run,
            job: request.job.name.clone(),
            trigger: request.trigger,
            scheduled_for: request.scheduled_for,
            actor: request.actor.clone(),
            since: Timestamp::now(),
            progress: request.progress.clone(),
            stops: request.stops.clone(),
            ended: watched,
        };
        self.locked(|runs| runs.insert(live.run, live.clone()));
        let seat = Seat {
            board: self.clone(),
            run: live.run,
            ended,
        };
        (live, seat)
    }

    fn locked<T>(&self, work: impl FnOnce(&mut BTreeMap<RunId, LiveRun>) -> T) -> T {
        // The map is whole between two statements, also after a panic elsewhere.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A run's place on the board.
pub(super) struct Seat {
    board: Board,
    run: RunId,
    ended: watch::Sender<Option<RunRecord>>,
}

impl Seat {
    /// Tells those who wait how the run ended.
    pub(super) fn end(self, record: &RunRecord) {
        self.ended.send_replace(Some(record.clone()));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.board.locked(|runs| runs.remove(&self.run));
    }
}
