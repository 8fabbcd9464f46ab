//! Verbs that reach the daemon through its socket: `reload`, `pause`, `resume`, `cancel`. Where no
//! daemon runs, those that can do without one work on the ledger directly.

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::record::open_audit;
use super::run::look;
use super::site::{database_failure, job, target};
use super::{Exit, Failure, actor, output};
use crate::config::{Config, DaemonSettings};
use crate::control::{CallError, Client, Refusal, Request, Update, Verb, Why};
use crate::job::Outcome;
use crate::ledger::migrate;
use crate::ledger::pauses::{self, Pause};
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;
use crate::schedule::recovery::RecoveryError;
use crate::schedule::{cancelling, pausing};
use crate::values::{JobName, Name, Period, RunId};

/// The answer of the daemon of this configuration; `None` when there is none.
pub(super) async fn ask(
    daemon: &DaemonSettings,
    verb: Verb,
    on_update: impl FnMut(Update),
) -> Option<Result<Value, CallError>> {
    match Client::connect(&daemon.runtime_dir).await {
        Ok(Some(client)) => Some(client.call(verb, on_update).await),
        Ok(None) => None,
        Err(error) => Some(Err(error)),
    }
}

pub(super) async fn reload(file: &Path, json: bool) -> Result<Exit, Failure> {
    // The daemon reads the file itself and has the last word, also about a bad one: its rejection is
    // on record.
    let answer = match Config::daemon_of(file) {
        Some(daemon) => ask(&daemon, Verb::Reload, |_| {}).await,
        None => None,
    };
    let Some(answer) = answer else {
        super::load(file)?;
        let failure = Failure::new(Exit::TryAgain, "no daemon runs, so there is nothing to reload");
        return Err(failure.with_remedy("it reads the configuration when it starts"));
    };
    let answer = answer.map_err(|error| call_failure(&error))?;
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        output::note(warning.as_str().unwrap_or_default());
    }
    if json {
        output::document(&json!({ "version": 1, "reload": answer }));
        return Ok(Exit::Green);
    }
    output::line(&format!(
        "the configuration is in force: {}",
        answer["fingerprint"].as_str().unwrap_or_default()
    ));
    for what in ["jobs", "databases"] {
        for change in ["added", "changed", "removed"] {
            let names: Vec<&str> = answer[what][change]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            if !names.is_empty() {
                output::line(&format!("{what} {change}: {}", names.join(", ")));
            }
        }
    }
    Ok(Exit::Green)
}

pub(super) async fn pause(
    config: &Config,
    name: &JobName,
    length: Period,
    reason: &str,
    json: bool,
) -> Result<Exit, Failure> {
    let settings = job(config, name)?;
    let length = length.to_duration().ok_or_else(|| {
        Failure::new(Exit::Usage, format!("`{length}` depends on the calendar"))
            .with_remedy("write weeks, days, hours or minutes: at most 31d")
    })?;
    let verb = Verb::Pause {
        job: name.clone(),
        seconds: length.as_secs(),
        reason: reason.to_owned(),
    };
    // The same limits with and without a daemon.
    let checked = serde_json::to_vec(&Request::new(verb.clone())).unwrap_or_default();
    Request::parse(&checked).map_err(|refusal| refusal_failure(&refusal))?;
    let pause = if let Some(answer) = ask(&config.daemon, verb, |_| {}).await {
        answer.map_err(|error| call_failure(&error))?
    } else {
        let target = ready_target(config, &settings.database).await?;
        let audit = open_audit(config)?;
        let pause = pausing::pause(target, &audit, name, length, reason, &actor()).await;
        json!(pause.map_err(|error| recovery_failure(&error))?)
    };
    if json {
        output::document(&json!({ "version": 1, "pause": pause }));
    } else {
        let until = pause["until"].as_str().unwrap_or_default();
        output::line(&format!(
            "{name} is paused until {until}; what runs goes on, each slot until then gets a row as skipped"
        ));
    }
    Ok(Exit::Green)
}

pub(super) async fn resume(config: &Config, name: &JobName, json: bool) -> Result<Exit, Failure> {
    let settings = job(config, name)?;
    let verb = Verb::Resume { job: name.clone() };
    let answer = if let Some(answer) = ask(&config.daemon, verb, |_| {}).await {
        answer.map_err(|error| call_failure(&error))?
    } else {
        let target = ready_target(config, &settings.database).await?;
        let audit = open_audit(config)?;
        let resumed = pausing::resume(target, &audit, name, &actor()).await;
        json!({ "job": name, "was_paused": resumed.map_err(|error| recovery_failure(&error))? })
    };
    let was_paused = answer["was_paused"].as_bool().unwrap_or(false);
    if json {
        output::document(&json!({ "version": 1, "resume": answer }));
    } else if was_paused {
        let next = settings.schedule.next_after(Timestamp::now());
        let next = next.map_or_else(String::new, |slot| format!("; its next slot is {}", slot.scheduled_for));
        output::line(&format!("{name} is back on its schedule{next}"));
    } else {
        output::line(&format!("{name} was not paused"));
    }
    Ok(Exit::Green)
}

