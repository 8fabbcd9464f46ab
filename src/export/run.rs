//! One export, from the snapshot to the manifest.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio_util::bytes::Bytes;
use ulid::Ulid;

use super::keep::remove;
use super::manifest::{Exported, Manifest, NAME, VERSION};
use super::object::Writer;
use super::scope::{Scope, ScopedTable};
use crate::backup::compress::Packing;
use crate::backup::manifest;
use crate::backup::parts::PartSizes;
use crate::backup::sweep::{clear, fence_error, store_error};
use crate::batch::ArchiveFormat;
use crate::job::{JobContext, JobError};
use crate::postgres::connect::{Session, SessionSettings};
use crate::store::{ObjectKey, Store, StoreError};

/// How old what has no manifest must be before it counts as left behind.
const LEFT: Duration = Duration::from_hours(24);

/// How an export is made.
pub struct Setup {
    /// The store's name in the configuration.
    pub store_name: String,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The tables, in their order.
    pub tables: Vec<ScopedTable>,
    /// Whose rows.
    pub scope: Scope,
    /// How rows are written.
    pub format: ArchiveFormat,
    /// How objects are packed.
    pub packing: Packing,
    /// How they are cut.
    pub sizes: PartSizes,
    /// The daemon's instance.
    pub instance: String,
}

/// Makes an export.
///
/// # Errors
/// When there is none. What was written of it is removed then, or, when the store does not answer any
/// more, by [`sweep`] a day later.
pub async fn export(context: &mut JobContext, setup: &Setup) -> Result<Manifest, JobError> {
    let id = Ulid::generate().to_string();
    let prefix = manifest::prefix(&context.database, context.job.as_str(), &id);
    let started = json!({ "export_id": id, "store": setup.store_name, "prefix": prefix, "tables": setup.tables.len() });
    context.recorder.record("export.started", started).await?;
    let stop = context.stop.clone();
    let made = tokio::select! {
        biased;
        () = stop.cancelled() => Err(JobError::cancelled("export")),
        made = make(context, setup, &id, &prefix) => made,
    };
    match made {
        Ok(manifest) => {
            let body = json!({
                "export_id": id, "store": setup.store_name, "prefix": prefix, "as_of": manifest.as_of,
                "rows": manifest.rows(), "bytes": manifest.bytes(), "tables": manifest.tables.len(),
            });
            context.recorder.record("export.committed", body).await?;
            Ok(manifest)
        }
        Err(error) => {
            let left = remove(setup.store.as_ref(), &prefix)
                .await
                .err()
                .map(|error| error.to_string());
            let body = json!({
                "export_id": id, "store": setup.store_name, "prefix": prefix, "cause": error.cause, "left": left,
            });
            context.recorder.record("export.failed", body.clone()).await?;
            Err(error.with_partial(body))
        }
    }
}

async fn make(context: &mut JobContext, setup: &Setup, id: &str, prefix: &str) -> Result<Manifest, JobError> {
    let settings = SessionSettings {
        // A slow store holds the copy back for as long as it takes; the run's own limit ends it.
        statement_timeout: Duration::ZERO,
        idle_in_transaction_session_timeout: Duration::ZERO,
        ..SessionSettings::control(format!("pgreeve:{}:{}", context.job, context.run))
    };
    let failed = |error: sqlx::Error| JobError::database("read the rows of the export", &error.into());
    let mut session = Session::open(&context.target, &settings)
        .await
        .map_err(|error| JobError::database("open a session", &error))?;
    let connection = session.connection();
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    let (as_of, server_version): (SqlTimestamp, String) =
        sqlx::query_as("SELECT pg_catalog.now(), pg_catalog.current_setting('server_version')")
            .fetch_one(&mut *connection)
            .await
            .map_err(failed)?;
    let mut manifest = Manifest {
        version: VERSION,
        id: id.to_owned(),
        job: context.job.to_string(),
        database: context.database.clone(),
        instance: setup.instance.clone(),
        run_id: context.run.to_string(),
        pgreeve_version: env!("CARGO_PKG_VERSION").to_owned(),
        server_version,
        as_of: as_of.to_jiff(),
        // Set anew when it is published.
        finished_at: as_of.to_jiff(),
        format: word(setup.format).to_owned(),
        compression: setup.packing.to_string(),
        column: setup.scope.column.clone(),
        values: setup.scope.values.clone(),
        tables: Vec::new(),
    };
    let mut rows = 0;
    for (number, table) in (1..).zip(&setup.tables) {
        // Names of tables may hold what no key may; the manifest says which is which.
        let stem = format!(
            "{prefix}/{number:04}-{}.{}",
            key_part(&table.relation.name),
            manifest.format
        );
        let exported = copy(connection, setup, table, stem).await?;
        rows += exported.rows;
        context.progress.set("rows", rows, None);
        manifest.tables.push(exported);
    }
    // From here on nobody needs the snapshot.
    session.close().await;
    publish(context, setup.store.as_ref(), prefix, &mut manifest).await?;
    Ok(manifest)
}

