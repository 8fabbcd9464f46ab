//! The stages before the store: reading, walking, packing.

use std::io::{self, Write};
use std::{mem, thread};

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::output::{DumpOutput, Spare, Spent};
use super::part_writer::PartWriter;
use super::{Moved, PipelineError, Stage, Verdict};
use crate::backup::digest::{Measure, Meter};
use crate::backup::form::Form;
use crate::backup::priority;
use crate::backup::program::{Messages, Program};
use crate::backup::walker::{Inspector, Joined, WalkError, Walked};

/// What passes between two stages.
pub(super) enum Piece {
    Data(Vec<u8>),
    /// All of it passed and was right so far.
    End,
}

/// What the walker saw.
pub(super) struct WalkedStream {
    pub(super) archive: Walked,
    pub(super) raw: Measure,
}

/// Runs a stage that computes on an OS thread of low priority. Answers `None` when it gave up.
pub(super) fn thread<T: Send + 'static>(
    name: &str,
    stage: impl FnOnce() -> Option<T> + Send + 'static,
) -> BoxFuture<'static, Option<T>> {
    let (done, result) = oneshot::channel();
    let runtime = Handle::current();
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _runtime = runtime.enter();
        priority::lower();
        // The receiver is gone only when nobody waits any more.
        let _ = done.send(stage());
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "a thread could not be started");
    }
    Box::pin(async { result.await.ok().flatten() })
}

/// Waits for the dump's program, and answers `vouch` when it has ended with 0.
pub(super) async fn supervise(
    mut program: Program,
    mut vouch: oneshot::Sender<()>,
    verdict: Verdict,
) -> Option<Messages> {
    let result = tokio::select! {
        // What stopped the run is its cause, also when the dump fails in the same moment.
        biased;
        () = verdict.stop.cancelled() => None,
        // Nobody reads any more, and has said why.
        () = vouch.closed() => None,
        result = program.wait() => Some(result),
    };
    let cause = match result {
        None => {
            program.terminate().await;
            return None;
        }
        Some(Ok(end)) if end.status.success() => {
            // Who reads may have given up meanwhile, and has said why.
            let _ = vouch.send(());
            return Some(end.messages);
        }
        Some(Ok(end)) => format!("{} ended with {}", program.name(), end.cause()),
        Some(Err(error)) => error.to_string(),
    };
    verdict.fail(PipelineError::stage(Stage::Dump, true, cause));
    None
}

/// Reads the archive and walks it. One thread does both: read and looked at at once, a piece is still
/// in the processor's cache.
pub(super) struct Walk {
    pub(super) dump: DumpOutput,
    pub(super) spare: Spare,
    pub(super) inspector: Inspector,
    /// Whether chunks that follow each other are joined, see [`Joined`].
    pub(super) joins: bool,
    pub(super) moved: Moved,
    pub(super) verdict: Verdict,
}

impl Walk {
    /// `vouched`: the dump's program has ended well.
    pub(super) fn run(mut self, vouched: oneshot::Receiver<()>, next: &mpsc::Sender<Piece>) -> Option<WalkedStream> {
        let verdict = self.verdict.clone();
        let broken = |error: &WalkError| verdict.fail(PipelineError::stage(Stage::Walk, false, error));
        let mut raw = Meter::new();
        let mut piece = Vec::new();
        loop {
            let read = self.dump.read(&mut piece, &verdict.stop);
            read.map_err(|error| verdict.fail(unreadable(&error))).ok()??;
            if piece.is_empty() {
                break;
            }
            self.moved.add(piece.len());
            let walked = self.walk(&mut piece).map_err(|error| broken(&error)).ok()?;
            raw.update(&walked);
            next.blocking_send(Piece::Data(walked)).ok()?;
        }
        // The end of the output is not yet the success of the program.
        vouched.blocking_recv().ok()?;
        let archive = self.inspector.finish().map_err(|error| broken(&error)).ok()?;
        next.blocking_send(Piece::End).ok()?;
        Some(WalkedStream {
            archive,
            raw: raw.finish(),
        })
    }

    /// Walks a piece, leaves it empty, and answers with what is to be stored of it.
    fn walk(&mut self, piece: &mut Vec<u8>) -> Result<Vec<u8>, WalkError> {
        if !self.joins {
            self.inspector.feed(piece)?;
            return Ok(mem::replace(piece, self.spare.take()));
        }
        let mut joined = Joined::within(self.spare.take(), piece.len());
        self.inspector.feed_and_tell(piece, |passed| joined.add(passed))?;
        piece.clear();
        Ok(joined.into_bytes())
    }
}

pub(super) fn unreadable(error: &io::Error) -> PipelineError {
    PipelineError::stage(Stage::Dump, true, format!("read the dump: {error}"))
}

/// Packs the stream and cuts it into parts.
pub(super) fn pack(
    mut from: mpsc::Receiver<Piece>,
    spent: &Spent,
    parts: PartWriter,
    form: &Form,
    verdict: &Verdict,
) -> Option<()> {
    // What the next stage refuses is a consequence of the failure that it has named itself.
    let fail = |error: io::Error| verdict.fail(PipelineError::stage(Stage::Compress, false, error));
    let mut writer = form.writer(parts).map_err(fail).ok()?;
    loop {
        match from.blocking_recv()? {
            Piece::Data(bytes) => {
                writer.write_all(&bytes).map_err(fail).ok()?;
                spent.give_back(bytes);
            }
            Piece::End => return writer.finish().and_then(PartWriter::finish).map_err(fail).ok(),
        }
    }
}
