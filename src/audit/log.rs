//! Writing the log: a line or some, one write, durable before the call returns.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::AuditError;
use super::checkpoint::Anchor;
use super::digest::Digest;
use super::head::Head;
use super::key::{KeyPair, PublicKey};
use super::kind::RecordKind;
use super::lock::Lock;
use super::record::{Entry, Link, Record, to_microseconds};
use super::recovery::{self, RecoveredBody};
use super::traces::{self, Trace};
use crate::values::RunId;

/// How long a segment may grow.
const SEGMENT_BYTES: u64 = 64 << 20;

/// The audit log of one host, open for appending. Cheap to clone; several processes may have the
/// same log open.
#[derive(Debug, Clone)]
pub struct AuditLog {
    writer: Arc<Mutex<Writer>>,
    public_key: PublicKey,
}

/// A record that is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Its number.
    pub seq: u64,
    /// The digest of its line.
    pub hash: Digest,
}

impl AuditLog {
    /// Opens the log of a directory, or begins one there. `instance` names this daemon in the log.
    /// Blocks.
    ///
    /// A line that a crash cut short is moved to a file of its own, and a `log.recovered` record says
    /// so. Nothing else of what is there is changed.
    pub fn open(dir: &Path, instance: &str) -> Result<Self, AuditError> {
        Self::open_with(dir, instance, SEGMENT_BYTES)
    }

    /// As [`AuditLog::open`], where no record is added to a segment of so many bytes or more.
    pub fn open_with(dir: &Path, instance: &str, segment_bytes: u64) -> Result<Self, AuditError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(dir)
            .map_err(|error| AuditError::io("create the directory", dir, &error))?;
        let lock = Lock::exclusive(dir)?;
        let head = Head::load(dir)?;
        let mut writer = Writer {
            dir: dir.to_path_buf(),
            instance: instance.to_owned(),
            key: KeyPair::open(dir, head.is_none())?,
            segment_bytes,
            clock: Timestamp::now,
            head: None,
            known: None,
        };
        let head = match head {
            Some(head) => writer.recover(head)?,
            None => Head::begin_segment(dir, instance, None, writer.now())?,
        };
        writer.keep(head);
        drop(lock);
        Ok(Self {
            public_key: writer.key.public(),
            writer: Arc::new(Mutex::new(writer)),
        })
    }

    /// The key that this log's checkpoints are signed with.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// Puts an entry on record. When this returns `Ok` the record is on the device; on an error it is
    /// not in the log, and what it announced must not be done. A caller that stops waiting does not
    /// stop the write.
    pub async fn append(&self, entry: Entry) -> Result<Appended, AuditError> {
        check(&entry)?;
        self.write(move |writer| {
            let (appended, ()) = writer.append(|link, _| Ok((entry.at(link).encode()?, ())))?;
            Ok(appended)
        })
        .await
    }

    /// Puts entries on record, one after the other and at the same instant, with one wait for the
    /// device. When this returns `Ok` all of them are on it; on an error none is in the log.
    pub async fn append_all(&self, entries: Vec<Entry>) -> Result<(), AuditError> {
        entries.iter().try_for_each(check)?;
        if entries.is_empty() {
            return Ok(());
        }
        self.write(move |writer| {
            writer.at_end(|head, now, _| {
                let mut lines = Vec::with_capacity(entries.len());
                let mut place = head.next(now)?;
                for entry in &entries {
                    let line = entry.at(place).encode()?;
                    place = place.after(&line)?;
                    lines.push(line);
                }
                head.write(&lines)
            })?;
            Ok(())
        })
        .await
    }

    /// What the log says of each run; see [`traces::runs`].
    pub async fn traces(&self) -> Result<BTreeMap<RunId, Trace>, AuditError> {
        self.write(|writer| traces::runs(&writer.dir)).await
    }

    /// Signs the end of the log. The caller keeps the anchor in a place that the log's writer can not
    /// change; it also goes to the journal.
    pub async fn append_checkpoint(&self) -> Result<Anchor, AuditError> {
        let anchor = self.write(Writer::checkpoint).await?;
        tracing::info!(
            audit.seq = anchor.seq,
            audit.hash = %anchor.hash,
            audit.ts = %anchor.ts,
            audit.public_key = %anchor.public_key,
            audit.signature = %anchor.signature,
            "audit checkpoint: record {} has the digest {}",
            anchor.seq,
            anchor.hash,
        );
        Ok(anchor)
    }

    /// Runs the work to its end even when the caller's future is dropped.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> Result<T, AuditError> + Send + 'static,
    ) -> Result<T, AuditError> {
        let writer = Arc::clone(&self.writer);
        // A panic leaves no head behind (see `Writer::append`), so a poisoned lock is safe to take.
        let task =
            tokio::task::spawn_blocking(move || work(&mut writer.lock().unwrap_or_else(PoisonError::into_inner)));
        task.await.unwrap_or_else(|error| {
            Err(AuditError::new(
                "write to the audit log",
                error.to_string(),
                "this is a fault of pgreeve, please report it",
            ))
        })
    }
}

