//! Yielding between batches: to a server that is behind, until it has caught up; to other sessions,
//! by working only a part of the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::postgres::types::Oid;

use super::pace::{self, Aim};
use super::signals::{Sampler, Signal, Signals, State};
use crate::job::JobContext;
use crate::ledger::batches::Footprint;

/// How often the signals are read at the most.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// How often they are read while the run waits.
const WAIT: Duration = Duration::from_millis(500);
/// Beside others a run rests for as long as a batch took, and at least so long.
const LEAST_REST: Duration = Duration::from_millis(4);

/// `[jobs.NAME] throttle = { … }`: when a run yields. `None` is "off".
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Throttle {
    /// A standby that applies changes later than this is waited for.
    pub replica_lag: Option<Duration>,
    /// A replication slot that retains more bytes of WAL than this is waited for.
    pub slot_wal: Option<u64>,
    /// More files of WAL than this that wait to be archived are waited for.
    pub archive_backlog: Option<u64>,
    /// The most bytes of WAL a second, over all sessions, while the run works.
    pub wal_rate: Option<u64>,
    /// Whether a vacuum of the table is waited for.
    pub autovacuum: bool,
    /// A snapshot that is older than this is waited for.
    pub oldest_snapshot: Option<Duration>,
    /// How long a run waits in all for a vacuum or a snapshot, which may take hours.
    pub patience: Duration,
    /// Whether a run goes slowly while other sessions work.
    pub yield_to_others: bool,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            replica_lag: Some(Duration::from_secs(10)),
            slot_wal: Some(16 << 30),
            archive_backlog: Some(64),
            wal_rate: None,
            autovacuum: true,
            oldest_snapshot: Some(Duration::from_hours(1)),
            patience: Duration::from_mins(5),
            yield_to_others: true,
        }
    }
}

/// What the last batch did to others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// How long it took.
    pub(super) elapsed: Duration,
    /// What it did to others.
    pub(super) footprint: Footprint,
}

/// The throttle of one run.
#[derive(Debug)]
pub(super) struct Yielding {
    throttle: Throttle,
    sampler: Sampler,
    sampled: Option<Instant>,
    now: Signals,
    /// The worst that each signal said.
    worst: Signals,
    /// How long each held the run.
    held: BTreeMap<Signal, Duration>,
    /// How long the run was held, and rested, in all.
    yielded: Duration,
    /// How much longer than asked for the last rest was: a timer counts in milliseconds, and so may a rest.
    overslept: Duration,
    waiters: u64,
    failed: bool,
}

impl Yielding {
    pub(super) fn new(throttle: Throttle) -> Self {
        Self {
            throttle,
            sampler: Sampler::default(),
            sampled: None,
            now: Signals::new(),
            worst: Signals::new(),
            held: BTreeMap::new(),
            yielded: Duration::ZERO,
            overslept: Duration::ZERO,
            waiters: 0,
            failed: false,
        }
    }

    /// Whether other sessions work.
    pub(super) fn beside_others(&self) -> bool {
        self.now.get(&Signal::Activity) == Some(&State::Hold)
    }

    /// What a batch should be now.
    pub(super) fn aim(&self) -> Aim {
        if self.beside_others() {
            pace::BESIDE_OTHERS
        } else {
            pace::ALONE
        }
    }

    /// Waits as long as a signal holds the run, and rests from the last batch; not beyond `until`,
    /// and not when the run is to stop. `hurry` leaves out the rest.
    pub(super) async fn before_batch(
        &mut self,
        context: &mut JobContext,
        leaf: Oid,
        last: Weight,
        until: Instant,
        hurry: bool,
    ) {
        self.waiters = self.waiters.saturating_add(last.footprint.waiters);
        self.sample(context, leaf, SAMPLE_EVERY).await;
        self.rest(context, last, until, hurry).await;
        let mut told = false;
        while let Some(signal) = self.holding() {
            let now = Instant::now();
            if now >= until || context.stop.is_cancelled() {
                break;
            }
            if !told {
                tracing::info!(
                    throttle.signal = signal.as_str(),
                    "the run waits until this signal is ok"
                );
                told = true;
            }
            let pause = WAIT.min(until - now);
            self.pause(context, pause).await;
            *self.held.entry(signal).or_default() += pause;
            self.sample(context, leaf, Duration::ZERO).await;
        }
    }

