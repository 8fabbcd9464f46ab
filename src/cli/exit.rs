//! How the program ends, and why a verb could not do its work.

use std::process::ExitCode;

use crate::job::Outcome;

/// How the program ends. The numbers are part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All is green.
    Green,
    /// It failed.
    Failed,
    /// The arguments make no sense.
    Usage,
    /// It ran, and is not green.
    NotGreen,
    /// Somebody has changed the record.
    Tampered,
    /// It may succeed later.
    TryAgain,
    /// The configuration has mistakes.
    BadConfiguration,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Green => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotGreen => 3,
            Exit::Tampered => 4,
            Exit::TryAgain => 75,
            Exit::BadConfiguration => 78,
        })
    }
}

impl From<Outcome> for Exit {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Succeeded => Self::Green,
            Outcome::Partial | Outcome::Gated | Outcome::Refused | Outcome::Skipped | Outcome::Cancelled => {
                Self::NotGreen
            }
            Outcome::Failed | Outcome::TimedOut | Outcome::Missed | Outcome::Abandoned | Outcome::Unknown => {
                Self::Failed
            }
        }
    }
}

/// Why a verb could not do its work: what, and what to do about it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) message: String,
    pub(super) remedy: Option<String>,
    pub(super) exit: Exit,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            remedy: None,
            exit,
        }
    }

    pub(super) fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}
