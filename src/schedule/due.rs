//! What is done about the slots that came due: which one runs, which ones only get a row.

use std::time::Duration;

use jiff::Timestamp;

use super::cron::{Occurrence, Schedule};
use super::policy::Missed;
use crate::job::Trigger;

/// A slot seen at most this late ran on time; a later one is caught up, or missed.
pub const ON_TIME: Duration = Duration::from_mins(1);

/// The most slots that `run_all` runs after a downtime.
pub const RUN_ALL_LIMIT: usize = 100;

/// What to do about a job's due slots. Every slot is in exactly one of the two lists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// Slots that are not run, and why, in order.
    pub missed: Vec<(Occurrence, String)>,
    /// Slots that are run, in order.
    pub run: Vec<(Occurrence, Trigger)>,
}

impl Decision {
    /// Whether nothing is due.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missed.is_empty() && self.run.is_empty()
    }
}

/// Decides about the slots that came due since the last evaluation, in order of time.
#[must_use]
pub fn decide(due: Vec<Occurrence>, now: Timestamp, missed: Missed, catch_up_window: Duration) -> Decision {
    let mut decision = Decision::default();
    let late = |slot: &Occurrence| Duration::try_from(slot.scheduled_for.duration_until(now)).unwrap_or(Duration::ZERO);
    let last = due.len().saturating_sub(1);
    let first_of_run_all = due.len().saturating_sub(RUN_ALL_LIMIT);
    let latest = due.last().map(|slot| slot.scheduled_for);
    for (index, slot) in due.into_iter().enumerate() {
        let lateness = late(&slot);
        let reason = if index == last && lateness <= ON_TIME {
            decision.run.push((slot, Trigger::Schedule));
            continue;
        } else if missed == Missed::Skip {
            "nobody could run it, and the job does not catch up (missed = \"skip\")".to_owned()
        } else if lateness > catch_up_window {
            "nobody could run it within the catch-up window".to_owned()
        } else if missed == Missed::RunOnce && index != last {
            format!(
                "nobody could run it; the slot at {} stands for it",
                latest.unwrap_or(now)
            )
        } else if missed == Missed::RunAll && index < first_of_run_all {
            format!("nobody could run it, and more than {RUN_ALL_LIMIT} slots were missed")
        } else {
            decision.run.push((slot, Trigger::CatchUp));
            continue;
        };
        decision.missed.push((slot, reason));
    }
    decision
}

/// Accounts for slots that have more than [`RUN_ALL_LIMIT`] younger ones behind them: whatever the
/// job does about missed slots, none of these runs.
#[must_use]
pub fn decide_backlog(due: Vec<Occurrence>, missed: Missed) -> Decision {
    let reason = match missed {
        Missed::Skip => "nobody could run it, and the job does not catch up (missed = \"skip\")".to_owned(),
        Missed::RunOnce => "nobody could run it; only the newest slot that was missed may stand for it".to_owned(),
        Missed::RunAll => format!("nobody could run it, and more than {RUN_ALL_LIMIT} slots were missed"),
    };
    Decision {
        missed: due.into_iter().map(|slot| (slot, reason.clone())).collect(),
        run: Vec::new(),
    }
}

/// Accounts for slots whose schedule was changed before they ran.
#[must_use]
pub fn decide_changed(due: Vec<Occurrence>, former: &Schedule) -> Decision {
    let reason = format!(
        "nobody could run it before the schedule was changed; it was \"{former}\" in {}",
        former.timezone().name()
    );
    Decision {
        missed: due.into_iter().map(|slot| (slot, reason.clone())).collect(),
        run: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(minutes_ago: &[i64]) -> (Vec<Occurrence>, Timestamp) {
        let now: Timestamp = "2026-06-01T12:00:30Z".parse().unwrap();
        let slot = |minutes: &i64| Occurrence {
            scheduled_for: now - jiff::SignedDuration::from_mins(*minutes),
            adjusted: None,
        };
        (minutes_ago.iter().map(slot).collect(), now)
    }

    fn run(minutes_ago: &[i64], missed: Missed, window_minutes: u64) -> (Vec<Trigger>, usize) {
        let (due, now) = slots(minutes_ago);
        let decision = decide(due, now, missed, Duration::from_mins(window_minutes));
        (
            decision.run.iter().map(|(_, trigger)| *trigger).collect(),
            decision.missed.len(),
        )
    }

    #[test]
    fn a_slot_seen_in_time_runs_by_schedule_whatever_the_policy() {
        for missed in [Missed::Skip, Missed::RunOnce, Missed::RunAll] {
            assert_eq!(run(&[1], missed, 60), (vec![Trigger::Schedule], 0));
        }
    }

    #[test]
    fn a_slot_seen_late_is_caught_up_once_or_missed() {
        assert_eq!(run(&[2], Missed::Skip, 60), (vec![], 1));
        assert_eq!(run(&[5, 4, 2], Missed::RunOnce, 60), (vec![Trigger::CatchUp], 2));
        assert_eq!(run(&[5, 4, 2], Missed::RunAll, 60), (vec![Trigger::CatchUp; 3], 0));
        assert_eq!(run(&[5, 4, 0], Missed::RunOnce, 60), (vec![Trigger::Schedule], 2));
    }

    #[test]
    fn a_slot_beyond_the_window_is_missed() {
        assert_eq!(run(&[61], Missed::RunOnce, 60), (vec![], 1));
        assert_eq!(run(&[60], Missed::RunOnce, 60), (vec![Trigger::CatchUp], 0));
        assert_eq!(
            run(&[70, 61, 59, 3], Missed::RunAll, 60),
            (vec![Trigger::CatchUp; 2], 2)
        );
    }

    #[test]
    fn run_all_has_a_limit_and_every_slot_is_accounted_for() {
        let minutes: Vec<i64> = (2..252).rev().collect();
        assert_eq!(
            run(&minutes, Missed::RunAll, 10_000),
            (vec![Trigger::CatchUp; RUN_ALL_LIMIT], 150)
        );
    }
}
