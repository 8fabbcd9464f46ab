//! The gates between a slot and the end of its run, as the ledger tells.

use crate::job::Outcome;
use crate::ledger::runs::RunRecord;
use crate::ledger::slots::Evaluated;
use crate::schedule::cron::Occurrence;

/// What stands between a slot and the end of its run, in order: its name, the word that begins the
/// reason of a slot it stopped, and what it means to pass it.
const GATES: [(&str, &str, &str); 8] = [
    ("lead", "missed", "a daemon led the database when the slot came"),
    ("pause", "paused", "the job was not paused"),
    ("overlap", "overlap", "no other run of the job was in the way"),
    (
        "turn",
        "start_deadline",
        "its group and its tables were free, and there was room under max_runs",
    ),
    ("primary", "standby", "the server was the primary"),
    ("approval", "gated", "nothing held the policy back"),
    (
        "rollups",
        "rollup",
        "no rollup of its table had less sealed than was due",
    ),
    ("run", "run", "the run came to a green end"),
];

/// A gate's answer.
pub(super) struct Gate {
    pub(super) name: &'static str,
    /// `passed`, `stopped`, `waiting` or `not_reached`.
    pub(super) result: &'static str,
    pub(super) detail: String,
}

/// What the ledger knows.
pub(super) struct Known {
    pub(super) evaluated: Option<Evaluated>,
    pub(super) run: Option<RunRecord>,
}

pub(super) fn waiting(name: &'static str, detail: String) -> Gate {
    Gate {
        name,
        result: "waiting",
        detail,
    }
}

/// The gates up to the one that stopped the slot, and those behind it.
pub(super) fn of(known: &Known, slot: &Occurrence) -> Vec<Gate> {
    let Some(run) = &known.run else {
        return vec![without_row(known, slot)];
    };
    let reason = run.reason.clone().unwrap_or_default();
    let last = GATES.len() - 1;
    let stopped_at = match run.outcome() {
        Some(Outcome::Succeeded) => None,
        Some(Outcome::Missed) => Some(0),
        Some(Outcome::Gated) if reason.starts_with("rollup: ") => Some(last - 1),
        Some(Outcome::Gated) => Some(last - 2),
        Some(Outcome::Skipped) => {
            let word = reason.split(':').next().unwrap_or_default();
            Some(GATES.iter().position(|(_, begins, _)| *begins == word).unwrap_or(last))
        }
        _ => Some(last),
    };
    let gate = |(index, (name, _, passed)): (usize, &(&'static str, &str, &str))| {
        let (result, detail) = match stopped_at {
            Some(stop) if index > stop => ("not_reached", String::new()),
            Some(stop) if index == stop => match (&run.outcome, run.started_at) {
                (None, None) => ("waiting", "admitted; it waits for its turn".to_owned()),
                (None, Some(since)) => ("waiting", format!("under way since {since}")),
                _ => ("stopped", reason.clone()),
            },
            _ => ("passed", (*passed).to_owned()),
        };
        Gate { name, result, detail }
    };
    GATES.iter().enumerate().map(gate).collect()
}

/// Why a slot that was due has no row.
fn without_row(known: &Known, slot: &Occurrence) -> Gate {
    let (result, detail) = match &known.evaluated {
        None => (
            "stopped",
            "no daemon has evaluated this job in its database yet".to_owned(),
        ),
        Some(evaluated) if evaluated.until < slot.scheduled_for => (
            "waiting",
            format!(
                "slots are evaluated until {}; no daemon has led the database since",
                evaluated.until
            ),
        ),
        Some(_) => (
            "stopped",
            "it has no row: the job or its schedule is newer than this slot, or the row is older than history_keep"
                .to_owned(),
        ),
    };
    Gate {
        name: "lead",
        result,
        detail,
    }
}
