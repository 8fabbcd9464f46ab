//! The rows of one table, as `COPY … TO STDOUT` writes them.

use super::{Malformed, TableDigest};
use crate::backup::digest::Meter;

/// What `pg_dump` writes after the rows of every table. No row can look like its first line: a
/// backslash in data is always doubled.
const TERMINATOR: [u8; 5] = *b"\\.\n\n\n";

/// Counts and digests rows as they pass; the terminator is not part of either, so the digest is
/// that of `COPY table TO STDOUT`.
#[derive(Debug)]
pub(super) struct Rows {
    schema: String,
    name: String,
    meter: Meter,
    count: u64,
    last: u8,
    /// The last bytes seen, held back because they may be the terminator.
    tail: [u8; TERMINATOR.len()],
    held: usize,
}

impl Rows {
    pub(super) fn new(schema: String, name: String) -> Self {
        Self {
            schema,
            name,
            meter: Meter::new(),
            count: 0,
            last: b'\n',
            tail: TERMINATOR,
            held: 0,
        }
    }

    pub(super) fn rows(&self) -> u64 {
        self.count
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        let (front, back) = bytes.split_at(bytes.len().saturating_sub(TERMINATOR.len()));
        let mut window = [0; 2 * TERMINATOR.len()];
        let mut filled = 0;
        let tail = self.tail;
        if back.len() == TERMINATOR.len() {
            // The new bytes alone fill the tail: what was held is data, and so is the front.
            self.add(tail.get(..self.held).unwrap_or_default());
            self.add(front);
        } else {
            for (slot, byte) in window.iter_mut().zip(tail.iter().take(self.held)) {
                *slot = *byte;
                filled += 1;
            }
        }
        for (slot, byte) in window.iter_mut().skip(filled).zip(back) {
            *slot = *byte;
        }
        filled += back.len();
        let (data, kept) = window.split_at(filled.saturating_sub(TERMINATOR.len()));
        self.add(data);
        self.held = filled.min(TERMINATOR.len());
        for (slot, byte) in self.tail.iter_mut().zip(kept.iter().take(self.held)) {
            *slot = *byte;
        }
    }

    fn add(&mut self, data: &[u8]) {
        let Some(last) = data.last() else { return };
        self.last = *last;
        self.count = self
            .count
            .saturating_add(memchr::memchr_iter(b'\n', data).count() as u64);
        self.meter.update(data);
    }

    pub(super) fn finish(self) -> Result<TableDigest, Malformed> {
        if self.held != TERMINATOR.len() || self.tail != TERMINATOR || self.last != b'\n' {
            return Err(Malformed("the rows of a table do not end with their terminator"));
        }
        let measure = self.meter.finish();
        Ok(TableDigest {
            schema: self.schema,
            name: self.name,
            rows: self.count,
            bytes: measure.bytes,
            sha256: measure.sha256,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::digest::sha256_hex;

    fn walk(pieces: &[&[u8]]) -> Result<TableDigest, Malformed> {
        let mut rows = Rows::new("s".to_owned(), "t".to_owned());
        for piece in pieces {
            rows.update(piece);
        }
        rows.finish()
    }

    #[test]
    fn the_terminator_is_found_wherever_the_pieces_are_cut() {
        let data = b"1\ta\\\\.\n\n2\tb\n\\.\n\n\n";
        for first in 0..=data.len() {
            for second in first..=data.len() {
                let table = walk(&[&data[..first], &data[first..second], &data[second..]]).unwrap();
                assert_eq!((table.rows, table.bytes), (3, 12));
                assert_eq!(table.sha256, sha256_hex(&data[..12]));
            }
        }
    }

    #[test]
    fn an_empty_table_and_rows_without_columns_are_counted() {
        assert_eq!(walk(&[b"\\.\n\n\n"]).unwrap().rows, 0);
        assert_eq!(walk(&[b"\n\n\n\\.\n\n\n"]).unwrap().rows, 3);
    }

    #[test]
    fn rows_without_a_whole_terminator_are_refused() {
        for data in [
            &b""[..],
            b"\\.\n\n",
            b"1\n\\.\n\n",
            b"1\\.\n\n\n",
            b"1\n",
            b"1\n\\.\n\n\n\n",
        ] {
            assert!(walk(&[data]).is_err(), "{data:?}");
        }
    }
}
