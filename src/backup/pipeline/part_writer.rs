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
        let slot = self.slot()?;
        send(&self.next, self.cutter.finish(), slot)
    }

    /// Waits for the right to hold one more part. A full part waits before the next is begun, so no
    /// more than the slots exist beside it.
    fn slot(&self) -> io::Result<OwnedSemaphorePermit> {
        Handle::current()
            .block_on(Arc::clone(&self.slots).acquire_owned())
            .map_err(|_| gone())
    }
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let slot = self.cutter.is_full().then(|| self.slot()).transpose()?;
            if let (Some(cut), Some(slot)) = (self.cutter.cut(&mut rest), slot) {
                send(&self.next, cut, slot)?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn send(next: &mpsc::Sender<Ready>, cut: Cut, slot: OwnedSemaphorePermit) -> io::Result<()> {
    next.blocking_send(Ready { cut, slot }).map_err(|_| gone())
}

fn gone() -> io::Error {
    io::Error::other("the uploading stage has ended")
}
