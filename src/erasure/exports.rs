//! The exports that still hold a subject.

use jiff::Timestamp;

use super::certificate::HoldingExport;
use super::copies::Source;
use crate::backup::expiry::forecast;
use crate::backup::manifest::prefix;
use crate::export::{self, Manifest, NAME};
use crate::store::{ObjectKey, StoreError};

/// The exports of a job, what they hold rows of, and when they are gone.
pub(super) async fn list(source: &Source) -> Result<Vec<HoldingExport>, StoreError> {
    let store = (source.open)().await?;
    let exports = export::dated(store.as_ref(), &format!("{}/{}", source.database, source.job)).await?;
    let ends = source
        .keep
        .as_ref()
        .map(|policy| forecast(&exports, policy, Timestamp::now(), &source.zone))
        .unwrap_or_default();
    let mut holding = Vec::with_capacity(exports.len());
    for export in exports {
        let place = prefix(&source.database, &source.job, &export.id);
        let manifest = Manifest::read(store.as_ref(), &ObjectKey::new(format!("{place}/{NAME}"))?).await?;
        let tables = manifest.tables.iter().filter(|table| table.rows > 0);
        holding.push(HoldingExport {
            gone_by: ends.get(&export.id).copied().flatten(),
            id: export.id,
            job: source.job.clone(),
            store: source.store.clone(),
            as_of: manifest.as_of,
            tables: tables.map(|table| format!("{}.{}", table.schema, table.name)).collect(),
        });
    }
    Ok(holding)
}
