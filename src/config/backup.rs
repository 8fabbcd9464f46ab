//! `[jobs.NAME] backup = { … }`.

use std::str::FromStr;
use std::time::Duration;

use super::database;
use super::field::Field;
use super::job::Scope;
use super::size::bytes;
use crate::backup::compress::Packing;
use crate::backup::form::Format;
use crate::jobs::backup::{BackupSettings, Keep};
use crate::postgres::connect::ConnectTarget;
use crate::values::{Name, Period, ValueError};

const FORMATS: [(&str, Format); 2] = [("custom", Format::Custom), ("plain", Format::Plain)];

/// How many dumps one backup can run: each takes a connection.
const MOST_PARALLEL: u32 = 32;

const MOST_THREADS: u32 = 64;

/// The longest time for which a dump may hold its snapshot: thirty days.
const LONGEST: Duration = Duration::from_hours(24 * 30);

/// The least bandwidth, in bytes a second: with less, a part takes longer than it is tried for.
const LEAST_BANDWIDTH: u64 = 64 * 1024;

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
    let bandwidth = section.optional("bandwidth");
    let bandwidth = bandwidth.map_or(Some(None), |field| self::bandwidth(&field).map(Some));
    let max_duration = section.optional("max_duration");
    let max_duration = max_duration.map_or(Some(None), |field| field.duration(LONGEST).map(Some));
    let encrypt = section
        .optional("encrypt")
        .map_or(Some(Vec::new()), |field| list(&field));
    let keep = section
        .optional("keep")
        .map_or(Some(None), |field| keep(&field).map(Some));
    section.finish(&[]);
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
        bandwidth: bandwidth?,
        max_duration: max_duration?,
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
pub(super) fn list<T: FromStr<Err = ValueError>>(field: &Field<'_>) -> Option<Vec<T>> {
    let values = field.array()?;
    if values.is_empty() {
        field.error("is empty", "name what is meant, or leave the key out");
        return None;
    }
    let read: Vec<Option<T>> = values.iter().map(Field::parse).collect();
    read.into_iter().collect()
}

/// Bytes a second.
fn bandwidth(field: &Field<'_>) -> Option<u64> {
    let rate = field.checked(bytes(field.text()?, " a second, such as \"20MB\""))?;
    if rate < LEAST_BANDWIDTH {
        field.error("this is too little to finish a part", "write 64kB a second or more");
        return None;
    }
    Some(rate)
}

fn standby(field: &Field<'_>, scope: &Scope<'_>) -> Option<ConnectTarget> {
    let mut section = field.section()?;
    let target = database::target(&mut section, scope.surroundings);
    section.finish(&[]);
    target
}

pub(super) fn keep(field: &Field<'_>) -> Option<Keep> {
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
    let age_field = section.optional("max_age");
    let max_age = age_field.as_ref().map_or(Some(None), |field| field.parse().map(Some));
    section.finish(&[]);
    let keep = Keep {
        last: last?,
        daily: daily?,
        weekly: weekly?,
        monthly: monthly?,
        yearly: yearly?,
        within: within?,
        min: min?,
        max_age: max_age?,
    };
    if let Some(field) = &age_field {
        reaches(field, &keep)?;
    }
    let counts = [keep.last, keep.daily, keep.weekly, keep.monthly, keep.yearly];
    if counts == [0; 5] && keep.within.is_none() {
        let help = "write a rule such as keep = { daily = 7, weekly = 5, monthly = 12 }, or leave `keep` out to remove nothing";
        field.error("no rule keeps a backup", help);
        return None;
    }
    Some(keep)
}

/// Refuses rules that reach further back than `max_age` lets any backup live.
fn reaches(field: &Field<'_>, keep: &Keep) -> Option<()> {
    let most = days(&keep.max_age?, 31);
    if most == 0 {
        field.error("this is less than a day", "write a period such as \"1y\"");
        return None;
    }
    let counts = [
        ("daily", keep.daily, 1),
        ("weekly", keep.weekly, 7),
        ("monthly", keep.monthly, 28),
        ("yearly", keep.yearly, 365),
    ];
    // The newest of the first period is of today, so a rule for n periods reaches n - 1 of them back.
    let of_counts = counts
        .into_iter()
        .map(|(rule, count, length)| (rule, u64::from(count.saturating_sub(1)) * length));
    let of_within = keep.within.map(|within| ("within", days(&within, 28)));
    for (rule, reach) in of_counts.chain(of_within) {
        if reach > most {
            let problem = format!("`{rule}` keeps backups for {reach} days or more, and `max_age` for {most} at most");
            field.error(&problem, &format!("raise `max_age`, or lower `{rule}`"));
            return None;
        }
    }
    Some(())
}

/// A period in whole days, a month being so many.
fn days(period: &Period, month: u64) -> u64 {
    let (months, days, millis) = period.parts();
    u64::from(months) * month + u64::from(days) + millis / 86_400_000
}
