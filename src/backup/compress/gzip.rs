//! gzip members that say how long they are, packed and unpacked whole, which `libdeflate` does in a
//! third of the time that a stream takes.
//!
//! The length lies in the member's header, in an extra field (RFC 1952, section 2.3.1.1) that every
//! other reader skips. A stream without it, or with longer members than ours, is unpacked as a stream.

use std::io::{self, Chain, Cursor, Read};

use flate2::read::MultiGzDecoder;
use libdeflater::{CompressionLvl, Compressor, Decompressor, crc32};

/// How much is packed into a member: what lies further back cannot be referred to, so it is many times
/// the 32 KiB that gzip looks back.
pub(super) const BLOCK: usize = 1024 * 1024;

/// Magic, method deflate, flag "extra field", no time, no hints, system unknown, eight bytes of extra
/// fields, of which one: `PG`, four bytes long.
const START: [u8; 16] = *b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x08\0PG\x04\0";
/// The start, then the length of the whole member, lowest byte first.
const HEADER: usize = START.len() + 4;
/// CRC-32 and length of the input, each four bytes, lowest first.
const FOOTER: usize = 8;
/// No member of ours is longer: a block that cannot be packed grows by less.
const LONGEST: usize = BLOCK + BLOCK / 16;

/// Packs blocks.
pub(super) struct Packer(Compressor);

impl Packer {
    /// Of a level from 1 to 9.
    pub(super) fn new(level: u32) -> io::Result<Self> {
        let level = i32::try_from(level.clamp(1, 9)).map_err(io::Error::other)?;
        let level = CompressionLvl::new(level).map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(Self(Compressor::new(level)))
    }

    /// Packs a block of up to [`BLOCK`] bytes into the beginning of `member`, which grows as it has to.
    /// How long the member is.
    pub(super) fn pack(&mut self, block: &[u8], member: &mut Vec<u8>) -> io::Result<usize> {
        let room = HEADER + self.0.deflate_compress_bound(block.len()) + FOOTER;
        // It is never made shorter, so that it is filled with zeros only once.
        member.resize(room.max(member.len()), 0);
        let (header, rest) = member.split_at_mut(HEADER);
        let packed = self.0.deflate_compress(block, rest).map_err(io::Error::other)?;
        let length = HEADER + packed + FOOTER;
        let four = |number: usize| u32::try_from(number).map(u32::to_le_bytes).map_err(io::Error::other);
        header.copy_from_slice(&[&START[..], &four(length)?].concat());
        let footer = [crc32(block).to_le_bytes(), four(block.len())?].concat();
        let place = rest.get_mut(packed..packed + FOOTER);
        place
            .ok_or_else(|| io::Error::other("a packed block leaves no room for its sums"))?
            .copy_from_slice(&footer);
        Ok(length)
    }
}

/// Unpacks any gzip stream of one or more members.
pub struct Gunzip<R>(State<R>);

enum State<R> {
    /// All members so far were ours.
    Members(Box<Members<R>>),
    /// Some member was not; from there on.
    Stream(Box<MultiGzDecoder<Chain<Cursor<Vec<u8>>, R>>>),
    /// While one becomes the other.
    Between,
}

struct Members<R> {
    source: R,
    unpacker: Decompressor,
    member: Vec<u8>,
    block: Vec<u8>,
    /// What of the block is still to be read.
    unread: std::ops::Range<usize>,
}

/// What comes next of a stream.
enum Next {
    Block,
    End,
    /// A member that is not ours: these bytes, then the rest of the source.
    Other(Vec<u8>),
}

impl<R: Read> Gunzip<R> {
    /// Before the first byte.
    pub fn new(source: R) -> Self {
        Self(State::Members(Box::new(Members {
            source,
            unpacker: Decompressor::new(),
            member: Vec::new(),
            block: Vec::new(),
            unread: 0..0,
        })))
    }
}

