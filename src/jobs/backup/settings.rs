//! What the configuration says of a backup.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::backup::compress::Packing;
use crate::backup::form::Format;
use crate::backup::keep::Policy;
use crate::backup::seal::Recipient;
use crate::postgres::connect::ConnectTarget;
use crate::values::{Name, Period, TableName};

/// `[jobs.NAME] backup = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackupSettings {
    /// The store's name in the configuration.
    pub store: Name,
    /// The archive's format. Default `custom`.
    pub format: Format,
    /// Only the definitions, without rows.
    pub schema_only: bool,
    /// Whether roles and tablespaces are stored too. Default true.
    pub globals: bool,
    /// The tables to dump: `table`, `schema.table`, `schema.*`; all, if none is named.
    pub include: Vec<TableName>,
    /// Tables to leave out.
    pub exclude: Vec<TableName>,
    /// Where to dump from, if not from the job's own server.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "place")]
    pub standby: Option<ConnectTarget>,
    /// How the archive is compressed. Default `gzip:4`.
    pub compress: Packing,
    /// How many threads compress. Default 1.
    pub threads: u32,
    /// How many dumps run at the same time. Default 1.
    pub parallel: u32,
    /// How many bytes a second go to the store at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// How long the dump may hold its snapshot, which keeps vacuum from removing what is deleted
    /// meanwhile; past it there is no backup. No limit of its own by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<Duration>,
    /// Who can read the backups; everybody, if nobody is named.
    pub encrypt: Vec<Recipient>,
    /// What is kept; nothing is ever removed without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

#[expect(clippy::ref_option, reason = "it is what serde passes")]
fn place<S: Serializer>(standby: &Option<ConnectTarget>, serializer: S) -> Result<S::Ok, S::Error> {
    standby.as_ref().map(ConnectTarget::describe).serialize(serializer)
}

/// Which backups stay: the newest of each period, for so many periods; a backup that any rule
/// keeps stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Keep {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of the last so many days that have one.
    pub daily: u32,
    /// The newest of each week.
    pub weekly: u32,
    /// The newest of each month.
    pub monthly: u32,
    /// The newest of each year.
    pub yearly: u32,
    /// All that are younger than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<Period>,
    /// Never fewer than this many, whatever the rules say. At least 2.
    pub min: u32,
    /// None that is older than this is kept by a rule; only by `min`, or because it is the newest or
    /// the newest that was proved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Period>,
}

impl Keep {
    /// The policy, as the planner takes it.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            last: self.last,
            daily: self.daily,
            weekly: self.weekly,
            monthly: self.monthly,
            yearly: self.yearly,
            within: self.within,
            min: self.min,
            max_age: self.max_age,
        }
    }
}
