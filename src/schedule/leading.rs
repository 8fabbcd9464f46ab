//! The dispatcher's lead: it is asked for, confirmed in time, and given up when it is in doubt.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::dispatcher::{Dispatcher, Standing};
use super::trust::Trust;
use super::{marks, recovery};
use crate::audit::RunRecorder;
use crate::job::{Outcome, RecoveryContext};
use crate::ledger::leader::{CONFIRM_EVERY, Campaign, Leader, Term};
use crate::ledger::{cancels, migrate};
use crate::postgres::sqlstate::DatabaseError;
use crate::runner::Stops;

/// The longest that taking the lead may take: migrating, reading the audit log and closing what is
/// open takes as long as there is much of it, and begins anew when it is cut short.
const LEAD_LIMIT: Duration = Duration::from_mins(10);
/// The longest that asking for the lead may take.
const CAMPAIGN_LIMIT: Duration = Duration::from_mins(1);
/// How long a follower waits before it tries to lead.
const FOLLOW_PAUSE: Duration = Duration::from_secs(3);

impl Dispatcher {
    /// Takes the lead where it can be had, and confirms it in time where we have it.
    pub(super) async fn keep_the_lead(&mut self) {
        if self.lead.is_none() && Instant::now() >= self.try_again {
            let (beating, soft) = (self.beating(), self.stops.soft.clone());
            let taken = tokio::select! {
                taken = tokio::time::timeout(LEAD_LIMIT, self.take_the_lead()) => taken,
                () = beating => return,
                () = soft.cancelled() => return,
            };
            match taken {
                Ok(Ok(standing)) => self.stand(standing),
                Ok(Err(error)) => self.lose(&error.explain()),
                Err(_) => self.lose("the database did not answer in time"),
            }
        }
        if self.confirmed.elapsed() < CONFIRM_EVERY {
            return;
        }
        if let Some(mut lead) = self.lead.take() {
            let asked = Instant::now();
            match self.confirm(&mut lead).await {
                Ok(()) if self.may_start() => {
                    self.confirmed = asked;
                    self.lead = Some(lead);
                }
                Ok(()) => self.lose("the lead could not be confirmed in time"),
                Err(error) => self.lose(&error.explain()),
            }
        }
    }

    /// Asks whether we lead, and which runs are to end.
    async fn confirm(&mut self, lead: &mut Leader) -> Result<(), recovery::RecoveryError> {
        let asked = Instant::now();
        lead.confirm().await?;
        if let Some(trust) = &self.trust {
            trust.extend(asked);
        }
        for request in cancels::requested(lead.connection()).await? {
            if let Some(live) = self.board.find(request.run) {
                live.stops.end_now(&request.actor);
                continue;
            }
            if let Some(name) = self.take_back(request.run) {
                let reason = format!("cancelled by {} before it began", request.actor);
                self.drop_admitted(lead, &name, request.run, Outcome::Cancelled, &reason)
                    .await?;
            }
        }
        Ok(())
    }

    /// Whether runs may be started: we lead, and know it from a short while ago.
    pub(super) fn may_start(&self) -> bool {
        self.trust.as_ref().is_some_and(Trust::holds)
    }

    /// What a run of this term is ended by.
    pub(super) fn run_stops(&self) -> Stops {
        self.trust
            .as_ref()
            .map_or_else(|| self.stops.child(), |trust| trust.stops().child())
    }

    /// Campaigns, and when the campaign is won mends what an earlier process left open.
    async fn take_the_lead(&mut self) -> Result<Standing, recovery::RecoveryError> {
        if !self.migrated {
            if in_time(recovery::is_standby(&self.target)).await? {
                self.try_again = Instant::now() + FOLLOW_PAUSE;
                return Ok(Standing::Standby);
            }
            migrate::apply(&self.target).await?;
            self.migrated = true;
        }
        let asked = Instant::now();
        let campaign = Leader::campaign(&self.target, &self.instance, self.last_term.as_ref());
        let mut lead = match in_time(campaign).await? {
            Campaign::Won(lead) => lead,
            Campaign::Held { instance, .. } => {
                self.try_again = Instant::now() + FOLLOW_PAUSE;
                return Ok(Standing::Following(instance));
            }
            Campaign::Standby => {
                self.try_again = Instant::now() + FOLLOW_PAUSE;
                return Ok(Standing::Standby);
            }
        };
        let goes_on = self.last_term.as_ref() == Some(&lead.term);
        match &self.trust {
            Some(trust) if goes_on && trust.holds() => {
                trust.extend(asked);
                self.confirmed = asked;
            }
            _ => self.begin_trust(&mut lead, goes_on).await?,
        }
        self.last_term = Some(lead.term.clone());
        let term = lead.term.clone();
        self.lead = Some(lead);
        self.start_ready(&term);
        Ok(Standing::Leading)
    }

    /// Ends the runs of an earlier term, or of one that could not be confirmed, and mends the records
    /// before a new term is believed in. That may take longer than an answer is believed, so the
    /// trust begins with a question of its own.
    async fn begin_trust(&mut self, lead: &mut Leader, goes_on: bool) -> Result<(), recovery::RecoveryError> {
        if let Some(trust) = self.trust.take() {
            trust.stops().end_now("pgreeve, which lost the lead in the meantime");
        }
        if !goes_on {
            self.held.clear();
            recovery::recover(lead, &self.audit, self.database.as_str()).await?;
            marks::first_seen(lead.connection(), &mut self.jobs, &self.audit, Timestamp::now()).await?;
            self.clean_up(&lead.term);
            // What the old term admitted and did not begin has just been closed.
            self.queued.clear();
        }
        let asked = Instant::now();
        lead.confirm().await?;
        self.trust = Some(Trust::begin(asked, &self.stops, self.database.to_string()));
        self.confirmed = asked;
        Ok(())
    }

    /// Lets each job remove what a dead process left outside the database. Other work goes on
    /// meanwhile; a job that cannot clean up now does so at its next run.
    fn clean_up(&self, term: &Term) {
        for job in &self.jobs {
            let context = RecoveryContext {
                job: job.runnable.name.clone(),
                database: self.database.to_string(),
                target: self.target.clone(),
                fence: term.fence,
                recorder: Arc::new(RunRecorder {
                    log: self.audit.clone(),
                    run: None,
                    job: job.runnable.name.clone(),
                    database: Some(term.cluster.clone()),
                    policy: Some(job.runnable.policy.clone()),
                    actor: Some(self.actor()),
                }),
            };
            let runnable = job.runnable.clone();
            tokio::spawn(async move {
                if let Err(error) = runnable.job.clean_up(context).await {
                    tracing::warn!(job.name = %runnable.name, error = %error, "what an earlier run left behind could not be removed yet");
                }
            });
        }
    }
}

/// Waits for an answer on the way to the lead, but not for ever.
async fn in_time<T>(step: impl Future<Output = Result<T, DatabaseError>>) -> Result<T, DatabaseError> {
    tokio::time::timeout(CAMPAIGN_LIMIT, step)
        .await
        .unwrap_or_else(|_| Err(DatabaseError::passing("the database did not answer in time")))
}
