//! How a dispatcher stands with its database, and who is told.

use std::time::Instant;

use super::dispatcher::{Dispatcher, RECONNECT_PAUSE};
use crate::values::{JobName, Name};

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

impl Dispatcher {
    pub(super) fn publish_running(&self) {
        let mut running: Vec<JobName> = self.active.keys().cloned().collect();
        running.sort();
        self.status.send_if_modified(|status| {
            let changed = status.running != running;
            status.running = running;
            changed
        });
    }

    pub(super) fn stand(&self, standing: Standing) {
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

    /// Gives up a lead that is not sure any more; it is asked for again soon.
    pub(super) fn lose(&mut self, error: &str) {
        self.lead = None;
        // It may be another database when it comes back: restored, or made anew.
        self.migrated = false;
        self.try_again = Instant::now() + RECONNECT_PAUSE;
        self.stand(Standing::Unreachable(error.to_owned()));
    }
}
