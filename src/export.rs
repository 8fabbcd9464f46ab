//! Exports: the rows of one tenant or one subject, out of several tables, as they were at one instant.
//!
//! ```text
//! COPY (SELECT …) → one row a line → gzip or zstd → parts → store → manifest
//! ```
//!
//! What `pg_dump` has no option for: each table is cut to the scope, by the scope's own column, or by an
//! edge to a table that is. All are read in one transaction of one snapshot. As of a backup, an export
//! exists when its manifest does, and the manifest is the last object written.

mod keep;
mod manifest;
mod object;
mod run;
mod scope;

pub use self::keep::{Kept, dated, prune};
pub use self::manifest::{Exported, ExportedObject, Manifest, NAME};
pub use self::run::{Setup, export, sweep};
pub use self::scope::{Scope, ScopedTable, resolve};
