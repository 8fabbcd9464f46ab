//! Rollups: measures of a table's rows by buckets of time, kept in a table that outlives the rows.
//!
//! A [`Rollup`] says what is computed. [`init::init`] makes its table, or adopts one. [`plan()`] looks
//! everything up and refuses what cannot be done as meant ([`check`]). A run computes every bucket
//! that is not *sealed* again, and moves the seal in the same transaction ([`work`]): a bucket is
//! sealed when it is over, `lateness` has passed, and no transaction under way can still write into it
//! ([`horizon`]). In the exact mode triggers note which buckets change ([`triggers`]).
//!
//! A purge of the source waits for the seal, and says how far it goes before it deletes; no bucket is
//! computed from there any more. So what is sealed never shrinks.

pub mod bucket;
mod check;
mod compare;
mod horizon;
pub mod init;
pub mod measure;
mod metric;
mod plan;
mod refresh;
mod rights;
pub mod spec;
mod statement;
mod target;
pub mod triggers;
pub mod views;
mod work;

pub use plan::{grants, plan};
pub use spec::{Rollup, Task};
