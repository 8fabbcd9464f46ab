//! Stores: one suite for all of them, then what can go wrong with each.

mod conformance;
mod credentials;
mod file;
mod manner;
mod s3;
