//! A record: what callers give ([`Entry`]), and the line it becomes ([`Record`]).

use std::borrow::Cow;

use jiff::Timestamp;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::AuditError;
use super::digest::Digest;
use super::kind::RecordKind;
use crate::values::{JobName, RunId};

/// The longest line, in bytes with its newline. Readers rely on it to work in bounded memory.
pub const MAX_LINE: usize = 16 << 20;

/// The version of the line's format.
const VERSION: u8 = 1;

/// What a caller wants on record. The log adds number, time and link.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What it is about.
    pub kind: RecordKind,
    /// The run it belongs to.
    pub run: Option<RunId>,
    /// The job it belongs to.
    pub job: Option<JobName>,
    /// The database, by system identifier or name.
    pub database: Option<String>,
    /// The hash of the job's settings: `sha256:` and 64 digits.
    pub policy: Option<String>,
    /// Who caused it.
    pub actor: Option<String>,
    /// A JSON object; no personal data.
    pub body: Value,
}

impl Entry {
    /// An entry that belongs to no run, job or database yet.
    #[must_use]
    pub fn new(kind: RecordKind, body: Value) -> Self {
        Self {
            kind,
            run: None,
            job: None,
            database: None,
            policy: None,
            actor: None,
            body,
        }
    }

    /// Names the run.
    #[must_use]
    pub fn run(mut self, run: RunId) -> Self {
        self.run = Some(run);
        self
    }

    /// Names the job.
    #[must_use]
    pub fn job(mut self, job: JobName) -> Self {
        self.job = Some(job);
        self
    }

    /// Names the database.
    #[must_use]
    pub fn database(mut self, database: impl Into<String>) -> Self {
        self.database = Some(database.into());
        self
    }

    /// Names the policy by its hash.
    #[must_use]
    pub fn policy(mut self, policy: impl Into<String>) -> Self {
        self.policy = Some(policy.into());
        self
    }

    /// Names who caused it.
    #[must_use]
    pub fn actor(mut self, actor: impl Into<String>) -> Self {
        self.actor = Some(actor.into());
        self
    }
}

/// Where a record stands in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) seq: u64,
    pub(super) ts: Timestamp,
    pub(super) prev: Digest,
}

/// One line. `B` is the body: [`Value`] for readers that want it, [`IgnoredAny`] for those that only
/// need to know that it is JSON. The order of the fields is the order in the line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record<'a, B = IgnoredAny> {
    /// The version of the format, 1.
    pub v: u8,
    /// Its number: 1 for the first record, then one more each.
    pub seq: u64,
    /// When it was written, to the microsecond.
    #[serde(with = "microseconds")]
    pub ts: Timestamp,
    /// The digest of the line before, without its newline; [`Digest::GENESIS`] in the first record.
    pub prev: Digest,
    /// What it is about. A word, since a newer pgreeve may know more of them.
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    /// The run it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The job it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Cow<'a, str>>,
    /// The database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<Cow<'a, str>>,
    /// The hash of the job's settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Cow<'a, str>>,
    /// Who caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Cow<'a, str>>,
    /// What there is to say.
    pub body: B,
}

impl<'a, B> Record<'a, B> {
    /// A record that belongs to no run, job or database.
    pub(super) fn new(link: Link, kind: RecordKind, body: B) -> Self {
        Self {
            v: VERSION,
            seq: link.seq,
            ts: link.ts,
            prev: link.prev,
            kind: Cow::Borrowed(kind.as_str()),
            run: None,
            job: None,
            database: None,
            policy: None,
            actor: None,
            body,
        }
    }

    /// Reads a line without its newline. The error says what is wrong with it.
    pub fn parse(line: &'a [u8]) -> Result<Self, String>
    where
        B: Deserialize<'a>,
    {
        let record: Self = serde_json::from_slice(line).map_err(|error| match error.classify() {
            // The message of a data error may quote the line; the place is enough.
            serde_json::error::Category::Data => format!("not a record (column {})", error.column()),
            _ => format!("not JSON (column {})", error.column()),
        })?;
        if record.v == VERSION {
            Ok(record)
        } else {
            Err(format!("version {} of the format is not known", record.v))
        }
    }

    /// Whether it is of a kind.
    #[must_use]
    pub fn is(&self, kind: RecordKind) -> bool {
        self.kind == kind.as_str()
    }
}

impl<B: Serialize> Record<'_, B> {
    /// The line with its newline.
    pub(super) fn encode(&self) -> Result<Vec<u8>, AuditError> {
        let refused = |cause: String| {
            AuditError::new(
                format!("write an audit record `{}`", self.kind),
                cause,
                "this is a fault of pgreeve, please report it",
            )
        };
        let mut line = serde_json::to_vec(self).map_err(|error| refused(error.to_string()))?;
        line.push(b'\n');
        if line.len() > MAX_LINE {
            return Err(refused(format!("its {} bytes are more than {MAX_LINE}", line.len())));
        }
        Ok(line)
    }
}

