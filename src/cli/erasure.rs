//! Verbs on erasures: `erasure list`, `plan`, `request`, `extend`, `reject`.

mod decide;

use std::io::Read;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;
use sqlx::Connection;
use uuid::Uuid;

use super::certificate::CertificateArguments;
use super::record::{audit_failure, open_audit};
use super::replay::{self, ReplayArguments};
use super::run::{job_failure, look};
use super::site::{database_failure, job, target};
use super::{Exit, Failure, actor, output, parse_instant, parse_job};
use crate::audit::{AuditLog, Entry, RecordKind};
use crate::config::{Config, JobSettings};
use crate::erasure::host::HostProof;
use crate::erasure::rule::Rule;
use crate::erasure::{RequestId, SubjectKey, deadline, desk, init};
use crate::jobs::KindSettings;
use crate::ledger::erasures::{self, Outlook, Request};
use crate::ledger::migrate;
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;
use crate::runner::Site;
use crate::values::{JobName, Name};

#[derive(Debug, Subcommand)]
pub(super) enum ErasureVerb {
    /// List the requests, those that are open first, the most urgent of them first.
    List {
        /// Those of one job only.
        #[arg(long, value_parser = parse_job)]
        job: Option<JobName>,
        /// At most so many of each database.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
        limit: i64,
    },
    /// Show what an erasure would do to each table; changes nothing.
    Plan {
        /// The job's name.
        #[arg(value_parser = parse_job)]
        job: JobName,
        /// Write a first version of the job's `tables`, with a reason for each, to be looked at.
        #[arg(long)]
        init: bool,
    },
    /// Ask for the erasure of a person.
    Request(RequestArguments),
    /// Extend the deadline of a request that is not due yet, once (Art. 12(3)).
    Extend {
        /// The request's id.
        id: Uuid,
        /// By how many months.
        #[arg(long, value_parser = clap::value_parser!(i16).range(1..=2))]
        months: i16,
        /// Why, for the record; no personal data.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Show the certificate of an erasure, and check its signature.
    Certificate(CertificateArguments),
    /// Repeat erasures in a database that was restored by other means than `backup restore`.
    Replay(ReplayArguments),
    /// List the keys of subject tokens, and destroy those that nobody needs any more.
    Keys {
        /// Destroy the keys that no backup needs any more.
        #[arg(long)]
        destroy: bool,
    },
    /// Refuse a request that was not begun (Art. 12(4)).
    Reject {
        /// The request's id.
        id: Uuid,
        /// Why, for the record; no personal data.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct RequestArguments {
    /// The job that erases.
    #[arg(long, value_parser = parse_job)]
    job: JobName,
    /// The person's key in the subject's table; `-` reads it from standard input.
    #[arg(long, value_name = "KEY")]
    subject: String,
    /// When it was received, if not now (RFC 3339); the deadline counts from then.
    #[arg(long, value_name = "T", value_parser = parse_instant)]
    received: Option<Timestamp>,
}

pub(super) async fn erasure(config: &Config, verb: ErasureVerb, json: bool) -> Result<Exit, Failure> {
    match verb {
        ErasureVerb::List { job, limit } => list(config, job.as_ref(), limit, json).await,
        ErasureVerb::Plan { job, init: true } => first_version(config, &job).await,
        ErasureVerb::Plan { job, init: false } => {
            rule(config, &job)?;
            super::run::plan(config, &job, json).await
        }
        ErasureVerb::Request(arguments) => request(config, &arguments, json).await,
        ErasureVerb::Extend { id, months, reason } => {
            decide::extend(config, RequestId(id), months, &reason, json).await
        }
        // Dispatched before there is a configuration.
        ErasureVerb::Certificate(_) => Ok(Exit::Usage),
        ErasureVerb::Replay(arguments) => replay::replay(config, &arguments, json).await,
        ErasureVerb::Keys { destroy } => replay::keys(config, destroy, json).await,
        ErasureVerb::Reject { id, reason } => decide::reject(config, RequestId(id), &reason, json).await,
    }
}

/// The settings of a job that erases.
fn rule<'a>(config: &'a Config, name: &JobName) -> Result<(&'a JobSettings, &'a Rule), Failure> {
    let settings = job(config, name)?;
    match &settings.kind {
        KindSettings::Erasure(rule) => Ok((settings, rule)),
        other => Err(Failure::new(
            Exit::Usage,
            format!("{name} is a {}, no erasure", other.kind().as_str()),
        )
        .with_remedy("name a job with an `erasure` section")),
    }
}

/// The databases that erase, each once.
fn databases<'a>(config: &'a Config, only: Option<&JobName>) -> Result<Vec<&'a Name>, Failure> {
    if let Some(name) = only {
        return Ok(vec![&rule(config, name)?.0.database]);
    }
    let erasing = config
        .jobs
        .values()
        .filter(|job| matches!(job.kind, KindSettings::Erasure(_)));
    let mut names: Vec<&Name> = erasing.map(|job| &job.database).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

