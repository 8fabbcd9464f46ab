//! The rows of one table, as `COPY … TO STDOUT` writes them.

use super::{Malformed, TableDigest};
use crate::backup::digest::Meter;

/// What `pg_dump` writes after the rows of every table. No row can look like its first line: a
/// backslash in data is always doubled.
const TERMINATOR: [u8; 5] = *b"\\.\n\n\n";

/// How much is counted and digested at once: `pg_dump` writes row by row, and a call for each costs more
/// than to gather them.
const BATCH: usize = 64 * 1024;

/// Counts and digests rows as they pass; the terminator is not part of either, so the digest is
/// that of `COPY table TO STDOUT`.
#[derive(Debug)]
pub(super) struct Rows {
    schema: String,
    name: String,
    meter: Meter,
    count: u64,
    last: u8,
    /// What is not counted yet. Its last bytes may be the terminator.
    held: Vec<u8>,
}

impl Rows {
    pub(super) fn new(schema: String, name: String) -> Self {
        Self {
            schema,
            name,
            meter: Meter::new(),
            count: 0,
            last: b'\n',
            held: Vec::new(),
        }
    }

    /// How many were counted so far; the last of them may wait.
    pub(super) fn rows(&self) -> u64 {
        self.count
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        if self.held.len() >= BATCH {
            self.count_held();
        }
    }

    /// Counts all that cannot be the terminator.
    fn count_held(&mut self) {
        let data = self.held.len().saturating_sub(TERMINATOR.len());
        let data = self.held.drain(..data);
        let rows = data.as_slice();
        if let Some(last) = rows.last() {
            self.last = *last;
            self.count = self
                .count
                .saturating_add(memchr::memchr_iter(b'\n', rows).count() as u64);
            self.meter.update(rows);
        }
    }

    pub(super) fn finish(mut self) -> Result<TableDigest, Malformed> {
        self.count_held();
        if self.held != TERMINATOR || self.last != b'\n' {
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
