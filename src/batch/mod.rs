//! Work on the rows of user tables in many small transactions.
//!
//! A [`Rule`] says which rows are due and what becomes of them. [`plan`] looks it up in the catalog,
//! refuses what cannot be done as meant ([`preflight`]), fixes the cutoff from the database's clock,
//! and counts. Executing the plan walks each leaf table ([`driver`]), one short transaction after
//! another ([`transaction`]), and then counts what is still due ([`verify`]): only zero is green.
//!
//! Which rows are due is said by one text, made once by [`statement`]; the plan's count, every batch
//! and the verification use the same text.

mod archive;
mod attempt;
mod blocks;
mod brake;
mod condition;
mod cutoff;
mod driver;
mod estimate;
mod exemption;
mod fenced;
mod foreign;
mod gate;
mod grants;
mod held;
mod key_walk;
mod leaf_walk;
mod objects;
mod outside;
mod pace;
mod partitions;
mod permission;
mod plan;
pub mod predicate;
mod preflight;
mod report;
mod rule;
mod signals;
mod statement;
mod states;
mod stride;
mod throttle;
mod transaction;
mod verify;

pub use archive::{ArchiveFormat, ArchiveRule};
pub use grants::grants;
pub use objects::ObjectRule;
pub use outside::Beside;
pub use partitions::{PartitionMode, PremakeRule, premake};
pub use plan::{plan, plan_beside};
pub use report::COUNT_LIMIT;
pub use rule::{Brakes, Change, Rule, StateChange};
pub use throttle::Throttle;
