//! The closed list of what an audit record can be about.

use std::fmt;

/// Declares [`RecordKind`]: one line a kind, its word and its meaning.
macro_rules! record_kinds {
    ($($name:ident = $word:literal: $meaning:literal,)*) => {
        /// What a record is about.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum RecordKind {
            $(#[doc = $meaning] $name,)*
        }

        impl RecordKind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The kind's word, as it stands in the log.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

record_kinds! {
    DaemonStart = "daemon.start": "The daemon began to work.",
    DaemonStop = "daemon.stop": "The daemon ended in good order.",
    ConfigApplied = "config.applied": "A configuration came into force.",
    ConfigRejected = "config.rejected": "A configuration had mistakes; the old one stays in force.",
    StoreProbed = "store.probed": "A store of the configuration was tried; the body says what it is capable of.",
    PolicyApproved = "policy.approved": "An operator approved a destructive policy by its hash.",
    RunStart = "run.start": "A run is about to act; the body is its intent.",
    RunEnd = "run.end": "A run ended; the body has its `outcome`.",
    RunInterrupted = "run.interrupted": "A run has no end because its process died.",
    RunCancel = "run.cancel": "An operator asked for the end of a run.",
    Missed = "missed": "A slot was due while nobody could run it.",
    Skipped = "skipped": "A slot was due and was deliberately not run.",
    JobPaused = "job.paused": "An operator paused a job.",
    JobResumed = "job.resumed": "A paused job goes on.",
    HoldPlaced = "hold.placed": "A legal hold was placed.",
    HoldReleased = "hold.released": "A legal hold was released.",
    RollupChanged = "rollup.changed": "An operator initialised, adopted or removed a rollup.",
    ErasureRequested = "erasure.requested": "An erasure was asked for.",
    ErasureExtended = "erasure.extended": "The deadline of an erasure was extended.",
    ErasureRejected = "erasure.rejected": "A request for erasure was refused, with a reason.",
    ErasureStarted = "erasure.started": "The steps of an erasure are about to run; the body is the plan.",
    ErasureStep = "erasure.step": "One step of an erasure is done.",
    ErasureCompleted = "erasure.completed": "An erasure is done and its residue was searched.",
    ErasureFailed = "erasure.failed": "An erasure did not come to its end.",
    ErasureReplayed = "erasure.replayed": "An erasure was repeated after a restore.",
    ErasureNotified = "erasure.notified": "A recipient has acknowledged an erasure.",
    ErasureSearched = "erasure.searched": "What is left of the erased was searched once more.",
    ErasureKeyDestroyed = "erasure.key_destroyed": "A key of subject tokens is about to be destroyed.",
    BackupStarted = "backup.started": "An upload is about to begin.",
    BackupCommitted = "backup.committed": "A backup exists: its manifest is written.",
    BackupFailed = "backup.failed": "A backup did not come to exist.",
    BackupSwept = "backup.swept": "What a crash had left in the store was removed.",
    BackupPruned = "backup.pruned": "Backups past their keep rules are about to be removed.",
    BackupVerified = "backup.verified": "A backup was checked.",
    ArchiveCommitted = "archive.committed": "Deleted rows lie in a store: the archive's manifest is written.",
    ArchiveSwept = "archive.swept": "Objects that a crash had left of an archive, of rows still in their table, were removed.",
    ArchiveExpired = "archive.expired": "Archives past their keep period are about to be removed, or were.",
    ExportStarted = "export.started": "The rows of a tenant or subject are about to be written to a store.",
    ExportCommitted = "export.committed": "An export exists: its manifest is written.",
    ExportFailed = "export.failed": "An export did not come to exist.",
    ExportPruned = "export.pruned": "Exports past their keep rules are about to be removed, or were.",
    RestoreStarted = "restore.started": "A backup is about to be restored into a new database.",
    RestoreCompleted = "restore.completed": "A restored database is whole and open.",
    RestoreFailed = "restore.failed": "A restore did not come to its end.",
    RestoreReplayed = "restore.replayed": "Erasures since the snapshot were repeated in a restored database.",
    DatabaseRewound = "database.rewound": "A database is older than this log: it was restored or replaced.",
    LedgerForgotten = "ledger.forgotten": "Rows of the ledger past their keep period are about to be removed.",
    ClockJump = "clock.jump": "The host's clock was set.",
    Checkpoint = "checkpoint": "The log signs itself.",
    Segment = "segment": "A new file begins.",
    LogRecovered = "log.recovered": "A write that a crash had cut short was set aside.",
}

impl RecordKind {
    /// The kind that a word stands for.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == word)
    }

    /// Whether only the log itself writes records of this kind.
    #[must_use]
    pub fn is_internal(self) -> bool {
        matches!(self, Self::Checkpoint | Self::Segment | Self::LogRecovered)
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_word_of_its_own() {
        for kind in RecordKind::ALL {
            assert_eq!(RecordKind::from_word(kind.as_str()), Some(*kind));
        }
        assert_eq!(RecordKind::from_word("run.stop"), None);
    }
}
