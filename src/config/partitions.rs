//! `[jobs.NAME] partitions = { … }`.

use super::field::Field;
use crate::jobs::partitions::PartitionsSettings;

/// How many partitions a job may make ahead.
const MOST: u32 = 1000;

pub(super) fn read(field: &Field<'_>) -> Option<PartitionsSettings> {
    let mut section = field.section()?;
    let table = section.required("table").and_then(|field| field.parse());
    let premake = section.optional("premake");
    let premake = premake.map_or(Some(3), |field| field.count(1..=MOST));
    let interval = section.required("interval").and_then(|field| field.parse());
    let timezone = section.optional("timezone");
    let timezone = timezone.map_or(Some(None), |field| field.parse().map(Some));
    section.finish(&[]);
    Some(PartitionsSettings {
        table: table?,
        premake: premake?,
        interval: interval?,
        timezone: timezone?,
    })
}
