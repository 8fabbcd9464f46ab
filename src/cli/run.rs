//! Verbs that make something happen: `daemon`, `plan`, `approve`, `run`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::control::{ask, call_failure};
use super::record::{audit_failure, open_audit};
use super::site::{database_failure, job, target};
use super::{Exit, Failure, actor, output};
use crate::audit::{AuditLog, Entry, RecordKind};
use crate::config::{Config, JobSettings};
use crate::control::{CallError, Update, Verb, Why};
use crate::daemon::{self, DaemonError};
use crate::job::{Disposition, JobError, Outcome, Progress, RecordError, Recorder, Trigger};
use crate::ledger::leader::{CONFIRM_EVERY, Campaign, Fence, Leader};
use crate::ledger::runs::{self, NewRun, RunRecord};
use crate::ledger::{migrate, policies};
use crate::lifecycle;
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::runner::{self, RunRequest, RunnableJob, Runner, Site, Stops};
use crate::schedule::{cancelling, recovery};
use crate::values::{JobName, Name, RunId};

/// How often a terminal's progress line is renewed at the most.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn daemon(config: Config) -> Result<Exit, Failure> {
    match daemon::run(&config).await {
        Ok(()) => Ok(Exit::Green),
        Err(DaemonError::Audit(error)) => Err(audit_failure(&error)),
        Err(error) => Err(Failure::new(Exit::Failed, error.to_string())),
    }
}

pub(super) async fn plan(config: &Config, name: &JobName, json: bool) -> Result<Exit, Failure> {
    let settings = job(config, name)?;
    let site = look(&settings.database, target(config, &settings.database)?).await?;
    let runnable = daemon::runnable(config, settings);
    let plan = runner::plan_only(&runnable, &site, Arc::new(NothingIsRecorded))
        .await
        .map_err(|error| job_failure(&error))?;
    let document = json!({
        "job": name, "kind": settings.kind.kind(), "database": settings.database, "policy": runnable.policy,
        "approval": settings.approval, "intent": plan,
    });
    if json {
        output::document(&json!({ "version": 1, "plan": document }));
    } else {
        output::labelled("job", &format!("{name} ({})", settings.kind.kind().as_str()));
        output::labelled("database", settings.database.as_str());
        output::labelled("policy", &runnable.policy);
        print_object(&plan);
    }
    Ok(Exit::Green)
}

fn print_object(value: &Value) {
    let Some(object) = value.as_object() else { return };
    for (key, value) in object {
        match value {
            // What a gated run would have done reads like any plan.
            Value::Object(_) if key == "plan" => print_object(value),
            // One of them a line.
            Value::Array(items) if !items.is_empty() => {
                let lines: Vec<String> = items.iter().filter_map(plain).collect();
                output::labelled(key, &lines.join("\n"));
            }
            other => output::labelled(key, plain(other).as_deref().unwrap_or("none")),
        }
    }
}

/// A value in a line, without what is not there.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().filter_map(plain).collect();
            (!items.is_empty()).then(|| items.join(", "))
        }
        Value::Object(object) => {
            let fields = object.iter();
            let fields: Vec<String> = fields
                .filter_map(|(key, value)| Some(format!("{key} {}", plain(value)?)))
                .collect();
            (!fields.is_empty()).then(|| fields.join(", "))
        }
        other => Some(other.to_string()),
    }
}

pub(super) async fn approve(config: &Config, hash: &str, json: bool) -> Result<Exit, Failure> {
    let digits = hash.strip_prefix("sha256:").unwrap_or(hash);
    if digits.len() < 8 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(Failure::new(Exit::Usage, format!("`{hash}` is not a policy's hash"))
            .with_remedy("`pgreeve plan JOB` shows it; give at least its first eight digits"));
    }
    let wanted = format!("sha256:{}", digits.to_lowercase());
    let matching: Vec<&JobSettings> = config
        .jobs
        .values()
        .filter(|job| job.kind.fingerprint().starts_with(&wanted))
        .collect();
    if matching.is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            format!("no job of the configuration has the policy {hash}"),
        )
        .with_remedy("the policy was changed since it was planned; look at `pgreeve plan JOB` again"));
    }
    let mut hashes: Vec<String> = matching.iter().map(|job| job.kind.fingerprint()).collect();
    hashes.sort();
    hashes.dedup();
    if hashes.len() > 1 {
        return Err(
            Failure::new(Exit::Usage, format!("`{hash}` could be any of {}", hashes.join(", ")))
                .with_remedy("give more of its digits"),
        );
    }
    let audit = open_audit(config)?;
    let mut approved = Vec::new();
    for settings in matching {
        let site = look(&settings.database, target(config, &settings.database)?).await?;
        let runnable = daemon::runnable(config, settings);
        // What is approved is what the policy would do today, not only its text.
        let plan = runner::plan_only(&runnable, &site, Arc::new(NothingIsRecorded))
            .await
            .map_err(|error| job_failure(&error))?;
        let failed = |error| database_failure("keep the approval", &error);
        migrate::apply(&site.target).await.map_err(failed)?;
        let mut session = Session::open(&site.target, &SessionSettings::control("pgreeve:approve"))
            .await
            .map_err(failed)?;
        let entry = Entry::new(RecordKind::PolicyApproved, json!({ "plan": plan }))
            .job(runnable.name.clone())
            .database(site.system_identifier.clone())
            .policy(runnable.policy.clone())
            .actor(actor());
        audit.append(entry).await.map_err(|error| audit_failure(&error))?;
        policies::approve(session.connection(), &runnable.policy, &runnable.name, &plan, &actor())
            .await
            .map_err(failed)?;
        session.close().await;
        if !json {
            output::line(&format!("approved {} for {}", runnable.policy, runnable.name));
        }
        approved.push(json!({ "job": runnable.name, "policy": runnable.policy }));
    }
    if json {
        output::document(&json!({ "version": 1, "approved": approved }));
    }
    Ok(Exit::Green)
}

