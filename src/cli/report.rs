//! `audit report`: what was due, what was done and what was not, over a stretch of time.
//!
//! Most of it comes from the audit log, which a database that is down does not take along. How far
//! behind a policy is now only its database knows; one that cannot be asked is named.

mod account;
mod page;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use jiff::Timestamp;
use serde::Serialize;

use self::account::{Account, Event, NO_RECORD};
use self::page::Part;
use super::why::{At, parse_at};
use super::{Exit, Failure, output, site};
use crate::audit::{self, PublicKey, Verification};
use crate::config::{Config, JobSettings};
use crate::jobs::KindSettings;
use crate::ledger::erasures::{self, Outlook};
use crate::ledger::{lag, rollups};
use crate::postgres::connect::{Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;

#[derive(Debug, clap::Args)]
pub(super) struct ReportArguments {
    /// From this time on: 2026-03-01, 2026-03-01T00:00 in the daemon's zone, or 2026-03-01T00:00:00Z.
    #[arg(long, value_name = "T", value_parser = parse_at)]
    from: At,
    /// To before this time.
    #[arg(long, value_name = "T", value_parser = parse_at)]
    to: At,
    /// How it is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The public key to trust; default: the one beside the log.
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Csv,
    Html,
}

/// How a job stands now, as its database says.
#[derive(Debug, Default, Serialize)]
struct Standing {
    job: String,
    over_retention_seconds: Option<u64>,
    rollup_lag_seconds: Option<u64>,
    requests_open: Option<i64>,
    requests_overdue: Option<i64>,
    next_due_at: Option<Timestamp>,
    /// Why the database could not be asked.
    error: Option<String>,
}

/// The report as a document.
#[derive(Serialize)]
struct Document<'a> {
    version: u8,
    from: Timestamp,
    to: Timestamp,
    written_at: Timestamp,
    record: &'a Verification,
    jobs: &'a BTreeMap<String, account::Job>,
    standing: &'a [Standing],
    backups: &'a [Event],
    erasures: &'a BTreeMap<String, u64>,
    decisions: &'a [Event],
    configuration: &'a [Event],
}

pub(super) async fn report(config: &Config, arguments: &ReportArguments, json: bool) -> Result<Exit, Failure> {
    let zone = config.daemon.timezone.rules();
    let resolve = |at: At| {
        at.resolve(zone)
            .ok_or_else(|| Failure::new(Exit::Usage, "this time is beyond the calendar"))
    };
    let (from, to) = (resolve(arguments.from)?, resolve(arguments.to)?);
    if to <= from {
        let failure = Failure::new(Exit::Usage, "the report would end before it begins");
        return Err(failure.with_remedy("write an earlier --from"));
    }
    let failed = |error: &audit::AuditError| Failure::new(Exit::Failed, error.to_string()).with_remedy(&error.remedy);
    let dir = config.daemon.state_dir.join("audit");
    let key = arguments.public_key.as_deref().map(PublicKey::read).transpose();
    let key = key.map_err(|error| failed(&error))?;
    let record = audit::verify(&dir, key.as_ref(), &[]).map_err(|error| failed(&error))?;
    let account = account::read(&dir, from, to).map_err(|error| failed(&error))?;
    let mut standing = Vec::new();
    for settings in config.jobs.values() {
        standing.extend(stand(config, settings).await);
    }
    let title = format!("pgreeve on {}: {from} to {to}", config.daemon.instance);
    let parts = parts(&record, &account, &standing);
    match arguments.format {
        Format::Text if !json => page::text(&title, &parts),
        Format::Csv => output::bytes(page::csv(&parts).as_bytes()),
        Format::Html => output::bytes(page::html(&title, &parts).as_bytes()),
        Format::Text | Format::Json => output::document(&Document {
            version: 1,
            from,
            to,
            written_at: Timestamp::now(),
            record: &record,
            jobs: &account.jobs,
            standing: &standing,
            backups: &account.backups,
            erasures: &account.erasures,
            decisions: &account.decisions,
            configuration: &account.configuration,
        }),
    }
    let unasked = standing.iter().any(|standing| standing.error.is_some());
    Ok(match (record.ok, unasked) {
        (false, _) => Exit::Tampered,
        (true, true) => Exit::NotGreen,
        (true, false) => Exit::Green,
    })
}

/// How a job stands; nothing for a kind that cannot fall behind.
async fn stand(config: &Config, settings: &JobSettings) -> Option<Standing> {
    let falls_behind = matches!(settings.kind, KindSettings::Rollup(_)) || settings.kind.kind().is_destructive();
    if !falls_behind {
        return None;
    }
    let asked = match site::target(config, &settings.database) {
        Ok(target) => ask(target, settings).await.map_err(|error| error.to_string()),
        Err(failure) => Err(failure.message),
    };
    let unasked = |error| Standing {
        error: Some(error),
        ..Standing::default()
    };
    Some(Standing {
        job: settings.name.to_string(),
        ..asked.unwrap_or_else(unasked)
    })
}

