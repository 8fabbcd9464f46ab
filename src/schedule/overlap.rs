//! What is done about slots that come due while the job's last run goes on, or waits for its turn.

use super::policy::Overlap;
use crate::values::RunId;

/// The runs of a job that are not at their end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Busy {
    /// The one under way, and since how many seconds.
    pub running: Option<(RunId, u64)>,
    /// The first of those that wait for their turn.
    pub waiting: Option<RunId>,
}

/// What to do about new slots of a job.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overlapping {
    /// How many of the slots are run, counted from the newest.
    pub admitted: usize,
    /// Why the others are not.
    pub reason: String,
    /// The run under way is to be ended.
    pub cancels: Option<RunId>,
}

/// Decides about `slots` new slots; they are run all when the job is not busy.
#[must_use]
pub fn decide(overlap: Overlap, busy: &Busy, slots: usize) -> Overlapping {
    let all = Overlapping {
        admitted: slots,
        ..Overlapping::default()
    };
    if slots == 0 {
        return all;
    }
    let none = |reason: String| Overlapping {
        admitted: 0,
        reason,
        cancels: None,
    };
    match (overlap, &busy.running, &busy.waiting) {
        (_, None, None) => all,
        (Overlap::Skip, Some((run, seconds)), _) => {
            none(format!("overlap: run {run} of the job is under way since {seconds} s"))
        }
        (_, _, Some(run)) => none(format!("overlap: run {run} of the job waits for its turn already")),
        (Overlap::QueueOne, Some((run, _)), None) => Overlapping {
            admitted: 1,
            reason: format!("overlap: one slot waits for the end of run {run}, and only one may (queue_one)"),
            cancels: None,
        },
        (Overlap::CancelRunning, Some((run, _)), None) => Overlapping {
            admitted: 1,
            reason: format!("overlap: a newer slot replaces run {run}"),
            cancels: Some(*run),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For each policy: how many of three slots are run, and whether the run under way is ended.
    #[track_caller]
    fn assert_matrix(busy: &Busy, expected: [(usize, bool); 3]) {
        for (overlap, expected) in [Overlap::Skip, Overlap::QueueOne, Overlap::CancelRunning]
            .into_iter()
            .zip(expected)
        {
            let decided = decide(overlap, busy, 3);
            assert_eq!(
                (decided.admitted, decided.cancels.is_some()),
                expected,
                "{overlap:?} {busy:?}"
            );
            assert!(
                decided.admitted == 3 || decided.reason.starts_with("overlap: "),
                "{decided:?}"
            );
        }
    }

    #[test]
    fn each_policy_decides_by_what_runs_and_what_waits() {
        let running = Some((RunId::new(), 90));
        let waiting = Some(RunId::new());
        let busy = |running, waiting| Busy { running, waiting };
        assert_matrix(&busy(None, None), [(3, false); 3]);
        assert_matrix(&busy(running, None), [(0, false), (1, false), (1, true)]);
        assert_matrix(&busy(None, waiting), [(0, false); 3]);
        assert_matrix(&busy(running, waiting), [(0, false); 3]);
    }

    #[test]
    fn no_slots_change_nothing() {
        let busy = Busy {
            running: Some((RunId::new(), 1)),
            waiting: None,
        };
        assert_eq!(decide(Overlap::CancelRunning, &busy, 0), Overlapping::default());
    }
}
