//! The stages before the store: reading, walking, packing.

use std::io::{self, Write};
use std::thread;

use futures::future::BoxFuture;
use tokio::io::AsyncReadExt;
use tokio::process::ChildStdout;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::bytes::{Bytes, BytesMut};

use super::part_writer::PartWriter;
use super::{Moved, PipelineError, Stage, Verdict};
use crate::backup::digest::{Measure, Meter};
use crate::backup::dump::CHUNK;
use crate::backup::form::Form;
use crate::backup::priority;
use crate::backup::program::{Messages, Program};
use crate::backup::walker::{Inspector, Walked};

/// What passes between two stages.
pub(super) enum Piece {
    Data(Bytes),
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

/// Reads the dump, and vouches for its end.
pub(super) async fn read(
    mut program: Program,
    stdout: ChildStdout,
    next: mpsc::Sender<Piece>,
    verdict: Verdict,
) -> Option<Messages> {
    let result = tokio::select! {
        // What stopped the run is its cause, also when the dump fails in the same moment.
        biased;
        () = verdict.stop.cancelled() => None,
        result = read_to_end(&mut program, stdout, &next) => Some(result),
    };
    match result {
        Some(Ok(messages)) => Some(messages),
        Some(Err(Stop::Failed(cause))) => {
            verdict.fail(PipelineError::stage(Stage::Dump, true, cause));
            program.terminate().await;
            None
        }
        Some(Err(Stop::Consumer)) | None => {
            program.terminate().await;
            None
        }
    }
}

enum Stop {
    Failed(String),
    /// The next stage is gone, and has said why.
    Consumer,
}

async fn read_to_end(
    program: &mut Program,
    mut stdout: ChildStdout,
    next: &mpsc::Sender<Piece>,
) -> Result<Messages, Stop> {
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        while chunk.len() < CHUNK {
            let length = stdout
                .read_buf(&mut chunk)
                .await
                .map_err(|error| Stop::Failed(format!("read from {}: {error}", program.name())))?;
            if length == 0 {
                break;
            }
        }
        let at_end = chunk.len() < CHUNK;
        if !chunk.is_empty() {
            let piece = Piece::Data(chunk.freeze());
            next.send(piece).await.map_err(|_| Stop::Consumer)?;
        }
        if at_end {
            break;
        }
    }
    let ended = program.wait().await.map_err(|error| Stop::Failed(error.to_string()))?;
    if !ended.status.success() {
        return Err(Stop::Failed(format!("{} ended with {}", program.name(), ended.cause())));
    }
    next.send(Piece::End).await.map_err(|_| Stop::Consumer)?;
    Ok(ended.messages)
}

/// Walks the archive as it passes.
pub(super) fn walk(
    mut from: mpsc::Receiver<Piece>,
    next: &mpsc::Sender<Piece>,
    mut inspector: Inspector,
    moved: &Moved,
    verdict: &Verdict,
) -> Option<WalkedStream> {
    let mut raw = Meter::new();
    let fail = |error| verdict.fail(PipelineError::stage(Stage::Walk, false, error));
    loop {
        match from.blocking_recv()? {
            Piece::Data(bytes) => {
                raw.update(&bytes);
                inspector.feed(&bytes).map_err(fail).ok()?;
                moved.add(bytes.len());
                next.blocking_send(Piece::Data(bytes)).ok()?;
            }
            Piece::End => {
                let archive = inspector.finish().map_err(fail).ok()?;
                next.blocking_send(Piece::End).ok()?;
                return Some(WalkedStream {
                    archive,
                    raw: raw.finish(),
                });
            }
        }
    }
}

/// Packs the stream and cuts it into parts.
pub(super) fn pack(mut from: mpsc::Receiver<Piece>, parts: PartWriter, form: &Form, verdict: &Verdict) -> Option<()> {
    // What the next stage refuses is a consequence of the failure that it has named itself.
    let fail = |error: io::Error| verdict.fail(PipelineError::stage(Stage::Compress, false, error));
    let mut writer = form.writer(parts).map_err(fail).ok()?;
    loop {
        match from.blocking_recv()? {
            Piece::Data(bytes) => writer.write_all(&bytes).map_err(fail).ok()?,
            Piece::End => return writer.finish().and_then(PartWriter::finish).map_err(fail).ok(),
        }
    }
}
