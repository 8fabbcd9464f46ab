//! The encoder between dump and store.

mod gzip;
mod members;

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::gzip::Gunzip;
use self::members::Members;
use crate::values::ValueError;

/// How the dump is packed: `gzip:1` to `gzip:9`, `zstd:1` to `zstd:19`, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Packing {
    /// gzip at a level from 1 to 9.
    Gzip(u32),
    /// zstd at a level from 1 to 19.
    Zstd(i32),
    /// Stored as it is.
    None,
}

/// The levels when none is given: about as fast as one `pg_dump` writes.
const GZIP: u32 = 4;
const ZSTD: i32 = 3;

impl Default for Packing {
    fn default() -> Self {
        Self::Gzip(GZIP)
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gzip(level) => write!(f, "gzip:{level}"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
            Self::None => f.write_str("none"),
        }
    }
}

impl FromStr for Packing {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let level = |text: &str, most: u32| text.parse::<u32>().ok().filter(|level| (1..=most).contains(level));
        match text.split_once(':') {
            None if text == "none" => Some(Self::None),
            None if text == "gzip" => Some(Self::Gzip(GZIP)),
            None if text == "zstd" => Some(Self::Zstd(ZSTD)),
            Some(("gzip", digits)) => level(digits, 9).map(Self::Gzip),
            Some(("zstd", digits)) => level(digits, 19)
                .and_then(|level| level.try_into().ok())
                .map(Self::Zstd),
            _ => None,
        }
        .ok_or_else(|| ValueError {
            problem: format!("`{text}` is not a compression"),
            help: "write \"gzip:1\" to \"gzip:9\", \"zstd:1\" to \"zstd:19\", or \"none\"".to_owned(),
        })
    }
}

impl TryFrom<String> for Packing {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Packing> for String {
    fn from(packing: Packing) -> Self {
        packing.to_string()
    }
}

impl Packing {
    /// What a packed object's name ends with: by it, `gunzip` and `zstd -d` know what they get.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Gzip(_) => ".gz",
            Self::Zstd(_) => ".zst",
            Self::None => "",
        }
    }

    /// The objects' media type. Never a content *encoding*: a client that unpacks on the way would
    /// break sizes and digests.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Gzip(_) => "application/gzip",
            Self::Zstd(_) => "application/zstd",
            Self::None => "application/octet-stream",
        }
    }
}

/// Packs what is written to it and writes that on.
pub enum Encoder<W: Write> {
    /// One zstd frame.
    Zstd(Box<zstd::Encoder<'static, W>>),
    /// Members or frames of equal input.
    Members(Members<W>),
    /// Nothing to do.
    None(W),
}

impl<W: Write> Encoder<W> {
    /// An encoder before the first byte. The output is a sequence of members (gzip), or with more than
    /// one thread of frames (zstd), which every unpacker reads as one stream. gzip is packed whole
    /// members at a time because that is faster than any stream: libdeflate does at level 4 what gzip
    /// does at 6, in less than a third of the time.
    ///
    /// # Errors
    /// When a thread cannot be started, or memory is short.
    pub fn new(packing: Packing, threads: u32, output: W) -> io::Result<Self> {
        Ok(match packing {
            Packing::None => Self::None(output),
            Packing::Gzip(_) => Self::Members(Members::new(packing, threads, output)?),
            _ if threads > 1 => Self::Members(Members::new(packing, threads, output)?),
            Packing::Zstd(level) => {
                let mut encoder = zstd::Encoder::new(output, level)?;
                encoder.include_checksum(true)?;
                Self::Zstd(Box::new(encoder))
            }
        })
    }

    /// The output, with what is packed so far.
    #[must_use]
    pub fn get_ref(&self) -> &W {
        match self {
            Self::Zstd(encoder) => encoder.get_ref(),
            Self::Members(members) => members.get_ref(),
            Self::None(output) => output,
        }
    }

    /// Ends the stream with its trailer and answers with the output.
    ///
    /// # Errors
    /// When the encoder or the output fails.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Zstd(encoder) => encoder.finish(),
            Self::Members(members) => members.finish(),
            Self::None(output) => Ok(output),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        match self {
            Self::Zstd(encoder) => encoder.write(piece),
            Self::Members(members) => members.write(piece),
            Self::None(output) => output.write(piece),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Zstd(encoder) => encoder.flush(),
            Self::Members(members) => members.flush(),
            Self::None(output) => output.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::MultiGzDecoder;
    use proptest::prelude::*;

    use super::*;

    fn packed(packing: Packing, threads: u32, text: &[u8], piece: usize) -> Vec<u8> {
        let mut encoder = Encoder::new(packing, threads, Vec::new()).unwrap();
        for piece in text.chunks(piece) {
            encoder.write_all(piece).unwrap();
        }
        encoder.finish().unwrap()
    }

    fn unpacked(packing: Packing, packed: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        match packing {
            Packing::Gzip(_) => MultiGzDecoder::new(packed).read_to_end(&mut text).unwrap(),
            Packing::Zstd(_) => zstd::Decoder::new(packed).unwrap().read_to_end(&mut text).unwrap(),
            Packing::None => return packed.to_vec(),
        };
        text
    }

    #[test]
    fn what_is_packed_unpacks_to_the_same() {
        let text = b"one two three ".repeat(5000);
        for packing in ["gzip:1", "gzip:9", "zstd:1", "zstd:19", "none"] {
            let packing: Packing = packing.parse().unwrap();
            let packed = packed(packing, 1, &text, 777);
            assert!(packing == Packing::None || packed.len() < text.len() / 10);
            assert_eq!(unpacked(packing, &packed), text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn members_join_to_the_stream_in_its_order(
            blocks in 0_usize..9,
            rest in 0_usize..3000,
            piece in 1_usize..600_000,
            threads in 1_u32..5,
            gzip in any::<bool>(),
        ) {
            let packing = if gzip { Packing::Gzip(1) } else { Packing::Zstd(1) };
            let length = blocks * members::block_bytes(packing) / 2 + rest;
            let text: Vec<u8> = (0..=length / 8).flat_map(|n| (n as u64).to_be_bytes()).take(length).collect();
            let packed = packed(packing, threads, &text, piece);
            prop_assert!(unpacked(packing, &packed) == text);
        }
    }

    #[test]
    fn a_packing_is_read_as_it_is_written_and_nothing_else_is() {
        for text in ["gzip:1", "gzip:9", "zstd:1", "zstd:19", "none"] {
            assert_eq!(text.parse::<Packing>().unwrap().to_string(), text);
        }
        assert_eq!("gzip".parse(), Ok(Packing::Gzip(4)));
        assert_eq!("zstd".parse(), Ok(Packing::Zstd(3)));
        for text in ["", "gzip:0", "gzip:10", "zstd:0", "zstd:20", "zstd:-1", "lz4", "none:1"] {
            assert!(text.parse::<Packing>().is_err(), "{text}");
        }
    }
}
