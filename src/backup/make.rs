//! The part of a backup between its two records: dumps, objects, manifest.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio_util::bytes::Bytes;

use super::commit;
use super::compress::Packing;
use super::digest::sha256_hex;
use super::dump;
use super::form::{Form, Format};
use super::manifest::{self, Manifest, Object, Role};
use super::parts::PartSizes;
use super::pipeline::{self, Moved, Pace, PipelineError, Slots, Stage, Streamed};
use super::preflight::Ready;
use super::run::{Erasures, Failure, Setup, application_name};
use super::slices::{self, Slice};
use super::snapshot::Snapshot;
use super::walker::Contents;
use crate::job::JobContext;
use crate::postgres::connect::ConnectTarget;
use crate::store::ObjectKey;

/// How the roles and tablespaces are packed: one small object, whatever the dump is packed with.
const GLOBALS: Packing = Packing::Gzip(6);

/// The smallest part that S3 takes, but for an object's last.
const LEAST_PART: usize = 5 * 1024 * 1024;

/// One backup being made.
pub(super) struct Making<'a> {
    pub(super) setup: &'a Setup,
    pub(super) ready: &'a Ready,
    pub(super) id: &'a str,
    pub(super) prefix: &'a str,
    pub(super) erasures: Erasures,
}

/// Where a backup is read from.
pub(super) fn source<'a>(context: &'a JobContext, setup: &'a Setup) -> &'a ConnectTarget {
    setup.standby.as_ref().unwrap_or(&context.target)
}

impl Making<'_> {
    /// Dumps, stores, and writes the manifest; answers with it and a warning.
    pub(super) async fn make(
        self,
        context: &mut JobContext,
        mut snapshot: Snapshot,
    ) -> Result<(Manifest, Option<String>), Failure> {
        let setup = self.setup;
        let store = setup.store.as_ref();
        let limit = setup
            .max_duration
            .map(|longest| (snapshot.exported_at + longest, longest));
        let mut warnings = self.ready.warnings.clone();
        warnings.extend(self.erasures.warning.clone());
        let globals = if setup.globals {
            self.store_globals(context).await?
        } else {
            Ok(None)
        };
        warnings.extend(globals.as_ref().err().cloned());
        let slices = slices::divide(snapshot.connection(), setup.parallel, &setup.content.selection)
            .await
            .map_err(|error| PipelineError::stage(Stage::Dump, error.is_transient(), error))?;
        let mut streams = self.dump(context, &snapshot.id, &slices, limit).await?;
        let mut manifest = self.manifest(context, &snapshot, &slices, &streams, warnings);
        manifest.objects.extend(globals.ok().flatten());
        // From here on nobody needs the snapshot, and every old row the server keeps is kept for it.
        snapshot.release().await;
        let completed = if context.stop.is_cancelled() {
            Err(PipelineError::Cancelled)
        } else {
            complete(setup, &mut streams, &manifest).await
        };
        if let Err(error) = completed {
            abort(streams).await;
            return Err(error.into());
        }
        let warning = commit::publish(context.session.connection(), context.fence, store, &mut manifest).await?;
        Ok((manifest, warning))
    }

    /// Runs all dumps at the same time. The first that fails stops the others, and so does the end of
    /// the time for which the snapshot may be held.
    async fn dump(
        &self,
        context: &JobContext,
        snapshot: &str,
        slices: &[Slice],
        limit: Option<(Instant, Duration)>,
    ) -> Result<Vec<Streamed>, PipelineError> {
        let setup = self.setup;
        let stop = context.stop.child_token();
        let (slots, moved) = (Slots::default(), Moved::new(context.progress.clone()));
        let pace = setup.bandwidth.map(|rate| Arc::new(Pace::new(rate)));
        let target = source(context, setup);
        let mut running = Vec::new();
        for slice in slices {
            let (program, stdout) = dump::start(
                &setup.programs,
                target,
                Some(snapshot),
                &application_name(context),
                &setup.content,
                &slice.arguments,
            )
            .map_err(|error| PipelineError::stage(Stage::Dump, false, error))?;
            let job = pipeline::Job {
                store: Arc::clone(&setup.store),
                prefix: self.prefix.to_owned(),
                stem: slice.stem.clone(),
                form: setup.form.clone(),
                sizes: shared(setup.sizes, slices.len()),
                whole: slices.len() == 1,
                slots: slots.clone(),
                pace: pace.clone(),
                moved: moved.clone(),
                stop: stop.clone(),
            };
            let stop = stop.clone();
            running.push(async move {
                let streamed = pipeline::run(job, program, stdout).await;
                if streamed.is_err() {
                    stop.cancel();
                }
                streamed
            });
        }
        let (mut streams, mut first) = (Vec::new(), None);
        let all = join_all(running);
        tokio::pin!(all);
        let ended = tokio::select! {
            ended = &mut all => ended,
            longest = over(limit) => {
                // Only a request to stop that came before it is another cause.
                if !context.stop.is_cancelled() {
                    first = Some(too_long(longest));
                }
                stop.cancel();
                all.await
            }
        };
        for streamed in ended {
            match streamed {
                Ok(streamed) => streams.push(streamed),
                // One that was stopped follows from the one that failed.
                Err(PipelineError::Cancelled) if first.is_some() => {}
                Err(error) if matches!(first, None | Some(PipelineError::Cancelled)) => first = Some(error),
                Err(_) => {}
            }
        }
        match first {
            None => Ok(streams),
            Some(error) => {
                abort(streams).await;
                Err(error)
            }
        }
    }

    /// Stores the roles and tablespaces; a warning when there are none to store.
    async fn store_globals(&self, context: &JobContext) -> Result<Result<Option<Object>, String>, Failure> {
        let setup = self.setup;
        let application_name = application_name(context);
        let script = tokio::select! {
            biased;
            () = context.stop.cancelled() => return Err(PipelineError::Cancelled.into()),
            script = dump::globals(&setup.programs, source(context, setup), &application_name) => script,
        };
        let script = match script {
            Ok(script) => script,
            Err(error) => return Ok(Err(format!("without roles and tablespaces: {error}"))),
        };
        let failed = |error| PipelineError::store(Stage::Upload, error);
        let form = Form {
            packing: GLOBALS,
            threads: 1,
            ..setup.form.clone()
        };
        let stored = form
            .writer(Vec::new())
            .and_then(|mut writer| {
                writer.write_all(&script)?;
                writer.finish()
            })
            .map_err(|error| PipelineError::stage(Stage::Compress, false, error))?;
        let name = format!("globals.sql{}{}", GLOBALS.suffix(), form.seal_suffix());
        let key = ObjectKey::new(format!("{}/{name}", self.prefix)).map_err(failed)?;
        let object = Object {
            key: key.to_string(),
            role: Role::Globals,
            archive: None,
            bytes: stored.len() as u64,
            sha256: sha256_hex(&stored),
            parts: 0,
            bytes_raw: Some(script.len() as u64),
            sha256_raw: Some(sha256_hex(&script)),
        };
        setup
            .store
            .create(&key, Bytes::from(stored), form.content_type())
            .await
            .map_err(failed)?;
        Ok(Ok(Some(object)))
    }

    fn manifest(
        &self,
        context: &JobContext,
        snapshot: &Snapshot,
        slices: &[Slice],
        streams: &[Streamed],
        mut warnings: Vec<String>,
    ) -> Manifest {
        let (setup, source) = (self.setup, &snapshot.source);
        let contents = self.contents(streams, &mut warnings);
        let archive_version = match streams.first() {
            Some(streamed) if contents.is_some() => streamed.walked.version.clone(),
            _ => manifest::OPAQUE.to_owned(),
        };
        let contents = contents.unwrap_or_default();
        let several = slices.len() > 1;
        let objects = slices.iter().zip(streams).flat_map(|(slice, streamed)| {
            let archive = several.then_some(slice.stem.as_str());
            commit::objects(&streamed.open, slice.role, archive, &streamed.raw)
        });
        Manifest {
            version: manifest::VERSION,
            id: self.id.to_owned(),
            job: context.job.to_string(),
            database: context.database.clone(),
            instance: setup.instance.clone(),
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
            format: setup.form.format,
            archive_version,
            compression: setup.form.packing.to_string(),
            encrypted_to: setup.form.recipients.iter().map(ToString::to_string).collect(),
            schema_only: setup.content.schema_only,
            left_out: setup.content.selection.left_out.clone(),
            from_standby: setup.standby.is_some(),
            objects: objects.collect(),
            tables: contents.tables,
            large_objects: contents.large_objects,
            toc_entries: contents.toc_entries,
            roles: source.roles.iter().cloned().chain(contents.owners).collect(),
            extensions: source.extensions.clone(),
            warnings,
            erasure_watermark: self.erasures.mark.as_ref().map(|_| self.erasures.at),
            erasures: self.erasures.mark.clone(),
            retention_cutoffs: source.retention_cutoffs.clone(),
        }
    }

    /// What all archives hold together; `None` when that is not known of each.
    fn contents(&self, streams: &[Streamed], warnings: &mut Vec<String>) -> Option<Contents> {
        let mut all = Some(Contents::default());
        for streamed in streams {
            warnings.extend(streamed.messages.warnings());
            match (&streamed.walked.contents, &mut all) {
                (Some(contents), Some(all)) => all.add(contents.clone()),
                _ => all = None,
            }
        }
        if let (None, Format::Custom, Some(first)) = (&all, self.setup.form.format, streams.first()) {
            warnings.push(format!(
                "the archive's version {} is not known: its tables were not counted, and that it is whole was not seen",
                first.walked.version
            ));
        }
        all
    }
}