    /// The first signal that holds the run.
    fn holding(&self) -> Option<Signal> {
        let patience = |signal: Signal| {
            let held = self.held.get(&signal).copied().unwrap_or_default();
            !signal.is_courtesy() || held < self.throttle.patience
        };
        self.now
            .iter()
            .find(|(signal, state)| **state == State::Hold && **signal != Signal::Activity && patience(**signal))
            .map(|(signal, _)| *signal)
    }

    async fn sample(&mut self, context: &mut JobContext, leaf: Oid, every: Duration) {
        if self.sampled.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        match self
            .sampler
            .read(context.session.connection(), &self.throttle, leaf)
            .await
        {
            Ok(signals) => self.now = signals,
            // What cannot be seen must not stop the work that must be done.
            Err(error) => {
                if !self.failed {
                    tracing::warn!(%error, "the signals of the throttle cannot be read");
                    self.failed = true;
                }
                for state in self.now.values_mut() {
                    *state = State::Unknown;
                }
            }
        }
        self.sampled = Some(Instant::now());
        for (signal, state) in &self.now {
            let worst = self.worst.entry(*signal).or_insert(State::Ok);
            if *state == State::Unknown && *worst == State::Ok {
                tracing::info!(
                    throttle.signal = signal.as_str(),
                    "a signal of the throttle is hidden from the role; grant pg_monitor to see it"
                );
            }
            *worst = (*worst).max(*state);
        }
    }

    /// Rests from a batch: beside others, after others had to wait, and for as long as its WAL was too
    /// quick.
    async fn rest(&mut self, context: &JobContext, last: Weight, until: Instant, hurry: bool) {
        let mut rest = Duration::ZERO;
        if (self.beside_others() || last.footprint.waiters > 0) && !last.elapsed.is_zero() && !hurry {
            rest = last.elapsed.max(LEAST_REST);
        }
        if let Some(rate) = self.throttle.wal_rate.filter(|rate| *rate > 0) {
            #[expect(clippy::cast_precision_loss, reason = "a rate")]
            let should_take = Duration::from_secs_f64((last.footprint.wal as f64 / rate as f64).min(3600.0));
            rest = rest.max(should_take.saturating_sub(last.elapsed));
        }
        let rest = rest.saturating_sub(std::mem::take(&mut self.overslept));
        let rest = rest.min(until.saturating_duration_since(Instant::now()));
        if !rest.is_zero() {
            let started = Instant::now();
            self.pause(context, rest).await;
            self.overslept = started.elapsed().saturating_sub(rest);
        }
    }

    async fn pause(&mut self, context: &JobContext, pause: Duration) {
        let started = Instant::now();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.stop.cancelled() => {}
        }
        self.yielded += started.elapsed();
    }

    /// How long the run yielded, in ms.
    pub(super) fn milliseconds(&self) -> u64 {
        u64::try_from(self.yielded.as_millis()).unwrap_or(u64::MAX)
    }

    /// The signal that held the run longest, if one did.
    pub(super) fn longest(&self) -> Option<(&'static str, Duration)> {
        let longest = self.held.iter().max_by_key(|(_, held)| **held)?;
        Some((longest.0.as_str(), *longest.1))
    }

    /// The worst that each signal said, and how long it held the run.
    pub(super) fn shown(&self) -> Value {
        let mut signals: serde_json::Map<String, Value> = self
            .worst
            .iter()
            .map(|(signal, state)| {
                let held = self.held.get(signal).copied().unwrap_or_default();
                let held = u64::try_from(held.as_millis()).unwrap_or(u64::MAX);
                (
                    signal.as_str().to_owned(),
                    json!({ "state": state.as_str(), "held_ms": held }),
                )
            })
            .collect();
        signals.insert("lock_waiters".to_owned(), json!({ "count": self.waiters }));
        Value::Object(signals)
    }
}
