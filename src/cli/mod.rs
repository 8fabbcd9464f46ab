//! The command line: one file per group of verbs. Nothing is decided here; verbs call the rooms
//! below and turn what they answer into text, JSON and an exit code.

mod arguments;
mod audit;
mod backup;
mod certificate;
mod connect;
mod control;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod erasure;
mod exit;
mod hold;
mod inspect;
mod output;
mod prove;
mod prune;
mod record;
mod replay;
mod report;
mod rollup;
mod run;
mod shell;
mod site;
mod why;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use rustix::process::Signal;
use tokio::signal::unix::SignalKind;

use self::arguments::{
    AuditVerb, BackupVerb, Cli, PruneArguments, RestoreArguments, Verb, VerifyArguments, parse_instant, parse_job,
};
use self::erasure::ErasureVerb;
pub use self::exit::Exit;
use self::exit::Failure;
use crate::config::{Config, Finding};
use crate::telemetry::logs;

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
        Verb::Audit(AuditVerb::Report(arguments)) => report::report(&load(file)?, &arguments, json).await,
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

/// Who asks, for the record: the operating system's user, also behind `sudo`.
fn actor() -> String {
    let uid = rustix::process::getuid().as_raw();
    match std::env::var("SUDO_USER") {
        Ok(user) if uid == 0 && !user.is_empty() => format!("uid:0 (sudo from {user})"),
        _ => format!("uid:{uid}"),
    }
}