impl Entry {
    /// The record this entry becomes.
    pub(super) fn at(&self, link: Link) -> Record<'_, &Value> {
        Record {
            run: self.run,
            job: self.job.as_ref().map(|job| Cow::Borrowed(job.as_str())),
            database: self.database.as_deref().map(Cow::Borrowed),
            policy: self.policy.as_deref().map(Cow::Borrowed),
            actor: self.actor.as_deref().map(Cow::Borrowed),
            ..Record::new(link, self.kind, &self.body)
        }
    }
}

/// RFC 3339 in UTC with six decimals, always.
pub(super) mod microseconds {
    use jiff::Timestamp;
    use serde::{Deserializer, Serializer};

    pub(in crate::audit) fn serialize<S: Serializer>(ts: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{ts:.6}"))
    }

    pub(in crate::audit) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        super::super::digest::from_text(deserializer)
    }
}

/// An instant cut to what a line holds, so that what is signed and what is stored are the same.
pub(super) fn to_microseconds(ts: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(ts.as_microsecond()).unwrap_or(ts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link {
            seq: 7,
            ts: "2026-03-29T01:02:03Z".parse().unwrap(),
            prev: Digest::GENESIS,
        }
    }

    #[test]
    fn a_line_has_the_published_form() {
        let entry = Entry::new(RecordKind::RunStart, serde_json::json!({"rows": 3}))
            .run(RunId(uuid::Uuid::nil()))
            .job("purge-events".parse().unwrap())
            .database("7300000000000000000")
            .policy("sha256:ab")
            .actor("schedule");
        let line = entry.at(link()).encode().unwrap();
        let zeros = "0".repeat(64);
        assert_eq!(
            String::from_utf8(line).unwrap(),
            format!(
                r#"{{"v":1,"seq":7,"ts":"2026-03-29T01:02:03.000000Z","prev":"{zeros}","kind":"run.start","run":"00000000-0000-0000-0000-000000000000","job":"purge-events","database":"7300000000000000000","policy":"sha256:ab","actor":"schedule","body":{{"rows":3}}}}"#
            ) + "\n"
        );
    }

    #[test]
    fn what_is_absent_is_left_out() {
        let line = Entry::new(RecordKind::DaemonStop, serde_json::json!({}))
            .at(link())
            .encode()
            .unwrap();
        let text = String::from_utf8(line).unwrap();
        assert!(text.ends_with("\"kind\":\"daemon.stop\",\"body\":{}}\n"), "{text}");
    }

    #[test]
    fn a_newline_in_a_value_does_not_end_the_line() {
        let entry = Entry::new(
            RecordKind::ConfigRejected,
            serde_json::json!({"cause": "a\nb\u{2028}\0"}),
        )
        .actor("x\ny");
        let line = entry.at(link()).encode().unwrap();
        assert_eq!(memchr::memchr_iter(b'\n', &line).count(), 1);
        let record = Record::<Value>::parse(line.strip_suffix(b"\n").unwrap()).unwrap();
        assert_eq!(record.actor.as_deref(), Some("x\ny"));
        assert_eq!(record.body, entry.body);
    }

    #[test]
    fn a_line_past_the_limit_is_refused() {
        let entry = |bytes: usize| Entry::new(RecordKind::Missed, serde_json::json!({"x": "y".repeat(bytes)}));
        let rest = entry(0).at(link()).encode().unwrap().len();
        assert_eq!(entry(MAX_LINE - rest).at(link()).encode().unwrap().len(), MAX_LINE);
        assert!(entry(MAX_LINE - rest + 1).at(link()).encode().is_err());
    }

    #[test]
    fn a_line_of_another_form_is_refused_without_being_quoted() {
        let line = Entry::new(RecordKind::Missed, serde_json::json!({}))
            .at(link())
            .encode()
            .unwrap();
        let text = String::from_utf8(line).unwrap();
        for bad in [
            text.replace("\"v\":1", "\"v\":2"),
            text.replace("\"body\"", "\"extra\":\"alice\",\"body\""),
            text.replace("\"seq\":7", "\"seq\":7,\"seq\":7"),
            text.replace("\"seq\":7", "\"seq\":-7"),
            format!("{} x", text.trim_end()),
            String::new(),
        ] {
            let error = Record::<IgnoredAny>::parse(bad.trim_end().as_bytes()).unwrap_err();
            assert!(!error.contains("alice"), "{error}");
        }
    }
}
