//! Verbs on rollups: `rollup init`, `rollup backfill`, `rollup reconcile`, `rollup remove`.

use std::sync::Arc;

use clap::Subcommand;
use serde_json::json;
use sqlx::Connection;

use super::record::{audit_failure, open_audit};
use super::run::{job_failure, look, run_here};
use super::site::{database_failure, job, target};
use super::why::{At, parse_at};
use super::{Exit, Failure, actor, output};
use crate::audit::{Entry, RecordKind};
use crate::config::{Config, JobSettings};
use crate::daemon;
use crate::jobs::KindSettings;
use crate::jobs::rollup::RollupJob;
use crate::ledger::migrate;
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::rollup::init::{self, Initialised};
use crate::rollup::{Rollup, Task};
use crate::values::JobName;

#[derive(Debug, Subcommand)]
pub(super) enum RollupVerb {
    /// Make a rollup's table, or adopt one, and its triggers in the exact mode.
    Init {
        /// The job's name.
        job: JobName,
        /// Take a table that holds rows already.
        #[arg(long)]
        adopt: bool,
        /// Only print the statements.
        #[arg(long)]
        print: bool,
    },
    /// Compute a range of buckets again, as far as the source still has them.
    Backfill {
        /// The job's name.
        job: JobName,
        /// From the bucket with this time: 2026-03-08T07:00:00Z, or 2026-03-08T00:00 in the rollup's zone.
        #[arg(long, value_name = "T", value_parser = parse_at)]
        from: At,
        /// To before this time.
        #[arg(long, value_name = "T", value_parser = parse_at)]
        to: At,
    },
    /// Compare the last sealed buckets with the source; those that differ are computed again.
    Reconcile {
        /// The job's name.
        job: JobName,
        /// How many buckets.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        buckets: u32,
    },
    /// Forget a rollup and remove its triggers; its table stays, and purges wait for it no longer.
    Remove {
        /// The job's name.
        job: JobName,
        /// The database it is in; only for a job that is not in the configuration any more.
        #[arg(long)]
        database: Option<crate::values::Name>,
    },
}

pub(super) async fn rollup(config: &Config, verb: &RollupVerb, json: bool) -> Result<Exit, Failure> {
    match verb {
        RollupVerb::Init { job, adopt, print } => initialise(config, job, *adopt, *print, json).await,
        RollupVerb::Backfill { job, from, to } => {
            let (settings, rollup) = find(config, job)?;
            let zone = rollup.zone();
            let resolve = |at: At| {
                at.resolve(zone.rules())
                    .ok_or_else(|| Failure::new(Exit::Usage, "this time is beyond the calendar"))
            };
            let task = Task::Backfill {
                from: resolve(*from)?,
                to: resolve(*to)?,
            };
            run_task(config, settings, rollup, task, json).await
        }
        RollupVerb::Reconcile { job, buckets } => {
            let (settings, rollup) = find(config, job)?;
            run_task(config, settings, rollup, Task::Reconcile { buckets: *buckets }, json).await
        }
        RollupVerb::Remove { job, database } => remove(config, job, database.as_ref(), json).await,
    }
}

fn find<'a>(config: &'a Config, name: &JobName) -> Result<(&'a JobSettings, &'a Rollup), Failure> {
    let settings = job(config, name)?;
    match &settings.kind {
        KindSettings::Rollup(rollup) => Ok((settings, rollup)),
        other => Err(
            Failure::new(Exit::Usage, format!("the job `{name}` is a {}", other.kind().as_str()))
                .with_remedy("name a job with a `rollup`"),
        ),
    }
}

/// As a run of the job, so with its locks and records.
async fn run_task(
    config: &Config,
    settings: &JobSettings,
    rollup: &Rollup,
    task: Task,
    json: bool,
) -> Result<Exit, Failure> {
    let mut runnable = daemon::runnable(config, settings);
    runnable.job = Arc::new(RollupJob::new(rollup.clone()).with_task(task));
    Box::pin(run_here(config, settings, runnable, None, json)).await
}

