//! What happened, in the database: the schema `pgreeve` and every statement on it.
//!
//! The ledger answers "what was due, what ran, what did it do". It does not decide what runs.

pub mod admission;
pub mod archives;
pub mod attempts;
pub mod backups;
pub mod batches;
pub mod cancels;
pub mod erasures;
pub mod forgotten;
pub mod holds;
pub mod index_sizes;
pub mod lag;
pub mod leader;
pub mod locks;
pub mod migrate;
pub mod notices;
pub mod pauses;
pub mod policies;
pub mod purges;
pub mod reconcile;
pub mod rollups;
pub mod runs;
pub mod slots;
pub mod trend;