async fn session(config: &Config, database: &Name) -> Result<Session, Failure> {
    Session::open(target(config, database)?, &SessionSettings::control("pgreeve:erasure"))
        .await
        .map_err(|error| database_failure(&format!("database {database}"), &error))
}

async fn list(config: &Config, only: Option<&JobName>, limit: i64, as_json: bool) -> Result<Exit, Failure> {
    let mut found: Vec<(&Name, Request)> = Vec::new();
    for database in databases(config, only)? {
        let failed = |error| database_failure(&format!("list the requests of {database}"), &error);
        let mut session = session(config, database).await?;
        if erasures::exist(session.connection()).await.map_err(failed)? {
            let requests = erasures::list(session.connection(), only.map(JobName::as_str), limit)
                .await
                .map_err(failed)?;
            found.extend(requests.into_iter().map(|request| (database, request)));
        }
        session.close().await;
    }
    let now = Timestamp::now();
    if as_json {
        let requests: Vec<_> = found
            .iter()
            .map(|(database, request)| {
                json!({
                    "request_id": request.id, "job": request.job, "database": database, "state": request.state,
                    "reason": request.reason, "requested_by": request.requested_by, "received_at": request.received_at,
                    "due_at": request.due_at, "extended_months": request.extended_months, "attempt": request.attempt,
                    "subject": request.token, "found": request.found, "finished_at": request.finished_at,
                    "days_left": request.finished_at.is_none().then(|| deadline::days_left(request.due_at, now)),
                })
            })
            .collect();
        output::document(&json!({ "version": 1, "requests": requests }));
        return Ok(Exit::Green);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|(database, request)| row(database, request, now))
        .collect();
    output::table(
        &[
            "REQUEST",
            "JOB",
            "DATABASE",
            "STATE",
            "RECEIVED",
            "DUE",
            "DAYS LEFT",
            "FINISHED",
            "REASON",
        ],
        &rows,
    );
    Ok(Exit::Green)
}

fn row(database: &Name, request: &Request, now: Timestamp) -> Vec<String> {
    let left = request
        .finished_at
        .is_none()
        .then(|| deadline::days_left(request.due_at, now).to_string());
    vec![
        request.id.to_string(),
        request.job.clone(),
        database.to_string(),
        request.state.as_str().to_owned(),
        request.received_at.to_string(),
        request.due_at.to_string(),
        left.unwrap_or_default(),
        request.finished_at.map(|at| at.to_string()).unwrap_or_default(),
        request.reason.clone().unwrap_or_default(),
    ]
}

async fn first_version(config: &Config, name: &JobName) -> Result<Exit, Failure> {
    let (settings, rule) = rule(config, name)?;
    let mut session = session(config, &settings.database).await?;
    let text = init::propose(session.connection(), name, rule)
        .await
        .map_err(|error| job_failure(&error))?;
    session.close().await;
    output::bytes(text.as_bytes());
    Ok(Exit::Green)
}

