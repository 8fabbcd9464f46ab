//! How a job is run, whatever its kind: the keys of `[defaults]`, each of which a job may override.

use std::time::Duration;

use super::field::Field;
use super::section::Section;
use crate::job::Approval;
use crate::schedule::policy::{Missed, Overlap};

/// The longest time limit PostgreSQL can hold: 2^31 - 1 milliseconds.
const LONGEST_LIMIT: Duration = Duration::from_millis(2_147_483_647);

/// The longest time that missed occurrences are looked for.
const LONGEST_WINDOW: Duration = Duration::from_hours(24 * 3660);

/// The longest time that a run may wait for its turn.
const LONGEST_WAIT: Duration = Duration::from_hours(24 * 7);

/// The longest time that a start may be put off.
const LONGEST_JITTER: Duration = Duration::from_hours(24);

const MOST_RETRIES: u32 = 10;

/// What one section says; what it leaves out is `None`.
#[derive(Clone, Default)]
pub(super) struct Policy<'a> {
    missed: Option<Missed>,
    catch_up_window: Option<Duration>,
    overlap: Option<Overlap>,
    start_deadline: Option<Duration>,
    jitter: Option<Duration>,
    approval: Option<Approval>,
    run_timeout: Option<Limit<'a>>,
    lock_timeout: Option<Limit<'a>>,
    retries: Option<u32>,
}

/// A time limit and where it was set.
#[derive(Clone)]
struct Limit<'a> {
    duration: Duration,
    field: Field<'a>,
}

/// What holds for a job in the end.
pub(super) struct Resolved {
    pub(super) missed: Missed,
    pub(super) catch_up_window: Duration,
    pub(super) overlap: Overlap,
    pub(super) start_deadline: Duration,
    pub(super) jitter: Duration,
    pub(super) approval: Approval,
    pub(super) run_timeout: Duration,
    pub(super) lock_timeout: Duration,
    pub(super) retries: u32,
}

/// Reads the keys that `[defaults]` and every job know.
pub(super) fn read<'a>(section: &mut Section<'a>) -> Policy<'a> {
    let limit = |field: Field<'a>| field.duration(LONGEST_LIMIT).map(|duration| Limit { duration, field });
    Policy {
        missed: section
            .optional("missed")
            .and_then(|field| field.word(&Missed::WORDS, &[])),
        catch_up_window: section
            .optional("catch_up_window")
            .and_then(|field| field.duration(LONGEST_WINDOW)),
        overlap: section
            .optional("overlap")
            .and_then(|field| field.word(&Overlap::WORDS, &[])),
        start_deadline: section
            .optional("start_deadline")
            .and_then(|field| field.duration(LONGEST_WAIT)),
        jitter: section
            .optional("jitter")
            .and_then(|field| field.duration(LONGEST_JITTER)),
        approval: section
            .optional("approval")
            .and_then(|field| field.word(&Approval::WORDS, &[])),
        run_timeout: section.optional("run_timeout").and_then(limit),
        lock_timeout: section.optional("lock_timeout").and_then(limit),
        retries: section
            .optional("retries")
            .and_then(|field| field.count(0..=MOST_RETRIES)),
    }
}

impl<'a> Policy<'a> {
    /// What holds when `defaults` fill what this section leaves out.
    pub(super) fn resolve(&self, defaults: &Policy<'a>) -> Resolved {
        let run_timeout = self.run_timeout.as_ref().or(defaults.run_timeout.as_ref());
        let lock_timeout = self.lock_timeout.as_ref().or(defaults.lock_timeout.as_ref());
        let resolved = Resolved {
            missed: self.missed.or(defaults.missed).unwrap_or(Missed::RunOnce),
            catch_up_window: self
                .catch_up_window
                .or(defaults.catch_up_window)
                .unwrap_or(Duration::from_hours(24)),
            overlap: self.overlap.or(defaults.overlap).unwrap_or(Overlap::Skip),
            start_deadline: self
                .start_deadline
                .or(defaults.start_deadline)
                .unwrap_or(Duration::from_hours(1)),
            jitter: self.jitter.or(defaults.jitter).unwrap_or(Duration::ZERO),
            approval: self.approval.or(defaults.approval).unwrap_or(Approval::Required),
            run_timeout: run_timeout.map_or(Duration::from_hours(2), |limit| limit.duration),
            lock_timeout: lock_timeout.map_or(Duration::from_secs(2), |limit| limit.duration),
            retries: self.retries.or(defaults.retries).unwrap_or(3),
        };
        // What the defaults say alone was found when they were resolved.
        if let Some(limit) = self.lock_timeout.as_ref().or(self.run_timeout.as_ref()) {
            check_limits(&limit.field, &resolved);
        }
        resolved
    }
}

fn check_limits(field: &Field<'_>, resolved: &Resolved) {
    if resolved.lock_timeout >= resolved.run_timeout {
        let problem = format!(
            "waiting for a lock ({:?}) may not take as long as the whole run ({:?})",
            resolved.lock_timeout, resolved.run_timeout
        );
        field.error(&problem, "make lock_timeout shorter than run_timeout");
    }
}
