//! The lock that serialises writers of one audit log across processes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::AuditError;
use super::file::{self, MODE};

/// How long a writer may wait for others. One append takes milliseconds; a holder that keeps it
/// longer is stopped or stuck, and a caller must hear of it rather than hang.
const WAIT: Duration = Duration::from_secs(30);

/// How long to rest between two tries.
const REST: Duration = Duration::from_millis(1);

/// Held from the reading of the head to the end of fsync. The kernel frees it when its process ends.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Waits to be the only writer.
    pub(crate) fn exclusive(dir: &Path) -> Result<Self, AuditError> {
        let path = path(dir);
        // Opened anew each time: a lock file that was removed meanwhile is made again.
        let (file, new) = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => (file, false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).mode(MODE);
                let file = options
                    .open(&path)
                    .map_err(|error| AuditError::io("create", &path, &error))?;
                (file, true)
            }
            Err(error) => return Err(AuditError::io("open", &path, &error)),
        };
        if new {
            file::give_to_owner(dir, &file, &path)?;
        }
        wait(file, &path, FlockOperation::NonBlockingLockExclusive)
    }

    /// Waits until no writer is in the middle of a line. `None` where there is no lock file: a copy
    /// of a log has no writers.
    pub(crate) fn shared(dir: &Path) -> Result<Option<Self>, AuditError> {
        let path = path(dir);
        match File::open(&path) {
            Ok(file) => wait(file, &path, FlockOperation::NonBlockingLockShared).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(AuditError::io("open", &path, &error)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A child process between fork and exec shares the lock; only unlocking frees it at once.
        // Should that fail, closing the file frees it a moment later.
        flock(&self.0, FlockOperation::Unlock).ok();
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("lock")
}

fn wait(file: File, path: &Path, operation: FlockOperation) -> Result<Lock, AuditError> {
    let begun = Instant::now();
    loop {
        match flock(&file, operation) {
            Ok(()) => return Ok(Lock(file)),
            Err(Errno::WOULDBLOCK | Errno::INTR) if begun.elapsed() < WAIT => std::thread::sleep(REST),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                return Err(AuditError::new(
                    format!("lock {}", path.display()),
                    format!("another process has held it for {} seconds", WAIT.as_secs()),
                    format!("find the holder with `fuser {}` and end it", path.display()),
                ));
            }
            Err(error) => return Err(AuditError::io("lock", path, &error.into())),
        }
    }
}
