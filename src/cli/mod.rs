//! The command line: one file per group of verbs. Nothing is decided here; verbs call the rooms
//! below and turn what they answer into text, JSON and an exit code.

mod audit;
mod backup;
mod certificate;
mod connect;
mod control;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod erasure;
mod hold;
mod inspect;
mod output;
mod prove;
mod prune;
mod record;
mod replay;
mod rollup;
mod run;
mod shell;
mod site;
mod why;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use rustix::process::Signal;
use tokio::signal::unix::SignalKind;

use self::erasure::ErasureVerb;
use crate::config::{Config, Finding};
use crate::job::{Outcome, Trigger};
use crate::telemetry::logs;
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
struct Cli {
    /// The configuration file.
    #[arg(
        long,
        global = true,
        env = "PGREEVE_CONFIG",
        default_value = "/etc/pgreeve/config.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
    /// Print one JSON document instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
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
    /// The audit log: verify it.
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
struct CheckArguments {
    /// Also connect to every database and store and check each job against them.
    #[arg(long)]
    connect: bool,
}

#[derive(Debug, Args)]
struct RunArguments {
    /// The job's name.
    #[arg(value_parser = parse_job)]
    job: JobName,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, Args)]
struct PauseArguments {
    /// The job's name.
    job: JobName,
    /// For how long, such as `2h`; at most 31 days.
    #[arg(long = "for", value_name = "PERIOD")]
    length: Period,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(Debug, Args)]
struct NextArguments {
    /// One job only.
    #[arg(value_parser = parse_job)]
    job: Option<JobName>,
    /// How many due times of each job.
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    number: u16,
    /// Due times after this instant instead of now (RFC 3339).
    #[arg(long, value_name = "T", value_parser = parse_instant)]
    from: Option<Timestamp>,
}

#[derive(Debug, Args)]
struct HistoryArguments {
    /// One job only.
    #[arg(long, value_parser = parse_job)]
    job: Option<JobName>,
    /// Runs and slots since this instant (RFC 3339).
    #[arg(long, value_name = "T", value_parser = parse_instant)]
    since: Option<Timestamp>,
    /// Runs and slots before this instant (RFC 3339).
    #[arg(long, value_name = "T")]
    until: Option<Timestamp>,
    /// One trigger only: `schedule`, `catch_up` or `manual`.
    #[arg(long, value_parser = parse_trigger)]
    trigger: Option<Trigger>,
    /// Only what ended and is not green.
    #[arg(long, conflicts_with = "outcome")]
    not_green: bool,
    /// One outcome only, such as `failed`.
    #[arg(long, value_parser = parse_outcome)]
    outcome: Option<Outcome>,
    /// At most so many of each database, the newest.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    limit: i64,
}

