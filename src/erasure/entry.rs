//! One line of the ledger of erasures, and the chain that the lines are.
//!
//! ```text
//! {"v":1,"seq":2,"ts":"2026-11-21T09:00:00.000000Z","prev":"…","event":{"begun":{…}}}
//! ```
//!
//! `prev` is the SHA-256 of the line before, without its newline, as in the audit log. Lines are
//! numbered from 1 without gaps; the first one names the ledger.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::token::{KeyId, Token};
use crate::audit::Digest;

/// The version of the line's format.
const VERSION: u8 = 1;

/// The longest line, in bytes with its newline.
pub const MAX_LINE: usize = 1 << 16;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    v: u8,
    /// Its number.
    pub seq: u64,
    /// When it was written, by the host's clock.
    pub ts: Timestamp,
    /// The digest of the line before; [`Digest::GENESIS`] in the first one.
    pub prev: Digest,
    /// What it says.
    pub event: Event,
}

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The ledger begins.
    Opened {
        /// Its identity: 16 random digits.
        ledger: String,
        /// The daemon that began it.
        instance: String,
    },
    /// A subject is about to be erased: written before the first row is touched.
    Begun(Begun),
    /// The erasure of a request came to its end.
    Done {
        /// The request.
        request: Uuid,
        /// How it ended, in the words of the request's states.
        outcome: String,
    },
    /// A key was destroyed: no backup is left that can hold a subject whom it names.
    KeyDestroyed {
        /// The key.
        key: KeyId,
    },
}

/// Who is about to be erased, by whom and why. No personal data but the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begun {
    /// The request.
    pub request: Uuid,
    /// The job.
    pub job: String,
    /// The database's name in the configuration.
    pub database: String,
    /// The subject's table, `schema.name`.
    pub table: String,
    /// The hash of the job's settings.
    pub policy: String,
    /// The key that the token was made with.
    pub key: KeyId,
    /// The subject.
    pub token: Token,
    /// The last record of the audit log by then: what was done stands after it.
    pub audit: u64,
}

/// The end of a chain of lines: where the next one goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// How many lines there are.
    pub seq: u64,
    /// The digest of the last one.
    pub head: Digest,
}

impl End {
    /// Before the first line.
    pub const START: Self = Self {
        seq: 0,
        head: Digest::GENESIS,
    };

    /// The next line with its newline, and the end after it.
    pub fn write(self, ts: Timestamp, event: Event) -> Result<(Line, Vec<u8>, Self), String> {
        let line = Line {
            v: VERSION,
            seq: self.seq.saturating_add(1),
            ts: Timestamp::from_microsecond(ts.as_microsecond()).unwrap_or(ts),
            prev: self.head,
            event,
        };
        let mut bytes = serde_json::to_vec(&line).map_err(|error| error.to_string())?;
        let end = Self {
            seq: line.seq,
            head: Digest::of(&bytes),
        };
        bytes.push(b'\n');
        if bytes.len() > MAX_LINE {
            return Err(format!("its {} bytes are more than {MAX_LINE}", bytes.len()));
        }
        Ok((line, bytes, end))
    }

