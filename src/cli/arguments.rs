//! What may be said on the command line: verbs and their arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;

use super::erasure::ErasureVerb;
use super::{hold, report, rollup, why};
use crate::job::{Outcome, Trigger};
use crate::values::{JobName, Period, RunId, ValueError};

/// Maintenance and retention daemon for PostgreSQL.
///
/// Deletes what is past its keep period, moves stale rows on, streams verified backups to a store,
/// on schedule, and keeps a record of it that an outsider can check.
#[derive(Debug, Parser)]
#[command(name = "pgreeve", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 green, 1 failed, 2 usage, 3 ran but not green, 4 tampering found, 75 try again, 78 bad configuration."
)]
pub(super) struct Cli {
    /// The configuration file.
    #[arg(
        long,
        global = true,
        env = "PGREEVE_CONFIG",
        default_value = "/etc/pgreeve/config.toml",
        value_name = "FILE"
    )]
    pub(super) config: PathBuf,
    /// Print one JSON document instead of text.
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run the daemon in the foreground, as systemd wants it.
    Daemon,
    /// Check the configuration; every mistake at once.
    Check(CheckArguments),
    /// Show what a run of a job would do; changes nothing.
    Plan {
        /// The job's name.
        #[arg(value_parser = parse_job)]
        job: JobName,
    },
    /// Approve a new or changed destructive policy, so that it may act.
    Approve {
        /// The policy's hash as `plan` shows it, or its first eight digits or more.
        hash: String,
    },
    /// Run a job once, now, with the same locks and records as by schedule.
    Run(RunArguments),
    /// Show the next due times of every job.
    Next(NextArguments),
    /// Show how each job stands: its last run and its next slot.
    Status,
    /// Say why a job ran, or did not run, at an instant.
    Why {
        /// The job's name.
        job: JobName,
        /// When: 2026-03-08T07:00:00Z, or 2026-03-08T02:30 in the job's zone.
        #[arg(long, value_name = "T", value_parser = why::parse_at)]
        at: why::At,
    },
    /// Show what ran, and what did not and why.
    History(HistoryArguments),
    /// Legal holds: place, release, list them.
    #[command(subcommand)]
    Hold(hold::HoldVerb),
    /// Erasure of people: list, plan, request, extend, reject.
    #[command(subcommand)]
    Erasure(ErasureVerb),
    /// Rollups: initialise, fill again, compare with the source, remove them.
    #[command(subcommand)]
    Rollup(rollup::RollupVerb),
    /// Let the daemon read the configuration again; a bad one leaves the old one in force.
    Reload,
    /// Take a job off its schedule for a while; each slot meanwhile gets a row as skipped.
    Pause(PauseArguments),
    /// Put a paused job back on its schedule.
    Resume {
        /// The job's name.
        job: JobName,
    },
    /// End a run: its statement is cancelled on the server, and its record closed.
    Cancel {
        /// The run's id, as `status` and `history --json` show it.
        #[arg(value_parser = parse_run)]
        run: RunId,
    },
    /// Backups: list, verify, restore and prune them.
    #[command(subcommand)]
    Backup(BackupVerb),
    /// The audit log: verify it, report from it.
    #[command(subcommand)]
    Audit(AuditVerb),
    /// Look at the ground: host, programs, servers, and the rights of each role; changes nothing.
    Doctor {
        /// Print only the statements that give each role what its jobs need, as a script.
        #[arg(long)]
        grants: bool,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one for each verb.
    Man {
        /// Write the pages into this directory.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// See all of it work on a throwaway server with sample data.
    #[cfg(feature = "demo")]
    Demo {
        /// How many events the sample database holds.
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..))]
        events: u32,
    },
}

#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// Also connect to every database and store and check each job against them.
    #[arg(long)]
    pub(super) connect: bool,
}

#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// The job's name.
    #[arg(value_parser = parse_job)]
    pub(super) job: JobName,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct PauseArguments {
    /// The job's name.
    pub(super) job: JobName,
    /// For how long, such as `2h`; at most 31 days.
    #[arg(long = "for", value_name = "PERIOD")]
    pub(super) length: Period,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: String,
}

