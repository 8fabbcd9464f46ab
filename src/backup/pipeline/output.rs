//! The output of `pg_dump`, read by a thread that computes.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read};
use tokio::process::ChildStdout;
use tokio_util::sync::CancellationToken;

use crate::backup::dump::CHUNK;
use crate::backup::program::widen;

/// How long some more may come before what is there is read. `pg_dump` writes 4 KiB at a time, and to be
/// woken for each costs both sides more than to move it. The pipe has room for what it writes meanwhile.
const GATHER: Duration = Duration::from_millis(1);

/// How often who waits looks whether it is to stop.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The reading end.
pub(super) struct DumpOutput {
    pipe: OwnedFd,
}

/// Pieces to be filled again.
pub(super) struct Spare(Receiver<Vec<u8>>);

/// Takes pieces back, to be filled again.
pub(super) struct Spent(Sender<Vec<u8>>);

impl Spent {
    pub(super) fn give_back(&self, piece: Vec<u8>) {
        // At the end nobody reads any more.
        let _ = self.0.send(piece);
    }
}

impl Spare {
    /// An empty one, which has room if it comes from there.
    pub(super) fn take(&self) -> Vec<u8> {
        let mut piece = self.0.try_recv().unwrap_or_default();
        piece.clear();
        piece
    }
}

/// The way of the pieces back from where they are spent.
pub(super) fn pool() -> (Spent, Spare) {
    let (back, spent) = channel();
    (Spent(back), Spare(spent))
}

impl DumpOutput {
    /// To be called on the runtime.
    pub(super) fn new(stdout: ChildStdout) -> io::Result<Self> {
        let pipe = stdout.into_owned_fd()?;
        ioctl_fionbio(&pipe, true)?;
        widen(&pipe);
        Ok(Self { pipe })
    }

    /// Fills `piece`, which is empty, with [`CHUNK`] bytes; with less only as the last one, then with none
    /// for ever. `None` when it is stopped.
    pub(super) fn read(&self, piece: &mut Vec<u8>, stop: &CancellationToken) -> io::Result<Option<()>> {
        piece.reserve_exact(CHUNK);
        while piece.len() < CHUNK {
            if stop.is_cancelled() {
                return Ok(None);
            }
            match read(&self.pipe, spare_capacity(piece)) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait()?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(()))
    }

    /// Until there is something to read, or it is time to look whether to stop.
    fn wait(&self) -> io::Result<()> {
        let mut ready = [PollFd::new(&self.pipe, PollFlags::IN)];
        match poll(&mut ready, Some(&LOOK)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => thread::sleep(GATHER),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
