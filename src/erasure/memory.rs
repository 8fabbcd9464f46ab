//! The ledger of erasures: what must stay erased, whatever is restored.
//!
//! It lies on the host, in `state_dir/erasures/ledger.jsonl`, because a restore rewinds what lies in
//! the database. It is a file of its own and not a part of the audit log: it must be whole to be of
//! use, it must be carried to wherever a backup is restored, and it must name nobody there; the audit
//! log is large, is rotated and tells an outsider far more. The audit log vouches for it: each
//! `erasure.started` carries the number and digest of the entry that announced it.
//!
//! An entry is durable before the first row of its subject is touched. Copies of the entries lie
//! beside the backups ([`super::copies`]), and each manifest says how far the ledger was when its
//! snapshot was taken.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use rustix::rand::{GetRandomFlags, getrandom};
use uuid::Uuid;

use super::entry::{Begun, End, Event, Line, MAX_LINE};
use super::token::{KeyId, Keys};
use crate::audit::digest::to_hex;
use crate::audit::lock::Lock;
use crate::audit::{AuditError, file, recovery};
use crate::backup::manifest::ErasureMark;

/// The ledger's own file; other hosts' ledgers may be put beside it under other names.
pub const FILE: &str = "ledger.jsonl";

/// The ledger of erasures, or a key of it, could not be read or written. Nobody may be erased, and
/// nothing restored, without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {cause}")]
pub struct MemoryError {
    /// What was tried, with its file.
    pub operation: String,
    /// What went wrong.
    pub cause: String,
    /// What an operator can do about it.
    pub remedy: String,
}

impl MemoryError {
    pub(crate) fn new(operation: impl Into<String>, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            operation: operation.into(),
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }

    pub(crate) fn io(verb: &str, path: &Path, error: &io::Error) -> Self {
        AuditError::io(verb, path, error).into()
    }

    pub(crate) fn damaged(place: &str, cause: impl Into<String>) -> Self {
        Self::new(
            format!("read the ledger of erasures {place}"),
            cause,
            "put the file back from a copy; the entries also lie in the stores of the backups, below `erasures/`",
        )
    }
}

impl From<AuditError> for MemoryError {
    fn from(error: AuditError) -> Self {
        Self::new(error.operation, error.cause, error.remedy)
    }
}

/// The ledger of this host, open for appending. Cheap to clone; several processes may have it open.
#[derive(Debug, Clone)]
pub struct Memory {
    dir: PathBuf,
    writer: Arc<Mutex<Writer>>,
}

