//! Backups: a dump streamed to a store, and back.
//!
//! ```text
//! pg_dump → walker + SHA-256 → gzip or zstd → (age) → SHA-256 + parts → store → manifest
//! ```
//!
//! [`pipeline`] moves the bytes, [`commit`] decides that they are a backup. A backup exists when
//! its manifest does, and the manifest is the last object written. Nothing here knows of schedules
//! or configuration files.

pub mod catalog;
pub mod commit;
pub mod compress;
pub mod digest;
pub mod dump;
pub mod expiry;
pub mod form;
pub mod grants;
pub mod keep;
mod make;
pub mod manifest;
pub mod parts;
pub mod pipeline;
pub mod preflight;
mod priority;
pub mod program;
pub mod prove;
pub mod prune;
pub mod read;
pub mod restore;
pub mod run;
pub mod seal;
pub mod selection;
pub mod slices;
pub mod snapshot;
pub mod standby;
pub mod sweep;
pub mod verify;
pub mod walker;
