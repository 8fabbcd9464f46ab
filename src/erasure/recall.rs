//! Reading ledgers of erasures again: is all there that must be, and who is in it?
//!
//! A restore must not trust that a ledger it finds is whole. It asks every witness it can reach
//! ([`Witness`]): the manifest of the backup, the manifests of later backups, the copies of the
//! entries in the store, the audit log of this host. What any of them has seen must be here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::entry::{Begun, End, Event, Line, MAX_LINE};
use super::memory::MemoryError;
use super::token::{KeyId, Keys, TokenKey};
use crate::audit::{Digest, file};
use crate::backup::manifest::ErasureMark;

/// How far the host's clock and the server's may be apart, for backups whose manifest has no mark.
const CLOCKS_APART: SignedDuration = SignedDuration::from_hours(1);

/// Somebody who has seen a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// Who it is: `the manifest of 01JDQ…`.
    pub who: String,
    /// How far the ledger was.
    pub mark: ErasureMark,
}

/// A ledger that was read.
#[derive(Debug, Clone)]
struct Ledger {
    place: String,
    lines: Vec<Line>,
    /// The digest of each line.
    heads: Vec<Digest>,
}

/// Every ledger that was found, by its identity.
#[derive(Debug, Default)]
pub struct Recall {
    ledgers: BTreeMap<String, Ledger>,
    keys: Vec<Keys>,
}

impl Recall {
    /// Reads all ledgers (`*.jsonl`) of some places: directories as `state_dir/erasures`, or files in
    /// one. Keys are looked for beside them. A directory that does not exist has none. Blocks.
    ///
    /// # Errors
    /// When a chain is broken: the error names the file and the entry that is missing or was changed.
    pub fn load(places: &[PathBuf]) -> Result<Self, MemoryError> {
        let mut recall = Self::default();
        for place in places {
            let dir = if place.is_dir() {
                place
            } else {
                place.parent().unwrap_or(place)
            };
            recall.keys.push(Keys::beside(dir));
            if !place.is_dir() {
                if place.exists() {
                    recall.add(read_file(place)?)?;
                }
                continue;
            }
            let mut names = file::names(place)?;
            names.retain(|name| Path::new(name).extension().is_some_and(|end| end == "jsonl"));
            names.sort_unstable();
            for name in names {
                recall.add(read_file(&place.join(name))?)?;
            }
        }
        Ok(recall)
    }

    /// Whether a ledger was found.
    #[must_use]
    pub fn knows(&self, ledger: &str) -> bool {
        self.ledgers.contains_key(ledger)
    }

    /// Takes over the lines of a ledger from elsewhere. `place` is where they were found.
    ///
    /// # Errors
    /// As [`Recall::load`].
    pub fn add_lines(&mut self, place: &str, text: &[u8]) -> Result<(), MemoryError> {
        self.add(read_lines(place, text)?)
    }

    /// Of two copies of a ledger the longer one counts, if the shorter one is its beginning.
    fn add(&mut self, ledger: Ledger) -> Result<(), MemoryError> {
        let Some(Event::Opened { ledger: id, .. }) = ledger.lines.first().map(|line| line.event.clone()) else {
            return Err(MemoryError::damaged(&ledger.place, "it is empty"));
        };
        let Some(known) = self.ledgers.get_mut(&id) else {
            self.ledgers.insert(id, ledger);
            return Ok(());
        };
        let (short, long) = if known.heads.len() <= ledger.heads.len() {
            (&known.heads, &ledger.heads)
        } else {
            (&ledger.heads, &known.heads)
        };
        if !long.starts_with(short) {
            let cause = format!(
                "it is not the same ledger as {}, though it has its identity",
                known.place
            );
            return Err(MemoryError::damaged(&ledger.place, cause));
        }
        if ledger.heads.len() > known.heads.len() {
            *known = ledger;
        }
        Ok(())
    }

