//! The end of the log: the last record and the file it stands in. Every method is called with the
//! lock held.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde::de::IgnoredAny;

use super::AuditError;
use super::digest::Digest;
use super::file;
use super::kind::RecordKind;
use super::record::{Link, MAX_LINE, Record};
use super::recovery;
use super::segment::Segment;

/// The body of a `segment` record.
#[derive(Debug, Serialize)]
struct SegmentBody<'a> {
    instance: &'a str,
    last_seq: u64,
    last_hash: Digest,
}

/// Where the next record goes.
#[derive(Debug)]
pub(super) struct Head {
    /// The last record's number.
    pub(super) seq: u64,
    /// The digest of its line.
    pub(super) hash: Digest,
    segment: Segment,
    file: File,
    /// The device and inode of `file`.
    identity: (u64, u64),
    /// How long `file` is; it ends with a whole line.
    length: u64,
    /// The day, in UTC, on which the segment was begun.
    day: Date,
}

impl Head {
    /// Reads the end of the log; `None` when there is no log yet. What a crash left of a line is set
    /// aside first.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, AuditError> {
        let Some(segment) = Segment::list(dir)?.pop() else {
            return Ok(None);
        };
        let path = &segment.path;
        let failed = |error: io::Error| AuditError::io("open", path, &error);
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let tail = Tail::find(&file, metadata.len()).map_err(|error| AuditError::io("read", path, &error))?;
        let Some((begin, end)) = tail.line else {
            return Err(AuditError::damaged(path, "the segment has no whole line"));
        };
        let line = read_line(&file, path, begin, end)?;
        let last = Record::<IgnoredAny>::parse(&line)
            .map_err(|cause| AuditError::damaged(path, format!("its last line is {cause}")))?;
        if last.seq < segment.first_seq {
            return Err(AuditError::damaged(path, "its last record is older than its name says"));
        }
        let length = end.saturating_add(1);
        if length < metadata.len() {
            recovery::set_aside(dir, &file, path, last.seq, length, metadata.len())?;
        }
        Ok(Some(Self {
            seq: last.seq,
            hash: Digest::of(&line),
            day: first_day(&segment, length)?,
            identity: (metadata.dev(), metadata.ino()),
            segment,
            file,
            length,
        }))
    }

    /// Begins the log's next segment, or its first one where there is no head yet.
    pub(super) fn begin_segment(
        dir: &Path,
        instance: &str,
        head: Option<&Self>,
        now: Timestamp,
    ) -> Result<Self, AuditError> {
        let (last_seq, last_hash) = head.map_or((0, Digest::GENESIS), |head| (head.seq, head.hash));
        let place = next_link(last_seq, last_hash, now)?;
        let body = SegmentBody {
            instance,
            last_seq,
            last_hash,
        };
        let line = Record::new(place, RecordKind::Segment, body).encode()?;
        let segment = Segment::new(dir, place.seq);
        let file = file::write_new(dir, &segment.path, file::MODE, &line)?;
        let metadata = file
            .metadata()
            .map_err(|error| AuditError::io("open", &segment.path, &error))?;
        Ok(Self {
            seq: place.seq,
            hash: line_digest(&line),
            segment,
            identity: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            day: day(now),
            file,
        })
    }

    /// Whether the log still ends here: the same file under the same name, as long as we left it,
    /// and none after it.
    pub(super) fn is_current(&self, dir: &Path) -> bool {
        let next = self.seq.checked_add(1).map(|seq| Segment::new(dir, seq).path);
        let unchanged = fs::symlink_metadata(&self.segment.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity && found.len() == self.length);
        unchanged && next.is_some_and(|path| fs::symlink_metadata(path).is_err())
    }

    /// Whether the next record belongs into a new segment.
    pub(super) fn is_full(&self, now: Timestamp, limit: u64) -> bool {
        // A clock that was set back does not make a segment of its own.
        day(now) > self.day || self.length >= limit
    }

    /// The place of the next record.
    pub(super) fn next(&self, now: Timestamp) -> Result<Link, AuditError> {
        next_link(self.seq, self.hash, now)
    }

    /// Writes the next lines and makes them durable together; what can not be written whole is taken
    /// back.
    pub(super) fn write(&mut self, lines: &[Vec<u8>]) -> Result<(), AuditError> {
        let path = &self.segment.path;
        let written = (&self.file)
            .write_all(&lines.concat())
            .and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            let mut failure = AuditError::io("write to", path, &error);
            let undone = self.file.set_len(self.length).and_then(|()| self.file.sync_data());
            if let Err(error) = undone {
                // The next writer finds the rest of the line and sets it aside.
                failure.cause = format!("{}; taking it back failed too: {error}", failure.cause);
            }
            return Err(failure);
        }
        for line in lines {
            self.seq = self.seq.saturating_add(1);
            self.hash = line_digest(line);
            self.length = self.length.saturating_add(line.len() as u64);
        }
        Ok(())
    }
}

