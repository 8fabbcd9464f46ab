//! What is PostgreSQL's own: connections, names, error classes, the catalog, its programs.
//!
//! Nothing here knows of jobs, runs or the `pgreeve` schema.

pub mod catalog;
pub mod cluster;
pub mod connect;
pub mod grant;
pub mod programs;
pub mod quote;
pub mod sqlstate;