/// Whether an entry may be written by callers.
fn check(entry: &Entry) -> Result<(), AuditError> {
    if entry.kind.is_internal() || !entry.body.is_object() {
        return Err(AuditError::new(
            format!("write an audit record `{}`", entry.kind),
            "its body is no JSON object, or only the log itself writes this kind",
            "this is a fault of pgreeve, please report it",
        ));
    }
    Ok(())
}

#[derive(Debug)]
struct Writer {
    dir: PathBuf,
    instance: String,
    key: KeyPair,
    segment_bytes: u64,
    clock: fn() -> Timestamp,
    /// The end of the log as we left it; `None` after a failure.
    head: Option<Head>,
    /// The last record we saw durable. The log must never end before it.
    known: Option<Appended>,
}

impl Writer {
    /// Writes the line that `encode` makes of its place in the chain.
    fn append<T>(
        &mut self,
        encode: impl FnOnce(Link, &KeyPair) -> Result<(Vec<u8>, T), AuditError>,
    ) -> Result<(Appended, T), AuditError> {
        self.at_end(|head, now, key| {
            let (line, made) = encode(head.next(now)?, key)?;
            head.write(&[line])?;
            Ok(made)
        })
    }

    /// Lets `write` add lines to the end of the log, all of them as of one instant.
    fn at_end<T>(
        &mut self,
        write: impl FnOnce(&mut Head, Timestamp, &KeyPair) -> Result<T, AuditError>,
    ) -> Result<(Appended, T), AuditError> {
        self.check_writable()?;
        let _lock = Lock::exclusive(&self.dir)?;
        // Taken, not borrowed: whatever fails below, the next call reads the end of the log anew.
        let mut head = match self.head.take().filter(|head| head.is_current(&self.dir)) {
            Some(head) => head,
            None => self.reload()?,
        };
        let now = self.now();
        if head.is_full(now, self.segment_bytes) {
            head = Head::begin_segment(&self.dir, &self.instance, Some(&head), now)?;
        }
        let made = write(&mut head, now, &self.key)?;
        Ok((self.keep(head), made))
    }