/// Through the daemon where one runs and leads, else in this process.
pub(super) async fn run(config: &Config, name: &JobName, note: Option<String>, json: bool) -> Result<Exit, Failure> {
    let settings = job(config, name)?;
    if let Some(answer) = run_in_the_daemon(config, settings, note.clone(), json).await? {
        let outcome = answer["run"]["outcome"].as_str().and_then(Outcome::from_word);
        return Ok(show_run(&answer["run"], outcome, answer["may_pass"] == true, json));
    }
    run_here(config, settings, daemon::runnable(config, settings), note, json).await
}

/// In this process, beside a daemon that leads or as the leader.
pub(super) async fn run_here(
    config: &Config,
    settings: &JobSettings,
    runnable: RunnableJob,
    note: Option<String>,
    json: bool,
) -> Result<Exit, Failure> {
    let audit = open_audit(config)?;
    let mut site = look(&settings.database, target(config, &settings.database)?).await?;
    migrate::apply(&site.target)
        .await
        .map_err(|error| database_failure("set up the ledger", &error))?;
    let campaign = Leader::campaign(&site.target, &config.daemon.instance, None)
        .await
        .map_err(|error| database_failure("reach the leader row", &error))?;
    // Where a daemon leads, the run joins its epoch: the job's lock keeps the two apart.
    let mut lead = match campaign {
        Campaign::Won(lead) => {
            site.fence = lead.term.fence;
            Some(lead)
        }
        Campaign::Held { epoch, .. } => {
            site.fence = Fence { epoch };
            None
        }
        Campaign::Standby => {
            return Err(
                Failure::new(Exit::TryAgain, format!("{} is a standby", settings.database))
                    .with_remedy("run against the primary, or after the promotion"),
            );
        }
    };
    if let Some(lead) = &mut lead {
        recovery::recover(lead, &audit, settings.database.as_str())
            .await
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    }
    let stops = Stops::default();
    let done = CancellationToken::new();
    let keeper = lead.map(|lead| tokio::spawn(keep_leading(lead, stops.clone(), done.clone())));
    let record = Box::pin(run_once(config, settings, runnable, site, &audit, note, json, stops)).await;
    done.cancel();
    if let Some(keeper) = keeper {
        let _ = keeper.await;
    }
    let record = record?;
    Ok(show_run(&json!(record), record.outcome(), record.may_pass, json))
}

/// Shows the record of a run, from this process or from the daemon.
fn show_run(record: &Value, outcome: Option<Outcome>, may_pass: bool, json: bool) -> Exit {
    if json {
        output::document(&json!({ "version": 1, "run": record }));
    } else {
        print_record(record);
    }
    match outcome {
        // Whoever calls us may try again; the run's own attempts are used up.
        Some(_) if may_pass => Exit::TryAgain,
        Some(outcome) => outcome.into(),
        None => Exit::Failed,
    }
}

/// Confirms the lead until the work is done, so that no follower takes us for dead. When it is lost,
/// the work is ended.
async fn keep_leading(mut lead: Leader, stops: Stops, done: CancellationToken) {
    loop {
        tokio::select! {
            () = done.cancelled() => return lead.resign().await,
            () = tokio::time::sleep(CONFIRM_EVERY) => {}
        }
        if let Err(error) = lead.confirm().await {
            return stops.end_now(&format!("pgreeve, which lost the lead: {error}"));
        }
    }
}

/// `None` when no daemon runs, or the one that runs does not lead the job's database.
async fn run_in_the_daemon(
    config: &Config,
    settings: &JobSettings,
    note: Option<String>,
    json: bool,
) -> Result<Option<Value>, Failure> {
    let verb = Verb::Run {
        job: settings.name.clone(),
        policy: settings.kind.fingerprint(),
        note,
    };
    let shown = output::is_watched() && !json;
    let started = std::time::Instant::now();
    let mut run = None;
    let asked = ask(&config.daemon, verb, |update| match update {
        Update::Started(id) => run = Some(id),
        Update::Progress { unit, done, total } if shown => {
            output::progress(&progress_line(&unit, done, total, started.elapsed()));
        }
        _ => {}
    });
    let answer = tokio::select! {
        answer = asked => answer,
        _ = tokio::signal::ctrl_c() => {
            let run = run.map(|run| run.to_string());
            return Err(Failure::new(Exit::TryAgain, "the run goes on in the daemon").with_remedy(format!(
                "`pgreeve cancel {}` ends it",
                run.as_deref().unwrap_or("RUN")
            )));
        }
    };
    if shown {
        output::progress("");
    }
    match answer {
        None => Ok(None),
        Some(Ok(record)) => Ok(Some(record)),
        Some(Err(CallError::Refused(refusal))) if refusal.why == Why::NotLeading => Ok(None),
        Some(Err(error)) => Err(call_failure(&error)),
    }
}

