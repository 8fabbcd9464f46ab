//! Moves a dump into a store: read, walk, pack, cut, send. One outcome, decided in one place.
//!
//! Every stage waits for the next one, down to the server, so memory does not depend on sizes: a
//! part being filled, three in flight, and some pieces of 256 KiB between the stages. The end of
//! the dump's output is not its success: `End` is passed on only after `pg_dump` exited with 0 and
//! the walker saw a whole archive. A stage that sees its input end without it gives up silently,
//! because the stage that failed has said why; the first to say so is the cause.

mod output;
mod pace;
mod part_writer;
mod sender;
mod stages;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::output::DumpOutput;
pub use self::pace::Pace;
use self::part_writer::PartWriter;
pub use self::sender::{Open, OpenObject};
use self::sender::{PARTS_IN_FLIGHT, Sender};
use self::stages::{Piece, Walk, WalkedStream};
use super::compress::Packing;
use super::digest::Measure;
use super::form::Form;
use super::parts::PartSizes;
use super::program::{Messages, Program};
use super::walker::{Inspector, Walked};
use crate::job::Progress;
use crate::store::{ObjectKey, Store, StoreError, StoreErrorKind};

/// How many pieces wait between two stages.
const QUEUE: usize = 8;

/// Where a backup failed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// `pg_dump`, or reading from it.
    Dump,
    /// Its archive is not whole.
    Walk,
    /// Packing it.
    Compress,
    /// Sending a part.
    Upload,
    /// Making the objects and the manifest exist.
    Commit,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dump => "dump",
            Self::Walk => "walk",
            Self::Compress => "compress",
            Self::Upload => "upload",
            Self::Commit => "commit",
        })
    }
}

/// Why there is no backup.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PipelineError {
    /// A stage failed.
    #[error("{stage}: {cause}")]
    Stage {
        /// Which one, first.
        stage: Stage,
        /// Why.
        cause: String,
        /// What an operator can do.
        remedy: Option<String>,
        /// Whether another attempt may succeed.
        transient: bool,
    },
    /// It was asked to stop.
    #[error("stopped on request")]
    Cancelled,
}

impl PipelineError {
    /// An error of a stage.
    pub fn stage(stage: Stage, transient: bool, cause: impl fmt::Display) -> Self {
        Self::Stage {
            stage,
            cause: cause.to_string(),
            remedy: None,
            transient,
        }
    }

    /// An error of the store.
    #[must_use]
    pub fn store(stage: Stage, error: StoreError) -> Self {
        Self::Stage {
            stage,
            transient: error.kind == StoreErrorKind::Transient,
            cause: error.to_string(),
            remedy: error.remedy,
        }
    }
}

/// What the pipeline is to do.
pub struct Job {
    /// Where the objects go.
    pub store: Arc<dyn Store>,
    /// The prefix of their keys.
    pub prefix: String,
    /// What their names start with after it.
    pub stem: String,
    /// How they are stored.
    pub form: Form,
    /// How they are cut.
    pub sizes: PartSizes,
    /// Whether a dump smaller than a part is held back and stored in one piece. Of several dumps none
    /// is: each would hold a part in memory to the end.
    pub whole: bool,
    /// The right to hold a part in memory; shared by all dumps of a backup.
    pub slots: Slots,
    /// When parts may be sent, if not at once; shared by all dumps of a backup.
    pub pace: Option<Arc<Pace>>,
    /// How far all dumps of the backup are.
    pub moved: Moved,
    /// Cancelled when it should stop.
    pub stop: CancellationToken,
}

impl Job {
    /// The key of a segment, from 1.
    fn key(&self, segment: u32) -> Result<ObjectKey, StoreError> {
        let (prefix, stem, suffix) = (&self.prefix, &self.stem, self.form.dump_suffix());
        ObjectKey::new(match segment {
            1 => format!("{prefix}/{stem}{suffix}"),
            _ => format!("{prefix}/{stem}-{segment:04}{suffix}"),
        })
    }
}

/// The right to hold a part in memory beside the one that each dump fills.
#[derive(Debug, Clone)]
pub struct Slots(Arc<Semaphore>);

