//! How one try of a run ended, and what that makes of the run.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::supervise::{Cause, Ended};
use crate::job::{Disposition, JobError, JobReport, Outcome};
use crate::ledger::runs::RunEnd;
use crate::postgres::sqlstate::DatabaseError;

/// What a job answered.
pub(super) enum Done {
    Reported(JobReport),
    Gated(String, Value),
}

/// How an attempt ended.
pub(super) struct Tried {
    pub(super) end: RunEnd,
    /// Whether another attempt may end better.
    pub(super) transient: bool,
    /// Whether it came so far that it could do anything.
    pub(super) begun: bool,
    /// Whether something of it may have been committed that its report does not know.
    pub(super) in_doubt: bool,
}

impl Tried {
    pub(super) fn last(end: RunEnd) -> Self {
        Self {
            end,
            transient: false,
            begun: true,
            in_doubt: false,
        }
    }

    /// An end whose report nobody could write.
    fn unreported(outcome: Outcome, reason: &str) -> Self {
        Self {
            in_doubt: true,
            ..Self::last(RunEnd::without_report(outcome, reason))
        }
    }

    pub(super) fn not_begun(self) -> Self {
        Self { begun: false, ..self }
    }

    /// How a run ends whose attempt before this one ended like `before`. What that one did stays
    /// in the report, and a run that did something does not end as if it had never begun.
    pub(super) fn after(self, before: Self) -> Self {
        if self.begun {
            let nothing = self.end.report.as_object().is_none_or(Map::is_empty);
            let report = if nothing { before.end.report } else { self.end.report };
            return Self {
                in_doubt: self.in_doubt || (nothing && before.in_doubt),
                end: RunEnd { report, ..self.end },
                ..self
            };
        }
        let (before_reason, reason) = (
            before.end.reason.unwrap_or_default(),
            self.end.reason.unwrap_or_default(),
        );
        Self {
            end: RunEnd {
                reason: Some(format!("{before_reason}; another attempt could not begin: {reason}")),
                ..before.end
            },
            transient: self.transient,
            ..before
        }
    }

    /// An end that another attempt might have mended, had the next slot not been due.
    pub(super) fn without_another(self, next: Timestamp) -> Self {
        let said = self.end.reason.unwrap_or_default();
        let reason = Some(format!("{said}; no further attempt, the slot at {next} is next"));
        Self {
            end: RunEnd { reason, ..self.end },
            ..self
        }
    }

    pub(super) fn from_database(operation: &str, error: &DatabaseError) -> Self {
        Self::from_job(JobError::database(operation, error))
    }

    pub(super) fn from_job(error: JobError) -> Self {
        let (transient, in_doubt) = (error.disposition == Disposition::Transient, error.in_doubt);
        let report = error.partial.clone().unwrap_or_else(|| json!({}));
        let (outcome, why) = match error.disposition {
            Disposition::Transient | Disposition::Permanent => (Outcome::Failed, ""),
            Disposition::Refused => (Outcome::Refused, ""),
            Disposition::Cancelled => (Outcome::Cancelled, ""),
            Disposition::Displaced => displaced(&error, &report),
        };
        let reason = match &error.remedy {
            Some(remedy) => format!("{why}{error}; {remedy}"),
            None => format!("{why}{error}"),
        };
        Self {
            end: RunEnd {
                outcome,
                reason: Some(reason),
                sqlstate: error.sqlstate,
                report,
            },
            transient,
            begun: true,
            in_doubt,
        }
    }
}

/// The right to write went to somebody else: nothing is wrong with the job, and the slot is
/// accounted for as one that was not run, unless a part of it was.
fn displaced(error: &JobError, report: &Value) -> (Outcome, &'static str) {
    let outcome = if report["rows"].as_u64().is_some_and(|rows| rows > 0) {
        Outcome::Partial
    } else {
        Outcome::Skipped
    };
    let why = match error.sqlstate {
        Some(_) => "standby: ",
        None => "not_leader: ",
    };
    (outcome, why)
}

pub(super) fn conclude(ended: Ended<Result<Done, JobError>>) -> Tried {
    match ended {
        Ended::Answered(Ok(Done::Reported(report)), _) => Tried::last(RunEnd {
            outcome: report.outcome,
            reason: report.reason,
            sqlstate: None,
            report: report.body,
        }),
        Ended::Answered(Ok(Done::Gated(reason, report)), _) => Tried::last(RunEnd {
            outcome: Outcome::Gated,
            reason: Some(reason),
            sqlstate: None,
            report,
        }),
        Ended::Answered(Err(error), None) => Tried::from_job(error),
        Ended::Answered(Err(error), Some(cause)) => {
            let tried = Tried::from_job(error);
            let said = tried.end.reason.unwrap_or_default();
            Tried {
                end: RunEnd {
                    outcome: outcome_of(cause),
                    reason: Some(format!("{}: {said}", reason_of(cause))),
                    ..tried.end
                },
                transient: false,
                ..tried
            }
        }
        Ended::Panicked => Tried::unreported(
            Outcome::Failed,
            "the job panicked; this is a defect of pgreeve, and its log names the line",
        ),
        Ended::Dropped(cause) => Tried::unreported(outcome_of(cause), reason_of(cause)),
    }
}

fn outcome_of(cause: Cause) -> Outcome {
    match cause {
        Cause::TimedOut => Outcome::TimedOut,
        Cause::Cancelled => Outcome::Cancelled,
    }
}

fn reason_of(cause: Cause) -> &'static str {
    match cause {
        Cause::TimedOut => "its run_timeout was up",
        Cause::Cancelled => "it was cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn displaced_with(error: &DatabaseError, report: Value) -> (Outcome, String) {
        let tried = Tried::from_job(JobError::database("run a batch", error).with_partial(report));
        assert!(!tried.transient, "another attempt has no right either");
        (tried.end.outcome, tried.end.reason.unwrap())
    }

    #[test]
    fn a_run_whose_right_to_write_is_over_is_skipped_unless_a_part_of_it_is_done() {
        let standby = DatabaseError {
            sqlstate: Some("25006".to_owned()),
            ..DatabaseError::displaced("cannot execute DELETE in a read-only transaction")
        };
        let (outcome, reason) = displaced_with(&standby, json!({ "rows": 0 }));
        assert!(
            outcome == Outcome::Skipped && reason.starts_with("standby: "),
            "{reason}"
        );
        let (outcome, reason) = displaced_with(&DatabaseError::displaced("taken over"), json!({ "rows": 7 }));
        assert!(
            outcome == Outcome::Partial && reason.starts_with("not_leader: "),
            "{reason}"
        );
    }

    #[test]
    fn doubt_about_an_attempt_goes_with_the_next_one_s_own_report() {
        let lost = || Tried::from_job(JobError::at_commit("commit", &DatabaseError::passing("reset")));
        assert!(lost().in_doubt && lost().transient);
        let told = Tried::last(RunEnd {
            report: json!({ "rows": 3 }),
            ..RunEnd::without_report(Outcome::Failed, "")
        });
        assert!(!told.after(lost()).in_doubt, "it has counted what was committed");
        let not_begun = Tried::last(RunEnd::without_report(Outcome::Skipped, "overlap")).not_begun();
        assert!(not_begun.after(lost()).in_doubt);
    }
}
