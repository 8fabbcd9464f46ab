//! `[jobs.NAME] retention = { … }`.

use super::field::Field;
use super::rows;
use crate::jobs::retention::RetentionSettings;

/// Keys of the design that this version does not have.
const PLANNED: [&str; 3] = ["archive", "objects", "after"];

/// The largest part of a table that a run may delete where the policy does not say.
const MAX_FRACTION: f64 = 0.3;

pub(super) fn read(field: &Field<'_>) -> Option<RetentionSettings> {
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
    section.finish(&PLANNED);
    Some(RetentionSettings {
        table: rows.table?,
        age_column: rows.age_column?,
        keep: keep?,
        predicate: rows.predicate,
        timezone: rows.timezone,
        keep_latest_per: keep_latest_per?,
        skip_if_referenced: skip_if_referenced?,
        max_fraction,
        max_rows,
    })
}
