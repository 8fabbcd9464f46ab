//! What a crash left of a line: kept in a file of its own, and put on record. Nothing is deleted in
//! silence.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::AuditError;
use super::digest::to_hex;
use super::file;

/// The body of a `log.recovered` record.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RecoveredBody {
    /// What was set aside since the record before.
    pub(super) torn: Vec<Torn>,
}

/// A file that holds what was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Torn {
    /// Its name in the log's directory.
    pub(super) file: String,
    /// How long it is.
    pub(super) bytes: u64,
    /// Its SHA-256.
    pub(super) sha256: String,
}

impl Torn {
    /// Reads and hashes a file that was set aside.
    pub(super) fn read(dir: &Path, name: String) -> Result<Self, AuditError> {
        let path = dir.join(&name);
        let failed = |error: io::Error| AuditError::io("read", &path, &error);
        // The name may come from a log that somebody forged to have its reader open other files.
        if !name.starts_with("torn-") || name.contains('/') {
            return Err(failed(io::ErrorKind::InvalidFilename.into()));
        }
        let mut file = File::open(&path).map_err(failed)?;
        let (mut hasher, mut bytes, mut chunk) = (Sha256::new(), 0_u64, vec![0; 1 << 16]);
        loop {
            match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => {
                    hasher.update(chunk.get(..read).unwrap_or_default());
                    bytes = bytes.saturating_add(read as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(Self {
            file: name,
            bytes,
            sha256: to_hex(&hasher.finalize()),
        })
    }
}

/// When a line was written, as its own text, also where another part of the line is lost. The lines of
/// one write carry one instant, those of different writes never do.
pub(crate) fn instant(line: &[u8]) -> Option<&[u8]> {
    let at = memchr::memmem::find(line, INSTANT)?;
    let text = line.get(at.saturating_add(INSTANT.len())..)?;
    let text = text.get(..memchr::memchr(b'"', text)?)?;
    (!text.contains(&0)).then_some(text)
}

/// What stands before the instant in the lines of the audit log and of the ledger of erasures.
const INSTANT: &[u8] = b"\"ts\":\"";

/// Moves the bytes from `begin` to `end` out of a segment. They are durable elsewhere before they go;
/// [`pending`] finds them again should the record about them not be written.
pub(crate) fn set_aside(
    dir: &Path,
    segment: &File,
    segment_path: &Path,
    last_seq: u64,
    begin: u64,
    end: u64,
) -> Result<(), AuditError> {
    let name = format!("{}{}.bin", prefix(last_seq), Timestamp::now().as_microsecond());
    let path = dir.join(name);
    let failed = |error: io::Error| AuditError::io("write", &path, &error);
    let mut options = File::options();
    let mut torn = options
        .write(true)
        .create_new(true)
        .mode(file::MODE)
        .open(&path)
        .map_err(failed)?;
    file::give_to_owner(dir, &torn, &path)?;
    copy(segment, &mut torn, begin, end)
        .and_then(|()| torn.sync_all())
        .map_err(failed)?;
    file::sync_directory(dir)?;
    segment
        .set_len(begin)
        .and_then(|()| segment.sync_data())
        .map_err(|error| AuditError::io("cut the torn line off", segment_path, &error))
}

/// What was set aside after record `last_seq` and is not on record yet, oldest first.
pub(super) fn pending(dir: &Path, last_seq: u64) -> Result<Vec<Torn>, AuditError> {
    let prefix = prefix(last_seq);
    let mut names = file::names(dir)?;
    names.retain(|name| name.starts_with(&prefix));
    names.sort_unstable();
    names.into_iter().map(|name| Torn::read(dir, name)).collect()
}

/// Names carry the number that the torn record would have had.
fn prefix(last_seq: u64) -> String {
    format!("torn-{:012}-", last_seq.saturating_add(1))
}

fn copy(from: &File, to: &mut File, mut begin: u64, end: u64) -> io::Result<()> {
    let mut chunk = vec![0; 1 << 16];
    while begin < end {
        let wanted = usize::try_from(end - begin).unwrap_or(usize::MAX).min(chunk.len());
        let part = chunk.get_mut(..wanted).unwrap_or_default();
        from.read_exact_at(part, begin)?;
        to.write_all(part)?;
        begin = begin.saturating_add(wanted as u64);
    }
    Ok(())
}