/// Several dumps fill a part each: they are smaller, and as large as stores want them.
fn shared(sizes: PartSizes, dumps: usize) -> PartSizes {
    let least = sizes.part_bytes.min(LEAST_PART);
    PartSizes {
        part_bytes: (sizes.part_bytes / dumps.max(1)).max(least),
        ..sizes
    }
}

/// Ends when the snapshot was held for as long as it may be, which is the answer.
async fn over(limit: Option<(Instant, Duration)>) -> Duration {
    match limit {
        Some((at, longest)) => {
            tokio::time::sleep_until(at.into()).await;
            longest
        }
        None => std::future::pending().await,
    }
}

fn too_long(longest: Duration) -> PipelineError {
    PipelineError::Stage {
        stage: Stage::Dump,
        cause: format!(
            "it held its snapshot for {} s, and `max_duration` allows no more: until then vacuum removes no row that was deleted meanwhile",
            longest.as_secs()
        ),
        remedy: Some(
            "raise `max_duration`, or make the dump quicker: `parallel`, a lower level of `compress`, no `bandwidth`"
                .to_owned(),
        ),
        transient: false,
    }
}

async fn complete(setup: &Setup, streams: &mut [Streamed], manifest: &Manifest) -> Result<(), PipelineError> {
    for streamed in streams {
        commit::complete(setup.store.as_ref(), &mut streamed.open, &setup.form).await?;
    }
    commit::check(setup.store.as_ref(), manifest).await
}

async fn abort(streams: Vec<Streamed>) {
    for mut streamed in streams {
        streamed.open.abort().await;
    }
}
