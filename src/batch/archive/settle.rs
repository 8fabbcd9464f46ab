//! Brings an archive to its end: objects of rows that were not deleted go, the manifest comes.

use serde_json::json;

use super::manifest::{self, Manifest};
use super::{ArchiveRule, fenced};
use crate::backup::sweep::store_error;
use crate::job::{JobContext, JobError};
use crate::ledger::archives::{self, Archive, ArchivedObject};
use crate::postgres::sqlstate::DatabaseError;

/// What an archive holds in the end.
#[derive(Debug)]
pub(super) struct Settled {
    /// Its objects.
    pub(super) objects: usize,
    /// Their rows.
    pub(super) rows: u64,
    /// Their size.
    pub(super) bytes: u64,
}

/// How many objects, rows and bytes.
pub(super) fn sums(objects: &[ArchivedObject]) -> (usize, u64, u64) {
    (
        objects.len(),
        objects.iter().map(|object| object.rows).sum(),
        objects.iter().map(|object| object.bytes).sum(),
    )
}

/// Settles an archive that nobody writes any more. The caller's session holds the job's lock, so the
/// session of a run that died is gone, and with it every commit under way.
pub(super) async fn settle(
    context: &mut JobContext,
    rule: &ArchiveRule,
    archive: &Archive,
) -> Result<Settled, JobError> {
    let operation = format!("settle the archive {}", archive.prefix);
    let database = |error: DatabaseError| JobError::database(operation.clone(), &error);
    let refused = |error| store_error(operation.clone(), error);
    let known = archives::objects(context.session.connection(), archive.run)
        .await
        .map_err(database)?;
    let manifest_key = manifest::key(&archive.prefix).map_err(refused)?;
    let mut swept = 0_usize;
    for object in rule.store.list(&archive.prefix).await.map_err(refused)? {
        let belongs = object.key == manifest_key || known.iter().any(|known| known.key == object.key.as_str());
        if !belongs {
            rule.store.delete(&object.key).await.map_err(refused)?;
            swept += 1;
        }
    }
    if swept > 0 {
        tracing::info!(archive.prefix = %archive.prefix, archive.objects = swept, "removed objects of rows that are still in their table");
        let body = json!({ "store": archive.store, "prefix": archive.prefix, "run": archive.run, "objects": swept });
        context.recorder.record("archive.swept", body).await?;
    }
    let (objects, rows, bytes) = sums(&known);
    if objects > 0 {
        let manifest = Manifest::new(archive, &known);
        let written = manifest.write(rule.store.as_ref(), &archive.prefix).await;
        written.map_err(refused)?;
        let body = json!({
            "store": archive.store, "prefix": archive.prefix, "run": archive.run, "table": archive.relation,
            "objects": objects, "rows": rows, "bytes": bytes,
        });
        context.recorder.record("archive.committed", body).await?;
    }
    let fence = context.fence;
    let mut transaction = fenced::begin(context.session.connection(), fence, &operation).await?;
    archives::close(&mut transaction, archive.run).await.map_err(database)?;
    fenced::commit(transaction, &operation).await?;
    Ok(Settled { objects, rows, bytes })
}
