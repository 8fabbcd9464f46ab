//! The kinds: thin files that say *what* a run does; the engines below say how.

pub mod backup;
pub mod build;
pub mod call;
pub mod erasure;
pub mod export;
pub mod health;
pub mod partitions;
pub mod refresh;
pub mod restore_check;
pub mod retention;
pub mod rollup;
pub mod transition;
pub mod upkeep;

use serde::Serialize;

use self::backup::BackupSettings;
use self::export::ExportSettings;
use self::partitions::PartitionsSettings;
use self::restore_check::RestoreCheckSettings;
use self::retention::RetentionSettings;
use self::transition::TransitionSettings;
use crate::call::Call;
use crate::erasure::rule::Rule;
use crate::health::Health;
use crate::job::Kind;
use crate::rollup::Rollup;
use crate::rollup::views::Views;
use crate::upkeep::Upkeep;
use crate::values::{Name, fingerprint};

/// A job's kind with its settings: `[jobs.NAME] KIND = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KindSettings {
    /// `retention = { … }`
    Retention(RetentionSettings),
    /// `transition = { … }`
    Transition(TransitionSettings),
    /// `rollup = { … }`
    Rollup(Rollup),
    /// `refresh = { … }`
    Refresh(Views),
    /// `backup = { … }`
    Backup(BackupSettings),
    /// `export = { … }`
    Export(ExportSettings),
    /// `erasure = { … }`
    Erasure(Box<Rule>),
    /// `partitions = { … }`
    Partitions(PartitionsSettings),
    /// `upkeep = { … }`
    Upkeep(Upkeep),
    /// `health = { … }`
    Health(Health),
    /// `call = { … }`
    Call(Call),
    /// `restore_check = { … }`
    RestoreCheck(RestoreCheckSettings),
}

impl KindSettings {
    /// The kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Retention(_) => Kind::Retention,
            Self::Transition(_) => Kind::Transition,
            Self::Rollup(_) => Kind::Rollup,
            Self::Refresh(_) => Kind::Refresh,
            Self::Backup(_) => Kind::Backup,
            Self::Export(_) => Kind::Export,
            Self::Erasure(_) => Kind::Erasure,
            Self::Partitions(_) => Kind::Partitions,
            Self::Upkeep(_) => Kind::Upkeep,
            Self::Health(_) => Kind::Health,
            Self::Call(_) => Kind::Call,
            Self::RestoreCheck(_) => Kind::RestoreCheck,
        }
    }

    /// The stores it uses, each with the key that names it.
    #[must_use]
    pub fn stores(&self) -> Vec<(&'static str, &Name)> {
        match self {
            Self::Retention(settings) => settings.stores(),
            Self::Transition(_)
            | Self::Erasure(_)
            | Self::Rollup(_)
            | Self::Refresh(_)
            | Self::Partitions(_)
            | Self::Upkeep(_)
            | Self::Health(_)
            | Self::Call(_) => Vec::new(),
            Self::Backup(settings) => vec![("store", &settings.store)],
            Self::Export(settings) => vec![("store", &settings.store)],
            Self::RestoreCheck(settings) => vec![("backup", &settings.store)],
        }
    }

    /// The policy's identity, `sha256:` and 64 hexadecimal digits: equal for settings that mean the
    /// same however they were written, different for any other. It is what `pgreeve approve` approves.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        // Settings hold only what JSON can say. Should a kind ever break that, its debug form
        // still tells two policies apart.
        let canonical = serde_json::to_value(self).map_or_else(|_| format!("{self:?}"), |value| value.to_string());
        fingerprint(&canonical)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retention(keep: &str) -> RetentionSettings {
        RetentionSettings {
            table: "events".parse().unwrap(),
            age_column: "created_at".to_owned(),
            keep: keep.parse().unwrap(),
            predicate: Some("processed".to_owned()),
            timezone: None,
            keep_latest_per: Vec::new(),
            skip_if_referenced: false,
            after: Vec::new(),
            max_fraction: None,
            max_rows: None,
            archive: None,
            objects: None,
            partitions: None,
        }
    }

    #[test]
    fn a_fingerprint_is_the_digest_of_the_canonical_json() {
        let policy = KindSettings::Retention(retention("90d"));
        let canonical =
            r#"{"retention":{"age_column":"created_at","keep":"90d","table":"events","where":"processed"}}"#;
        assert_eq!(
            policy.fingerprint(),
            fingerprint(canonical),
            "{}",
            serde_json::to_value(&policy).unwrap()
        );
    }

    #[test]
    fn a_fingerprint_changes_with_the_meaning_only() {
        let policy = KindSettings::Retention(retention("90d"));
        assert_eq!(
            KindSettings::Retention(retention("12w6d")).fingerprint(),
            policy.fingerprint()
        );
        for other in [
            retention("91d"),
            RetentionSettings {
                predicate: None,
                ..retention("90d")
            },
            RetentionSettings {
                max_rows: Some(1),
                ..retention("90d")
            },
        ] {
            assert_ne!(KindSettings::Retention(other).fingerprint(), policy.fingerprint());
        }
    }
}
