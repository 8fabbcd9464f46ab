//! `[jobs.NAME] throttle = { … }`.

use std::time::Duration;

use super::field::Field;
use super::size::bytes;
use crate::batch::Throttle;

/// The longest a signal may be waited for or be late.
const LONGEST: Duration = Duration::from_hours(24 * 30);

pub(super) fn read(field: &Field<'_>) -> Option<Throttle> {
    let mut section = field.section()?;
    let default = Throttle::default();
    let mut sound = true;
    let mut or = |found: Option<Limit>, default: Option<u64>| match found {
        None => default,
        Some(Limit::At(value)) => Some(value),
        Some(Limit::Off) => None,
        Some(Limit::Wrong) => {
            sound = false;
            default
        }
    };
    let millis = |duration: Option<Duration>| duration.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    let time = |field: Field<'_>| Limit::of(&field, |field| millis(field.duration(LONGEST)));
    let size = |field: Field<'_>| {
        Limit::of(&field, |field| {
            field.text().and_then(|text| field.checked(bytes(text, OR_OFF)))
        })
    };
    let files = |field: Field<'_>| Limit::of(&field, |field| field.whole(0..=1_000_000));
    let replica_lag = or(section.optional("replica_lag").map(time), millis(default.replica_lag));
    let slot_wal = or(section.optional("slot_wal").map(size), default.slot_wal);
    let archive_backlog = or(section.optional("archive_backlog").map(files), default.archive_backlog);
    let wal_rate = or(section.optional("wal_rate").map(size), default.wal_rate);
    let oldest_snapshot = or(
        section.optional("oldest_snapshot").map(time),
        millis(default.oldest_snapshot),
    );
    let patience = section
        .optional("patience")
        .map_or(Some(default.patience), |field| field.duration(LONGEST));
    let autovacuum = section
        .optional("autovacuum")
        .map_or(Some(default.autovacuum), |field| field.boolean());
    let yield_to_others = section
        .optional("yield_to_others")
        .map_or(Some(default.yield_to_others), |field| field.boolean());
    section.finish(&[]);
    let throttle = Throttle {
        replica_lag: replica_lag.map(Duration::from_millis),
        slot_wal,
        archive_backlog,
        wal_rate,
        autovacuum: autovacuum?,
        oldest_snapshot: oldest_snapshot.map(Duration::from_millis),
        patience: patience?,
        yield_to_others: yield_to_others?,
    };
    sound.then_some(throttle)
}

/// What a limit may be besides a size.
const OR_OFF: &str = ", such as \"16GB\", or \"off\"";

/// What a key says.
enum Limit {
    At(u64),
    Off,
    Wrong,
}

impl Limit {
    fn of(field: &Field<'_>, value: impl Fn(&Field<'_>) -> Option<u64>) -> Self {
        if field.value.as_str() == Some("off") {
            return Self::Off;
        }
        value(field).map_or(Self::Wrong, Self::At)
    }
}
