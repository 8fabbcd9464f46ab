//! pgreeve: a maintenance and retention daemon for PostgreSQL.
//!
//! # The map
//!
//! From the roof to the ground; a room imports only rooms below it.
//!
//! | room | what it is |
//! |---|---|
//! | [`cli`] | the verbs: text, JSON, exit codes |
//! | [`daemon`] | the start sequence; the only place that sees every part |
//! | [`config`] | the configuration: types, then sense, all mistakes at once |
//! | [`control`] | the Unix socket: reload, pause, cancel, run |
//! | [`jobs`] | the kinds, one thin file each |
//! | [`schedule`] | cron, slots, one dispatcher per database |
//! | [`http`] | metrics, health, status page |
//! | [`runner`] | one run from intent to outcome; knows no kind |
//! | [`rollup`] | measures by buckets of time, sealed when nothing can change them any more; materialized views |
//! | [`upkeep`] | vacuum, analyze and reindex where they are needed |
//! | [`call`] | calls of the application's own functions |
//! | [`health`] | figures of a database with a limit each |
//! | [`erasure`] | a data subject gone everywhere: plan, masks, steps, proof |
//! | [`export`] | the rows of one tenant or subject, to a store |
//! | [`batch`] | work on user tables in small transactions; the one compiler of their statements |
//! | [`backup`] | dump, walk, compress, upload, manifest; restore |
//! | [`job`] | the contract between runner and kinds |
//! | [`ledger`] | what happened, in the database |
//! | [`audit`] | what happened, on the host, for outsiders to check |
//! | [`postgres`], [`store`] | the two worlds outside |
//! | [`words`], [`values`], [`stops`] | the words of the records, newtypes that parse themselves, how work is asked to end |
//!
//! # One run
//!
//! The [`schedule::heartbeat`] pokes the database's [`schedule::dispatcher`]. That asks each job's
//! [`schedule::cron::Schedule`] for slots between the last evaluation and now, lets
//! [`schedule::due`] decide about them, and writes one row per slot into the [`ledger`] in one
//! transaction. A slot that is to run becomes a [`runner::RunRequest`]. The [`runner`] opens a
//! connection of the run's own, takes the job's locks on it, lets the [`job::Job`] plan, writes the
//! plan to the [`audit`] log, and only then lets it execute. The kind calls its engine
//! ([`batch`], [`backup`]), which holds the leader's fence in each transaction that writes. The
//! runner closes the ledger's row and the audit log, whatever happened.

pub mod audit;
pub mod backup;
pub mod batch;
pub mod call;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
#[cfg(feature = "demo")]
pub mod demo;
pub mod erasure;
pub mod export;
pub mod health;
pub mod http;
pub mod job;
pub mod jobs;
pub mod ledger;
pub mod lifecycle;
pub mod postgres;
pub mod rollup;
pub mod runner;
pub mod schedule;
pub mod stops;
pub mod store;
pub mod telemetry;
pub mod upkeep;
pub mod values;
pub mod words;
