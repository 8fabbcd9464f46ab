//! What is said on the socket. A published format: fields are added, never changed.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::values::{JobName, RunId};

/// The version of the format.
pub const VERSION: u32 = 1;

/// The longest request, in bytes with its newline.
pub const MAX_LINE: usize = 64 * 1024;

/// The longest pause that may be asked for: whoever wants more takes the job out.
const LONGEST_PAUSE: Duration = Duration::from_hours(24 * 31);

/// The longest text of an operator, in bytes.
const LONGEST_TEXT: usize = 1000;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// Who is behind `sudo`; believed only from root, who could write anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
    /// What to do.
    pub verb: Verb,
}

/// What a daemon can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Verb {
    /// How it stands.
    Status,
    /// Reads the configuration again.
    Reload,
    /// Runs a job once, now.
    Run {
        /// The job.
        job: JobName,
        /// The fingerprint of the settings that the asker means.
        policy: String,
        /// Why, for the record.
        note: Option<String>,
    },
    /// Takes a job off its schedule for a while.
    Pause {
        /// The job.
        job: JobName,
        /// For how long; up to 31 days.
        seconds: u64,
        /// Why, for the record.
        reason: String,
    },
    /// Puts a paused job back on its schedule.
    Resume {
        /// The job.
        job: JobName,
    },
    /// Ends a run.
    Cancel {
        /// The run.
        run: RunId,
    },
}

impl Verb {
    /// How long an answer may take; `None` for as long as the run takes.
    #[must_use]
    pub fn time_limit(&self) -> Option<Duration> {
        match self {
            Self::Status => Some(Duration::from_secs(10)),
            Self::Pause { .. } | Self::Resume { .. } => Some(Duration::from_mins(1)),
            Self::Reload | Self::Cancel { .. } => Some(Duration::from_mins(2)),
            Self::Run { .. } => None,
        }
    }

    fn check(&self) -> Result<(), Refusal> {
        let text = |what: &str, text: &str, may_be_empty: bool| {
            if text.len() > LONGEST_TEXT || text.chars().any(char::is_control) || (text.is_empty() && !may_be_empty) {
                return Err(
                    Refusal::new(Why::BadRequest, format!("{what} is empty, too long, or not one line"))
                        .with_remedy(format!("write one line of at most {LONGEST_TEXT} bytes")),
                );
            }
            Ok(())
        };
        match self {
            Self::Status | Self::Reload | Self::Resume { .. } | Self::Cancel { .. } => Ok(()),
            Self::Run { note, policy, .. } => {
                text("the policy", policy, false)?;
                text("the reason", note.as_deref().unwrap_or_default(), true)
            }
            Self::Pause { seconds, reason, .. } => {
                text("the reason", reason, false)?;
                if *seconds == 0 || *seconds > LONGEST_PAUSE.as_secs() {
                    let refusal = Refusal::new(Why::BadRequest, "a pause lasts from a second to 31 days");
                    return Err(refusal.with_remedy("for longer, take the job out of the configuration"));
                }
                Ok(())
            }
        }
    }
}

impl Request {
    /// A request of this version.
    #[must_use]
    pub fn new(verb: Verb) -> Self {
        Self {
            version: VERSION,
            sudo_user: None,
            verb,
        }
    }

    /// Reads a line, without its newline. Any bytes at all are answered, never a panic.
    ///
    /// # Errors
    /// When it is no request of this version, or asks for what makes no sense.
    pub fn parse(line: &[u8]) -> Result<Self, Refusal> {
        let bad = |problem: String| {
            Refusal::new(Why::BadRequest, problem).with_remedy("use the pgreeve that belongs to this daemon")
        };
        if line.len() >= MAX_LINE {
            return Err(bad(format!("the request is longer than {MAX_LINE} bytes")));
        }
        let request: Self = serde_json::from_slice(line).map_err(|error| {
            // Its place, not its text: that would quote what was sent.
            bad(format!(
                "the request makes no sense at column {} ({:?})",
                error.column(),
                error.classify()
            ))
        })?;
        if request.version != VERSION {
            return Err(bad(format!(
                "the request is of version {}, this daemon speaks version {VERSION}",
                request.version
            )));
        }
        request.verb.check()?;
        Ok(request)
    }
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// What it says.
    #[serde(flatten)]
    pub update: Update,
}

