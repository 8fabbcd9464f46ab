//! Keeps backups out for as long as something takes that a dump would wait for, or that would wait for a
//! dump: each is a snapshot of the whole database, held for hours, with a lock on every table.

use std::time::{Duration, Instant};

use super::{Exclusion, JobContext, JobError};
use crate::ledger::locks;

impl JobContext {
    /// Keeps backups from beginning, if none is running. Waits for one at most so long, and never longer
    /// than a tenth of the time that the run has left; answers whether they are kept out.
    ///
    /// # Errors
    /// [`JobError::cancelled`] when the run is to stop; otherwise when the server does not answer.
    pub async fn exclude_backups(&mut self, patience: Duration) -> Result<bool, JobError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let key = locks::key(&Exclusion::Snapshot.lock_name());
        let limit = patience.min(left / 10);
        match locks::lock_within(self.session.connection(), locks::EXCLUSION_CLASS, key, limit).await {
            Ok(()) => Ok(true),
            Err(error) if error.is("55P03") => Ok(false),
            Err(error) if error.is("57014") && self.stop.is_cancelled() => {
                Err(JobError::cancelled("wait for a backup"))
            }
            Err(error) => Err(JobError::database("wait for a backup", &error)),
        }
    }

    /// Lets backups begin again.
    pub async fn admit_backups(&mut self) {
        let key = locks::key(&Exclusion::Snapshot.lock_name());
        let connection = self.session.connection();
        if let Err(error) = locks::unlock(connection, locks::EXCLUSION_CLASS, key).await {
            tracing::debug!(%error, "the exclusion of backups ends with the run");
        }
    }
}