async fn ask(
    target: &crate::postgres::connect::ConnectTarget,
    settings: &JobSettings,
) -> Result<Standing, DatabaseError> {
    let mut session = Session::open(target, &SessionSettings::control("pgreeve:report")).await?;
    let connection = session.connection();
    let known: bool = sqlx::query_scalar("SELECT pg_catalog.to_regclass('pgreeve.run') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    let mut standing = Standing::default();
    match &settings.kind {
        _ if !known => {}
        KindSettings::Rollup(_) => standing.rollup_lag_seconds = rollups::lag(connection, &settings.name).await?,
        KindSettings::Erasure(_) => {
            let outlook: Option<Outlook> = erasures::outlook(connection, settings.name.as_str()).await?;
            if let Some(outlook) = outlook {
                standing.requests_open = Some(outlook.open);
                standing.requests_overdue = Some(outlook.overdue);
                standing.next_due_at = outlook.next_due_at;
            }
        }
        _ => standing.over_retention_seconds = lag::over_retention(connection, &settings.name).await?,
    }
    session.close().await;
    Ok(standing)
}

/// The same for people.
fn parts(record: &Verification, account: &Account, standing: &[Standing]) -> Vec<Part> {
    let shown = |value: Option<String>| value.unwrap_or_default();
    let seconds = |value: Option<u64>| shown(value.map(|value| value.to_string()));
    let stood = standing.iter().map(|standing| {
        vec![
            standing.job.clone(),
            seconds(standing.over_retention_seconds),
            seconds(standing.rollup_lag_seconds),
            shown(standing.requests_open.map(|open| open.to_string())),
            shown(standing.requests_overdue.map(|overdue| overdue.to_string())),
            shown(standing.next_due_at.map(|at| at.to_string())),
            shown(
                standing
                    .error
                    .as_ref()
                    .map(|error| format!("could not be asked: {error}")),
            ),
        ]
    });
    let reasons = account.jobs.iter().flat_map(|(job, account)| {
        let line = |(reason, count): (&String, &u64)| vec![job.clone(), count.to_string(), reason.clone()];
        account.reasons.iter().map(line)
    });
    let erasures = account.erasures.iter();
    vec![
        verified(record),
        slots(account),
        Part {
            title: "why not green",
            columns: vec!["job", "slots or runs", "reason"],
            rows: reasons.collect(),
        },
        Part {
            title: "how far behind now",
            columns: vec![
                "job",
                "over retention, s",
                "rollup not sealed for, s",
                "requests open",
                "overdue",
                "next due",
                "not known",
            ],
            rows: stood.collect(),
        },
        events("backups, checks and restores", &account.backups),
        Part {
            title: "erasures",
            columns: vec!["record", "count"],
            rows: erasures
                .map(|(kind, count)| vec![kind.clone(), count.to_string()])
                .collect(),
        },
        events("decisions, holds and what befell the host", &account.decisions),
        events("changes of the configuration", &account.configuration),
    ]
}

fn verified(record: &Verification) -> Part {
    let mut rows = vec![
        vec![
            "sound".to_owned(),
            match &record.first_bad {
                None => "yes".to_owned(),
                Some(bad) => format!("NO: record {} at {}:{}: {}", bad.seq, bad.file, bad.line, bad.problem),
            },
        ],
        vec!["records".to_owned(), record.records.to_string()],
        vec!["signed through record".to_owned(), record.signed_through.to_string()],
        vec!["public key".to_owned(), record.public_key.to_string()],
    ];
    rows.extend(
        record
            .warnings
            .iter()
            .map(|warning| vec!["warning".to_owned(), warning.clone()]),
    );
    Part {
        title: "the record",
        columns: vec!["", ""],
        rows,
    }
}

fn slots(account: &Account) -> Part {
    const APART: [&str; 4] = ["succeeded", "missed", "skipped", NO_RECORD];
    let rows = account.jobs.iter().map(|(name, job)| {
        let of = |outcome: &str| job.slots.get(outcome).copied().unwrap_or(0).to_string();
        let others = |outcomes: &BTreeMap<String, u64>, apart: &[&str]| {
            let others = outcomes
                .iter()
                .filter(|(outcome, _)| !apart.contains(&outcome.as_str()));
            let others: Vec<String> = others.map(|(outcome, count)| format!("{outcome} {count}")).collect();
            others.join(", ")
        };
        vec![
            name.clone(),
            job.expected.to_string(),
            of("succeeded"),
            others(&job.slots, &APART),
            of("missed"),
            of("skipped"),
            of(NO_RECORD),
            others(&job.manual, &[]),
        ]
    });
    Part {
        title: "slots",
        columns: vec![
            "job",
            "expected",
            "green",
            "not green",
            "missed",
            "skipped",
            "no record",
            "by hand",
        ],
        rows: rows.collect(),
    }
}

fn events(title: &'static str, events: &[Event]) -> Part {
    let rows = events.iter().map(|event| {
        vec![
            event.seq.to_string(),
            event.ts.to_string(),
            event.kind.clone(),
            event.job.clone().unwrap_or_default(),
            event.actor.clone().unwrap_or_default(),
            event.what.clone(),
        ]
    });
    Part {
        title,
        columns: vec!["record", "time", "kind", "job", "by", "what"],
        rows: rows.collect(),
    }
}