#[derive(Debug, Subcommand)]
enum BackupVerb {
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
struct VerifyArguments {
    /// The backup's id, or `latest`.
    id: String,
    /// 0: every object has its size. 1: every byte is read and agrees with the manifest. 2: it is
    /// restored into a throwaway server, and every table's rows are compared; that takes a third more
    /// room in $TMPDIR than the database had. 3: the assertions of its `restore_check` are asked too.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=3))]
    level: u8,
    /// The job whose backup it is, where several could be meant.
    #[arg(long, value_parser = parse_job)]
    job: Option<JobName>,
    /// The age identity that opens an encrypted backup. Without it only level 0 is possible.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct PruneArguments {
    /// Backups of one job only.
    #[arg(long, value_parser = parse_job)]
    job: Option<JobName>,
    /// Show what would be removed and why the rest stays; remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// Remove even more than half, if the plan still has this hash.
    #[arg(long, value_name = "HASH")]
    confirm: Option<String>,
}

#[derive(Debug, Args)]
struct RestoreArguments {
    /// The backup's id, or `latest`.
    id: String,
    /// The name of the new database.
    #[arg(long, value_name = "NEWDB")]
    into: String,
    /// The job whose backup it is, where several could be meant.
    #[arg(long, value_parser = parse_job)]
    job: Option<JobName>,
    /// Restore as this role, on this server; default: the role that made the backup. It needs
    /// CREATEDB, and membership in the roles that own what is restored.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Leave out owners and grants, so that no role need exist.
    #[arg(long)]
    no_owner: bool,
    /// Create the roles that the server lacks, without passwords, as the backup has them.
    #[arg(long, conflicts_with = "no_owner")]
    create_roles: bool,
    /// How many processes build indexes and check constraints, and load rows if the backup was made
    /// with `parallel`.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: u32,
    /// The age identity that opens an encrypted backup: a file that `age-keygen` made.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// A ledger of erasures of another host, a copy of its `erasures` directory with the keys;
    /// may be given several times. This host's own and the copies in the store are always read.
    #[arg(long, value_name = "DIR")]
    erasures: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum AuditVerb {
    /// Check the whole chain, offline.
    Verify {
        /// The log's directory; default: the configuration's `state_dir/audit`.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// The public key to trust; default: the one beside the log.
        #[arg(long, value_name = "FILE")]
        public_key: Option<PathBuf>,
    },
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

/// How the program ends. The numbers are part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All is green.
    Green,
    /// It failed.
    Failed,
    /// The arguments make no sense.
    Usage,
    /// It ran, and is not green.
    NotGreen,
    /// Somebody has changed the record.
    Tampered,
    /// It may succeed later.
    TryAgain,
    /// The configuration has mistakes.
    BadConfiguration,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Green => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotGreen => 3,
            Exit::Tampered => 4,
            Exit::TryAgain => 75,
            Exit::BadConfiguration => 78,
        })
    }
}

impl From<Outcome> for Exit {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Succeeded => Self::Green,
            Outcome::Partial | Outcome::Gated | Outcome::Refused | Outcome::Skipped | Outcome::Cancelled => {
                Self::NotGreen
            }
            Outcome::Failed | Outcome::TimedOut | Outcome::Missed | Outcome::Abandoned | Outcome::Unknown => {
                Self::Failed
            }
        }
    }
}

/// Why a verb could not do its work: what, and what to do about it.
#[derive(Debug)]
struct Failure {
    message: String,
    remedy: Option<String>,
    exit: Exit,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            remedy: None,
            exit,
        }
    }

    fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// Parses the arguments, does what they say, and answers how it went.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Green };
            let _ = error.print();
            return exit.into();
        }
    };
    let daemon = matches!(cli.verb, Verb::Daemon);
    logs::start(if daemon {
        None
    } else {
        Some("warn,pgreeve::runner=off,s3s=off")
    });
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::error(&format!("the runtime cannot start: {error}"), None);
            return Exit::Failed.into();
        }
    };
    let carried_out = runtime.block_on(async {
        let carried_out = Box::pin(dispatch(cli)).await;
        record::seal().await;
        carried_out
    });
    let exit = carried_out.unwrap_or_else(|failure| {
        output::error(&failure.message, failure.remedy.as_deref());
        failure.exit
    });
    match output::lost() {
        Some(cause) => {
            output::error(&format!("the result could not be written: {cause}"), None);
            if exit == Exit::Green { Exit::Failed } else { exit }.into()
        }
        None => exit.into(),
    }
}

async fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    // With a handler in place a file that may not grow further is an error with a remedy; without
    // one the process would be killed in the middle of its work.
    let too_large = SignalKind::from_raw(Signal::XFSZ.as_raw());
    let _guard = tokio::signal::unix::signal(too_large)
        .map_err(|error| Failure::new(Exit::Failed, format!("listen to signals: {error}")))?;
    let (file, json) = (cli.config.as_path(), cli.json);
    match cli.verb {
        Verb::Daemon => run::daemon(load(file)?).await,
        Verb::Check(arguments) => inspect::check(file, arguments.connect, json).await,
        Verb::Plan { job } => run::plan(&load(file)?, &job, json).await,
        Verb::Approve { hash } => run::approve(&load(file)?, &hash, json).await,
        Verb::Run(arguments) => Box::pin(run::run(&load(file)?, &arguments.job, arguments.reason, json)).await,
        Verb::Next(arguments) => inspect::next(
            &load(file)?,
            arguments.job.as_ref(),
            arguments.number,
            arguments.from,
            json,
        ),
        Verb::Status => inspect::status(&load(file)?, json).await,
        Verb::Why { job, at } => why::why(&load(file)?, &job, at, json).await,
        Verb::History(arguments) => {
            let filter = crate::ledger::runs::HistoryFilter {
                job: arguments.job,
                since: arguments.since,
                until: arguments.until,
                trigger: arguments.trigger,
                not_green: arguments.not_green,
                outcome: arguments.outcome,
                limit: arguments.limit,
            };
            inspect::history(&load(file)?, &filter, json).await
        }
        // A certificate in a file is checked without a configuration.
        Verb::Erasure(ErasureVerb::Certificate(arguments)) => certificate::show(file, &arguments, json).await,
        Verb::Erasure(verb) => erasure::erasure(&load(file)?, verb, json).await,
        Verb::Hold(verb) => hold::hold(&load(file)?, &verb, json).await,
        Verb::Rollup(verb) => Box::pin(rollup::rollup(&load(file)?, &verb, json)).await,
        Verb::Reload => control::reload(file, json).await,
        Verb::Pause(arguments) => {
            let config = load(file)?;
            control::pause(&config, &arguments.job, arguments.length, &arguments.reason, json).await
        }
        Verb::Resume { job } => control::resume(&load(file)?, &job, json).await,
        Verb::Cancel { run } => control::cancel(&load(file)?, run, json).await,
        Verb::Backup(BackupVerb::List { job }) => backup::list(&load(file)?, job.as_ref(), json).await,
        Verb::Backup(BackupVerb::Verify(arguments)) => prove::verify(&load(file)?, &arguments, json).await,
        Verb::Backup(BackupVerb::Prune(arguments)) => prune::prune(&load(file)?, &arguments, json).await,
        Verb::Doctor { grants } => doctor::doctor(&load(file)?, grants, json).await,
        Verb::Completions { shell } => Ok(shell::completions(shell)),
        Verb::Man { dir } => shell::man(dir.as_deref()),
        Verb::Backup(BackupVerb::Restore(arguments)) => backup::restore(&load(file)?, &arguments, json).await,
        Verb::Audit(AuditVerb::Verify { dir, public_key }) => audit::verify(file, dir, public_key.as_deref(), json),
        #[cfg(feature = "demo")]
        Verb::Demo { events } => demo::demo(events).await,
    }
}

/// Loads the configuration; its mistakes are printed, its warnings too.
fn load(file: &Path) -> Result<Config, Failure> {
    match Config::load(file) {
        Ok((config, warnings)) => {
            output::findings(&warnings);
            Ok(config)
        }
        Err(findings) => {
            output::findings(&findings);
            Err(bad_configuration(file, &findings))
        }
    }
}

fn bad_configuration(file: &Path, findings: &[Finding]) -> Failure {
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    let mistakes = counted(errors, "mistake");
    Failure::new(
        Exit::BadConfiguration,
        format!("{} has {mistakes}; nothing was started", file.display()),
    )
}

/// `1 job`, `2 jobs`.
fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// A job's name from an argument.
fn parse_job(text: &str) -> Result<JobName, String> {
    text.parse()
        .map_err(|error: ValueError| format!("{}; {}", error.problem, error.help))
}

/// An instant from an argument.
fn parse_instant(text: &str) -> Result<Timestamp, String> {
    text.parse()
        .map_err(|_| "write an instant with its offset, such as 2026-03-29T02:00:00Z".to_owned())
}

/// Who asks, for the record: the operating system's user, also behind `sudo`.
fn actor() -> String {
    let uid = rustix::process::getuid().as_raw();
    match std::env::var("SUDO_USER") {
        Ok(user) if uid == 0 && !user.is_empty() => format!("uid:0 (sudo from {user})"),
        _ => format!("uid:{uid}"),
    }
}
