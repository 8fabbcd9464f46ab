//! How work is asked to end: soon, in good order, or now.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// How a run is asked to end early.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    /// End at the next safe point: a shutdown has begun.
    pub soft: CancellationToken,
    /// End now: an operator cancelled, the lead was lost, or the shutdown's limit is reached.
    pub hard: CancellationToken,
    /// Who or what ends it now; the first one to say so.
    reason: Arc<OnceLock<String>>,
}

impl Stops {
    /// Stops of a part: it ends when the whole does, and can be ended alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            soft: self.soft.child_token(),
            hard: self.hard.child_token(),
            reason: Arc::default(),
        }
    }

    /// Ends it now, and says why: `uid:0`, `the lead was lost`.
    pub fn end_now(&self, reason: &str) {
        let _ = self.reason.set(reason.to_owned());
        self.soft.cancel();
        self.hard.cancel();
    }

    /// Why it was ended, where that was said.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Whether the run is asked to end, soon or now.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.soft.is_cancelled() || self.hard.is_cancelled()
    }

    /// Waits until the run is asked to end, soon or now.
    pub async fn asked(&self) {
        tokio::select! {
            () = self.soft.cancelled() => {}
            () = self.hard.cancelled() => {}
        }
    }
}