/// What a line of an answer says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Update {
    /// A run has been admitted; more lines follow.
    Started(RunId),
    /// How far a run is; more lines follow.
    Progress {
        /// What is counted.
        unit: String,
        /// How much is done.
        done: u64,
        /// How much there is in all, where that is known.
        total: Option<u64>,
    },
    /// The end: it is done.
    Done(Value),
    /// The end: it is not done.
    Refused(Refusal),
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Its class.
    pub why: Why,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(default)]
    pub remedy: Option<String>,
    /// The mistakes of a configuration, each as it is to be shown.
    #[serde(default)]
    pub findings: Vec<String>,
}

/// Classes of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The request makes no sense.
    BadRequest,
    /// The asker may not.
    Denied,
    /// There is no such job or run.
    Unknown,
    /// The daemon does not lead the job's database.
    NotLeading,
    /// The daemon's configuration is another than the asker's.
    OtherConfiguration,
    /// The configuration has mistakes.
    BadConfiguration,
    /// It may succeed later.
    TryAgain,
    /// It failed.
    Failed,
}

impl Refusal {
    /// A refusal without a remedy.
    #[must_use]
    pub fn new(why: Why, message: impl Into<String>) -> Self {
        Self {
            why,
            message: message.into(),
            remedy: None,
            findings: Vec::new(),
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_has_the_published_form() {
        let request = Request::new(Verb::Pause {
            job: "purge".parse().unwrap(),
            seconds: 7200,
            reason: "migration".to_owned(),
        });
        let line = r#"{"version":1,"verb":{"pause":{"job":"purge","seconds":7200,"reason":"migration"}}}"#;
        assert_eq!(serde_json::to_string(&request).unwrap(), line);
        assert_eq!(Request::parse(line.as_bytes()).unwrap(), request);
        assert_eq!(
            Request::parse(br#"{"version":1,"verb":"reload"}"#).unwrap().verb,
            Verb::Reload
        );
    }

    #[test]
    fn an_answer_has_the_published_form() {
        let answer = Answer {
            version: VERSION,
            update: Update::Refused(Refusal::new(Why::NotLeading, "another leads")),
        };
        let line =
            r#"{"version":1,"refused":{"why":"not_leading","message":"another leads","remedy":null,"findings":[]}}"#;
        assert_eq!(serde_json::to_string(&answer).unwrap(), line);
        assert_eq!(serde_json::from_str::<Answer>(line).unwrap(), answer);
    }

    #[test]
    fn what_makes_no_sense_is_refused_without_being_quoted() {
        let long = format!(r#"{{"version":1,"verb":"{}"}}"#, "x".repeat(MAX_LINE));
        for bad in [
            "",
            "reload",
            r#"{"version":2,"verb":"reload"}"#,
            r#"{"version":1,"verb":"hunter2"}"#,
            r#"{"version":1,"verb":"reload","more":1}"#,
            r#"{"version":1,"verb":{"pause":{"job":"purge","seconds":0,"reason":"x"}}}"#,
            r#"{"version":1,"verb":{"pause":{"job":"purge","seconds":2678401,"reason":"x"}}}"#,
            r#"{"version":1,"verb":{"pause":{"job":"purge","seconds":9,"reason":""}}}"#,
            r#"{"version":1,"verb":{"pause":{"job":"purge","seconds":9,"reason":"a\nb"}}}"#,
            r#"{"version":1,"verb":{"resume":{"job":"No Name"}}}"#,
            r#"{"version":1,"verb":{"cancel":{"run":"7"}}}"#,
            &long,
        ] {
            let refusal = Request::parse(bad.as_bytes()).unwrap_err();
            assert_eq!(refusal.why, Why::BadRequest, "{bad}");
            assert!(!refusal.message.contains("hunter2"), "{refusal}");
        }
        let longest = br#"{"version":1,"verb":{"pause":{"job":"purge","seconds":2678400,"reason":"x"}}}"#;
        assert!(Request::parse(longest).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Request::parse(&bytes);
        }

        #[test]
        fn any_damage_to_a_request_is_answered(at in 0_usize..80, byte in any::<u8>(), cut in 0_usize..90) {
            let mut line = br#"{"version":1,"verb":{"pause":{"job":"purge","seconds":7200,"reason":"why"}}}"#.to_vec();
            if let Some(place) = line.get_mut(at) {
                *place = byte;
            }
            line.truncate(cut);
            if let Ok(request) = Request::parse(&line) {
                // What is let through means the same when it is written out again.
                let again = serde_json::to_vec(&request).unwrap();
                prop_assert_eq!(Request::parse(&again).unwrap(), request);
            }
        }
    }
}
