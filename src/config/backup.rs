//! `[jobs.NAME] backup = { … }`.

use super::field::Field;
use super::job::Scope;
use crate::backup::compress::Packing;
use crate::jobs::backup::{BackupSettings, Format, Keep};
use crate::values::Name;

/// Keys of the design that this version does not have.
const PLANNED: [&str; 7] = [
    "parallel",
    "encrypt",
    "schema_only",
    "globals",
    "include",
    "exclude",
    "bandwidth",
];

const FORMATS: [(&str, Format); 1] = [("custom", Format::Custom)];

const MOST_THREADS: u32 = 64;

/// How many backups one rule can keep: one each day of about 27 years.
const MOST_KEPT: u32 = 10_000;

pub(super) fn read(field: &Field<'_>, scope: &Scope<'_>) -> Option<BackupSettings> {
    let mut section = field.section()?;
    let store = section.required("store").and_then(|field| store(&field, scope));
    let format = section.optional("format");
    let format = format.map_or(Some(Format::Custom), |field| {
        field.word(&FORMATS, &["plain", "schema_only"])
    });
    let compress = section.optional("compress");
    let compress = compress.map_or(Some(Packing::default()), |field| field.parse());
    let threads = section.optional("threads");
    let threads = threads.map_or(Some(1), |field| field.count(1..=MOST_THREADS));
    let keep = section
        .optional("keep")
        .map_or(Some(None), |field| keep(&field).map(Some));
    section.finish(&PLANNED);
    Some(BackupSettings {
        store: store?,
        format: format?,
        compress: compress?,
        threads: threads?,
        keep: keep?,
    })
}

pub(super) fn store(field: &Field<'_>, scope: &Scope<'_>) -> Option<Name> {
    let name = field.parse()?;
    scope.stores.refer(field, &name)?;
    Some(name)
}

fn keep(field: &Field<'_>) -> Option<Keep> {
    let mut section = field.section()?;
    let mut rule = |key| {
        section
            .optional(key)
            .map_or(Some(0), |field| field.count(0..=MOST_KEPT))
    };
    let [last, daily, weekly, monthly, yearly] = ["last", "daily", "weekly", "monthly", "yearly"].map(&mut rule);
    let within = section.optional("within");
    let within = within.map_or(Some(None), |field| field.parse().map(Some));
    let min = section.optional("min");
    let min = min.map_or(Some(2), |field| field.count(2..=MOST_KEPT));
    section.finish(&["max_age"]);
    let keep = Keep {
        last: last?,
        daily: daily?,
        weekly: weekly?,
        monthly: monthly?,
        yearly: yearly?,
        within: within?,
        min: min?,
    };
    let counts = [keep.last, keep.daily, keep.weekly, keep.monthly, keep.yearly];
    if counts == [0; 5] && keep.within.is_none() {
        let help = "write a rule such as keep = { daily = 7, weekly = 5, monthly = 12 }, or leave `keep` out to remove nothing";
        field.error("no rule keeps a backup", help);
        return None;
    }
    Some(keep)
}
