//! The encoder between dump and store.

use std::fmt;
use std::io::{self, Write};

use flate2::write::GzEncoder;

/// How the dump is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// gzip at a level from 1 to 9.
    Gzip(u32),
    /// Stored as it is.
    None,
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gzip(level) => write!(f, "gzip:{level}"),
            Self::None => f.write_str("none"),
        }
    }
}

impl Packing {
    /// The ending of the dump's objects: with it, `gunzip` and `pg_restore` know what they get.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Gzip(_) => "dump.gz",
            Self::None => "dump",
        }
    }

    /// The objects' media type. Never a content *encoding*: a client that unpacks on the way would
    /// break sizes and digests.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Gzip(_) => "application/gzip",
            Self::None => "application/octet-stream",
        }
    }
}

/// Packs a stream piece by piece.
pub enum Encoder {
    /// gzip.
    Gzip(Box<GzEncoder<Vec<u8>>>),
    /// Nothing to do.
    None(Vec<u8>),
}

impl Encoder {
    /// An encoder before the first byte.
    #[must_use]
    pub fn new(packing: Packing) -> Self {
        match packing {
            Packing::Gzip(level) => {
                let level = flate2::Compression::new(level.clamp(1, 9));
                Self::Gzip(Box::new(GzEncoder::new(Vec::new(), level)))
            }
            Packing::None => Self::None(Vec::new()),
        }
    }

    /// Takes a piece and answers with what is packed so far.
    ///
    /// # Errors
    /// When the encoder fails.
    pub fn push(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => {
                encoder.write_all(piece)?;
                Ok(std::mem::take(encoder.get_mut()))
            }
            Self::None(output) => {
                output.extend_from_slice(piece);
                Ok(std::mem::take(output))
            }
        }
    }

    /// Ends the stream and answers with the rest and the trailer.
    ///
    /// # Errors
    /// When the encoder fails.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::None(output) => Ok(output),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_packed_unpacks_to_the_same() {
        let text = b"one two three ".repeat(5000);
        for packing in [Packing::Gzip(1), Packing::Gzip(9), Packing::None] {
            let mut encoder = Encoder::new(packing);
            let mut packed = Vec::new();
            for piece in text.chunks(777) {
                packed.extend(encoder.push(piece).unwrap());
            }
            packed.extend(encoder.finish().unwrap());
            let mut unpacked = Vec::new();
            match packing {
                Packing::Gzip(_) => {
                    assert!(packed.len() < text.len() / 10);
                    flate2::read::MultiGzDecoder::new(packed.as_slice())
                        .read_to_end(&mut unpacked)
                        .unwrap();
                }
                Packing::None => unpacked = packed,
            }
            assert_eq!(unpacked, text);
        }
    }
}