async fn request(config: &Config, arguments: &RequestArguments, as_json: bool) -> Result<Exit, Failure> {
    let (settings, rule) = rule(config, &arguments.job)?;
    let key = key(&arguments.subject)?;
    let received_at = arguments.received.unwrap_or_else(Timestamp::now);
    if received_at > Timestamp::now() {
        return Err(Failure::new(Exit::Usage, "a request cannot be received in the future")
            .with_remedy("give the instant at which it came in"));
    }
    let audit = open_audit(config)?;
    let site = look(&settings.database, target(config, &settings.database)?).await?;
    let failed = |error| database_failure("keep the request", &error);
    migrate::apply(&site.target).await.map_err(failed)?;
    let proof = HostProof::open(crate::daemon::proof::of(config, settings))
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()).with_remedy(error.remedy))?;
    let actor = actor();
    let asked = desk::Asked {
        job: name_of(settings),
        database: settings.database.as_str(),
        rule,
        zone: settings.schedule.timezone().rules(),
        key: &key,
        received_at,
        requested_by: &actor,
    };
    let mut session = session(config, &settings.database).await?;
    let mut transaction = session
        .connection()
        .begin()
        .await
        .map_err(|error| failed(error.into()))?;
    let kept = desk::receive(&mut transaction, &asked, &proof)
        .await
        .map_err(|error| job_failure(&error))?;
    let body = json!({ "requests": [kept.record] });
    record(&audit, &site, settings, RecordKind::ErasureRequested, body).await?;
    transaction.commit().await.map_err(|error| failed(error.into()))?;
    session.close().await;
    if as_json {
        let request = json!({ "request_id": kept.id, "job": settings.name, "due_at": kept.due_at });
        output::document(&json!({ "version": 1, "request": request }));
    } else {
        output::line(&format!("request {} is kept and due at {}", kept.id, kept.due_at));
    }
    Ok(Exit::Green)
}

fn name_of(settings: &JobSettings) -> &str {
    settings.name.as_str()
}

/// The key as it is given, or the first line of standard input, where arguments would show it.
fn key(given: &str) -> Result<SubjectKey, Failure> {
    let text = if given == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| Failure::new(Exit::Usage, format!("the subject cannot be read: {error}")))?;
        text.lines().next().unwrap_or_default().to_owned()
    } else {
        given.to_owned()
    };
    if text.is_empty() {
        return Err(Failure::new(Exit::Usage, "the subject is empty").with_remedy("give the key of the person's row"));
    }
    Ok(SubjectKey::new(text))
}

/// A request with its job, and a session on its database.
async fn find(config: &Config, id: RequestId) -> Result<(&JobSettings, Session, Request), Failure> {
    for database in databases(config, None)? {
        let failed = |error| database_failure(&format!("look for the request in {database}"), &error);
        let mut session = session(config, database).await?;
        let found = if erasures::exist(session.connection()).await.map_err(failed)? {
            erasures::find(session.connection(), id).await.map_err(failed)?
        } else {
            None
        };
        if let Some(request) = found {
            let name = request.job.parse::<JobName>();
            let settings = name.ok().and_then(|name| config.jobs.get(&name));
            let settings = settings
                .filter(|settings| settings.database == *database)
                .ok_or_else(|| {
                    Failure::new(
                        Exit::Usage,
                        format!("the job {} of the request is not in the configuration", request.job),
                    )
                    .with_remedy("put the job back, then try again")
                })?;
            return Ok((settings, session, request));
        }
        session.close().await;
    }
    Err(Failure::new(Exit::Usage, format!("there is no request {id}"))
        .with_remedy("`pgreeve erasure list` shows those there are"))
}

async fn record(
    audit: &AuditLog,
    site: &Site,
    settings: &JobSettings,
    kind: RecordKind,
    body: serde_json::Value,
) -> Result<(), Failure> {
    let entry = Entry::new(kind, body)
        .job(settings.name.clone())
        .database(site.system_identifier.clone())
        .policy(settings.kind.fingerprint())
        .actor(actor());
    audit
        .append(entry)
        .await
        .map(|_| ())
        .map_err(|error| audit_failure(&error))
}

fn said(reason: &str) -> Result<(), Failure> {
    if reason.trim().is_empty() {
        return Err(Failure::new(Exit::Usage, "the reason is empty")
            .with_remedy("say why: whoever reads the record in years has nothing else"));
    }
    Ok(())
}

/// How the requests of a job stand.
pub(super) async fn outlook(target: &ConnectTarget, job: &JobName) -> Result<Option<Outlook>, DatabaseError> {
    let mut session = Session::open(target, &SessionSettings::control("pgreeve:status")).await?;
    let outlook = erasures::outlook(session.connection(), job.as_str()).await;
    session.close().await;
    outlook
}

/// The same in words.
pub(super) fn stand(job: &JobName, outlook: &Outlook, now: Timestamp) -> String {
    let due = outlook.next_due_at.map_or_else(String::new, |due| {
        format!(
            "; the next is due at {due}, {} days from now",
            deadline::days_left(due, now)
        )
    });
    format!(
        "{job}: {} requests are open, {} of them overdue{due}",
        outlook.open, outlook.overdue
    )
}