impl Link {
    /// The place after a line, which was encoded for this one.
    pub(super) fn after(self, line: &[u8]) -> Result<Self, AuditError> {
        next_link(self.seq, line_digest(line), self.ts)
    }
}

/// The last whole line of a file, as the offsets of its first byte and of its newline.
struct Tail {
    line: Option<(u64, u64)>,
}

impl Tail {
    /// A write that a power loss interrupted may be complete in length and hold zeros where a block
    /// never reached the device. No line of ours holds a NUL byte, so such a line counts as torn, and
    /// so does what the same write put behind it. It can only be in the last write, since each was
    /// durable before the next was begun; the lines of one write carry one instant.
    fn find(file: &File, length: u64) -> io::Result<Self> {
        let mut line = last_line(file, length)?;
        let mut at = line;
        let mut written: Option<Vec<u8>> = None;
        while let Some((begin, end)) = at {
            at = last_line(file, begin)?;
            let is_torn = holds_nul(file, begin, end)?;
            let bytes = read_range(file, begin, end.min(begin.saturating_add(CHUNK)))?;
            let instant = recovery::instant(&bytes);
            let is_other = written.is_some() && instant.is_some() && instant != written.as_deref();
            if is_other || instant.is_none() && !is_torn {
                break;
            }
            if let Some(instant) = instant {
                written = Some(instant.to_vec());
            }
            if is_torn {
                line = at;
            }
        }
        Ok(Self { line })
    }
}

fn last_line(file: &File, length: u64) -> io::Result<Option<(u64, u64)>> {
    let Some(end) = last_newline(file, length)? else {
        return Ok(None);
    };
    let begin = last_newline(file, end)?.map_or(0, |newline| newline.saturating_add(1));
    Ok(Some((begin, end)))
}

const CHUNK: u64 = 1 << 16;

/// The offset of the last newline before `end`.
fn last_newline(file: &File, mut end: u64) -> io::Result<Option<u64>> {
    while end > 0 {
        let begin = end.saturating_sub(CHUNK);
        let chunk = read_range(file, begin, end)?;
        if let Some(found) = memchr::memrchr(b'\n', &chunk) {
            return Ok(Some(begin.saturating_add(found as u64)));
        }
        end = begin;
    }
    Ok(None)
}

fn holds_nul(file: &File, mut begin: u64, end: u64) -> io::Result<bool> {
    while begin < end {
        let next = begin.saturating_add(CHUNK).min(end);
        if memchr::memchr(0, &read_range(file, begin, next)?).is_some() {
            return Ok(true);
        }
        begin = next;
    }
    Ok(false)
}

fn read_line(file: &File, path: &Path, begin: u64, end: u64) -> Result<Vec<u8>, AuditError> {
    if end.saturating_sub(begin) >= MAX_LINE as u64 {
        return Err(AuditError::damaged(
            path,
            format!("its last line is longer than {MAX_LINE} bytes"),
        ));
    }
    read_range(file, begin, end).map_err(|error| AuditError::io("read", path, &error))
}