#[expect(clippy::too_many_arguments, reason = "each is a part of the run's request")]
async fn run_once(
    config: &Config,
    settings: &JobSettings,
    runnable: RunnableJob,
    site: Site,
    audit: &AuditLog,
    note: Option<String>,
    json: bool,
    stops: Stops,
) -> Result<RunRecord, Failure> {
    let row = NewRun {
        run: RunId::new(),
        job: settings.name.clone(),
        kind: settings.kind.kind(),
        scheduled_for: None,
        timezone: settings.schedule.timezone().name().to_owned(),
        adjusted: None,
        trigger: Trigger::Manual,
        actor: actor(),
        instance: config.daemon.instance.clone(),
        epoch: site.fence.epoch,
        policy: runnable.policy.clone(),
    };
    let failed = |error| database_failure("open the run in the ledger", &error);
    let mut session = Session::open(&site.target, &SessionSettings::control("pgreeve:run"))
        .await
        .map_err(failed)?;
    runs::admit(session.connection(), &row).await.map_err(failed)?;
    session.close().await;
    lifecycle::listen(stops.clone())
        .map_err(|error| Failure::new(Exit::Failed, format!("listen to signals: {error}")))?;
    let _listening = cancelling::listen(site.target.clone(), row.run, stops.clone());
    let progress = Progress::new();
    let shown = (output::is_watched() && !json).then(|| tokio::spawn(show_progress(progress.clone())));
    let request = RunRequest {
        run: row.run,
        job: runnable,
        site,
        scheduled_for: None,
        trigger: Trigger::Manual,
        actor: row.actor,
        note,
        stops,
        progress,
        retry_until: None,
    };
    let record = Runner::new(audit.clone()).execute(request).await;
    if let Some(shown) = shown {
        shown.abort();
        output::progress("");
    }
    Ok(record)
}

pub(super) async fn show_progress(progress: Progress) {
    let started = std::time::Instant::now();
    let mut states = progress.subscribe();
    while states.changed().await.is_ok() {
        let state = states.borrow_and_update().clone();
        output::progress(&progress_line(state.unit, state.done, state.total, started.elapsed()));
        tokio::time::sleep(PROGRESS_EVERY).await;
    }
}

fn progress_line(unit: &str, done: u64, total: Option<u64>, elapsed: Duration) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown to a person")]
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    let of = total.map(|total| format!(" of {total}")).unwrap_or_default();
    format!("{done}{of} {unit} ({rate:.0} per second)")
}

fn print_record(record: &Value) {
    let text = |key: &str| record[key].as_str();
    output::labelled("run", text("run_id").unwrap_or_default());
    output::labelled(
        "job",
        &format!(
            "{} ({})",
            text("job").unwrap_or_default(),
            text("kind").unwrap_or_default()
        ),
    );
    output::labelled("outcome", text("outcome").unwrap_or("unknown"));
    if let Some(reason) = text("reason") {
        output::labelled("reason", reason);
    }
    print_object(&record["report"]);
}

/// Learns who and where, without writing anything.
pub(super) async fn look(database: &Name, target: &ConnectTarget) -> Result<Site, Failure> {
    let failed = |error| database_failure(&format!("database {database}"), &error);
    let mut session = Session::open(target, &SessionSettings::control("pgreeve:look"))
        .await
        .map_err(failed)?;
    let system_identifier = crate::ledger::leader::identify(session.connection())
        .await
        .map_err(failed)?;
    session.close().await;
    Ok(Site {
        database: database.to_string(),
        target: target.clone(),
        system_identifier,
        fence: Fence { epoch: -1 },
    })
}

pub(super) fn job_failure(error: &JobError) -> Failure {
    let exit = match error.disposition {
        Disposition::Transient => Exit::TryAgain,
        Disposition::Refused | Disposition::Cancelled | Disposition::Displaced => Exit::NotGreen,
        Disposition::Permanent => Exit::Failed,
    };
    let failure = Failure::new(exit, error.to_string());
    match &error.remedy {
        Some(remedy) => failure.with_remedy(remedy.clone()),
        None => failure,
    }
}

/// A plan changes nothing, so it has nothing to record; a job that tries is wrong.
pub(super) struct NothingIsRecorded;

impl Recorder for NothingIsRecorded {
    fn record<'a>(&'a self, kind: &'static str, _: Value) -> futures::future::BoxFuture<'a, Result<(), RecordError>> {
        Box::pin(std::future::ready(Err(RecordError(format!(
            "a plan may not record {kind}"
        )))))
    }
}
