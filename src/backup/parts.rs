//! Cuts a stream into parts of one size, and those into segments of a bounded number of parts.

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::bytes::Bytes;

use super::digest::{Measure, Meter};

/// How large parts are, and how many an object may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartSizes {
    /// The size of every part but an object's last, in bytes. S3 wants 5 MiB or more.
    pub part_bytes: usize,
    /// How many parts an object may have. S3 allows 10,000, some other stores 1,000.
    pub max_parts: u32,
}

impl Default for PartSizes {
    fn default() -> Self {
        Self {
            part_bytes: 16 * 1024 * 1024,
            max_parts: 9000,
        }
    }
}

/// One part, ready to be sent.
#[derive(Debug)]
pub struct Cut {
    /// Which segment it belongs to, from 1.
    pub segment: u32,
    /// Its number in the segment, from 1.
    pub number: u32,
    /// Its bytes.
    pub body: Bytes,
    /// Set on a segment's last part: the measure of the whole segment.
    pub segment_end: Option<Measure>,
}

/// The cutter. The last part is only known when the stream ends, so one part is always held back.
#[derive(Debug)]
pub struct Cutter {
    sizes: PartSizes,
    segment: u32,
    number: u32,
    meter: Meter,
    filling: Vec<u8>,
    buffers: Buffers,
}

/// The buffers of parts, used again and again. Allocated anew for each part, blocks of this size
/// would leave the allocator with holes it does not give back, and memory would grow with the dump.
#[derive(Debug, Clone, Default)]
struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// An empty buffer with room for a part.
    fn take(&self, part_bytes: usize) -> Vec<u8> {
        let mut buffer = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default();
        buffer.reserve_exact(part_bytes);
        buffer
    }

    /// A part's bytes. Its buffer comes back when nobody holds them any more.
    fn lend(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent {
            buffer,
            home: self.clone(),
        })
    }
}

struct Lent {
    buffer: Vec<u8>,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        self.home.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

impl Cutter {
    /// A cutter before the first byte.
    #[must_use]
    pub fn new(sizes: PartSizes) -> Self {
        Self {
            sizes: PartSizes {
                part_bytes: sizes.part_bytes.max(1),
                max_parts: sizes.max_parts.max(1),
            },
            segment: 1,
            number: 1,
            meter: Meter::new(),
            filling: Vec::new(),
            buffers: Buffers::default(),
        }
    }

    /// Whether the next byte makes a part: then there are two in memory, this one and the next.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.filling.len() >= self.sizes.part_bytes
    }

    /// Takes bytes off the front of `bytes`; answers with a part when one is full and more follows.
    /// To be called until `bytes` is empty.
    pub fn cut(&mut self, bytes: &mut &[u8]) -> Option<Cut> {
        if bytes.is_empty() {
            return None;
        }
        let full = self.is_full().then(|| self.take(false));
        if self.filling.capacity() == 0 {
            self.filling = self.buffers.take(self.sizes.part_bytes);
        }
        let room = self.sizes.part_bytes.saturating_sub(self.filling.len());
        let (piece, rest) = bytes.split_at(room.min(bytes.len()));
        self.filling.extend_from_slice(piece);
        self.meter.update(piece);
        *bytes = rest;
        full
    }

    /// The last part, which ends the last segment.
    #[must_use]
    pub fn finish(mut self) -> Cut {
        self.take(true)
    }

    fn take(&mut self, last: bool) -> Cut {
        let ends = last || self.number >= self.sizes.max_parts;
        let cut = Cut {
            segment: self.segment,
            number: self.number,
            body: self.buffers.lend(std::mem::take(&mut self.filling)),
            segment_end: ends.then(|| std::mem::take(&mut self.meter).finish()),
        };
        if ends {
            self.segment = self.segment.saturating_add(1);
            self.number = 1;
        } else {
            self.number += 1;
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backup::digest::sha256_hex;

    fn run(stream: &[u8], piece: usize, sizes: PartSizes) -> Vec<Cut> {
        let mut cutter = Cutter::new(sizes);
        let mut cuts = Vec::new();
        for mut chunk in stream.chunks(piece) {
            while !chunk.is_empty() {
                cuts.extend(cutter.cut(&mut chunk));
            }
        }
        cuts.push(cutter.finish());
        cuts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn parts_join_to_the_stream_and_only_an_objects_last_is_short(
            stream in proptest::collection::vec(any::<u8>(), 0..400),
            piece in 1_usize..50,
            part_bytes in 1_usize..40,
            max_parts in 1_u32..5,
        ) {
            let cuts = run(&stream, piece, PartSizes { part_bytes, max_parts });
            let joined: Vec<u8> = cuts.iter().flat_map(|cut| cut.body.to_vec()).collect();
            prop_assert_eq!(&joined, &stream);
            let mut segment = Vec::new();
            for (index, cut) in cuts.iter().enumerate() {
                let last = index + 1 == cuts.len();
                prop_assert!(cut.number <= max_parts);
                prop_assert_eq!(usize::try_from((cut.segment - 1) * max_parts + cut.number).unwrap(), index + 1);
                prop_assert!(cut.body.len() == part_bytes || last);
                prop_assert!(!cut.body.is_empty() || stream.is_empty());
                segment.extend_from_slice(&cut.body);
                prop_assert_eq!(cut.segment_end.is_some(), last || cut.number == max_parts);
                if let Some(measure) = &cut.segment_end {
                    prop_assert_eq!(measure.bytes, segment.len() as u64);
                    prop_assert_eq!(&measure.sha256, &sha256_hex(&segment));
                    segment.clear();
                }
            }
        }
    }
}
