//! A request for erasure: who it is, how far it is, and what finds the person.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A request for erasure. Version 7 UUIDs: they sort by the time they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub Uuid);

impl RequestId {
    /// A new identity, made now.
    #[must_use]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for RequestId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestState {
    /// It is known, and nothing was decided.
    Received,
    /// Whether the person is who they say is not settled (Art. 12(6)); the clock is on record.
    AwaitingIdentity,
    /// There is a plan for it.
    Planned,
    /// The plan is approved.
    Approved,
    /// Its steps run.
    Processing,
    /// Its steps are done; what is left of the person is searched for.
    Verifying,
    /// Done, and nothing was found that should not be there.
    Completed,
    /// Done, and something was found, or a recipient has not answered.
    CompletedWithExceptions,
    /// What a legal hold does not cover is done; the rest follows when it is released.
    OnHold,
    /// An attempt failed in a way that may pass.
    Retry,
    /// It cannot be done as it stands; the reason says why.
    Failed,
    /// It was refused, with a reason (Art. 12(4)).
    Rejected,
    /// It was withdrawn before any step.
    Canceled,
}

impl RequestState {
    /// Every state, for readers of stored words.
    pub const ALL: [Self; 13] = [
        Self::Received,
        Self::AwaitingIdentity,
        Self::Planned,
        Self::Approved,
        Self::Processing,
        Self::Verifying,
        Self::Completed,
        Self::CompletedWithExceptions,
        Self::OnHold,
        Self::Retry,
        Self::Failed,
        Self::Rejected,
        Self::Canceled,
    ];

    /// The state's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::AwaitingIdentity => "awaiting_identity",
            Self::Planned => "planned",
            Self::Approved => "approved",
            Self::Processing => "processing",
            Self::Verifying => "verifying",
            Self::Completed => "completed",
            Self::CompletedWithExceptions => "completed_with_exceptions",
            Self::OnHold => "on_hold",
            Self::Retry => "retry",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Canceled => "canceled",
        }
    }

    /// The state that a stored word stands for.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// Whether nothing follows it.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::CompletedWithExceptions | Self::Failed | Self::Rejected | Self::Canceled
        )
    }
}

/// The key of a person in the subject's table, as PostgreSQL writes it (`key::text`). It has no
/// `Display`, and its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SubjectKey(String);

impl SubjectKey {
    /// Wraps a key.
    #[must_use]
    pub fn new(key: String) -> Self {
        Self(key)
    }

    /// The key itself, for statements that bind it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SubjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[subject]")
    }
}

/// One text that is the person: their key, an address, a session.
#[derive(Clone, PartialEq, Eq)]
pub struct Identifier {
    /// Where it came from: `schema.table.column`.
    pub source: String,
    value: String,
}

impl Identifier {
    /// Wraps an identifier.
    #[must_use]
    pub fn new(source: impl Into<String>, value: String) -> Self {
        Self {
            source: source.into(),
            value,
        }
    }

    /// The text itself, for statements that bind it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.value
    }

    /// Whether a text that holds it is likely to mean the person: short numbers and words stand
    /// everywhere.
    #[must_use]
    pub fn is_telling(&self) -> bool {
        self.value.chars().count() >= 6
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identifier")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// All that finds a person in text: collected before anything is deleted, gone when the request is
/// over. The subject's own key is the first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identifiers(pub Vec<Identifier>);

impl Identifiers {
    /// Those that mean the person wherever they stand, each once.
    pub fn telling(&self) -> impl Iterator<Item = &Identifier> {
        self.0.iter().filter(|identifier| identifier.is_telling())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_a_word_of_its_own() {
        for state in RequestState::ALL {
            assert_eq!(RequestState::from_word(state.as_str()), Some(state));
        }
        assert_eq!(RequestState::from_word("cancelled"), None);
    }

    #[test]
    fn what_finds_a_person_does_not_show_in_debug_output() {
        let key = SubjectKey::new("jane@example.org".to_owned());
        let identifiers = Identifiers(vec![Identifier::new(
            "public.users.email",
            "jane@example.org".to_owned(),
        )]);
        let shown = format!("{key:?} {identifiers:?}");
        assert!(!shown.contains("jane"), "{shown}");
        assert!(shown.contains("public.users.email"), "{shown}");
    }
}
