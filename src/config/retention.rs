//! `[jobs.NAME] retention = { … }`.

use super::field::Field;
use super::job::Scope;
use super::{backup, rows};
use crate::backup::compress::Packing;
use crate::batch::{ArchiveFormat, PartitionMode};
use crate::jobs::retention::{ArchiveSettings, ObjectSettings, RetentionSettings};
use crate::values::JobName;

/// The largest part of a table that a run may delete where the policy does not say.
const MAX_FRACTION: f64 = 0.3;

pub(super) fn read(field: &Field<'_>, scope: &Scope<'_>) -> Option<RetentionSettings> {
    let mut section = field.section()?;
    let rows = rows::read(&mut section);
    let keep = section.required("keep").and_then(|field| field.parse());
    let max_fraction = section
        .optional("max_fraction")
        .map_or(Some(MAX_FRACTION), |field| field.fraction());
    let max_rows = section
        .optional("max_rows")
        .and_then(|field| field.whole(1..=i64::MAX.unsigned_abs()));
    let keep_latest_per = section
        .optional("keep_latest_per")
        .map_or(Some(Vec::new()), |field| rows::columns(&field));
    let skip_if_referenced = section
        .optional("skip_if_referenced")
        .map_or(Some(false), |field| field.boolean());
    let archive = section.optional("archive");
    let archive = archive.map_or(Some(None), |field| archive_of(&field, scope).map(Some));
    let objects = section.optional("objects");
    let objects = objects.map_or(Some(None), |field| objects_of(&field, scope).map(Some));
    let partitions = section.optional("partitions");
    let partitions = partitions.map_or(Some(None), |field| field.word(&PartitionMode::WORDS, &[]).map(Some));
    let after = section.optional("after");
    let after = after.map_or(Some(Vec::new()), |field| after_of(&field, scope));
    section.finish(&[]);
    Some(RetentionSettings {
        table: rows.table?,
        age_column: rows.age_column?,
        keep: keep?,
        predicate: rows.predicate,
        timezone: rows.timezone,
        keep_latest_per: keep_latest_per?,
        skip_if_referenced: skip_if_referenced?,
        after: after?,
        max_fraction,
        max_rows,
        archive: archive?,
        objects: objects?,
        partitions: partitions?,
    })
}

/// Jobs of the configuration, at least one.
fn after_of(field: &Field<'_>, scope: &Scope<'_>) -> Option<Vec<JobName>> {
    let elements = field.array()?;
    if elements.is_empty() {
        field.error(
            "names no job",
            "name at least one rollup, or leave the key out: every rollup of the table is waited for anyway",
        );
        return None;
    }
    let job = |element: &Field<'_>| {
        let name: JobName = element.parse()?;
        scope.jobs.refer(element, &name).map(|()| name)
    };
    elements.iter().map(job).collect()
}

fn archive_of(field: &Field<'_>, scope: &Scope<'_>) -> Option<ArchiveSettings> {
    let mut section = field.section()?;
    let store = section.required("store").and_then(|field| backup::store(&field, scope));
    let format = section.optional("format");
    let format = format.map_or(Some(ArchiveFormat::Jsonl), |field| {
        field.word(&ArchiveFormat::WORDS, &[])
    });
    let compress = section.optional("compress");
    let compress = compress.map_or(Some(Packing::default()), |field| field.parse());
    let keep = section.optional("keep");
    let keep = keep.map_or(Some(None), |field| field.parse().map(Some));
    section.finish(&[]);
    Some(ArchiveSettings {
        store: store?,
        format: format?,
        compress: compress?,
        keep: keep?,
    })
}

fn objects_of(field: &Field<'_>, scope: &Scope<'_>) -> Option<ObjectSettings> {
    let mut section = field.section()?;
    let store = section.required("store").and_then(|field| backup::store(&field, scope));
    let key_column = section.required("key_column").and_then(|field| rows::column(&field));
    section.finish(&[]);
    Some(ObjectSettings {
        store: store?,
        key_column: key_column?,
    })
}