    /// Checks that all is here that a witness has seen.
    ///
    /// # Errors
    /// Names the ledger, the entries that are missing, and the witness.
    pub fn check(&self, witness: &Witness) -> Result<(), MemoryError> {
        let Witness { who, mark } = witness;
        let Some(ledger) = self.ledgers.get(&mark.ledger) else {
            return Err(MemoryError::new(
                "read the ledgers of erasures",
                format!(
                    "the ledger {} is missing; {who} has seen {} entries of it",
                    mark.ledger, mark.entries
                ),
                "copy `erasures` from the state directory of the host that wrote it, and name the copy with --erasures",
            ));
        };
        let have = ledger.lines.len() as u64;
        if have < mark.entries {
            let missing = if have.saturating_add(1) == mark.entries {
                format!("entry {} is missing", mark.entries)
            } else {
                format!("entries {} to {} are missing", have.saturating_add(1), mark.entries)
            };
            return Err(MemoryError::damaged(
                &ledger.place,
                format!("{missing}; {who} has seen it whole"),
            ));
        }
        let index = usize::try_from(mark.entries.saturating_sub(1)).unwrap_or(usize::MAX);
        if mark.entries > 0 && ledger.heads.get(index) != Some(&mark.head) {
            let cause = format!("entry {} is not the one that {who} has seen", mark.entries);
            return Err(MemoryError::damaged(&ledger.place, cause));
        }
        Ok(())
    }

    /// The erasures of a database that are not certain to be in a backup whose snapshot was taken at
    /// `snapshot` (by the server's clock), when the ledger `mark` was that far: those that were not
    /// done by then. Oldest first, each request once.
    #[must_use]
    pub fn since(&self, database: &str, mark: Option<&ErasureMark>, snapshot: Timestamp) -> Vec<&Begun> {
        let mut found = Vec::new();
        for (id, ledger) in &self.ledgers {
            let was_done = |line: &Line| match mark {
                Some(mark) if mark.ledger == *id => line.seq <= mark.entries,
                // The other ledgers were not looked at when the snapshot was taken.
                _ => line.ts.saturating_add(CLOCKS_APART).is_ok_and(|ts| ts < snapshot),
            };
            let mut open: BTreeMap<Uuid, (Timestamp, &Begun)> = BTreeMap::new();
            for line in &ledger.lines {
                match &line.event {
                    Event::Begun(begun) if begun.database == database => {
                        open.insert(begun.request, (line.ts, begun));
                    }
                    Event::Done { request, .. } if was_done(line) => {
                        open.remove(request);
                    }
                    _ => {}
                }
            }
            found.extend(open.into_values());
        }
        found.sort_by_key(|(ts, begun)| (*ts, begun.request));
        found.into_iter().map(|(_, begun)| begun).collect()
    }

    /// How the request of an entry ended, and when; `None` while it is open.
    #[must_use]
    pub fn ending(&self, request: Uuid) -> Option<Timestamp> {
        let lines = self.ledgers.values().flat_map(|ledger| &ledger.lines);
        lines
            .filter(|line| matches!(&line.event, Event::Done { request: done, .. } if *done == request))
            .map(|line| line.ts)
            .next()
    }

    /// Every entry that names a subject.
    pub fn begun(&self) -> impl Iterator<Item = &Begun> {
        let lines = self.ledgers.values().flat_map(|ledger| &ledger.lines);
        lines.filter_map(|line| match &line.event {
            Event::Begun(begun) => Some(begun),
            _ => None,
        })
    }

    /// The key that an entry's token was made with.
    ///
    /// # Errors
    /// When it is in none of the places, or was destroyed.
    pub fn key(&self, id: &KeyId) -> Result<TokenKey, MemoryError> {
        for keys in &self.keys {
            if let Some(key) = keys.find(id)? {
                return Ok(key);
            }
        }
        let destroyed = self
            .ledgers
            .values()
            .flat_map(|ledger| &ledger.lines)
            .find(|line| matches!(&line.event, Event::KeyDestroyed { key } if key == id));
        let operation = format!("find the subject key {id}");
        Err(match destroyed {
            Some(line) => MemoryError::new(
                operation,
                format!(
                    "it was destroyed at {}, when no backup was left that could need it; who was erased under it cannot be found again",
                    line.ts
                ),
                "restore a later backup",
            ),
            None => MemoryError::new(
                operation,
                "it is in none of the directories that were given",
                "copy `erasures/keys` as well from the state directory of the host that made it (mode 0600), and name the copy with --erasures",
            ),
        })
    }

