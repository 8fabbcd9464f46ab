//! Stores: one suite for all of them, then what can go wrong with each.

mod conformance;
mod file;
mod s3;
