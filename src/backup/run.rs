//! One backup, from the snapshot to the manifest.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use sqlx::Connection;
use tokio_util::bytes::Bytes;
use ulid::Ulid;

use super::commit;
use super::compress::Packing;
use super::digest::{Meter, sha256_hex};
use super::dump::{self, Globals};
use super::manifest::{self, Manifest, Object, Role};
use super::parts::PartSizes;
use super::pipeline::{self, PipelineError, Stage, Streamed};
use super::preflight::Ready;
use super::program::Programs;
use super::snapshot::Snapshot;
use super::sweep;
use crate::job::{JobContext, JobError};
use crate::ledger::backups::{self, Begun, Ended, Leftovers};
use crate::postgres::sqlstate::DatabaseError;
use crate::store::{ObjectKey, Store};

/// How a backup is made.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The store's name in the configuration.
    pub store_name: String,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The client programs.
    pub programs: Programs,
    /// How the dump is packed.
    pub packing: Packing,
    /// By how many threads.
    pub threads: u32,
    /// How the dump is cut.
    pub sizes: PartSizes,
    /// The daemon's instance.
    pub instance: String,
}

/// A backup that exists.
#[derive(Debug, Clone)]
pub struct Made {
    /// Its manifest.
    pub manifest: Manifest,
    /// How long it took.
    pub elapsed: std::time::Duration,
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
    let id = Ulid::generate().to_string();
    let prefix = manifest::prefix(&context.database, context.job.as_str(), &id);
    let snapshot = Snapshot::export(&context.target, &application_name(context))
        .await
        .map_err(|error| JobError::database("export a snapshot", &error))?;
    begin(context, setup, &id, &prefix).await?;
    let started = json!({
        "backup_id": id, "store": setup.store_name, "prefix": prefix, "snapshot": snapshot.id,
        "lsn": snapshot.source.lsn, "as_of": snapshot.source.started_at,
    });
    let recorded = context.recorder.record("backup.started", started).await;
    let result = match recorded {
        Ok(()) => make(context, setup, ready, &id, &prefix, snapshot).await,
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

fn application_name(context: &JobContext) -> String {
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
struct Failure {
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

async fn make(
    context: &mut JobContext,
    setup: &Setup,
    ready: &Ready,
    id: &str,
    prefix: &str,
    snapshot: Snapshot,
) -> Result<(Manifest, Option<String>), Failure> {
    let store = setup.store.as_ref();
    let application_name = application_name(context);
    let mut warnings = ready.warnings.clone();
    let globals = store_globals(context, setup, prefix, &application_name).await?;
    warnings.extend(globals.as_ref().err().cloned());
    let (program, stdout) = dump::start(&setup.programs, &context.target, Some(&snapshot.id), &application_name)
        .map_err(|error| PipelineError::stage(Stage::Dump, false, error))?;
    let job = pipeline::Job {
        store: Arc::clone(&setup.store),
        prefix: prefix.to_owned(),
        packing: setup.packing,
        threads: setup.threads,
        sizes: setup.sizes,
        progress: context.progress.clone(),
        expected_bytes: None,
        stop: context.stop.clone(),
    };
    let mut streamed = pipeline::run(job, program, stdout).await?;
    let identity = Identity {
        id,
        setup,
        ready,
        warnings,
        globals: globals.ok(),
    };
    let mut manifest = identity.manifest(context, &snapshot, &streamed);
    // From here on nobody needs the snapshot, and every old row the server keeps is kept for it.
    snapshot.release().await;
    if context.stop.is_cancelled() {
        streamed.open.abort().await;
        return Err(PipelineError::Cancelled.into());
    }
    if let Err(error) = commit::complete(store, &mut streamed.open, setup.packing, &manifest).await {
        streamed.open.abort().await;
        return Err(error.into());
    }
    let warning = commit::publish(context.session.connection(), context.fence, store, &mut manifest).await?;
    Ok((manifest, warning))
}

/// Stores the roles and tablespaces; a warning when there are none to store.
async fn store_globals(
    context: &JobContext,
    setup: &Setup,
    prefix: &str,
    application_name: &str,
) -> Result<Result<Object, String>, Failure> {
    let script = tokio::select! {
        biased;
        () = context.stop.cancelled() => return Err(PipelineError::Cancelled.into()),
        script = dump::globals(&setup.programs, &context.target, application_name) => script,
    };
    let Globals { script, stored } = match script {
        Ok(globals) => globals,
        Err(error) => return Ok(Err(format!("without roles and tablespaces: {error}"))),
    };
    let failed = |error| PipelineError::store(Stage::Upload, error);
    let key = ObjectKey::new(format!("{prefix}/globals.sql.gz")).map_err(failed)?;
    let object = Object {
        key: key.to_string(),
        role: Role::Globals,
        bytes: stored.len() as u64,
        sha256: sha256_hex(&stored),
        parts: 0,
        bytes_raw: Some(script.len() as u64),
        sha256_raw: Some(sha256_hex(&script)),
    };
    setup
        .store
        .create(&key, Bytes::from(stored), "application/gzip")
        .await
        .map_err(failed)?;
    Ok(Ok(object))
}

struct Identity<'a> {
    id: &'a str,
    setup: &'a Setup,
    ready: &'a Ready,
    warnings: Vec<String>,
    globals: Option<Object>,
}

impl Identity<'_> {
    fn manifest(self, context: &JobContext, snapshot: &Snapshot, streamed: &Streamed) -> Manifest {
        let source = &snapshot.source;
        let mut warnings = self.warnings;
        warnings.extend(streamed.messages.warnings());
        let contents = streamed.walked.contents.clone().unwrap_or_else(|| {
            warnings.push(format!(
                "the archive's version {} is not known: its tables were not counted, and that it is whole was not seen",
                streamed.walked.version
            ));
            super::walker::Contents::default()
        });
        let mut objects = commit::objects(&streamed.open, streamed.raw.bytes, &streamed.raw.sha256);
        objects.extend(self.globals);
        Manifest {
            version: manifest::VERSION,
            id: self.id.to_owned(),
            job: context.job.to_string(),
            database: context.database.clone(),
            instance: self.setup.instance.clone(),
            run_id: context.run.to_string(),
            pgreeve_version: env!("CARGO_PKG_VERSION").to_owned(),
            pg_dump_version: self.ready.client.text.clone(),
            server_version: source.server_version.clone(),
            system_identifier: source.system_identifier.clone(),
            snapshot: snapshot.id.clone(),
            lsn: source.lsn.clone(),
            started_at: source.started_at,
            // Set anew when it is published.
            finished_at: source.started_at,
            database_bytes: source.database_bytes,
            locale: source.locale.clone(),
            format: "custom".to_owned(),
            archive_version: match streamed.walked.contents {
                Some(_) => streamed.walked.version.clone(),
                None => manifest::OPAQUE.to_owned(),
            },
            compression: self.setup.packing.to_string(),
            objects,
            tables: contents.tables,
            large_objects: contents.large_objects,
            toc_entries: contents.toc_entries,
            roles: source.roles.iter().cloned().chain(contents.owners).collect(),
            extensions: source.extensions.clone(),
            warnings,
            erasure_watermark: None,
            retention_cutoffs: source.retention_cutoffs.clone(),
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
