//! The stages before the store: reading, walking, packing.

use std::io::{self, Write};
use std::thread;

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::output::{DumpOutput, Spent};
use super::part_writer::PartWriter;
use super::{Moved, PipelineError, Stage, Verdict};
use crate::backup::digest::{Measure, Meter};
use crate::backup::form::Form;
use crate::backup::priority;
use crate::backup::program::{Messages, Program};
use crate::backup::walker::{Inspector, Walked};

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
pub(super) fn walk(
    mut dump: DumpOutput,
    vouched: oneshot::Receiver<()>,
    next: &mpsc::Sender<Piece>,
    mut inspector: Inspector,
    moved: &Moved,
    verdict: &Verdict,
) -> Option<WalkedStream> {
    let mut raw = Meter::new();
    let unreadable = |error: io::Error| verdict.fail(unreadable(&error));
    let broken = |error| verdict.fail(PipelineError::stage(Stage::Walk, false, error));
    loop {
        let piece = dump.read(&verdict.stop).map_err(unreadable).ok()??;
        if piece.is_empty() {
            break;
        }
        raw.update(&piece);
        inspector.feed(&piece).map_err(broken).ok()?;
        moved.add(piece.len());
        next.blocking_send(Piece::Data(piece)).ok()?;
    }
    // The end of the output is not yet the success of the program.
    vouched.blocking_recv().ok()?;
    let archive = inspector.finish().map_err(broken).ok()?;
    next.blocking_send(Piece::End).ok()?;
    Some(WalkedStream {
        archive,
        raw: raw.finish(),
    })
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