pub(super) async fn cancel(config: &Config, run: RunId, json: bool) -> Result<Exit, Failure> {
    let record = match ask(&config.daemon, Verb::Cancel { run }, |_| {}).await {
        Some(answer) => answer.map_err(|error| call_failure(&error))?,
        None => cancel_directly(config, run).await?,
    };
    let outcome = record["outcome"].as_str().and_then(Outcome::from_word);
    if json {
        output::document(&json!({ "version": 1, "run": record }));
    } else {
        let reason = record["reason"].as_str().map(|reason| format!(": {reason}"));
        output::line(&format!(
            "run {run} of {} is closed as {}{}",
            record["job"].as_str().unwrap_or("its job"),
            outcome.map_or("unknown", Outcome::as_str),
            reason.unwrap_or_default()
        ));
    }
    Ok(if outcome.is_some() { Exit::Green } else { Exit::TryAgain })
}

async fn cancel_directly(config: &Config, run: RunId) -> Result<Value, Failure> {
    let audit = open_audit(config)?;
    let mut trouble = None;
    for (database, settings) in &config.databases {
        if let Err(failure) = look(database, &settings.target).await {
            trouble = Some(failure);
            continue;
        }
        let target = ready_target(config, database).await?;
        match cancelling::cancel(target, database.as_str(), &audit, run, &actor()).await {
            Ok(Some(record)) => return Ok(json!(record)),
            Ok(None) => {}
            Err(error) => trouble = Some(recovery_failure(&error)),
        }
    }
    Err(trouble.unwrap_or_else(|| {
        Failure::new(Exit::Usage, format!("there is no run {run}"))
            .with_remedy("`pgreeve status` and `pgreeve history --json` show the runs")
    }))
}

/// A database whose ledger is there.
async fn ready_target<'a>(config: &'a Config, database: &Name) -> Result<&'a ConnectTarget, Failure> {
    let target = target(config, database)?;
    migrate::apply(target)
        .await
        .map_err(|error| database_failure("set up the ledger", &error))?;
    Ok(target)
}

/// What the daemon says of itself; null when none runs, or it cannot be asked: then a note says why.
pub(super) async fn daemon_status(config: &Config) -> Value {
    match ask(&config.daemon, Verb::Status, |_| {}).await {
        None => Value::Null,
        Some(Ok(status)) => status,
        Some(Err(error)) => {
            let failure = call_failure(&error);
            output::error(&failure.message, failure.remedy.as_deref());
            Value::Null
        }
    }
}

/// The daemon's part of `status`, for people.
pub(super) fn print_daemon(status: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if status.is_null() {
        output::line("no daemon answers");
        return;
    }
    output::line(&format!(
        "daemon {} on {}, process {}, since {}",
        text(&status["version"]),
        text(&status["instance"]),
        status["pid"],
        text(&status["since"])
    ));
    if let Some(verdict) = status["last_reload"].as_str() {
        output::line(verdict);
    }
    for database in status["databases"].as_array().into_iter().flatten() {
        let detail = database["detail"].as_str().map(|detail| format!(": {detail}"));
        output::line(&format!(
            "database {}  {}{}",
            text(&database["database"]),
            text(&database["standing"]),
            detail.unwrap_or_default()
        ));
        for run in database["running"].as_array().into_iter().flatten() {
            let progress = &run["progress"];
            let done = progress["done"].as_u64().filter(|done| *done > 0);
            let total = progress["total"].as_u64().map(|total| format!(" of {total}"));
            let how_far = done.map(|done| format!(", {done}{} {}", total.unwrap_or_default(), text(&progress["unit"])));
            output::line(&format!(
                "  runs {}  {}  since {}{}",
                text(&run["job"]),
                text(&run["run_id"]),
                text(&run["since"]),
                how_far.unwrap_or_default()
            ));
        }
    }
}

/// The pauses in force in a database; none where pgreeve has not set up its ledger.
pub(super) async fn pauses_in_force(target: &ConnectTarget) -> Result<Vec<Pause>, DatabaseError> {
    let mut session = Session::open(target, &SessionSettings::control("pgreeve:status")).await?;
    let known: bool = sqlx::query_scalar("SELECT pg_catalog.to_regclass('pgreeve.pause') IS NOT NULL")
        .fetch_one(session.connection())
        .await?;
    let mut found = if known {
        pauses::load(session.connection()).await?
    } else {
        Vec::new()
    };
    session.close().await;
    let now = Timestamp::now();
    found.retain(|pause| pause.covers(now));
    Ok(found)
}

/// A call that had no good end, as a verb's failure.
pub(super) fn call_failure(error: &CallError) -> Failure {
    match error {
        CallError::Refused(refusal) => refusal_failure(refusal),
        CallError::Lost { .. } => Failure::new(Exit::TryAgain, error.to_string())
            .with_remedy("ask as root, as the daemon's user or as a member of its group; its log says how it is"),
    }
}

fn refusal_failure(refusal: &Refusal) -> Failure {
    for finding in &refusal.findings {
        output::note(finding);
    }
    let exit = match refusal.why {
        Why::BadRequest | Why::Unknown => Exit::Usage,
        Why::Denied | Why::Failed => Exit::Failed,
        Why::OtherConfiguration => Exit::NotGreen,
        Why::BadConfiguration => Exit::BadConfiguration,
        Why::NotLeading | Why::TryAgain => Exit::TryAgain,
    };
    Failure {
        remedy: refusal.remedy.clone(),
        ..Failure::new(exit, refusal.message.clone())
    }
}

fn recovery_failure(error: &RecoveryError) -> Failure {
    match error {
        RecoveryError::Ledger(error) => database_failure("the ledger", error),
        RecoveryError::Audit(error) => super::record::audit_failure(error),
    }
}