impl Memory {
    /// Opens the ledger of a directory, or begins one there. Blocks.
    ///
    /// A line that a crash cut short announced nothing that was done; it is set aside.
    ///
    /// # Errors
    /// When the ledger is damaged, or gone while its keys are still there: a new one in its place
    /// would let the erased come back.
    pub fn open(dir: &Path, instance: &str) -> Result<Self, MemoryError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(dir)
            .map_err(|error| MemoryError::io("create the directory", dir, &error))?;
        let _lock = Lock::exclusive(dir)?;
        let path = dir.join(FILE);
        if !path.exists() {
            if let Some(key) = Keys::beside(dir).list()?.first() {
                return Err(MemoryError::damaged(
                    &path.display().to_string(),
                    format!("the key {key} is beside it, but the ledger is gone"),
                ));
            }
            begin(dir, &path, instance)?;
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            writer: Arc::new(Mutex::new(Writer::open(dir, &path)?)),
        })
    }

    /// The keys that name its subjects.
    #[must_use]
    pub fn keys(&self) -> Keys {
        Keys::beside(&self.dir)
    }

    /// The directory it lies in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Remembers that a subject is about to be erased; see [`Memory::begin_all`].
    pub async fn begin(&self, begun: Begun) -> Result<ErasureMark, MemoryError> {
        let marks = self.begin_all(vec![begun]).await?;
        self.only(marks)
    }

    /// Remembers that some subjects are about to be erased, with one wait for the device. When this
    /// returns `Ok` all entries are on it. A request that was begun before and is not done keeps its
    /// entry. The answers are in their order.
    pub async fn begin_all(&self, begun: Vec<Begun>) -> Result<Vec<ErasureMark>, MemoryError> {
        self.write(move |writer| {
            let requests: Vec<Uuid> = begun.iter().map(|begun| begun.request).collect();
            let new = begun
                .into_iter()
                .filter(|begun| !writer.open.contains_key(&begun.request));
            let new: Vec<Event> = new.map(Event::Begun).collect();
            writer.append(new)?;
            let marks = requests.iter().filter_map(|request| writer.open.get(request));
            Ok(marks.map(|(mark, _)| mark.clone()).collect())
        })
        .await
    }

    /// Remembers how the erasure of a request ended; see [`Memory::finish_all`].
    pub async fn finish(&self, request: Uuid, outcome: &str) -> Result<ErasureMark, MemoryError> {
        self.finish_all(vec![(request, outcome.to_owned())]).await?;
        self.mark().await
    }

    /// Remembers how the erasures of some requests ended, with one wait for the device. One that is
    /// not open any more is left alone. Answers with the last record of the audit log when each was
    /// begun, where it was open.
    pub async fn finish_all(&self, ends: Vec<(Uuid, String)>) -> Result<Vec<Option<u64>>, MemoryError> {
        self.write(move |writer| {
            let open = |request: &Uuid| writer.open.get(request).map(|(_, audit)| *audit);
            let begun: Vec<Option<u64>> = ends.iter().map(|(request, _)| open(request)).collect();
            let ends = ends.into_iter().zip(&begun).filter(|(_, begun)| begun.is_some());
            let done = ends
                .map(|((request, outcome), _)| Event::Done { request, outcome })
                .collect();
            writer.append(done)?;
            Ok(begun)
        })
        .await
    }

    fn only(&self, marks: Vec<ErasureMark>) -> Result<ErasureMark, MemoryError> {
        marks.into_iter().next().ok_or_else(|| {
            MemoryError::damaged(
                &self.dir.display().to_string(),
                "the entry that was written is not in it",
            )
        })
    }

    /// Remembers that a key is about to be destroyed.
    pub async fn forget_key(&self, key: KeyId) -> Result<ErasureMark, MemoryError> {
        self.write(move |writer| {
            writer.append(vec![Event::KeyDestroyed { key }])?;
            Ok(writer.mark())
        })
        .await
    }

    /// How far the ledger is.
    pub async fn mark(&self) -> Result<ErasureMark, MemoryError> {
        self.write(|writer| Ok(writer.mark())).await
    }

    /// Runs the work with the lock held and the end of the file known, also when the caller's future
    /// is dropped.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> Result<T, MemoryError> + Send + 'static,
    ) -> Result<T, MemoryError> {
        let (writer, dir) = (Arc::clone(&self.writer), self.dir.clone());
        let task = tokio::task::spawn_blocking(move || {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            let _lock = Lock::exclusive(&dir)?;
            writer.catch_up()?;
            work(&mut writer)
        });
        task.await.unwrap_or_else(|error| {
            Err(MemoryError::new(
                "write to the ledger of erasures",
                error.to_string(),
                "this is a fault of pgreeve, please report it",
            ))
        })
    }
}

fn begin(dir: &Path, path: &Path, instance: &str) -> Result<(), MemoryError> {
    let mut id = [0_u8; 8];
    getrandom(&mut id, GetRandomFlags::empty())
        .map_err(|error| MemoryError::io("draw random bytes for", path, &error.into()))?;
    let opened = Event::Opened {
        ledger: to_hex(&id),
        instance: instance.to_owned(),
    };
    let (_, bytes, _) = End::START
        .write(Timestamp::now(), opened)
        .map_err(|cause| MemoryError::damaged(&path.display().to_string(), cause))?;
    file::write_new(dir, path, file::MODE, &bytes)?;
    Ok(())
}

#[derive(Debug)]
struct Writer {
    dir: PathBuf,
    path: PathBuf,
    file: File,
    ledger: String,
    end: End,
    /// How far the file was read; it ends with a whole line.
    length: u64,
    /// Requests that were begun and are not done, each with the end of the audit log by then.
    open: BTreeMap<Uuid, (ErasureMark, u64)>,
}