#[derive(Debug, Args)]
pub(super) struct NextArguments {
    /// One job only.
    #[arg(value_parser = parse_job)]
    pub(super) job: Option<JobName>,
    /// How many due times of each job.
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(super) number: u16,
    /// Due times after this instant instead of now (RFC 3339).
    #[arg(long, value_name = "T", value_parser = parse_instant)]
    pub(super) from: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub(super) struct HistoryArguments {
    /// One job only.
    #[arg(long, value_parser = parse_job)]
    pub(super) job: Option<JobName>,
    /// Runs and slots since this instant (RFC 3339).
    #[arg(long, value_name = "T", value_parser = parse_instant)]
    pub(super) since: Option<Timestamp>,
    /// Runs and slots before this instant (RFC 3339).
    #[arg(long, value_name = "T")]
    pub(super) until: Option<Timestamp>,
    /// One trigger only: `schedule`, `catch_up` or `manual`.
    #[arg(long, value_parser = parse_trigger)]
    pub(super) trigger: Option<Trigger>,
    /// Only what ended and is not green.
    #[arg(long, conflicts_with = "outcome")]
    pub(super) not_green: bool,
    /// One outcome only, such as `failed`.
    #[arg(long, value_parser = parse_outcome)]
    pub(super) outcome: Option<Outcome>,
    /// At most so many of each database, the newest.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    pub(super) limit: i64,
}

#[derive(Debug, Subcommand)]
pub(super) enum BackupVerb {
    /// List the backups that exist: those whose manifest is in the store.
    List {
        /// Backups of one job only.
        #[arg(long, value_parser = parse_job)]
        job: Option<JobName>,
    },
    /// Check that a backup is whole, up to restoring it into a throwaway server on this host.
    Verify(VerifyArguments),
    /// Restore a backup into a database that does not exist yet, and prove it equal.
    Restore(RestoreArguments),
    /// Remove the backups that `keep` does not keep.
    Prune(PruneArguments),
}

#[derive(Debug, Args)]
pub(super) struct VerifyArguments {
    /// The backup's id, or `latest`.
    pub(super) id: String,
    /// 0: every object has its size. 1: every byte is read and agrees with the manifest. 2: it is
    /// restored into a throwaway server, and every table's rows are compared; that takes a third more
    /// room in $TMPDIR than the database had. 3: the assertions of its `restore_check` are asked too.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=3))]
    pub(super) level: u8,
    /// The job whose backup it is, where several could be meant.
    #[arg(long, value_parser = parse_job)]
    pub(super) job: Option<JobName>,
    /// The age identity that opens an encrypted backup. Without it only level 0 is possible.
    #[arg(long, value_name = "FILE")]
    pub(super) identity: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct PruneArguments {
    /// Backups of one job only.
    #[arg(long, value_parser = parse_job)]
    pub(super) job: Option<JobName>,
    /// Show what would be removed and why the rest stays; remove nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Remove even more than half, if the plan still has this hash.
    #[arg(long, value_name = "HASH")]
    pub(super) confirm: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArguments {
    /// The backup's id, or `latest`.
    pub(super) id: String,
    /// The name of the new database.
    #[arg(long, value_name = "NEWDB")]
    pub(super) into: String,
    /// The job whose backup it is, where several could be meant.
    #[arg(long, value_parser = parse_job)]
    pub(super) job: Option<JobName>,
    /// Restore as this role, on this server; default: the role that made the backup. It needs
    /// CREATEDB, and membership in the roles that own what is restored.
    #[arg(long, value_name = "URL")]
    pub(super) url: Option<String>,
    /// Leave out owners and grants, so that no role need exist.
    #[arg(long)]
    pub(super) no_owner: bool,
    /// Create the roles that the server lacks, without passwords, as the backup has them.
    #[arg(long, conflicts_with = "no_owner")]
    pub(super) create_roles: bool,
    /// How many processes load rows, build indexes and check constraints. With more than one the dump
    /// goes through a file in $TMPDIR. Where that has no room, or three quarters of the rows are of one
    /// table, one process loads the rows as they come, unless the backup was made with `parallel`.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) jobs: u32,
    /// The age identity that opens an encrypted backup: a file that `age-keygen` made.
    #[arg(long, value_name = "FILE")]
    pub(super) identity: Option<PathBuf>,
    /// A ledger of erasures of another host, a copy of its `erasures` directory with the keys;
    /// may be given several times. This host's own and the copies in the store are always read.
    #[arg(long, value_name = "DIR")]
    pub(super) erasures: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum AuditVerb {
    /// Check the whole chain, offline.
    Verify {
        /// The log's directory; default: the configuration's `state_dir/audit`.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// The public key to trust; default: the one beside the log.
        #[arg(long, value_name = "FILE")]
        public_key: Option<PathBuf>,
    },
    /// Account for a stretch of time: what was due, done, not done and why, and whether the record is sound.
    Report(report::ReportArguments),
}

fn parse_trigger(text: &str) -> Result<Trigger, String> {
    let all = [Trigger::Schedule, Trigger::CatchUp, Trigger::Manual];
    let found = all.into_iter().find(|trigger| trigger.as_str() == text);
    found.ok_or_else(|| "the triggers are schedule, catch_up and manual".to_owned())
}

fn parse_outcome(text: &str) -> Result<Outcome, String> {
    Outcome::from_word(text).ok_or_else(|| {
        let words: Vec<&str> = Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
        format!("the outcomes are {}", words.join(", "))
    })
}

fn parse_run(text: &str) -> Result<RunId, String> {
    let run = text.parse().map(RunId);
    run.map_err(|_| "a run's id is a UUID; `pgreeve status` shows those that run".to_owned())
}

/// A job's name from an argument.
pub(super) fn parse_job(text: &str) -> Result<JobName, String> {
    text.parse()
        .map_err(|error: ValueError| format!("{}; {}", error.problem, error.help))
}

/// An instant from an argument.
pub(super) fn parse_instant(text: &str) -> Result<Timestamp, String> {
    text.parse()
        .map_err(|_| "write an instant with its offset, such as 2026-03-29T02:00:00Z".to_owned())
}
