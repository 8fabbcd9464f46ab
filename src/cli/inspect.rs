//! Verbs that look: `check`, `next`, `status`, `history`.

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::control::{daemon_status, pauses_in_force, print_daemon};
use super::site::{database_failure, job};
use super::{Exit, Failure, bad_configuration, counted, output};
use crate::config::{Config, JobSettings};
use crate::job::{Kind, Outcome};
use crate::jobs::KindSettings;
use crate::ledger::runs::{self, HistoryFilter, RunRecord};
use crate::ledger::{lag, rollups};
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::{JobName, Name};

pub(super) async fn check(file: &Path, connect: bool, json: bool) -> Result<Exit, Failure> {
    let (findings, config) = match Config::load(file) {
        Ok((config, warnings)) => (warnings, Some(config)),
        Err(findings) => (findings, None),
    };
    let mut findings = findings;
    let reads = config.is_some();
    let mut exit = Exit::BadConfiguration;
    if let (true, Some(config)) = (connect, &config) {
        let met = super::connect::check(config).await;
        if met.passing {
            exit = Exit::TryAgain;
        }
        findings.extend(met.findings);
    }
    let errors = findings.iter().any(crate::config::Finding::is_error);
    if json {
        output::document(&json!({ "version": 1, "findings": findings }));
        return Ok(if errors { exit } else { Exit::Green });
    }
    output::findings(&findings);
    if errors && reads {
        let errors = findings.iter().filter(|finding| finding.is_error()).count();
        let problems = counted(errors, "problem");
        return Err(Failure::new(
            exit,
            format!("{} makes sense; the check found {problems} outside it", file.display()),
        ));
    }
    if errors {
        return Err(bad_configuration(file, &findings));
    }
    if let Some(config) = config {
        let (jobs, databases, stores) = (config.jobs.len(), config.databases.len(), config.stores.len());
        let how = if connect {
            "makes sense, and its databases and stores agree"
        } else {
            "makes sense"
        };
        output::line(&format!(
            "{} {how}: {}, {}, {}",
            file.display(),
            counted(jobs, "job"),
            counted(databases, "database"),
            counted(stores, "store"),
        ));
    }
    Ok(Exit::Green)
}

pub(super) fn next(
    config: &Config,
    only: Option<&JobName>,
    number: u16,
    from: Option<Timestamp>,
    as_json: bool,
) -> Result<Exit, Failure> {
    let jobs: Vec<&JobSettings> = match only {
        Some(name) => vec![job(config, name)?],
        None => config.jobs.values().collect(),
    };
    let from = from.unwrap_or_else(Timestamp::now);
    let mut occurrences = Vec::new();
    for settings in jobs {
        let mut after = from;
        for _ in 0..number {
            let Some(slot) = settings.schedule.next_after(after) else {
                break;
            };
            after = slot.scheduled_for;
            occurrences.push((settings, slot));
        }
    }
    occurrences.sort_by(|(a, slot), (b, other)| (slot.scheduled_for, &a.name).cmp(&(other.scheduled_for, &b.name)));
    let local = |settings: &JobSettings, at: Timestamp| {
        let zoned = at.to_zoned(settings.schedule.timezone().rules().clone());
        zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    };
    if as_json {
        let slots: Vec<Value> = occurrences
            .iter()
            .map(|(settings, slot)| {
                json!({
                    "job": settings.name, "scheduled_for": slot.scheduled_for,
                    "local": local(settings, slot.scheduled_for),
                    "timezone": settings.schedule.timezone().name(), "adjusted": slot.adjusted,
                })
            })
            .collect();
        output::document(&json!({ "version": 1, "occurrences": slots }));
    } else {
        let rows: Vec<Vec<String>> = occurrences
            .iter()
            .map(|(settings, slot)| {
                vec![
                    settings.name.to_string(),
                    slot.scheduled_for.to_string(),
                    local(settings, slot.scheduled_for),
                    settings.schedule.timezone().name().to_owned(),
                    slot.adjusted
                        .map_or("", super::super::schedule::cron::Adjusted::as_str)
                        .to_owned(),
                ]
            })
            .collect();
        output::table(&["JOB", "UTC", "LOCAL", "ZONE", "ADJUSTED"], &rows);
    }
    Ok(Exit::Green)
}