impl<R: Read> Members<R> {
    fn next(&mut self) -> io::Result<Next> {
        self.member.clear();
        self.source.by_ref().take(HEADER as u64).read_to_end(&mut self.member)?;
        if self.member.is_empty() {
            return Ok(Next::End);
        }
        let Some(length) = length(&self.member) else {
            return Ok(Next::Other(std::mem::take(&mut self.member)));
        };
        let rest = length - HEADER;
        let read = self.source.by_ref().take(rest as u64).read_to_end(&mut self.member)?;
        if read < rest {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.block.resize(BLOCK, 0);
        let unpacked = self.unpacker.gzip_decompress(&self.member, &mut self.block);
        self.unread = 0..unpacked.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Next::Block)
    }
}

/// How long a member of ours is, by its header.
fn length(header: &[u8]) -> Option<usize> {
    let length = header.strip_prefix(&START)?.first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    (HEADER + FOOTER..=LONGEST).contains(&length).then_some(length)
}

impl<R: Read> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let members = match &mut self.0 {
                State::Members(members) => members,
                State::Stream(stream) => return stream.read(buffer),
                State::Between => return Err(io::Error::other("the stream has failed before")),
            };
            if !members.unread.is_empty() || buffer.is_empty() {
                let unread = members.block.get(members.unread.clone()).unwrap_or_default();
                let length = unread.len().min(buffer.len());
                let (target, _) = buffer.split_at_mut(length);
                target.copy_from_slice(unread.get(..length).unwrap_or_default());
                members.unread.start += length;
                return Ok(length);
            }
            match members.next()? {
                Next::Block => {}
                Next::End => return Ok(0),
                Next::Other(first) => {
                    if let State::Members(members) = std::mem::replace(&mut self.0, State::Between) {
                        let source = Cursor::new(first).chain(members.source);
                        self.0 = State::Stream(Box::new(MultiGzDecoder::new(source)));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;

    use super::*;

    fn member(block: &[u8]) -> Vec<u8> {
        let mut member = Vec::new();
        let length = Packer::new(4).unwrap().pack(block, &mut member).unwrap();
        member.truncate(length);
        member
    }

    fn foreign(block: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(block).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        Gunzip::new(packed).read_to_end(&mut text).map(|_| text)
    }

    /// Bytes that cannot be packed.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(length)
        .collect()
    }

    #[test]
    fn members_unpack_here_and_everywhere_else() {
        for block in [&b""[..], b"one", &vec![7; BLOCK], &noise(BLOCK), &noise(BLOCK - 1)] {
            let twice = [member(block), member(block)].concat();
            let expected = [block, block].concat();
            assert!(unpacked(&twice).unwrap() == expected);
            let mut text = Vec::new();
            MultiGzDecoder::new(twice.as_slice()).read_to_end(&mut text).unwrap();
            assert!(text == expected);
        }
    }

    #[test]
    fn what_others_have_packed_is_unpacked_wherever_it_begins() {
        let long = noise(3 * BLOCK);
        let packed = [member(b"one "), foreign(b"two "), member(b"three "), foreign(&long)].concat();
        let text = unpacked(&packed).unwrap();
        assert!(text == [&b"one two three "[..], &long].concat());
    }

    #[test]
    fn no_byte_can_be_missing_or_another_one() {
        let packed = [member(b"some rows"), member(b"and some more")].concat();
        let text = unpacked(&packed).unwrap();
        let first = member(b"some rows").len();
        for length in (1..packed.len()).filter(|length| *length != first) {
            assert!(unpacked(&packed[..length]).is_err(), "cut at {length}");
        }
        for at in 0..packed.len() {
            let mut changed = packed.clone();
            changed[at] ^= 0x10;
            // Time, hints and system say nothing of the rows.
            assert!(
                unpacked(&changed).map_or(true, |unpacked| unpacked == text),
                "changed at {at}"
            );
        }
    }
}
