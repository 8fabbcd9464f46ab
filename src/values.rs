//! Newtypes that parse themselves: once a value of one of these types exists, it makes sense.
//!
//! Nothing here knows of configuration files, databases or jobs.

mod column;
mod edge;
mod period;
mod table;
mod zone;

use std::fmt::{self, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::column::ColumnName;
pub use self::edge::{Edge, PathStep};
pub use self::period::Period;
pub use self::table::TableName;
pub use self::zone::Timezone;

/// Why a text is not a value of the wanted type: what is wrong, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct ValueError {
    /// What is wrong with the text, lowercase, without a full stop.
    pub problem: String,
    /// What to write instead.
    pub help: String,
}

impl ValueError {
    fn new(problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            help: help.into(),
        }
    }
}

/// The digest of a text by which it is known: `sha256:` and 64 hexadecimal digits.
#[must_use]
pub fn fingerprint(text: &str) -> String {
    let mut fingerprint = "sha256:".to_owned();
    for byte in Sha256::digest(text) {
        let _ = write!(fingerprint, "{byte:02x}");
    }
    fingerprint
}

/// The name of a job, a database or a store in the configuration: a lowercase letter, then up to
/// 62 lowercase letters, digits, `-` or `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// The name of a job.
pub type JobName = Name;

impl Name {
    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest_ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        let first_ok = text.chars().next().is_some_and(|c| c.is_ascii_lowercase());
        if first_ok && text.len() <= 63 && text.chars().all(rest_ok) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ValueError::new(
                format!("`{text}` is not a name"),
                "a name is a lowercase letter, then up to 62 lowercase letters, digits, `-` or `_`",
            ))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = ValueError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One execution of a job. Version 7 UUIDs: they sort by the time they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub uuid::Uuid);

impl RunId {
    /// A new identity, made now.
    #[must_use]
    pub fn new() -> Self {
        Self(uuid::Uuid::now_v7())
    }
}

impl Default for RunId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A password or key. It has no `Display`, and its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself, for the one place that hands it to a third party.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_the_sha256_of_the_text() {
        assert_eq!(
            fingerprint("abc"),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".to_owned())), "[secret]");
    }
}