async fn open(settings: &JobSettings, target: &ConnectTarget) -> Result<Session, Failure> {
    let limits = SessionSettings::run("pgreeve:rollup", settings.lock_timeout, settings.run_timeout);
    Session::open(target, &limits)
        .await
        .map_err(|error| database_failure("open a session", &error))
}

async fn initialise(config: &Config, name: &JobName, adopt: bool, print: bool, json: bool) -> Result<Exit, Failure> {
    let (settings, rollup) = find(config, name)?;
    let failed = |error| database_failure("initialise the rollup", &error);
    let audit = if print { None } else { Some(open_audit(config)?) };
    let site = look(&settings.database, target(config, &settings.database)?).await?;
    migrate::apply(&site.target).await.map_err(failed)?;
    let mut session = open(settings, &site.target).await?;
    let mut transaction = session
        .connection()
        .begin()
        .await
        .map_err(|error| failed(error.into()))?;
    let actor = actor();
    let done = init::init(&mut transaction, rollup, name, &actor, adopt)
        .await
        .map_err(|error| job_failure(&error))?;
    let Some(audit) = audit else {
        transaction.rollback().await.map_err(|error| failed(error.into()))?;
        for statement in &done.statements {
            output::line(&format!("{statement};"));
        }
        return Ok(Exit::Green);
    };
    let body = json!({
        "action": "init", "target": rollup.target, "mode": rollup.mode(), "definition": rollup.definition(),
        "adopted": done.adopted, "statements": done.statements,
    });
    let entry = Entry::new(RecordKind::RollupChanged, body)
        .job(name.clone())
        .database(site.system_identifier.clone())
        .policy(settings.kind.fingerprint())
        .actor(actor);
    audit.append(entry).await.map_err(|error| audit_failure(&error))?;
    transaction.commit().await.map_err(|error| failed(error.into()))?;
    session.close().await;
    answer(name, rollup, &done, json);
    Ok(Exit::Green)
}

fn answer(name: &JobName, rollup: &Rollup, done: &Initialised, json: bool) {
    if json {
        let made = json!({
            "job": name, "target": rollup.target, "mode": rollup.mode(), "adopted": done.adopted,
            "statements": done.statements,
        });
        output::document(&json!({ "version": 1, "rollup": made }));
    } else {
        let how = if done.adopted { ", with the rows it holds" } else { "" };
        output::line(&format!("the rollup {name} keeps {}{how}", rollup.target));
    }
}

async fn remove(
    config: &Config,
    name: &JobName,
    database: Option<&crate::values::Name>,
    json: bool,
) -> Result<Exit, Failure> {
    let failed = |error| database_failure("remove the rollup", &error);
    let database = match database {
        Some(database) => database,
        None => &job(config, name)?.database,
    };
    let audit = open_audit(config)?;
    let site = look(database, target(config, database)?).await?;
    migrate::apply(&site.target).await.map_err(failed)?;
    let mut session = Session::open(&site.target, &SessionSettings::control("pgreeve:rollup"))
        .await
        .map_err(failed)?;
    let mut transaction = session
        .connection()
        .begin()
        .await
        .map_err(|error| failed(error.into()))?;
    if !init::remove(&mut transaction, name)
        .await
        .map_err(|error| job_failure(&error))?
    {
        return Err(Failure::new(
            Exit::Usage,
            format!("no rollup {name} is initialised in {database}"),
        ));
    }
    let entry = Entry::new(RecordKind::RollupChanged, json!({ "action": "remove" }))
        .job(name.clone())
        .database(site.system_identifier.clone())
        .actor(actor());
    audit.append(entry).await.map_err(|error| audit_failure(&error))?;
    transaction.commit().await.map_err(|error| failed(error.into()))?;
    session.close().await;
    if json {
        output::document(&json!({ "version": 1, "rollup": { "job": name, "database": database } }));
    } else {
        output::line(&format!("the rollup {name} is removed; its table stays"));
    }
    Ok(Exit::Green)
}