pub(super) async fn history(config: &Config, filter: &HistoryFilter, as_json: bool) -> Result<Exit, Failure> {
    let (mut records, mut exit) = (Vec::new(), Exit::Green);
    // A job that is gone from the configuration still has its history.
    let unknown = filter.job.as_ref().and_then(|name| job(config, name).err());
    for (database, settings) in &config.databases {
        match read_history(&settings.target, database, filter).await {
            Ok(found) => records.extend(found),
            // The history of the others is worth having all the same.
            Err(error) => {
                let failure = database_failure(&format!("read the history of {database}"), &error);
                output::error(&failure.message, failure.remedy.as_deref());
                exit = failure.exit;
            }
        }
    }
    if let (Some(unknown), true, Exit::Green) = (unknown, records.is_empty(), exit) {
        return Err(unknown);
    }
    records.sort_by_key(|record| std::cmp::Reverse(record.scheduled_for.or(record.started_at)));
    if as_json {
        output::document(&json!({ "version": 1, "runs": records }));
    } else {
        output::table(
            &[
                "SLOT OR START",
                "JOB",
                "DATABASE",
                "TRIGGER",
                "ATTEMPT",
                "OUTCOME",
                "REASON",
            ],
            &records.iter().map(history_row).collect::<Vec<_>>(),
        );
    }
    Ok(exit)
}

fn history_row(record: &RunRecord) -> Vec<String> {
    vec![
        record
            .scheduled_for
            .or(record.started_at)
            .map(|at| at.to_string())
            .unwrap_or_default(),
        record.job.clone(),
        record.database.clone(),
        record.trigger.clone(),
        record.attempt.to_string(),
        record.outcome.clone().unwrap_or_else(|| "running".to_owned()),
        record.reason.clone().unwrap_or_default(),
    ]
}

/// The runs of one database; none when pgreeve has never worked on it.
async fn read_history(
    target: &ConnectTarget,
    database: &Name,
    filter: &HistoryFilter,
) -> Result<Vec<RunRecord>, DatabaseError> {
    let mut session = Session::open(target, &SessionSettings::control("pgreeve:history")).await?;
    let known: bool = sqlx::query_scalar("SELECT pg_catalog.to_regclass('pgreeve.run') IS NOT NULL")
        .fetch_one(session.connection())
        .await?;
    let records = if known {
        runs::history(session.connection(), database.as_str(), filter).await?
    } else {
        Vec::new()
    };
    session.close().await;
    Ok(records)
}