    /// Takes the next line, without its newline. The error says what is wrong or missing.
    pub fn read(self, bytes: &[u8]) -> Result<(Line, Self), String> {
        let expected = self.seq.saturating_add(1);
        // The message of the parser may quote the line.
        let line: Line = serde_json::from_slice(bytes)
            .map_err(|error| format!("entry {expected} cannot be read (column {})", error.column()))?;
        if line.v != VERSION {
            return Err(format!(
                "entry {expected} has the format {}, which a newer pgreeve writes",
                line.v
            ));
        }
        if line.seq > expected {
            return Err(match line.seq - expected {
                1 => format!("entry {expected} is missing"),
                _ => format!("entries {expected} to {} are missing", line.seq - 1),
            });
        }
        if line.seq < expected {
            return Err(format!("entry {} stands in the place of entry {expected}", line.seq));
        }
        if line.prev != self.head {
            return Err(match expected {
                1 => "the first entry is not the beginning of a ledger".to_owned(),
                _ => format!(
                    "entry {} was changed: entry {expected} carries another digest for it",
                    self.seq
                ),
            });
        }
        if (expected == 1) != matches!(line.event, Event::Opened { .. }) {
            return Err(format!(
                "entry {expected} does not belong there: a ledger is named once, by its first entry"
            ));
        }
        let end = Self {
            seq: line.seq,
            head: Digest::of(bytes),
        };
        Ok((line, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> Event {
        Event::Opened {
            ledger: "0123456789abcdef".to_owned(),
            instance: "db1".to_owned(),
        }
    }

    fn begun() -> Event {
        Event::Begun(Begun {
            request: Uuid::nil(),
            job: "erase-users".to_owned(),
            database: "main".to_owned(),
            table: "public.users".to_owned(),
            policy: "sha256:ab".to_owned(),
            key: "2026-0123456789abcdef".parse().unwrap(),
            token: "11".repeat(32).parse().unwrap(),
            audit: 7,
        })
    }

    fn chain(events: Vec<Event>) -> Vec<Vec<u8>> {
        let mut end = End::START;
        let mut lines = Vec::new();
        for event in events {
            let (_, bytes, next) = end
                .write("2026-11-21T09:00:00.0000001Z".parse().unwrap(), event)
                .unwrap();
            lines.push(bytes.strip_suffix(b"\n").unwrap().to_vec());
            end = next;
        }
        lines
    }

    fn read(lines: &[Vec<u8>]) -> Result<End, String> {
        lines.iter().try_fold(End::START, |end, line| Ok(end.read(line)?.1))
    }

    #[test]
    fn a_line_has_the_published_form() {
        let lines = chain(vec![opened(), begun()]);
        let head = Digest::of(&lines[0]);
        assert_eq!(
            String::from_utf8(lines[1].clone()).unwrap(),
            format!(
                r#"{{"v":1,"seq":2,"ts":"2026-11-21T09:00:00Z","prev":"{head}","event":{{"begun":{{"request":"00000000-0000-0000-0000-000000000000","job":"erase-users","database":"main","table":"public.users","policy":"sha256:ab","key":"2026-0123456789abcdef","token":"{}","audit":7}}}}}}"#,
                "11".repeat(32)
            )
        );
        assert_eq!(read(&lines).unwrap().seq, 2);
    }

    #[test]
    fn what_is_missing_or_changed_is_named() {
        let done = || Event::Done {
            request: Uuid::nil(),
            outcome: "completed".to_owned(),
        };
        let lines = chain(vec![opened(), begun(), done(), begun()]);
        let without = |gone: &[usize]| {
            let kept = lines.iter().enumerate().filter(|(index, _)| !gone.contains(index));
            read(&kept.map(|(_, line)| line.clone()).collect::<Vec<_>>())
        };
        assert_eq!(without(&[1]).unwrap_err(), "entry 2 is missing");
        assert_eq!(without(&[1, 2]).unwrap_err(), "entries 2 to 3 are missing");
        assert_eq!(without(&[0]).unwrap_err(), "entry 1 is missing");
        let mut swapped = lines.clone();
        swapped.swap(1, 2);
        assert!(read(&swapped).is_err());
        let mut repeated = lines.clone();
        repeated.insert(1, lines[1].clone());
        assert_eq!(read(&repeated).unwrap_err(), "entry 2 stands in the place of entry 3");
        // Every flipped bit is found, but in the last line, whose digest is kept elsewhere.
        for (number, line) in lines.iter().enumerate().take(3) {
            for byte in 0..line.len() {
                let mut changed = lines.clone();
                changed[number][byte] ^= 1;
                let error = read(&changed).unwrap_err();
                assert!(error.starts_with("ent") || error.starts_with("the first"), "{error}");
            }
        }
    }
}
