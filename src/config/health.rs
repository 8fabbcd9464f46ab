//! `[jobs.NAME] health = { … }`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::field::Field;
use super::size;
use crate::health::{Check, Health, Limits, Unit};

/// The longest time that a limit may be.
const YEAR: Duration = Duration::from_hours(366 * 24);
/// A part of what there may be can be more than all of it, where autovacuum is late.
const MOST: f64 = 10.0;
const MOST_COUNT: u64 = 2_000_000_000;

pub(super) fn read(field: &Field<'_>) -> Option<Health> {
    let mut section = field.section()?;
    let checks = section.optional("checks");
    let checks = checks.map_or_else(
        || Some(Check::ALL.iter().map(|check| (*check, check.limits())).collect()),
        |field| checks_of(&field),
    );
    section.finish(&[]);
    Some(Health { checks: checks? })
}

fn checks_of(field: &Field<'_>) -> Option<BTreeMap<Check, Limits>> {
    let mut section = field.section()?;
    let mut checks = BTreeMap::new();
    let mut sound = true;
    for check in Check::ALL {
        let Some(field) = section.optional(check.as_str()) else {
            continue;
        };
        match limits(&field, *check) {
            Some(limits) => drop(checks.insert(*check, limits)),
            None => sound = false,
        }
    }
    section.finish(&[]);
    if field.as_table()?.is_empty() {
        let names: Vec<&str> = Check::ALL.iter().map(|check| check.as_str()).collect();
        let help = format!("name one of {}, or leave the key out for all", names.join(", "));
        field.error("names no check", &help);
        return None;
    }
    sound.then_some(checks)
}

/// The limits of a check; one that is not given is the default.
fn limits(field: &Field<'_>, check: Check) -> Option<Limits> {
    let mut section = field.section()?;
    let default = check.limits();
    let warning = section.optional("warning");
    let warning = warning.map_or(Some(default.warning), |field| limit(&field, check.unit()).map(Some));
    let given = section.optional("critical");
    let critical = given
        .as_ref()
        .map_or(Some(default.critical), |field| limit(field, check.unit()).map(Some));
    section.finish(&[]);
    let limits = Limits {
        warning: warning?,
        critical: critical?,
    };
    if let (Some(warning), Some(critical)) = (limits.warning, limits.critical)
        && critical < warning
    {
        let unit = check.unit();
        let (warning, critical) = (unit.write(warning), unit.write(critical));
        let problem = format!("it is critical from {critical} on and warns from {warning} on");
        given
            .as_ref()
            .unwrap_or(field)
            .error(&problem, "let `critical` be the higher one");
        return None;
    }
    Some(limits)
}

fn limit(field: &Field<'_>, unit: Unit) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a limit for a comparison")]
    let float = |number: u64| number as f64;
    match unit {
        Unit::Bytes => field
            .checked(size::bytes(field.text()?, ", such as \"10GB\""))
            .map(float),
        Unit::Seconds => field.duration(YEAR).map(|time| time.as_secs_f64()),
        Unit::Count => field.whole(1..=MOST_COUNT).map(float),
        Unit::Fraction => field.number(MOST),
    }
}