impl Default for Slots {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PARTS_IN_FLIGHT)))
    }
}

/// How many bytes all dumps of a backup have written, and who is told.
#[derive(Debug, Clone)]
pub struct Moved {
    bytes: Arc<AtomicU64>,
    progress: Progress,
}

impl Moved {
    /// None yet.
    #[must_use]
    pub fn new(progress: Progress) -> Self {
        Self {
            bytes: Arc::default(),
            progress,
        }
    }

    fn add(&self, bytes: usize) {
        let bytes = bytes as u64;
        let sum = self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.progress.set("bytes", sum, None);
    }
}

/// A dump whose every byte is acknowledged by the store, in objects that do not exist yet.
#[derive(Debug)]
pub struct Streamed {
    /// What the archive holds.
    pub walked: Walked,
    /// The archive's size and digest before it was packed.
    pub raw: Measure,
    /// What `pg_dump` had to say.
    pub messages: Messages,
    /// The objects, to be completed in this order.
    pub open: Open,
}

/// Who fails first decides the outcome, and stops the others.
#[derive(Debug, Clone, Default)]
struct Verdict {
    first: Arc<OnceLock<PipelineError>>,
    stop: CancellationToken,
}

impl Verdict {
    fn fail(&self, error: PipelineError) {
        // A later error is a consequence of the first.
        let _ = self.first.set(error);
        self.stop.cancel();
    }
}

/// Runs the dump through all stages. On an error nothing is left in the store, as far as the store
/// still answers; also when the returned future is dropped.
///
/// # Errors
/// The first stage that failed, and why.
pub async fn run(job: Job, program: Program, stdout: tokio::process::ChildStdout) -> Result<Streamed, PipelineError> {
    let verdict = Verdict::default();
    // Dropped with this future, so that no stage outlives it.
    let guard = verdict.stop.clone().drop_guard();
    let (to_pack, from_walk) = mpsc::channel::<Piece>(QUEUE);
    let (to_send, from_pack) = mpsc::channel(PARTS_IN_FLIGHT);
    let (vouch, vouched) = oneshot::channel();
    let output = DumpOutput::new(stdout).map_err(|error| stages::unreadable(&error))?;
    let (spent, spare) = output::pool();

    let supervise = tokio::spawn(stages::supervise(program, vouch, verdict.clone()));
    let walk = stages::thread("pgreeve-walk", {
        let walk = Walk {
            dump: output,
            spare,
            inspector: Inspector::new(job.form.format),
            // What is not packed is stored as `pg_dump` wrote it.
            joins: job.form.packing != Packing::None,
            moved: job.moved.clone(),
            verdict: verdict.clone(),
        };
        move || walk.run(vouched, &to_pack)
    });
    let pack = stages::thread("pgreeve-pack", {
        let verdict = verdict.clone();
        let form = job.form.clone();
        let parts = PartWriter::new(job.sizes, to_send, Arc::clone(&job.slots.0));
        move || stages::pack(from_walk, &spent, parts, &form, &verdict)
    });
    let stop = job.stop.clone();
    let send = tokio::spawn(Sender::new(job, verdict.clone()).run(from_pack));
    let watch = tokio::spawn({
        let verdict = verdict.clone();
        async move {
            tokio::select! {
                () = stop.cancelled() => verdict.fail(PipelineError::Cancelled),
                () = verdict.stop.cancelled() => {}
            }
        }
    });
    let (dumped, walked, packed, uploaded) = tokio::join!(supervise, walk, pack, send);
    watch.abort();
    drop(guard);
    let (dumped, uploaded) = (dumped.ok().flatten(), uploaded.ok().flatten());
    match (dumped, walked, packed, uploaded, verdict.first.get()) {
        (Some(messages), Some(WalkedStream { archive, raw }), Some(()), Some(open), None) => Ok(Streamed {
            walked: archive,
            raw,
            messages,
            open,
        }),
        (_, _, _, uploaded, first) => {
            if let Some(mut open) = uploaded {
                open.abort().await;
            }
            Err(first
                .cloned()
                .unwrap_or_else(|| PipelineError::stage(Stage::Dump, false, "a stage ended without a result")))
        }
    }
}
