//! Unpacks what a store gives, walks it, and passes it on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread;

use tokio::sync::mpsc;
use tokio_util::bytes::{Buf, Bytes};

use super::{QUEUE, ReadError};
use crate::backup::compress::{Gunzip, Packing};
use crate::backup::digest::{Measure, Meter};
use crate::backup::dump::CHUNK;
use crate::backup::form::Format;
use crate::backup::seal::{Identities, UnsealError};
use crate::backup::walker::{Inspector, Joined, WalkError, Walked};

/// Where what is unpacked goes.
pub enum Sink {
    /// Nowhere.
    Nowhere,
    /// To somebody who takes pieces; one who is gone is not an error, reading goes on.
    Pieces(mpsc::Sender<Bytes>),
    /// Into a file.
    File(File),
    /// To somebody, and up to the end of the table of contents into a file too.
    PiecesAndContents(mpsc::Sender<Bytes>, File),
}

impl Sink {
    /// Passes a piece on. `contents`: it is not only rows.
    fn take(&mut self, piece: &[u8], contents: bool) -> io::Result<()> {
        let is_file = matches!(self, Self::File(_));
        if let Self::File(file) | Self::PiecesAndContents(_, file) = self
            && (contents || is_file)
        {
            file.write_all(piece)?;
        }
        if let Self::Pieces(next) | Self::PiecesAndContents(next, _) = self
            && next.blocking_send(Bytes::copy_from_slice(piece)).is_err()
        {
            *self = Self::Nowhere;
        }
        Ok(())
    }
}

/// The stored pieces as a blocking stream; `None` is its end.
pub(super) struct Pieces {
    from: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    ended: bool,
}

impl Pieces {
    pub(super) fn new(from: mpsc::Receiver<Option<Bytes>>) -> Self {
        Self {
            from,
            current: Bytes::new(),
            ended: false,
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.from.blocking_recv() {
                Some(Some(piece)) => self.current = piece,
                Some(None) => self.ended = true,
                // The reader failed: this must not look like the end.
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let length = self.current.len().min(buffer.len());
        let (target, _) = buffer.split_at_mut(length);
        self.current.copy_to_slice(target);
        Ok(length)
    }
}

pub(super) struct Unpacking {
    pub(super) packing: Packing,
    pub(super) format: Format,
    pub(super) identities: Option<Identities>,
}

impl Unpacking {
    pub(super) fn run(&self, source: impl Read, sink: Sink) -> Result<(Measure, Walked), ReadError> {
        match &self.identities {
            None => self.unpack(source, sink),
            Some(identities) => match identities.open(source) {
                Ok(source) => self.unpack(source, sink),
                Err(UnsealError::Stranger) => Err(ReadError::Sealed(UnsealError::Stranger.to_string())),
                Err(UnsealError::Damaged(problem)) => Err(damaged(io::Error::other(problem))),
            },
        }
    }

    fn unpack(&self, source: impl Read, sink: Sink) -> Result<(Measure, Walked), ReadError> {
        match self.packing {
            Packing::Gzip(_) => self.walk(Gunzip::new(source), sink),
            Packing::Zstd(_) => self.walk(zstd::Decoder::new(source).map_err(damaged)?, sink),
            Packing::None => self.walk(source, sink),
        }
    }

    /// Unpacks and measures on this thread, and walks what is unpacked on another.
    fn walk(&self, mut source: impl Read, sink: Sink) -> Result<(Measure, Walked), ReadError> {
        thread::scope(|scope| {
            let (next, pieces) = sync_channel(QUEUE);
            let (back, spent) = channel();
            let inspector = Inspector::new(self.format);
            let walking = scope.spawn(move || walk(inspector, &pieces, &back, sink));
            let (mut raw, mut result) = (Meter::new(), Ok(()));
            loop {
                let mut piece: Vec<u8> = spent.try_recv().unwrap_or_default();
                piece.clear();
                piece.reserve_exact(CHUNK);
                match source.by_ref().take(CHUNK as u64).read_to_end(&mut piece) {
                    Ok(0) => break,
                    Ok(_) => {
                        raw.update(&piece);
                        // Who is gone has a reason to tell.
                        if next.send(piece).is_err() {
                            break;
                        }
                    }
                    Err(error) => {
                        result = Err(damaged(error));
                        break;
                    }
                }
            }
            drop(next);
            let gone = |_| Err(ReadError::Local("the walking thread ended early".to_owned()));
            let walked = walking.join().unwrap_or_else(gone);
            result.and(walked).map(|walked| (raw.finish(), walked))
        })
    }
}

/// Walks pieces up to their end, passes them on, and gives their buffers back.
fn walk(
    mut inspector: Inspector,
    pieces: &Receiver<Vec<u8>>,
    back: &Sender<Vec<u8>>,
    mut sink: Sink,
) -> Result<Walked, ReadError> {
    let walked = |error: WalkError| damaged(io::Error::other(error));
    let mut joined = Joined::default();
    for piece in pieces {
        let contents = !inspector.is_past_contents();
        if let Sink::Nowhere = sink {
            inspector.feed(&piece).map_err(walked)?;
        } else {
            inspector
                .feed_and_tell(&piece, |passed| joined.add(passed))
                .map_err(walked)?;
            sink.take(joined.close(), contents)
                .map_err(|error| ReadError::Local(format!("write the unpacked dump: {error}")))?;
            joined.clear();
        }
        // At the end nobody fills them any more.
        let _ = back.send(piece);
    }
    inspector.finish().map_err(walked)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` passes")]
fn damaged(error: io::Error) -> ReadError {
    ReadError::Damaged(format!("the dump cannot be unpacked: {error}"))
}
