//! The segments of the log: their names, and how they are read.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Take};
use std::path::{Path, PathBuf};

use super::AuditError;
use super::file;
use super::lock::Lock;
use super::record::MAX_LINE;

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
    let records = count_newlines(file.take(length)).map_err(|error| AuditError::io("read", &segment.path, &error))?;
    // Records have no gaps, and the segment is named after its first one.
    Ok(segment.first_seq.saturating_add(records).saturating_sub(1))
}

fn count_newlines(mut file: impl Read) -> io::Result<u64> {
    let (mut records, mut chunk) = (0_u64, vec![0; 1 << 18]);
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(records),
            Ok(read) => {
                let newlines = memchr::memchr_iter(b'\n', chunk.get(..read).unwrap_or_default()).count();
                records = records.saturating_add(newlines as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
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