impl Writer {
    fn open(dir: &Path, path: &Path) -> Result<Self, MemoryError> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(path)
            .map_err(|error| MemoryError::io("open", path, &error))?;
        let mut writer = Self {
            dir: dir.to_path_buf(),
            path: path.to_path_buf(),
            file,
            ledger: String::new(),
            end: End::START,
            length: 0,
            open: BTreeMap::new(),
        };
        writer.catch_up()?;
        if writer.ledger.is_empty() {
            return Err(writer.damaged("it is empty"));
        }
        Ok(writer)
    }

    /// Reads what was added since we last looked, by another process perhaps.
    fn catch_up(&mut self) -> Result<(), MemoryError> {
        let path = self.path.clone();
        let failed = |error: io::Error| MemoryError::io("read", &path, &error);
        let named = fs::symlink_metadata(&self.path).map_err(failed)?;
        let opened = self.file.metadata().map_err(failed)?;
        if (named.dev(), named.ino()) != (opened.dev(), opened.ino()) || opened.len() < self.length {
            return Err(self.damaged("it was cut off or replaced while it was in use"));
        }
        if opened.len() == self.length {
            return Ok(());
        }
        self.file.seek(SeekFrom::Start(self.length)).map_err(failed)?;
        let mut reader = BufReader::new(self.file.try_clone().map_err(failed)?);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let read = (&mut reader)
                .take(MAX_LINE as u64)
                .read_until(b'\n', &mut bytes)
                .map_err(failed)?;
            if read == 0 {
                return Ok(());
            }
            let text = bytes.strip_suffix(b"\n");
            // A power loss may leave zeros where a block never reached the device. With entries of
            // another write behind them it is damage to what was durable, and that is for an operator
            // to decide.
            let is_last = self.length.saturating_add(read as u64) == opened.len();
            let has_hole = memchr::memchr(0, &bytes).is_some();
            if is_last && text.is_none() || has_hole && is_one_write(&bytes, &mut reader).map_err(failed)? {
                return self.set_aside(opened.len());
            }
            let (line, end) = self
                .end
                .read(text.unwrap_or_default())
                .map_err(|cause| self.damaged(cause))?;
            self.take(line, end, read as u64);
        }
    }

    /// Moves what a crash left of a line to a file of its own.
    fn set_aside(&self, length: u64) -> Result<(), MemoryError> {
        let seq = self.end.seq;
        tracing::warn!(
            erasures.entry = seq,
            "ledger of erasures: a write was cut short after entry {seq}; its {} bytes are set aside",
            length.saturating_sub(self.length)
        );
        Ok(recovery::set_aside(
            &self.dir,
            &self.file,
            &self.path,
            seq,
            self.length,
            length,
        )?)
    }

    /// Writes some events, a line each, and waits for the device once.
    fn append(&mut self, events: Vec<Event>) -> Result<(), MemoryError> {
        if events.is_empty() {
            return Ok(());
        }
        let (mut end, mut bytes, mut lines) = (self.end, Vec::new(), Vec::new());
        // One instant for all: see `is_one_write`.
        let now = Timestamp::now();
        for event in events {
            let (line, text, next) = end.write(now, event).map_err(|cause| self.damaged(cause))?;
            lines.push((line, next, text.len() as u64));
            bytes.extend(text);
            end = next;
        }
        let written = self.file.write_all(&bytes).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            let mut failure = MemoryError::io("write to", &self.path, &error);
            // What cannot be taken back is set aside by the next reader.
            if let Err(error) = self.file.set_len(self.length).and_then(|()| self.file.sync_data()) {
                failure.cause = format!("{}; taking it back failed too: {error}", failure.cause);
            }
            return Err(failure);
        }
        for (line, end, length) in lines {
            self.take(line, end, length);
        }
        Ok(())
    }

    fn take(&mut self, line: Line, end: End, bytes: u64) {
        self.end = end;
        self.length = self.length.saturating_add(bytes);
        match line.event {
            Event::Opened { ledger, .. } => self.ledger = ledger,
            Event::Begun(begun) => {
                let mark = self.mark();
                self.open.insert(begun.request, (mark, begun.audit));
            }
            Event::Done { request, .. } => {
                self.open.remove(&request);
            }
            Event::KeyDestroyed { .. } => {}
        }
    }

    fn mark(&self) -> ErasureMark {
        ErasureMark {
            ledger: self.ledger.clone(),
            entries: self.end.seq,
            head: self.end.head,
        }
    }

    fn damaged(&self, cause: impl Into<String>) -> MemoryError {
        MemoryError::damaged(&self.path.display().to_string(), cause)
    }
}

