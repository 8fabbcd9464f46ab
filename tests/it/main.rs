//! Tests against real parts: a PostgreSQL server, an S3 server, the `pgreeve` program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking, and not every selection of tests uses all of support"
)]

mod support;

mod accounting;
mod audit;
mod backup;
mod call;
mod chaos;
mod cli;
mod config;
mod contents;
mod control;
mod daemon;
mod doubt;
mod erasure;
mod erasure_proof;
mod export;
mod failover;
mod faults;
mod health;
mod partitions;
mod refresh;
mod regressions;
mod report;
mod restore;
mod restore_check;
mod retention;
mod rollup;
mod runner;
mod sample;
mod schedule;
mod store;
mod systemd;
mod transition;
mod upheaval;
mod upkeep;
mod waiting;
