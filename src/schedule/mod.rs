//! When a job is due, and who starts it.
//!
//! [`heartbeat`] pokes each database's [`dispatcher`] once a second. The dispatcher computes the
//! slots between the last evaluation and now ([`cron`]), decides about each ([`due`]), writes their
//! rows, and only then starts a run.

pub mod board;
pub mod cancelling;
pub mod clock;
pub mod command;
pub mod cron;
pub mod dispatcher;
pub mod due;
mod evaluating;
pub mod fields;
mod forgetting;
pub mod gate;
pub mod heartbeat;
mod leading;
pub mod lint;
pub mod marks;
pub mod overlap;
pub mod pausing;
pub mod policy;
pub mod recovery;
pub mod rows;
mod seconds;
pub mod slots;
mod standing;
mod starting;
mod trust;