    /// The verbatim lines of a ledger from entry `from` on, each with its newline.
    ///
    /// # Errors
    /// When a line cannot be written as it was read.
    pub fn ledgers(&self) -> impl Iterator<Item = (&str, u64)> {
        self.ledgers
            .iter()
            .map(|(id, ledger)| (id.as_str(), ledger.lines.len() as u64))
    }
}

fn read_file(path: &Path) -> Result<Ledger, MemoryError> {
    let file = File::open(path).map_err(|error| MemoryError::io("open", path, &error))?;
    let mut text = Vec::new();
    BufReader::new(file)
        .read_to_end(&mut text)
        .map_err(|error| MemoryError::io("read", path, &error))?;
    // Half a line at the end was never acknowledged: a crash, or a writer at work.
    let whole = memchr::memrchr(b'\n', &text).map_or(0, |end| end.saturating_add(1));
    text.truncate(whole);
    read_lines(&path.display().to_string(), &text)
}

fn read_lines(place: &str, text: &[u8]) -> Result<Ledger, MemoryError> {
    let mut ledger = Ledger {
        place: place.to_owned(),
        lines: Vec::new(),
        heads: Vec::new(),
    };
    let mut end = End::START;
    let (mut reader, mut bytes) = (text, Vec::new());
    loop {
        bytes.clear();
        let read = (&mut reader)
            .take(MAX_LINE as u64)
            .read_until(b'\n', &mut bytes)
            .map_err(|error| MemoryError::damaged(place, error.to_string()))?;
        if read == 0 {
            return Ok(ledger);
        }
        let (line, next) = end
            .read(bytes.strip_suffix(b"\n").unwrap_or(&bytes))
            .map_err(|cause| MemoryError::damaged(place, cause))?;
        end = next;
        ledger.lines.push(line);
        ledger.heads.push(end.head);
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::{FILE, Memory};
    use super::*;

    fn begun(request: u128, database: &str) -> Begun {
        Begun {
            request: Uuid::from_u128(request),
            job: "erase-users".to_owned(),
            database: database.to_owned(),
            table: "public.users".to_owned(),
            policy: "sha256:ab".to_owned(),
            key: "2026-0123456789abcdef".parse().unwrap(),
            token: "11".repeat(32).parse().unwrap(),
            audit: 1,
        }
    }

    fn requests(found: &[&Begun]) -> Vec<u128> {
        found.iter().map(|begun| begun.request.as_u128()).collect()
    }

    fn witness(mark: ErasureMark) -> Witness {
        Witness {
            who: "the manifest of X".to_owned(),
            mark,
        }
    }

    #[tokio::test]
    async fn what_was_not_done_at_the_snapshot_is_to_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::open(dir.path(), "db1").unwrap();
        for request in 1..=3 {
            memory.begin(begun(request, "main")).await.unwrap();
        }
        memory.begin(begun(9, "other")).await.unwrap();
        memory.finish(Uuid::from_u128(1), "completed").await.unwrap();
        let mark = memory.mark().await.unwrap();
        memory.finish(Uuid::from_u128(2), "completed").await.unwrap();
        memory.begin(begun(4, "main")).await.unwrap();
        memory.finish(Uuid::from_u128(4), "completed").await.unwrap();
        let recall = Recall::load(&[dir.path().to_path_buf()]).unwrap();
        let now = Timestamp::now();
        // 2 was done after the snapshot, 3 is not done at all, 4 came after it.
        assert_eq!(requests(&recall.since("main", Some(&mark), now)), [2, 3, 4]);
        assert_eq!(requests(&recall.since("other", Some(&mark), now)), [9]);
        // Without a mark the clock decides, with a margin.
        assert_eq!(requests(&recall.since("main", None, now)), [1, 2, 3, 4]);
        let later = now + SignedDuration::from_hours(2);
        assert_eq!(requests(&recall.since("main", None, later)), [3]);
    }

    #[tokio::test]
    async fn what_a_witness_has_seen_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::open(dir.path(), "db1").unwrap();
        for request in 1..=4 {
            memory.begin(begun(request, "main")).await.unwrap();
        }
        let mark = memory.mark().await.unwrap();
        let path = dir.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let load = || Recall::load(&[dir.path().to_path_buf()]);
        load().unwrap().check(&witness(mark.clone())).unwrap();

        std::fs::write(&path, lines[..4].concat()).unwrap();
        let error = load().unwrap().check(&witness(mark.clone())).unwrap_err();
        assert!(
            error.cause.starts_with("entry 5 is missing; the manifest of X"),
            "{error}"
        );
        std::fs::write(&path, lines[..2].concat()).unwrap();
        let error = load().unwrap().check(&witness(mark.clone())).unwrap_err();
        assert!(error.cause.starts_with("entries 3 to 5 are missing"), "{error}");
        std::fs::write(&path, [&lines[..2], &lines[3..]].concat().concat()).unwrap();
        let error = load().unwrap_err();
        assert_eq!(error.cause, "entry 3 is missing");
        assert!(error.operation.contains(path.to_str().unwrap()), "{error}");

        std::fs::remove_file(&path).unwrap();
        let error = load().unwrap().check(&witness(mark.clone())).unwrap_err();
        assert!(
            error.cause.contains(&format!("the ledger {} is missing", mark.ledger)),
            "{error}"
        );
        // Another ledger in its place is not it.
        Memory::open(dir.path(), "db1").unwrap();
        load().unwrap().check(&witness(mark)).unwrap_err();
    }

    #[tokio::test]
    async fn of_two_copies_the_longer_counts_if_it_goes_on_from_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::open(dir.path(), "db1").unwrap();
        memory.begin(begun(1, "main")).await.unwrap();
        let short = std::fs::read(dir.path().join(FILE)).unwrap();
        memory.begin(begun(2, "main")).await.unwrap();
        let long = std::fs::read(dir.path().join(FILE)).unwrap();
        for (one, other) in [(&short, &long), (&long, &short)] {
            let mut recall = Recall::default();
            recall.add_lines("one", one).unwrap();
            recall.add_lines("other", other).unwrap();
            assert_eq!(requests(&recall.since("main", None, Timestamp::now())), [1, 2]);
        }
        let mut forked = short.clone();
        let end = End::START;
        let (_, end) = end.read(forked.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
        forked = short.split_inclusive(|byte| *byte == b'\n').next().unwrap().to_vec();
        let (_, line, _) = end.write(Timestamp::now(), Event::Begun(begun(7, "main"))).unwrap();
        forked.extend(line);
        let mut recall = Recall::default();
        recall.add_lines("one", &long).unwrap();
        let error = recall.add_lines("other", &forked).unwrap_err();
        assert!(error.cause.contains("not the same ledger as one"), "{error}");
    }

    #[tokio::test]
    async fn a_key_that_is_not_there_is_told_from_one_that_was_destroyed() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::open(dir.path(), "db1").unwrap();
        let key = memory.keys().current(Timestamp::now()).unwrap();
        let recall = Recall::load(&[dir.path().to_path_buf()]).unwrap();
        assert_eq!(recall.key(&key.id).unwrap().id, key.id);
        memory.keys().destroy(&key.id).unwrap();
        assert!(
            recall
                .key(&key.id)
                .unwrap_err()
                .cause
                .contains("none of the directories")
        );
        memory.forget_key(key.id.clone()).await.unwrap();
        let recall = Recall::load(&[dir.path().to_path_buf()]).unwrap();
        assert!(recall.key(&key.id).unwrap_err().cause.contains("destroyed"));
    }
}
