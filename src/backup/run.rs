//! One backup, from the snapshot to the manifest.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::Connection;
use ulid::Ulid;

use super::digest::Meter;
use super::dump::Content;
use super::form::Form;
use super::make::{Making, source};
use super::manifest::{self, ErasureMark, Manifest};
use super::parts::PartSizes;
use super::pipeline::{PipelineError, Stage};
use super::preflight::Ready;
use super::program::Programs;
use super::snapshot::Snapshot;
use super::standby;
use super::sweep;
use crate::job::{JobContext, JobError};
use crate::ledger::backups::{self, Begun, Ended, Leftovers};
use crate::postgres::connect::ConnectTarget;
use crate::postgres::sqlstate::DatabaseError;
use crate::store::Store;

/// Who knows how far the ledger of erasures is.
pub trait ErasureLedger: Send + Sync + fmt::Debug {
    /// Copies the ledger to where the backup will lie, and says how far it is; `None` when this host
    /// has none. The error says why neither could be done.
    fn mark<'a>(&'a self, store: &'a dyn Store) -> BoxFuture<'a, Result<Option<ErasureMark>, String>>;
}

/// How a backup is made.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The store's name in the configuration.
    pub store_name: String,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The client programs.
    pub programs: Programs,
    /// How it is stored.
    pub form: Form,
    /// What is dumped.
    pub content: Content,
    /// Whether roles and tablespaces are stored too.
    pub globals: bool,
    /// How many dumps of rows run at the same time.
    pub parallel: u32,
    /// Where to dump from, if not from the job's own server.
    pub standby: Option<ConnectTarget>,
    /// How the dump is cut.
    pub sizes: PartSizes,
    /// How many bytes a second go to the store at most.
    pub bandwidth: Option<u64>,
    /// How long the dump may hold its snapshot.
    pub max_duration: Option<Duration>,
    /// The daemon's instance.
    pub instance: String,
    /// The ledger of erasures, where this host may have one.
    pub erasures: Option<Arc<dyn ErasureLedger>>,
}

/// How far the ledger of erasures was before the snapshot.
pub(super) struct Erasures {
    pub(super) at: Timestamp,
    pub(super) mark: Option<ErasureMark>,
    pub(super) warning: Option<String>,
}

impl Erasures {
    async fn look(setup: &Setup) -> Self {
        let at = Timestamp::now();
        let looked = match &setup.erasures {
            Some(ledger) => ledger.mark(setup.store.as_ref()).await,
            None => Ok(None),
        };
        let (mark, warning) = match looked {
            Ok(mark) => (mark, None),
            Err(cause) => {
                let warning =
                    format!("without a mark of the ledger of erasures, so that a restore goes by the clock: {cause}");
                (None, Some(warning))
            }
        };
        Self { at, mark, warning }
    }
}

/// A backup that exists.
#[derive(Debug, Clone)]
pub struct Made {
    /// Its manifest.
    pub manifest: Manifest,
    /// How long it took.
    pub elapsed: Duration,
    /// What was said on the way, also after the manifest was written.
    pub warnings: Vec<String>,
}

/// Sweeps what earlier runs of the job left, and makes a backup.
///
/// # Errors
/// When there is no backup. What was written of it is removed then, or, when the store does not
/// answer any more, left in the journal for the next sweep.
pub async fn backup(context: &mut JobContext, setup: &Setup, ready: &Ready) -> Result<Made, JobError> {
    let begun_at = Instant::now();
    // An earlier attempt of this run is a leftover as any other: the journal has no row of this
    // attempt yet.
    let leftovers = Leftovers::OfJob(context.job.as_str());
    let store = (setup.store_name.as_str(), setup.store.as_ref());
    sweep::sweep_leftovers(
        context.session.connection(),
        context.fence,
        store,
        leftovers,
        context.recorder.as_ref(),
    )
    .await?;
    // With the job's lock held, what is left in the journal is what could not be understood.
    let known = backups::streaming(context.session.connection(), &setup.store_name, leftovers)
        .await
        .map_err(|error| JobError::database("read the journal of backups", &error))?;
    let known: Vec<String> = known.into_iter().map(|streaming| streaming.backup_id).collect();
    sweep::sweep_strangers(
        context.session.connection(),
        store,
        (&context.database, context.job.as_str()),
        &known,
        context.recorder.as_ref(),
    )
    .await?;
    let id = Ulid::generate().to_string();
    let prefix = manifest::prefix(&context.database, context.job.as_str(), &id);
    // Before the snapshot: what is done by then is done in the backup.
    let erasures = Erasures::look(setup).await;
    let snapshot = export(context, setup).await?;
    begin(context, setup, &id, &prefix).await?;
    let started = json!({
        "backup_id": id, "store": setup.store_name, "prefix": prefix, "snapshot": snapshot.id,
        "lsn": snapshot.source.lsn, "as_of": snapshot.source.started_at,
    });
    let recorded = context.recorder.record("backup.started", started).await;
    let result = match recorded {
        Ok(()) => {
            let making = Making {
                setup,
                ready,
                id: &id,
                prefix: &prefix,
                erasures,
            };
            making.make(context, snapshot).await
        }
        Err(error) => Err(Failure::from(JobError::from(error))),
    };
    match result {
        Ok((manifest, warning)) => {
            context
                .recorder
                .record("backup.committed", committed_record(setup, &manifest))
                .await?;
            let warnings = manifest.warnings.iter().cloned().chain(warning).collect();
            Ok(Made {
                manifest,
                elapsed: begun_at.elapsed(),
                warnings,
            })
        }
        Err(failure) => Err(give_up(context, setup, &id, &prefix, failure).await),
    }
}