/// Callers keep the range below [`MAX_LINE`].
fn read_range(file: &File, begin: u64, end: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(end.saturating_sub(begin)).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, begin)?;
    Ok(bytes)
}

fn first_day(segment: &Segment, length: u64) -> Result<Date, AuditError> {
    let mut lines = segment.lines(length)?;
    let first = lines.next_line()?.map(|line| Record::<IgnoredAny>::parse(line.bytes));
    match first {
        Some(Ok(record)) => Ok(day(record.ts)),
        Some(Err(cause)) => Err(AuditError::damaged(&segment.path, format!("its first line is {cause}"))),
        None => Err(AuditError::damaged(&segment.path, "the segment is empty")),
    }
}

fn next_link(seq: u64, prev: Digest, ts: Timestamp) -> Result<Link, AuditError> {
    let seq = seq
        .checked_add(1)
        .ok_or_else(|| AuditError::new("number an audit record", "the numbers are used up", "begin a new log"))?;
    Ok(Link { seq, ts, prev })
}

/// The digest of an encoded line, without its newline.
fn line_digest(line: &[u8]) -> Digest {
    Digest::of(line.strip_suffix(b"\n").unwrap_or(line))
}

fn day(ts: Timestamp) -> Date {
    ts.to_zoned(TimeZone::UTC).date()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(content: &[u8]) -> Option<(u64, u64)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        let length = content.len() as u64;
        Tail::find(&File::open(file.path()).unwrap(), length).unwrap().line
    }

    #[test]
    fn the_last_whole_line_is_found_from_the_end() {
        assert_eq!(last(b""), None);
        assert_eq!(last(b"torn"), None);
        assert_eq!(last(b"a\n"), Some((0, 1)));
        assert_eq!(last(b"a\nbb\n"), Some((2, 4)));
        assert_eq!(last(b"a\nbb\ntorn"), Some((2, 4)));
    }

    #[test]
    fn a_line_longer_than_a_chunk_is_found_whole() {
        let mut content = b"first\n".to_vec();
        content.resize(6 + 3 * usize::try_from(CHUNK).unwrap(), b'x');
        let end = content.len() as u64;
        content.extend(b"\ntorn");
        assert_eq!(last(&content), Some((6, end)));
    }

    #[test]
    fn a_last_line_with_a_hole_of_zeros_is_torn() {
        assert_eq!(last(b"a\nb\0b\n"), Some((0, 1)));
        assert_eq!(last(b"a\nb\0b\n\0\0"), Some((0, 1)));
    }

    #[test]
    fn what_was_written_together_with_a_hole_of_zeros_is_torn_from_there_on() {
        let line = |second: u8| {
            let zeros = "0".repeat(64);
            format!(
                "{{\"v\":1,\"seq\":1,\"ts\":\"2026-01-01T00:00:0{second}.000000Z\",\"prev\":\"{zeros}\",\"kind\":\"missed\",\"body\":{{}}}}\n"
            )
        };
        let hole = |second: u8| line(second).replace("missed", "mis\0ed");
        let whole = |lines: &[String]| {
            let kept = last(lines.concat().as_bytes()).unwrap().1 + 1;
            kept / line(0).len() as u64
        };
        assert_eq!(whole(&[line(1), line(2), line(2), line(2)]), 4);
        assert_eq!(whole(&[line(1), line(2), hole(2), line(2)]), 2);
        assert_eq!(whole(&[line(1), hole(2), line(2), hole(2)]), 1);
        assert_eq!(whole(&[line(1), hole(2), hole(2), line(2)]), 1);
        // What was durable before the last write was begun is damage, not a torn write.
        assert_eq!(whole(&[hole(1), line(1), line(2), line(2)]), 4);
        assert_eq!(whole(&[line(0), hole(1), line(1), line(2)]), 4);
        assert_eq!(whole(&[line(0), hole(1), line(2), line(2)]), 4);
        let lost = line(2).replace("ts", "\0\0");
        assert_eq!(whole(&[line(1), lost, line(2), line(2)]), 1);
    }
}
