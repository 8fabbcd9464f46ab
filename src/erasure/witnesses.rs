//! Who has seen the ledgers of erasures, besides the ledgers themselves.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::copies;
use super::memory::MemoryError;
use super::recall::{Recall, Witness};
use crate::audit::segment::Segment;
use crate::audit::{AuditError, Record};
use crate::backup::catalog::{self, Filter};
use crate::backup::manifest::{ErasureMark, Manifest};
use crate::store::{Store, StoreErrorKind};

/// What a restore of a backup must know: every ledger that anybody has seen, whole. Ledgers that are
/// not in one of the places are taken from their copies in the store. Blocks while the audit log is
/// read.
///
/// # Errors
/// Names what is missing, and who has seen it.
pub async fn recall(
    mut recall: Recall,
    manifest: &Manifest,
    store: &dyn Store,
    audit: &Path,
) -> Result<Recall, MemoryError> {
    let mut witnesses = Vec::new();
    witnesses.extend(manifest.erasures.clone().map(|mark| Witness {
        who: format!("the manifest of {}", manifest.id),
        mark,
    }));
    witnesses.extend(later_manifests(manifest, store).await?);
    for copy in copies::fetch(store).await? {
        if recall.knows(&copy.ledger) {
            witnesses.push(Witness {
                who: format!("the copy in {}", copy.place),
                mark: copy.mark,
            });
        } else {
            recall.add_lines(&copy.place, &copy.text)?;
        }
    }
    witnesses.extend(of_audit(audit)?);
    for witness in &witnesses {
        recall.check(witness)?;
    }
    Ok(recall)
}

/// The marks of all backups of the same database: a later one has seen more.
async fn later_manifests(manifest: &Manifest, store: &dyn Store) -> Result<Vec<Witness>, MemoryError> {
    let filter = Filter {
        database: Some(&manifest.database),
        job: None,
    };
    let catalog = catalog::list(store, filter).await.map_err(|error| {
        let remedy = match error.kind {
            StoreErrorKind::Transient => "try again",
            _ => "check the store",
        };
        MemoryError::new(
            error.operation,
            error.cause,
            error.remedy.unwrap_or_else(|| remedy.to_owned()),
        )
    })?;
    let marked = catalog.backups.into_iter().filter_map(|entry| {
        Some(Witness {
            who: format!("the manifest of {}", entry.id),
            mark: entry.manifest.erasures?,
        })
    });
    Ok(marked.collect())
}

/// What the audit log of this host has seen of each ledger. Blocks.
///
/// # Errors
/// When it cannot be read. Whether it is sound is for `audit verify` to say.
pub fn of_audit(dir: &Path) -> Result<Vec<Witness>, AuditError> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut furthest: BTreeMap<String, (u64, ErasureMark)> = BTreeMap::new();
    for (segment, length) in Segment::snapshot(dir)? {
        let mut lines = segment.lines(length)?;
        while let Some(line) = lines.next_line()? {
            let Ok(record) = Record::<Value>::parse(line.bytes) else {
                continue;
            };
            if !record.kind.starts_with("erasure.") {
                continue;
            }
            if let Some(mark) = mark_in(&record.body) {
                let known = furthest
                    .entry(mark.ledger.clone())
                    .or_insert_with(|| (record.seq, mark.clone()));
                if mark.entries > known.1.entries {
                    *known = (record.seq, mark);
                }
            }
        }
    }
    let witnesses = furthest.into_values().map(|(seq, mark)| Witness {
        who: format!("record {seq} of the audit log"),
        mark,
    });
    Ok(witnesses.collect())
}

fn mark_in(body: &Value) -> Option<ErasureMark> {
    let members = body.as_object()?;
    let own = serde_json::from_value(body.clone()).ok();
    own.or_else(|| members.values().find_map(mark_in))
}
