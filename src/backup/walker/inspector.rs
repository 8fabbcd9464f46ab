//! One way to look at all that `pg_dump` writes.

use super::{Passed, Script, WalkError, Walked, Walker};
use crate::backup::form::Format;

/// Looks at what `pg_dump` writes, in the format that it was told to.
#[derive(Debug)]
pub enum Inspector {
    /// An archive.
    Archive(Box<Walker>),
    /// A script.
    Script(Script),
}

impl Inspector {
    /// Before the first byte.
    #[must_use]
    pub fn new(format: Format) -> Self {
        match format {
            Format::Custom => Self::Archive(Box::default()),
            Format::Plain => Self::Script(Script::default()),
        }
    }

    /// Whether only rows follow; never known of a script.
    #[must_use]
    pub fn is_past_contents(&self) -> bool {
        match self {
            Self::Archive(walker) => walker.is_past_contents(),
            Self::Script(_) => false,
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When they cannot be part of such a dump; every later call fails too.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), WalkError> {
        self.feed_and_tell(bytes, |_| {})
    }

    /// Takes the next bytes, and tells what they are. All of a script is [`Passed::Other`].
    ///
    /// # Errors
    /// As [`Inspector::feed`].
    pub fn feed_and_tell(&mut self, bytes: &[u8], mut tell: impl FnMut(Passed<'_>)) -> Result<(), WalkError> {
        match self {
            Self::Archive(walker) => walker.feed_and_tell(bytes, tell),
            Self::Script(script) => {
                tell(Passed::Other(bytes));
                script.feed(bytes)
            }
        }
    }

    /// Says what it held, once its last byte was fed.
    ///
    /// # Errors
    /// When it is not whole.
    pub fn finish(self) -> Result<Walked, WalkError> {
        match self {
            Self::Archive(walker) => walker.finish(),
            Self::Script(script) => script.finish(),
        }
    }
}