pub(super) async fn status(config: &Config, as_json: bool) -> Result<Exit, Failure> {
    let now = Timestamp::now();
    let (mut entries, mut outlooks, mut worst) = (Vec::new(), Vec::new(), Exit::Green);
    let daemon = daemon_status(config).await;
    let mut paused = Vec::new();
    for settings in config.databases.values() {
        // A database that cannot be reached is named below, by its jobs.
        paused.extend(pauses_in_force(&settings.target).await.unwrap_or_default());
    }
    let paused_until = |job: &JobName| {
        let pause = paused.iter().find(|pause| pause.job == job.as_str());
        pause.map(|pause| pause.until)
    };
    for settings in config.jobs.values() {
        let filter = HistoryFilter {
            job: Some(settings.name.clone()),
            limit: 1,
            ..HistoryFilter::default()
        };
        let target = &super::site::target(config, &settings.database)?;
        let last = read_history(target, &settings.database, &filter).await;
        let (record, trouble) = match last {
            Ok(mut records) => (records.pop(), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let unsealed = match settings.kind.kind() {
            Kind::Rollup => read_rollup_lag(target, &settings.name).await.unwrap_or(None),
            _ => None,
        };
        let behind = match &record {
            Some(_) if settings.kind.kind().is_destructive() => read_lag(target, &settings.name).await.unwrap_or(None),
            _ => None,
        };
        let ended = record.as_ref().and_then(RunRecord::outcome);
        if trouble.is_some() || ended.is_some_and(|outcome| outcome != Outcome::Succeeded) {
            worst = Exit::NotGreen;
        }
        let next = settings.schedule.next_after(now).map(|slot| slot.scheduled_for);
        if let KindSettings::Erasure(_) = &settings.kind {
            // What cannot be read is said by the job's line already.
            let outlook = super::erasure::outlook(target, &settings.name).await.unwrap_or(None);
            if outlook.as_ref().is_some_and(|outlook| outlook.overdue > 0) {
                worst = Exit::NotGreen;
            }
            outlooks.extend(outlook.map(|outlook| (&settings.name, outlook)));
        }
        entries.push((settings, record, trouble, next, behind, unsealed));
    }
    let outlook_of = |job: &JobName| {
        outlooks
            .iter()
            .find(|(name, _)| *name == job)
            .map(|(_, outlook)| outlook)
    };
    if as_json {
        let jobs: Vec<Value> = entries
            .iter()
            .map(|(settings, record, trouble, next, behind, unsealed)| {
                json!({
                    "job": settings.name, "database": settings.database, "last": record, "error": trouble, "next": next,
                    "over_retention_seconds": behind, "rollup_lag_seconds": unsealed, "paused_until": paused_until(&settings.name),
                    "requests": outlook_of(&settings.name),
                })
            })
            .collect();
        output::document(&json!({ "version": 1, "daemon": daemon, "jobs": jobs }));
        return Ok(worst);
    }
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|(settings, record, trouble, next, behind, unsealed)| {
            let last = record.as_ref().map(history_row).unwrap_or_default();
            let cell = |index: usize| last.get(index).cloned().unwrap_or_default();
            vec![
                settings.name.to_string(),
                settings.database.to_string(),
                match (trouble, record) {
                    (Some(_), _) => "unknown".to_owned(),
                    (None, Some(_)) => cell(5),
                    (None, None) => "never ran".to_owned(),
                },
                cell(0),
                match paused_until(&settings.name) {
                    Some(until) => format!("paused until {until}"),
                    None => next.map(|at| at.to_string()).unwrap_or_default(),
                },
                behind.or(*unsealed).map(roughly).unwrap_or_default(),
                trouble.clone().unwrap_or_else(|| cell(6)),
            ]
        })
        .collect();
    output::table(&["JOB", "DATABASE", "LAST", "AT", "NEXT", "BEHIND", "REASON"], &rows);
    for (job, outlook) in outlooks.iter().filter(|(_, outlook)| outlook.open > 0) {
        output::line(&super::erasure::stand(job, outlook, now));
    }
    output::line("");
    print_daemon(&daemon);
    Ok(worst)
}

/// How far behind a policy is; nothing where that cannot be read, which the job's line says already.
async fn read_lag(target: &ConnectTarget, job: &JobName) -> Result<Option<u64>, DatabaseError> {
    let mut session = Session::open(target, &SessionSettings::control("pgreeve:status")).await?;
    let lag = lag::over_retention(session.connection(), job).await;
    session.close().await;
    lag
}

/// For how long a rollup is not sealed.
async fn read_rollup_lag(target: &ConnectTarget, job: &JobName) -> Result<Option<u64>, DatabaseError> {
    let mut session = Session::open(target, &SessionSettings::control("pgreeve:status")).await?;
    let lag = rollups::lag(session.connection(), job).await;
    session.close().await;
    lag
}

/// The two largest units of a time, rounded down: `3d4h`.
fn roughly(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let start = units
        .iter()
        .position(|(size, _)| seconds >= *size)
        .unwrap_or(units.len() - 1);
    let mut left = seconds;
    let mut parts = Vec::new();
    for (size, unit) in units.iter().skip(start).take(2) {
        let count = left / size;
        left %= size;
        if count > 0 || parts.is_empty() {
            parts.push(format!("{count}{unit}"));
        }
    }
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_by_its_two_largest_units() {
        let shown = [0, 59, 60, 3661, 86_400, 273_600].map(roughly);
        assert_eq!(shown, ["0s", "59s", "1m", "1h1m", "1d", "3d4h"]);
    }
}
