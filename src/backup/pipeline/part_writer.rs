//! Cuts what is written to it into parts, and passes on each that is full.

use std::io::{self, Write};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::backup::parts::{Cut, Cutter, PartSizes};

/// A part, and the right to hold it in memory.
pub(super) struct Ready {
    pub(super) cut: Cut,
    pub(super) slot: OwnedSemaphorePermit,
}

/// The end of the packing thread. Nothing that was written is whole before [`PartWriter::finish`]:
/// an encoder that is given up may still write its trailer.
pub(super) struct PartWriter {
    cutter: Cutter,
    next: mpsc::Sender<Ready>,
    slots: Arc<Semaphore>,
}

impl PartWriter {
    pub(super) fn new(sizes: PartSizes, next: mpsc::Sender<Ready>, slots: Arc<Semaphore>) -> Self {
        Self {
            cutter: Cutter::new(sizes),
            next,
            slots,
        }
    }

    /// Passes on the last part.
    pub(super) fn finish(self) -> io::Result<()> {
        send(self.cutter.finish(), &self.next, &self.slots)
    }
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if let Some(cut) = self.cutter.cut(&mut rest) {
                send(cut, &self.next, &self.slots)?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A part waits for its slot here, so no more than the slots exist beside the one being filled.
fn send(cut: Cut, next: &mpsc::Sender<Ready>, slots: &Arc<Semaphore>) -> io::Result<()> {
    let gone = || io::Error::other("the uploading stage has ended");
    let slot = Handle::current()
        .block_on(Arc::clone(slots).acquire_owned())
        .map_err(|_| gone())?;
    next.blocking_send(Ready { cut, slot }).map_err(|_| gone())
}
