//! In which form a dump lies in its store: what the objects are called, and how they are packed.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::compress::{Encoder, Packing};
use super::seal::{Recipient, SUFFIX, Sealer};

/// What `pg_dump` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `pg_dump -Fc -Z0`, checked entry by entry as it streams; for `pg_restore`.
    #[default]
    Custom,
    /// A script of SQL for `psql`. No table is counted.
    Plain,
}

impl Format {
    /// As the manifest names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Custom => "custom",
            Self::Plain => "plain",
        }
    }
}

/// How objects are stored.
#[derive(Debug, Clone, Default)]
pub struct Form {
    /// What `pg_dump` writes.
    pub format: Format,
    /// How it is packed.
    pub packing: Packing,
    /// By how many threads.
    pub threads: u32,
    /// Who can read it; everybody, if nobody is named.
    pub recipients: Vec<Recipient>,
}

impl Form {
    /// What the names of a dump's objects end with: `.dump.gz`, `.sql.zst.age`.
    #[must_use]
    pub fn dump_suffix(&self) -> String {
        let content = match self.format {
            Format::Custom => ".dump",
            Format::Plain => ".sql",
        };
        format!("{content}{}{}", self.packing.suffix(), self.seal_suffix())
    }

    /// `.age`, or nothing.
    #[must_use]
    pub fn seal_suffix(&self) -> &'static str {
        if self.recipients.is_empty() { "" } else { SUFFIX }
    }

    /// The media type of what is packed.
    #[must_use]
    pub fn content_type(&self) -> &'static str {
        self.media_type(self.packing)
    }

    /// The media type of something else that is stored the same way.
    #[must_use]
    pub fn media_type(&self, packing: Packing) -> &'static str {
        if self.recipients.is_empty() {
            packing.content_type()
        } else {
            "application/octet-stream"
        }
    }

    /// Packs and encrypts what is written to it, in this order, and writes that on.
    ///
    /// # Errors
    /// When a thread cannot be started, or the output fails.
    pub fn writer<W: Write>(&self, output: W) -> io::Result<FormWriter<W>> {
        let sealer = Sealer::new(&self.recipients, output)?;
        Encoder::new(self.packing, self.threads, sealer).map(FormWriter)
    }
}

/// See [`Form::writer`].
pub struct FormWriter<W: Write>(Encoder<Sealer<W>>);

impl<W: Write> FormWriter<W> {
    /// Ends all streams with their trailers.
    ///
    /// # Errors
    /// When the output fails.
    pub fn finish(self) -> io::Result<W> {
        self.0.finish()?.finish()
    }
}

impl<W: Write> Write for FormWriter<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.0.write(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
