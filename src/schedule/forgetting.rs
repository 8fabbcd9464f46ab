//! Once a day the leader lets the ledger forget what is past its keep period, a piece at each beat.

use std::time::Duration;

use serde_json::json;

use super::recovery::RecoveryError;
use crate::audit::{AuditLog, Entry, RecordKind};
use crate::ledger::forgotten::{self, CHUNK, Due};
use crate::ledger::leader::Leader;

/// How far the leader is with it.
#[derive(Debug)]
pub(super) struct Forgetting {
    keep: Duration,
    /// What is being forgotten, and how many runs went so far.
    under_way: Option<Due>,
}

impl Forgetting {
    pub(super) fn new(keep: Duration) -> Self {
        Self { keep, under_way: None }
    }

    /// Looks whether something is to be forgotten today, and announces it.
    pub(super) async fn look(&mut self, lead: &mut Leader, audit: &AuditLog) -> Result<(), RecoveryError> {
        if self.under_way.is_some() {
            return Ok(());
        }
        let Some(due) = forgotten::due(lead.connection(), self.keep).await? else {
            return Ok(());
        };
        if due.runs > 0 {
            let body = json!({ "cutoff": due.cutoff, "runs": due.runs });
            let entry = Entry::new(RecordKind::LedgerForgotten, body).database(lead.term.cluster.clone());
            audit.append(entry).await?;
        }
        self.under_way = Some(Due { runs: 0, ..due });
        Ok(())
    }

    /// Forgets the next piece.
    pub(super) async fn go_on(&mut self, lead: &mut Leader, instance: &str) -> Result<(), RecoveryError> {
        let Some(due) = &mut self.under_way else {
            return Ok(());
        };
        let term = lead.term.clone();
        let gone = forgotten::forget(lead.connection(), &term, due.cutoff).await?;
        due.runs += gone;
        if gone < CHUNK {
            forgotten::note(lead.connection(), &term, instance, due).await?;
            if due.runs > 0 {
                tracing::info!(rows = due.runs, "the ledger forgot runs made before {}", due.cutoff);
            }
            self.under_way = None;
        }
        Ok(())
    }
}
