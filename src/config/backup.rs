//! `[jobs.NAME] backup = { … }`.

use std::str::FromStr;

use super::database;
use super::field::Field;
use super::job::Scope;
use crate::backup::compress::Packing;
use crate::backup::form::Format;
use crate::jobs::backup::{BackupSettings, Keep};
use crate::postgres::connect::ConnectTarget;
use crate::values::{Name, ValueError};

/// Keys of the design that this version does not have.
const PLANNED: [&str; 1] = ["bandwidth"];

const FORMATS: [(&str, Format); 2] = [("custom", Format::Custom), ("plain", Format::Plain)];

/// How many dumps one backup can run: each takes a connection.
const MOST_PARALLEL: u32 = 32;

const MOST_THREADS: u32 = 64;

/// How many backups one rule can keep: one each day of about 27 years.
const MOST_KEPT: u32 = 10_000;

pub(super) fn read(field: &Field<'_>, scope: &Scope<'_>) -> Option<BackupSettings> {
    let mut section = field.section()?;
    let store = section.required("store").and_then(|field| store(&field, scope));
    let format = section.optional("format");
    let format = format.map_or(Some(Format::Custom), |field| field.word(&FORMATS, &[]));
    let schema_only = section.optional("schema_only");
    let schema_only = schema_only.map_or(Some(false), |field| field.boolean());
    let globals = section.optional("globals").map_or(Some(true), |field| field.boolean());
    let include = section
        .optional("include")
        .map_or(Some(Vec::new()), |field| list(&field));
    let exclude = section
        .optional("exclude")
        .map_or(Some(Vec::new()), |field| list(&field));
    let standby = section.optional("standby");
    let standby = standby.map_or(Some(None), |field| self::standby(&field, scope).map(Some));
    let compress = section.optional("compress");
    let compress = compress.map_or(Some(Packing::default()), |field| field.parse());
    let threads = section.optional("threads");
    let threads = threads.map_or(Some(1), |field| field.count(1..=MOST_THREADS));
    let parallel = section.optional("parallel");
    let parallel_count = parallel
        .as_ref()
        .map_or(Some(1), |field| field.count(1..=MOST_PARALLEL));
    if let (Some(field), Some(2..)) = (&parallel, parallel_count)
        && (schema_only == Some(true) || format == Some(Format::Plain))
    {
        let help = "leave out `parallel`: it divides the rows of archives in the format \"custom\"";
        field.error("there is only one dump to run", help);
        return None;
    }
    let encrypt = section
        .optional("encrypt")
        .map_or(Some(Vec::new()), |field| list(&field));
    let keep = section
        .optional("keep")
        .map_or(Some(None), |field| keep(&field).map(Some));
    section.finish(&PLANNED);
    Some(BackupSettings {
        store: store?,
        format: format?,
        schema_only: schema_only?,
        globals: globals?,
        include: include?,
        exclude: exclude?,
        standby: standby?,
        compress: compress?,
        threads: threads?,
        parallel: parallel_count?,
        encrypt: encrypt?,
        keep: keep?,
    })
}

pub(super) fn store(field: &Field<'_>, scope: &Scope<'_>) -> Option<Name> {
    let name = field.parse()?;
    scope.stores.refer(field, &name)?;
    Some(name)
}

/// Values of one type; an empty list would say the opposite of what it seems to say.
fn list<T: FromStr<Err = ValueError>>(field: &Field<'_>) -> Option<Vec<T>> {
    let values = field.array()?;
    if values.is_empty() {
        field.error("is empty", "name what is meant, or leave the key out");
        return None;
    }
    let read: Vec<Option<T>> = values.iter().map(Field::parse).collect();
    read.into_iter().collect()
}

fn standby(field: &Field<'_>, scope: &Scope<'_>) -> Option<ConnectTarget> {
    let mut section = field.section()?;
    let target = database::target(&mut section, scope.surroundings);
    section.finish(&[]);
    target
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