async fn copy(
    connection: &mut PgConnection,
    setup: &Setup,
    table: &ScopedTable,
    stem: String,
) -> Result<Exported, JobError> {
    let failed = |error: sqlx::Error| {
        JobError::database(format!("read the rows of {}", table.relation.display()), &error.into())
    };
    let mut writer = Writer::new(Arc::clone(&setup.store), stem, setup.packing, setup.sizes)?;
    writer.write(table.header(setup.format).as_bytes()).await?;
    let mut stream = connection
        .copy_out_raw(&table.copy(setup.format))
        .await
        .map_err(failed)?;
    let mut rows = 0_u64;
    // One message of the protocol is one row.
    while let Some(row) = stream.try_next().await.map_err(failed)? {
        rows += 1;
        writer.write(&row).await?;
    }
    drop(stream);
    let written = writer.finish().await?;
    Ok(Exported {
        schema: table.relation.schema.clone(),
        name: table.relation.name.clone(),
        rows,
        bytes_raw: written.raw.bytes,
        sha256_raw: written.raw.sha256,
        objects: written.objects,
    })
}

/// Writes the manifest while the leader's row is held, so that who lost the lead publishes nothing.
async fn publish(
    context: &mut JobContext,
    store: &dyn Store,
    prefix: &str,
    manifest: &mut Manifest,
) -> Result<(), JobError> {
    let database = |error: sqlx::Error| JobError::database("publish the export", &error.into());
    let mut transaction = context.session.connection().begin().await.map_err(database)?;
    context.fence.hold(&mut transaction).await.map_err(fence_error)?;
    sqlx::query("SET LOCAL idle_in_transaction_session_timeout = 0")
        .execute(&mut *transaction)
        .await
        .map_err(database)?;
    let now: SqlTimestamp = sqlx::query_scalar("SELECT pg_catalog.clock_timestamp()")
        .fetch_one(&mut *transaction)
        .await
        .map_err(database)?;
    manifest.finished_at = now.to_jiff();
    let failed = |error| store_error("publish the export".to_owned(), error);
    let mut body = serde_json::to_vec_pretty(manifest)
        .map_err(|error| JobError::permanent("publish the export", error.to_string()))?;
    body.push(b'\n');
    let key = ObjectKey::new(format!("{prefix}/{NAME}")).map_err(failed)?;
    store
        .create(&key, Bytes::from(body), "application/json")
        .await
        .map_err(failed)?;
    // It wrote nothing.
    transaction.rollback().await.map_err(database)
}

/// Removes what runs that died have left below a job's prefix: exports without a manifest that were begun
/// more than a day before `now`. Answers with their names. To be called with the job's lock held.
///
/// # Errors
/// When the store refuses.
pub async fn sweep(store: &dyn Store, database: &str, job: &str, now: Timestamp) -> Result<Vec<String>, StoreError> {
    let start = manifest::prefix(database, job, "");
    let prefix = start.trim_end_matches('/');
    let objects = store.list(prefix).await?;
    let uploads = store.list_uploads(prefix).await?;
    let keys = || {
        objects
            .iter()
            .map(|object| &object.key)
            .chain(uploads.iter().map(|upload| &upload.key))
    };
    let parts = |key: &'_ ObjectKey| {
        let (id, name) = key.as_str().strip_prefix(start.as_str())?.split_once('/')?;
        Some((id.to_owned(), name.to_owned()))
    };
    let whole: BTreeSet<String> = keys()
        .filter_map(parts)
        .filter_map(|(id, name)| (name == NAME || name == manifest::NAME).then_some(id))
        .collect();
    let ids: BTreeSet<String> = keys().filter_map(parts).map(|(id, _)| id).collect();
    let mut swept = Vec::new();
    for id in ids.difference(&whole).filter(|id| is_old(id, now)) {
        clear(store, &manifest::prefix(database, job, id)).await?;
        swept.push(id.clone());
    }
    Ok(swept)
}

/// Whether a name is one of ours, and says that it was given more than a day ago.
fn is_old(id: &str, now: Timestamp) -> bool {
    let named_at = Ulid::from_string(id)
        .ok()
        .and_then(|id| Timestamp::try_from(id.datetime()).ok());
    let limit = now.checked_sub(LEFT).ok();
    matches!((named_at, limit), (Some(named_at), Some(limit)) if named_at < limit)
}

fn word(format: ArchiveFormat) -> &'static str {
    let mut words = ArchiveFormat::WORDS.into_iter();
    words
        .find(|(_, other)| *other == format)
        .map_or("jsonl", |(word, _)| word)
}

/// What of a table's name can be part of a key.
fn key_part(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    name.chars().map(safe).take(63).collect()
}