/// Exports a snapshot that holds all that was committed before.
async fn export(context: &mut JobContext, setup: &Setup) -> Result<Snapshot, JobError> {
    let as_of = match &setup.standby {
        Some(standby) => Some(standby::catch_up(context.session.connection(), standby).await?),
        None => None,
    };
    let mut snapshot = Snapshot::export(source(context, setup), &application_name(context))
        .await
        .map_err(|error| JobError::database("export a snapshot", &error))?;
    if let Some(as_of) = as_of {
        // A standby is behind: its own clock would say too much.
        snapshot.source.started_at = as_of;
    }
    Ok(snapshot)
}

pub(super) fn application_name(context: &JobContext) -> String {
    format!("pgreeve:{}:{}", context.job, context.run)
}

async fn begin(context: &mut JobContext, setup: &Setup, id: &str, prefix: &str) -> Result<(), JobError> {
    let failed = |error: DatabaseError| JobError::database("write the journal of backups", &error);
    let begun = Begun {
        backup_id: id,
        run: context.run,
        job: context.job.as_str(),
        store: &setup.store_name,
        prefix,
    };
    let mut transaction = context
        .session
        .connection()
        .begin()
        .await
        .map_err(|error| failed(error.into()))?;
    context.fence.hold(&mut transaction).await.map_err(sweep::fence_error)?;
    backups::begin(&mut transaction, &begun).await.map_err(failed)?;
    transaction.commit().await.map_err(|error| failed(error.into()))
}

/// Why there is no backup, and in which stage.
pub(super) struct Failure {
    stage: Option<Stage>,
    error: JobError,
}

impl From<JobError> for Failure {
    fn from(error: JobError) -> Self {
        Self { stage: None, error }
    }
}

impl From<PipelineError> for Failure {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Cancelled => JobError::cancelled("back up the database").into(),
            PipelineError::Stage {
                stage,
                cause,
                remedy,
                transient,
            } => {
                let operation = format!("back up the database, stage {stage}");
                let error = if transient {
                    JobError::transient(operation, cause)
                } else {
                    JobError::permanent(operation, cause)
                };
                Self {
                    stage: Some(stage),
                    error: JobError { remedy, ..error },
                }
            }
        }
    }
}

fn committed_record(setup: &Setup, manifest: &Manifest) -> Value {
    let mut digest = Meter::new();
    if let Ok(bytes) = manifest.to_bytes() {
        digest.update(&bytes);
    }
    json!({
        "backup_id": manifest.id, "store": setup.store_name, "prefix": manifest.prefix(),
        "as_of": manifest.started_at, "lsn": manifest.lsn, "bytes": manifest.bytes(),
        "bytes_raw": manifest.bytes_raw(), "rows": manifest.rows(), "tables": manifest.tables.len(),
        "manifest_sha256": digest.finish().sha256,
    })
}

/// Removes what was written, and records that there is no backup. Runs to its end also when the
/// run is cancelled: it looks at no token.
async fn give_up(context: &mut JobContext, setup: &Setup, id: &str, prefix: &str, failure: Failure) -> JobError {
    let Failure { stage, error } = failure;
    let cleared = sweep::clear(setup.store.as_ref(), prefix).await;
    let connection = context.session.connection();
    let journal = match &cleared {
        Ok(_) => sweep::finish(connection, context.fence, id, Ended::Aborted)
            .await
            .map(|_| ())
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(cause) = &journal {
        tracing::warn!(backup.id = id, cause, "a failed backup is left to the next sweep");
    }
    // What can still be restored is what an operator asks next.
    let newest = backups::newest_committed(connection, context.job.as_str())
        .await
        .ok()
        .flatten();
    let body = json!({
        "backup_id": id, "store": setup.store_name, "prefix": prefix,
        "stage": stage.map(|stage| stage.to_string()), "cause": error.cause,
        "left_to_sweep": journal.err(), "newest_committed": newest,
    });
    if let Err(record) = context.recorder.record("backup.failed", body.clone()).await {
        tracing::error!(backup.id = id, error = %record, "the failed backup is not in the audit log");
    }
    error.with_partial(body)
}
