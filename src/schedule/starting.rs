//! Admitted runs start: the gate says which, and a run that waits too long for its turn is given up.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;

use super::dispatcher::Dispatcher;
use super::gate::{self, Held, Running, Waiting};
use super::overlap::Busy;
use super::policy;
use super::recovery::RecoveryError;
use super::rows::Admission;
use super::slots::ScheduledJob;
use crate::audit::{Entry, RecordKind};
use crate::job::{Outcome, Progress};
use crate::ledger::leader::{Leader, Term};
use crate::ledger::runs::{self, RunEnd};
use crate::runner::{RunRequest, Stops};
use crate::values::{JobName, RunId};

/// A run under way.
pub(super) struct Active {
    pub(super) run: RunId,
    pub(super) stops: Stops,
    since: Instant,
    resources: Vec<String>,
}

impl Active {
    pub(super) fn of(request: &RunRequest) -> Self {
        Self {
            run: request.run,
            stops: request.stops.clone(),
            since: Instant::now(),
            resources: request.job.resources(),
        }
    }
}

/// A run that waits for something else than an earlier run of its job.
pub(super) struct HeldSince {
    run: RunId,
    since: Instant,
    by: Held,
}

impl Dispatcher {
    /// What of a job is not at its end.
    pub(super) fn busy(&self, name: &JobName) -> Busy {
        Busy {
            running: self
                .active
                .get(name)
                .map(|active| (active.run, active.since.elapsed().as_secs())),
            waiting: self
                .queued
                .get(name)
                .and_then(VecDeque::front)
                .map(|admission| admission.run),
        }
    }

    /// Ends the run of a job that a newer slot replaces.
    pub(super) fn replace_running(&self, run: RunId) {
        let active = self.active.values().find(|active| active.run == run);
        if let Some(active) = active {
            active.stops.end_now("a newer slot (overlap = \"cancel_running\")");
        }
    }

    /// Takes an admitted run that has not begun out of its queue, and answers whose it is.
    pub(super) fn take_back(&mut self, run: RunId) -> Option<JobName> {
        let waits = |queue: &VecDeque<Admission>| queue.iter().any(|admission| admission.run == run);
        let (name, queue) = self.queued.iter_mut().find(|(_, queue)| waits(queue))?;
        queue.retain(|admission| admission.run != run);
        self.held.retain(|_, held| held.run != run);
        Some(name.clone())
    }

    /// Starts every admitted run whose turn it is, unless the lead is in doubt.
    pub(super) fn start_ready(&mut self, term: &Term) {
        if !self.may_start() {
            return;
        }
        let fronts: Vec<(JobName, Admission)> = self
            .queued
            .iter()
            .filter_map(|(name, queue)| Some((name.clone(), queue.front()?.clone())))
            .collect();
        let waiting: Vec<Waiting> = fronts
            .iter()
            .filter_map(|(name, admission)| {
                let job = self.job(name)?;
                Some(Waiting {
                    job: name.clone(),
                    priority: policy::priority(job.runnable.job.kind()),
                    slot: admission.scheduled_for,
                    resources: job.runnable.resources(),
                })
            })
            .collect();
        let running: Vec<Running> = self
            .active
            .iter()
            .map(|(job, active)| Running {
                job: job.clone(),
                resources: active.resources.clone(),
            })
            .collect();
        let decisions = gate::decide(&waiting, &running, self.max_runs);
        for (run, held) in waiting.into_iter().zip(decisions) {
            match held {
                None => self.start(&run.job, term),
                Some(held) => self.hold(&run.job, held),
            }
        }
    }

    /// A job by its name; the jobs are in the order of their names.
    pub(super) fn job(&self, name: &JobName) -> Option<&ScheduledJob> {
        let index = self.jobs.binary_search_by(|job| job.runnable.name.cmp(name)).ok()?;
        self.jobs.get(index)
    }

    fn start(&mut self, name: &JobName, term: &Term) {
        let Some(admission) = self.queued.get_mut(name).and_then(VecDeque::pop_front) else {
            return;
        };
        self.held.remove(name);
        let Some(job) = self.job(name) else { return };
        let next = job.slot_after(admission.scheduled_for.max(Timestamp::now()));
        let request = RunRequest {
            run: admission.run,
            job: job.runnable.clone(),
            site: self.site(term),
            scheduled_for: Some(admission.scheduled_for),
            trigger: admission.trigger,
            actor: self.actor(),
            note: None,
            stops: self.run_stops(),
            progress: Progress::new(),
            retry_until: next.and_then(|next| next.checked_add(job.delay).ok()),
        };
        self.launch(request);
    }

    /// Remembers since when a run is held, by whatever.
    fn hold(&mut self, name: &JobName, by: Held) {
        if by == Held::SameJob {
            return;
        }
        let Some(run) = self.busy(name).waiting else { return };
        let since = match self.held.get(name) {
            Some(held) if held.run == run => held.since,
            _ => Instant::now(),
        };
        self.held.insert(name.clone(), HeldSince { run, since, by });
    }

    /// Gives up the runs that have waited for their turn for longer than their `start_deadline`.
    pub(super) async fn give_up_late(&mut self, lead: &mut Leader) -> Result<(), RecoveryError> {
        let late = |(name, held): (&JobName, &HeldSince)| {
            let limit = self.job(name)?.runnable.sharing.start_deadline;
            (held.since.elapsed() >= limit).then(|| (name.clone(), limit))
        };
        let late: Vec<(JobName, Duration)> = self.held.iter().filter_map(late).collect();
        for (name, limit) in late {
            let Some(held) = self.held.remove(&name) else { continue };
            let reason = format!("start_deadline: waited {} s for {}", limit.as_secs(), held.by);
            let body = json!({ "outcome": Outcome::Skipped, "reason": reason });
            let entry = Entry::new(RecordKind::Skipped, body)
                .run(held.run)
                .job(name.clone())
                .database(lead.term.cluster.clone())
                .actor(self.actor());
            self.audit.append(entry).await?;
            runs::finish(
                lead.connection(),
                held.run,
                &RunEnd::without_report(Outcome::Skipped, &reason),
            )
            .await?;
            tracing::warn!(job.name = %name, run.id = %held.run, reason, "a run was given up before it began");
            if let Some(queue) = self.queued.get_mut(&name) {
                queue.retain(|admission| admission.run != held.run);
            }
        }
        Ok(())
    }
}