    /// A directory without any write permission is closed on purpose. The open segment could still
    /// be written to, and root could write anyway; both would go against what was meant.
    fn check_writable(&self) -> Result<(), AuditError> {
        let permissions = fs::metadata(&self.dir)
            .map_err(|error| AuditError::io("look at", &self.dir, &error))?
            .permissions();
        if permissions.mode() & 0o222 == 0 {
            let closed = io::Error::from(io::ErrorKind::PermissionDenied);
            return Err(AuditError::io("write to", &self.dir, &closed));
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Anchor, AuditError> {
        let (_, anchor) = self.append(|link, key| {
            // What is signed is the record before this one.
            let anchor = Anchor::sign(key, link.seq.saturating_sub(1), link.prev, link.ts);
            Ok((anchor.record(link).encode()?, anchor))
        })?;
        Ok(anchor)
    }

    /// Reads the end of the log again, after a failure of ours or a record of another process.
    fn reload(&self) -> Result<Head, AuditError> {
        let found = Head::load(&self.dir)?;
        let is_ours = match (&found, self.known) {
            (Some(head), Some(known)) => head.seq > known.seq || (head.seq, head.hash) == (known.seq, known.hash),
            (found, None) => found.is_some(),
            (None, Some(_)) => false,
        };
        match found {
            Some(head) if is_ours => self.recover(head),
            found => Err(AuditError::damaged(
                &self.dir,
                format!(
                    "records were removed or replaced while the log was in use: it had {} records and now ends at record {}",
                    self.known.map_or(0, |known| known.seq),
                    found.map_or(0, |head| head.seq),
                ),
            )),
        }
    }

    /// Puts on record what was set aside at the end of the log.
    fn recover(&self, mut head: Head) -> Result<Head, AuditError> {
        let torn = recovery::pending(&self.dir, head.seq)?;
        if torn.is_empty() {
            return Ok(head);
        }
        for part in &torn {
            tracing::warn!(
                audit.seq = head.seq,
                audit.torn_bytes = part.bytes,
                "audit log: a write was cut short after record {}; its {} bytes are kept in {}",
                head.seq,
                part.bytes,
                part.file,
            );
        }
        let link = head.next(self.now())?;
        head.write(&[Record::new(link, RecordKind::LogRecovered, RecoveredBody { torn }).encode()?])?;
        Ok(head)
    }

    /// Remembers the end of the log while the lock is held.
    fn keep(&mut self, head: Head) -> Appended {
        let known = Appended {
            seq: head.seq,
            hash: head.hash,
        };
        self.known = Some(known);
        self.head = Some(head);
        known
    }

    fn now(&self) -> Timestamp {
        to_microseconds((self.clock)())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::segment::Segment;

    fn append_at(log: &AuditLog, clock: fn() -> Timestamp) {
        let mut writer = log.writer.lock().unwrap();
        writer.clock = clock;
        let entry = Entry::new(RecordKind::Missed, serde_json::json!({}));
        writer.append(|link, _| Ok((entry.at(link).encode()?, ()))).unwrap();
    }

    fn segments(dir: &Path) -> usize {
        Segment::list(dir).unwrap().len()
    }

    #[test]
    fn a_new_day_in_utc_begins_a_segment_and_a_clock_set_back_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open(dir.path(), "db1").unwrap();
        append_at(&log, || "2999-12-30T23:59:59.999999Z".parse().unwrap());
        assert_eq!(segments(dir.path()), 2);
        append_at(&log, || "2999-12-30T23:59:59.9999999Z".parse().unwrap());
        assert_eq!(segments(dir.path()), 2);
        append_at(&log, || "2999-12-31T00:00:00Z".parse().unwrap());
        assert_eq!(segments(dir.path()), 3);
        append_at(&log, || "2999-12-30T12:00:00Z".parse().unwrap());
        assert_eq!(segments(dir.path()), 3);
        // The day of a segment is read from its first record, also by a log that is opened later.
        let log = AuditLog::open(dir.path(), "db1").unwrap();
        append_at(&log, || "2999-12-31T23:00:00Z".parse().unwrap());
        assert_eq!(segments(dir.path()), 3);
        let result = crate::audit::verify(dir.path(), None, &[]).unwrap();
        assert!(result.ok, "{result:#?}");
        assert!(
            result
                .warnings
                .iter()
                .any(|warning| warning.contains("steps back 1 time(s), first at record 7")),
            "{result:#?}"
        );
    }

    #[tokio::test]
    async fn records_that_are_written_together_are_a_chain_as_of_one_instant_and_all_or_none_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open(dir.path(), "db1").unwrap();
        let entry = |number: u64| Entry::new(RecordKind::Missed, serde_json::json!({ "number": number }));
        log.append_all(Vec::new()).await.unwrap();
        log.append_all((2..=40).map(entry).collect()).await.unwrap();
        let last = log.append(entry(41)).await.unwrap();
        assert_eq!(last.seq, 41, "the segment's own record is the first");
        let wrong = vec![entry(42), Entry::new(RecordKind::Missed, serde_json::json!(1))];
        log.append_all(wrong).await.unwrap_err();
        let result = crate::audit::verify(dir.path(), None, &[]).unwrap();
        assert!(result.ok && result.records == 41, "{result:#?}");
        // Another process goes on where they end.
        let other = AuditLog::open(dir.path(), "db1").unwrap();
        assert_eq!(other.append(entry(42)).await.unwrap().seq, 42);
    }
}