/// Whether a line with a hole and all behind it can be of one write: they carry the same instant, as
/// far as they can be read.
fn is_one_write(line: &[u8], reader: &mut impl BufRead) -> io::Result<bool> {
    let mut written = recovery::instant(line).map(<[u8]>::to_vec);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut bytes)? == 0 {
            return Ok(true);
        }
        match (recovery::instant(&bytes), &written) {
            (Some(instant), Some(written)) if instant != written => return Ok(false),
            (Some(instant), _) => written = Some(instant.to_vec()),
            (None, _) if bytes.ends_with(b"\n") && memchr::memchr(0, &bytes).is_none() => return Ok(false),
            (None, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(request: u128) -> Begun {
        Begun {
            request: Uuid::from_u128(request),
            job: "erase-users".to_owned(),
            database: "main".to_owned(),
            table: "public.users".to_owned(),
            policy: "sha256:ab".to_owned(),
            key: "2026-0123456789abcdef".parse().unwrap(),
            token: "11".repeat(32).parse().unwrap(),
            audit: 1,
        }
    }

    #[tokio::test]
    async fn a_request_is_begun_once_however_often_it_is_tried() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::open(dir.path(), "db1").unwrap();
        let first = memory.begin(begun(1)).await.unwrap();
        assert_eq!(memory.begin(begun(1)).await.unwrap(), first);
        // Also by another process, after a crash.
        let other = Memory::open(dir.path(), "db1").unwrap();
        assert_eq!(other.begin(begun(1)).await.unwrap(), first);
        let done = other.finish(Uuid::from_u128(1), "completed").await.unwrap();
        assert_eq!(done.entries, 3);
        assert_eq!(memory.finish(Uuid::from_u128(1), "completed").await.unwrap(), done);
        assert_eq!(memory.mark().await.unwrap(), done);
    }

    #[tokio::test]
    async fn writers_of_several_processes_do_not_fork_the_chain() {
        let dir = tempfile::tempdir().unwrap();
        let memories: Vec<_> = (0..4).map(|_| Memory::open(dir.path(), "db1").unwrap()).collect();
        let appends = (0..40_u128).map(|request| memories[request as usize % 4].begin(begun(request)));
        for result in futures::future::join_all(appends).await {
            result.unwrap();
        }
        let mark = Memory::open(dir.path(), "db1").unwrap().mark().await.unwrap();
        assert_eq!(mark.entries, 41);
    }

    #[tokio::test]
    async fn requests_that_are_begun_together_have_an_entry_each_and_are_begun_once() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::open(dir.path(), "db1").unwrap();
        let second = memory.begin(begun(2)).await.unwrap();
        let marks = memory.begin_all((1..=3).map(begun).collect()).await.unwrap();
        let entries: Vec<u64> = marks.iter().map(|mark| mark.entries).collect();
        assert_eq!((entries, &marks[1]), (vec![3, 2, 4], &second));
        let ends = [1, 9, 3].map(|request| (Uuid::from_u128(request), "completed".to_owned()));
        assert_eq!(
            memory.finish_all(ends.to_vec()).await.unwrap(),
            [Some(1), None, Some(1)]
        );
        // Another process reads the same.
        let again = Memory::open(dir.path(), "db1").unwrap();
        let mark = again.mark().await.unwrap();
        assert_eq!((mark.entries, &mark), (6, &memory.mark().await.unwrap()));
        assert_eq!(again.begin(begun(2)).await.unwrap(), second);
    }

    #[tokio::test]
    async fn a_line_that_a_crash_cut_short_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::open(dir.path(), "db1").unwrap();
        let mark = memory.begin(begun(1)).await.unwrap();
        let mut file = OpenOptions::new().append(true).open(dir.path().join(FILE)).unwrap();
        file.write_all(b"{\"v\":1,\"seq\":3").unwrap();
        let again = Memory::open(dir.path(), "db1").unwrap();
        assert_eq!(again.mark().await.unwrap(), mark);
        let names = file::names(dir.path()).unwrap();
        assert!(
            names.iter().any(|name| name.starts_with("torn-000000000003-")),
            "{names:?}"
        );
        assert_eq!(again.begin(begun(2)).await.unwrap().entries, 3);
    }

    #[tokio::test]
    async fn a_hole_in_the_last_write_is_set_aside_with_what_stands_behind_it_and_an_older_one_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::open(dir.path(), "db1").unwrap();
        let first = memory.begin(begun(1)).await.unwrap();
        memory.begin_all((2..=4).map(begun).collect()).await.unwrap();
        let path = dir.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let hole = |at: usize| {
            let mut lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
            lines[at] = lines[at].replace("begun", "be\0un");
            fs::write(&path, lines.concat()).unwrap();
        };
        hole(1);
        let error = Memory::open(dir.path(), "db1").unwrap_err();
        assert!(error.cause.contains("entry 2 cannot be read"), "{error}");
        hole(3);
        let mark = Memory::open(dir.path(), "db1").unwrap().mark().await.unwrap();
        assert_eq!(mark.entries, first.entries + 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), lines[..3].concat());
    }

    #[tokio::test]
    async fn a_ledger_that_is_cut_or_gone_is_never_replaced_in_silence() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::open(dir.path(), "db1").unwrap();
        memory.keys().current(Timestamp::now()).unwrap();
        memory.begin(begun(1)).await.unwrap();
        let path = dir.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        let first = text.split_inclusive('\n').next().unwrap();
        fs::write(&path, first).unwrap();
        let error = memory.begin(begun(2)).await.unwrap_err();
        assert!(error.cause.contains("cut off or replaced"), "{error}");
        fs::remove_file(&path).unwrap();
        let error = Memory::open(dir.path(), "db1").unwrap_err();
        assert!(error.cause.contains("the ledger is gone"), "{error}");
        fs::write(&path, "").unwrap();
        let error = Memory::open(dir.path(), "db1").unwrap_err();
        assert!(error.cause.contains("empty"), "{error}");
    }
}
