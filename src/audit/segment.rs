//! The segments of the log: their names, and how they are read.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Take};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;

use super::AuditError;
use super::file;
use super::lock::Lock;
use super::record::{MAX_LINE, Record};

/// A file of the log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// The number of its first record, by its name.
    pub first_seq: u64,
    /// Where it is.
    pub path: PathBuf,
}

impl Segment {
    pub(super) fn new(dir: &Path, first_seq: u64) -> Self {
        Self {
            first_seq,
            path: dir.join(format!("audit-{first_seq:012}.jsonl")),
        }
    }

    /// The segments of a directory, oldest first.
    pub fn list(dir: &Path) -> Result<Vec<Self>, AuditError> {
        let mut segments: Vec<_> = file::names(dir)?
            .into_iter()
            .filter_map(|name| {
                let first_seq = name.strip_prefix("audit-")?.strip_suffix(".jsonl")?.parse().ok()?;
                let segment = Self::new(dir, first_seq);
                // `+1` and `0001` parse as well, but are not names that pgreeve gives.
                (segment.path == dir.join(&name)).then_some(segment)
            })
            .collect();
        segments.sort_unstable();
        Ok(segments)
    }

    /// The segments and their lengths at one moment, at which no writer is in the middle of a line.
    pub fn snapshot(dir: &Path) -> Result<Vec<(Self, u64)>, AuditError> {
        let _lock = Lock::shared(dir)?;
        let measured = Self::list(dir)?.into_iter().map(|segment| {
            let metadata =
                fs::metadata(&segment.path).map_err(|error| AuditError::io("open", &segment.path, &error))?;
            Ok((segment, metadata.len()))
        });
        measured.collect()
    }

    /// The file's name without its directory.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Reads its first `length` bytes line by line.
    pub fn lines(&self, length: u64) -> Result<Lines, AuditError> {
        let file = File::open(&self.path).map_err(|error| AuditError::io("open", &self.path, &error))?;
        Ok(Lines {
            reader: BufReader::with_capacity(1 << 18, file.take(length)),
            path: self.path.clone(),
            buffer: Vec::new(),
            number: 0,
        })
    }
}

/// The number of the last record of a log, 0 when it has none. Blocks.
pub fn last_record(dir: &Path) -> Result<u64, AuditError> {
    let Some((segment, length)) = Segment::snapshot(dir)?.pop() else {
        return Ok(0);
    };
    let file = File::open(&segment.path).map_err(|error| AuditError::io("open", &segment.path, &error))?;
    let mut size = 1_u64 << 14;
    loop {
        let begin = length.saturating_sub(size);
        let mut tail = vec![0; usize::try_from(length.saturating_sub(begin)).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut tail, begin)
            .map_err(|error| AuditError::io("read", &segment.path, &error))?;
        if let Some(seq) = last_seq(&tail, begin == 0) {
            return Ok(seq);
        }
        if begin == 0 {
            return Err(AuditError::damaged(&segment.path, "its last line is not a record"));
        }
        size = size.saturating_mul(4);
    }
}

/// The number of the last whole line in the end of a segment, once that is long enough.
fn last_seq(tail: &[u8], is_all: bool) -> Option<u64> {
    let end = memchr::memrchr(b'\n', tail)?;
    let lines = tail.get(..end)?;
    let begin = match memchr::memrchr(b'\n', lines) {
        Some(newline) => newline.saturating_add(1),
        None if is_all => 0,
        None => return None,
    };
    Record::<IgnoredAny>::parse(lines.get(begin..)?)
        .ok()
        .map(|record| record.seq)
}

/// Reads a segment line by line, in bounded memory.
#[derive(Debug)]
pub struct Lines {
    reader: BufReader<Take<File>>,
    path: PathBuf,
    buffer: Vec<u8>,
    number: u64,
}

/// One line as it stands in the file.
#[derive(Debug, Clone, Copy)]
pub struct RawLine<'a> {
    /// Its number in the file, from 1.
    pub number: u64,
    /// Its bytes without the newline.
    pub bytes: &'a [u8],
    /// Whether there is a newline at its end. A line past the limit is cut and has none.
    pub ended: bool,
}

impl Lines {
    /// The next line, `None` at the end of the file.
    pub fn next_line(&mut self) -> Result<Option<RawLine<'_>>, AuditError> {
        self.buffer.clear();
        let read = (&mut self.reader)
            .take(MAX_LINE as u64)
            .read_until(b'\n', &mut self.buffer)
            .map_err(|error| AuditError::io("read", &self.path, &error))?;
        if read == 0 {
            return Ok(None);
        }
        self.number = self.number.saturating_add(1);
        let line = self.buffer.strip_suffix(b"\n");
        Ok(Some(RawLine {
            number: self.number,
            bytes: line.unwrap_or(&self.buffer),
            ended: line.is_some(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_record_is_read_from_the_end_however_long_its_line_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(last_record(dir.path()).unwrap(), 0);
        let line = |seq: u64, bytes: usize| {
            let zeros = "0".repeat(64);
            let body = "x".repeat(bytes);
            format!(
                "{{\"v\":1,\"seq\":{seq},\"ts\":\"2026-01-01T00:00:00.000000Z\",\"prev\":\"{zeros}\",\"kind\":\"missed\",\"body\":{{\"x\":\"{body}\"}}}}\n"
            )
        };
        let path = dir.path().join("audit-000000000001.jsonl");
        for (text, expected) in [
            (line(1, 1), 1),
            (format!("{}{}", line(1, 1), line(2, 100_000)), 2),
            (format!("{}{}", line(1, 100_000), line(2, 1)), 2),
            (line(1, 100_000), 1),
            (format!("{}{{\"v\":1", line(1, 1)), 1),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(last_record(dir.path()).unwrap(), expected);
        }
    }

    #[test]
    fn only_names_that_pgreeve_gives_are_segments() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "audit-000000000200.jsonl",
            "audit-000000000001.jsonl",
            "audit-1.jsonl",
            "audit-+00000000001.jsonl",
            "audit-000000000001.jsonl.new",
            "audit-.jsonl",
            "torn-000000000001-1.bin",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let numbers: Vec<u64> = Segment::list(dir.path()).unwrap().iter().map(|s| s.first_seq).collect();
        assert_eq!(numbers, [1, 200]);
    }
}
