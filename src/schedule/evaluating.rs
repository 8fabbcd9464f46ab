//! What a dispatcher does at each beat: it looks which slots came due, has their rows written, and
//! starts what may start.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;

use super::clock::Jump;
use super::dispatcher::Dispatcher;
use super::recovery::RecoveryError;
use super::{marks, overlap, pausing, recovery, rows};
use crate::audit::{Entry, RecordKind};
use crate::job::Outcome;
use crate::ledger::leader::Leader;
use crate::ledger::pauses::{self, Pause};
use crate::telemetry;
use crate::values::RunId;

/// The longest one evaluation may take; a database that answers slower is treated as lost.
const TICK_LIMIT: Duration = Duration::from_secs(20);
/// How often what was admitted is started while more is evaluated.
const START_EVERY: Duration = Duration::from_millis(100);
/// How often the marks are moved on while nothing is due.
const SAVE_EVERY: Duration = Duration::from_mins(1);
/// How long nothing must have been heard of a run that is nobody's before it is closed: longer than
/// the longest pause between two attempts.
const STRAY_AFTER: Duration = Duration::from_mins(5);

impl Dispatcher {
    pub(super) async fn tick(&mut self) {
        self.step().await;
        let epoch = self.lead.as_ref().map(|lead| lead.term.fence.epoch);
        telemetry::metrics::evaluated(self.database.as_str(), epoch);
    }

    async fn step(&mut self) {
        self.keep_the_lead().await;
        if let Some(mut lead) = self.lead.take() {
            match tokio::time::timeout(TICK_LIMIT, self.evaluate(&mut lead)).await {
                Ok(Ok(())) => self.lead = Some(lead),
                Ok(Err(error)) => self.lose(&error.explain()),
                Err(_) => self.lose("the database did not answer in time"),
            }
        }
    }

    async fn evaluate(&mut self, lead: &mut Leader) -> Result<(), RecoveryError> {
        self.settle(lead).await?;
        let now = Timestamp::now();
        if let Some(jump) = self.clock.read(now, Instant::now()) {
            self.note_jump(lead, jump).await?;
        }
        let mut known_pauses: Option<Vec<Pause>> = None;
        let mut started = Instant::now();
        for index in 0..self.jobs.len() {
            let job = &mut self.jobs[index];
            marks::rewind(lead.connection(), job, &self.audit, now).await?;
            if job.is_quiet(now) {
                continue;
            }
            let known = match &known_pauses {
                Some(known) => known,
                None => known_pauses.insert(pauses::load(lead.connection()).await?),
            };
            self.account(lead, index, now, known).await?;
            // Many jobs may be due at once; the first need not wait for the last one's row.
            if started.elapsed() >= START_EVERY {
                self.start_ready(&lead.term.clone());
                started = Instant::now();
            }
        }
        self.start_ready(&lead.term.clone());
        self.next_start = self.next_start_after(now);
        self.give_up_late(lead).await?;
        self.forgetting.go_on(lead, &self.instance).await?;
        if self.saved.elapsed() >= SAVE_EVERY {
            self.save_quiet_marks(lead, now).await?;
            self.forgetting.look(lead, &self.audit).await?;
            let queued = self.queued.values().flatten().map(|admission| admission.run);
            let live = self.board.list().into_iter().map(|live| live.run);
            let known: Vec<RunId> = live.chain(queued).collect();
            recovery::close_strays(lead, &self.audit, &known, STRAY_AFTER).await?;
            self.saved = Instant::now();
        }
        Ok(())
    }

    /// When the next slot of any job is to start; what is due already is left to the next beat.
    fn next_start_after(&mut self, now: Timestamp) -> Option<Timestamp> {
        let quiet = self.jobs.iter_mut().filter_map(|job| job.is_quiet(now).then_some(job));
        quiet.filter_map(|job| job.next_start()).min()
    }

    /// Has the rows of a job's due slots written, and queues what may start.
    async fn account(
        &mut self,
        lead: &mut Leader,
        index: usize,
        now: Timestamp,
        known: &[Pause],
    ) -> Result<(), RecoveryError> {
        let Some(job) = self.jobs.get_mut(index) else {
            return Ok(());
        };
        let name = job.runnable.name.clone();
        let mut found = job.found_until(now);
        let (free, mut paused) = pausing::split(known, &name, std::mem::take(&mut found.slots));
        found.slots = free;
        let until = found.until;
        let mut decision = job.decide(found);
        pausing::hold_back(known, &name, now, &mut decision.run, &mut paused);
        let policy = job.overlap;
        let overlapping = overlap::decide(policy, &self.busy(&name), decision.run.len());
        let replaced = overlapping.cancels;
        let Some(job) = self.jobs.get_mut(index) else {
            return Ok(());
        };
        let writer = rows::Writer {
            audit: &self.audit,
            instance: &self.instance,
            term: &lead.term.clone(),
            job,
        };
        let admitted = writer
            .write(lead.connection(), decision, paused, Some(overlapping), until)
            .await?;
        if admitted.is_empty() {
            return Ok(());
        }
        // Only a slot of our own may end a run: one that has a row already was somebody else's.
        if let Some(run) = replaced {
            self.replace_running(run);
        }
        self.queued.entry(name).or_default().extend(admitted);
        Ok(())
    }

    /// Moves the marks of the schedules without a slot, all in one statement.
    async fn save_quiet_marks(&mut self, lead: &mut Leader, now: Timestamp) -> Result<(), RecoveryError> {
        let mut quiet: Vec<_> = self
            .jobs
            .iter_mut()
            .filter_map(|job| job.is_quiet(now).then_some(job))
            .collect();
        let marks: Vec<_> = quiet
            .iter_mut()
            .map(|job| (job.runnable.name.clone(), job.pass_quietly(now)))
            .collect();
        marks::save_all(lead, &marks).await
    }

    /// The slots in between are those of a downtime, or have their rows.
    async fn note_jump(&self, lead: &Leader, jump: Jump) -> Result<(), RecoveryError> {
        let seconds = jump.by().as_secs();
        tracing::warn!(database = %self.database, seconds, "the host's clock was set, or the host was asleep");
        let body = json!({ "seconds": seconds, "expected": jump.expected, "found": jump.found });
        let entry = Entry::new(RecordKind::ClockJump, body).database(lead.term.cluster.clone());
        self.audit.append(entry).await?;
        Ok(())
    }

    /// Closes the runs that were admitted and never began. Where the ledger cannot be reached now, the
    /// next leader does.
    pub(super) async fn close_what_waits(&mut self) {
        let waiting = std::mem::take(&mut self.queued);
        let Some(mut lead) = self.lead.take() else {
            return;
        };
        let reason = "pgreeve was stopped before the run began";
        let close = async {
            for (name, admissions) in &waiting {
                for admission in admissions {
                    self.drop_admitted(&mut lead, name, admission.run, Outcome::Missed, reason)
                        .await?;
                }
            }
            Ok::<_, RecoveryError>(())
        };
        match tokio::time::timeout(TICK_LIMIT, close).await {
            Ok(Ok(())) => self.lead = Some(lead),
            Ok(Err(error)) => self.lose(&error.explain()),
            Err(_) => self.lose("the database did not answer in time"),
        }
    }
}
