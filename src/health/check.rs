//! The catalogue of checks.

use serde::Serialize;

/// What a check measures its figure in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A number of things.
    Count,
    /// A part of what there may be: 1 is all of it.
    Fraction,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
}

impl Unit {
    /// As reports name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Fraction => "fraction",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
        }
    }

    /// A figure for people.
    #[must_use]
    pub fn write(self, value: f64) -> String {
        match self {
            Self::Count => format!("{value:.0}"),
            Self::Fraction => format!("{:.0} %", value * 100.0),
            Self::Seconds if value >= 7200.0 => format!("{:.1} h", value / 3600.0),
            Self::Seconds if value >= 120.0 => format!("{:.0} min", value / 60.0),
            Self::Seconds => format!("{value:.0} s"),
            Self::Bytes => format!("{:.0} MiB", value / (1024.0 * 1024.0)),
        }
    }
}

/// From which figure on a check warns, and from which it is critical; each may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limits {
    /// In the check's unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<f64>,
    /// In the check's unit; not below `warning`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical: Option<f64>,
}

const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// Makes the enum and its tables from one list, so that none of them can lack a check.
macro_rules! checks {
    ($($variant:ident = $name:literal, $unit:ident, $warning:expr, $critical:expr, $doc:literal;)+) => {
        /// One check.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub enum Check {
            $(#[doc = $doc] #[serde(rename = $name)] $variant,)+
        }

        impl Check {
            /// All checks.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As the configuration names it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What its figure is measured in.
            #[must_use]
            pub fn unit(self) -> Unit {
                match self { $(Self::$variant => Unit::$unit,)+ }
            }

            /// Its limits where none are given.
            #[must_use]
            pub fn limits(self) -> Limits {
                match self { $(Self::$variant => Limits { warning: $warning, critical: $critical },)+ }
            }
        }
    };
}

checks! {
    ArchiveBacklog = "archive_backlog", Count, Some(42.0), Some(420.0),
        "Segments of WAL that wait to be archived.";
    BackupAge = "backup_age", Seconds, Some(26.0 * HOUR), Some(50.0 * HOUR),
        "How old the newest backup of a job is, of databases that have one.";
    Backends = "backends", Fraction, Some(0.8), Some(0.9),
        "The part of `max_connections` that is in use.";
    BtreeBloat = "btree_bloat", Fraction, Some(0.5), Some(0.7),
        "The part of an index of 100 MiB or more that is bloat.";
    ChecksumErrors = "checksum_errors", Count, Some(1.0), Some(1.0),
        "Pages whose checksums were wrong.";
    DeadRows = "dead_rows", Fraction, Some(0.2), Some(0.5),
        "The part of a table's rows that is dead, of tables with 10,000 dead rows or more.";
    InvalidIndexes = "invalid_indexes", Count, Some(1.0), Some(1.0),
        "Indexes that every write maintains and no query uses.";
    LockWaits = "lock_waits", Seconds, Some(30.0), Some(5.0 * MINUTE),
        "How long a session has waited for a lock.";
    LongestQuery = "longest_query", Seconds, Some(HOUR), Some(4.0 * HOUR),
        "How long a statement of an application has run.";
    LostSlots = "lost_slots", Count, Some(1.0), Some(1.0),
        "Replication slots whose WAL is gone, or about to go.";
    MaxFreezeAge = "max_freeze_age", Fraction, Some(1.2), Some(1.5),
        "How old the oldest transaction of a database is, by the age at which autovacuum must freeze it.";
    OldestPrepared = "oldest_2pc", Seconds, Some(10.0 * MINUTE), Some(HOUR),
        "How old a prepared transaction is.";
    OldestIdlexact = "oldest_idlexact", Seconds, Some(15.0 * MINUTE), Some(HOUR),
        "How long a session has been idle in a transaction.";
    OldestXmin = "oldest_xmin", Count, Some(10_000_000.0), Some(100_000_000.0),
        "How many transactions ago the oldest snapshot was taken, which vacuum cannot pass.";
    ReplicationLag = "replication_lag", Seconds, Some(MINUTE), Some(10.0 * MINUTE),
        "How far a standby is behind.";
    ReplicationSlots = "replication_slots", Bytes, Some(10.0 * GIB), Some(50.0 * GIB),
        "How much WAL a replication slot keeps.";
    SequencesExhausted = "sequences_exhausted", Fraction, Some(0.75), Some(0.9),
        "The part of a sequence that is used up.";
    TableUnlogged = "table_unlogged", Count, Some(1.0), None,
        "Tables that a crash empties.";
    UnindexedKeys = "unindexed_foreign_keys", Count, Some(1.0), None,
        "Foreign keys without an index to find the rows that refer to a row that is deleted.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_for_people() {
        assert_eq!(Unit::Fraction.write(0.755), "76 %");
        assert_eq!(Unit::Seconds.write(119.0), "119 s");
        assert_eq!(Unit::Seconds.write(120.0), "2 min");
        assert_eq!(Unit::Seconds.write(9000.0), "2.5 h");
        assert_eq!(Unit::Bytes.write(3.0 * GIB), "3072 MiB");
    }

    #[test]
    fn a_default_is_critical_no_sooner_than_it_warns() {
        for check in Check::ALL {
            let Limits { warning, critical } = check.limits();
            assert!(
                warning
                    .zip(critical)
                    .is_none_or(|(warning, critical)| warning <= critical)
            );
        }
    }
}
