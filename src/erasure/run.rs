//! A whole run: what a plan shows, and the requests one after the other, most urgent first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use super::close::Found;
use super::execute::{Trouble, Worker};
use super::intake::{self, Taken};
use super::plan::{self, ErasurePlan, Work};
use super::proof::{Account, Proof, Subject};
use super::request::{RequestId, RequestState, SubjectKey};
use super::rule::{Action, Rule};
use super::statement::requests::RequestTable;
use super::{close, deadline, drift, preflight, reach, scope, steps};
use crate::job::{JobContext, JobError, JobReport, Outcome};
use crate::ledger::erasures::{self, NewRequest, Request};
use crate::postgres::catalog::access::{self, Need};
use crate::postgres::grant::Grant;
use crate::postgres::sqlstate::DatabaseError;

/// How often a request is tried before it has failed.
const MOST_ATTEMPTS: i32 = 12;

/// How many requests are announced, and closed, together: each of these waits for the disk once.
const GROUP: usize = 32;

/// How often rows that come late are followed within one attempt.
const MOST_LATE: u32 = 5;

/// A plan, ready to run.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What was asked for.
    pub rule: Arc<Rule>,
    /// What happens to each table.
    pub plan: ErasurePlan,
    /// How many requests of the application wait.
    pub waiting: u64,
}

/// Reads the catalog and decides what a run would do; changes nothing.
///
/// # Errors
/// Refused with all that nobody decided, or with what stands in the way.
pub async fn prepare(connection: &mut PgConnection, rule: &Arc<Rule>) -> Result<Prepared, JobError> {
    let reach = reach::read(connection, rule).await?;
    let mut plan = plan::decide(rule, reach)?;
    let warnings = preflight::check(connection, rule, &plan).await?;
    plan.warnings.extend(warnings);
    let waiting = match RequestTable::new(&plan, rule) {
        Some(table) => sqlx::query_scalar::<_, i64>(AssertSqlSafe(table.waiting()))
            .persistent(false)
            .fetch_one(connection)
            .await
            .map_err(|error| JobError::database(format!("read the requests in {}", table.display()), &error.into()))?
            .unsigned_abs(),
        None => 0,
    };
    Ok(Prepared {
        rule: Arc::clone(rule),
        plan,
        waiting,
    })
}

/// The statements that give the session's role what a rule needs.
///
/// # Errors
/// As [`prepare`], but for rights.
pub async fn grants(connection: &mut PgConnection, rule: &Rule) -> Result<Vec<Grant>, JobError> {
    let reach = reach::read(connection, rule).await?;
    let plan = plan::decide(rule, reach)?;
    preflight::grants(connection, rule, &plan).await
}

impl Prepared {
    /// The plan as operators see it and the audit log keeps it.
    #[must_use]
    pub fn intent(&self) -> Value {
        let plan = &self.plan;
        let tables: Vec<Value> = (plan.reach.nodes.iter())
            .map(|node| {
                let rule = node.rule.as_ref();
                let set = rule.map(|rule| &rule.set).filter(|set| !set.is_empty());
                json!({
                    "table": node.relation.display(), "action": node.action(), "set": set,
                    "basis": rule.and_then(|rule| rule.basis.as_deref()), "until": rule.and_then(|rule| rule.until),
                    "path": node.path,
                })
            })
            .collect();
        let stages: Vec<Vec<String>> = (plan.stages.iter())
            .map(|stage| stage.iter().map(|step| self.shown(step)).collect())
            .collect();
        json!({
            "subject": format!("{}.{}", self.rule.subject.table, self.rule.subject.key),
            "waiting": self.waiting,
            "tables": tables,
            "steps": stages,
            "objects": plan.objects.iter().filter_map(|(place, objects)| Some(json!({
                "table": plan.reach.nodes.get(*place)?.relation.display(), "store": objects.store, "key_column": objects.key_column,
            }))).collect::<Vec<_>>(),
            "schema": plan.schema(),
            "schema_digest": plan.schema_digest(),
            "warnings": plan.warnings,
        })
    }

    fn shown(&self, step: &plan::Step) -> String {
        let node = self.plan.reach.nodes.get(step.node);
        let table = node.map(|node| node.relation.display()).unwrap_or_default();
        match &step.work {
            Work::Keep => format!("{}. count what is kept of {table}", step.number),
            Work::Delete => format!("{}. delete from {table}", step.number),
            Work::Mask(set) => {
                let columns: Vec<&str> = set.iter().map(|(column, _)| column.as_str()).collect();
                format!("{}. mask {} of {table}", step.number, columns.join(", "))
            }
            Work::Unlink(link, columns) => {
                let by = self.plan.reach.links.get(*link).map(reach::Link::describe);
                format!(
                    "{}. take {} out of {table}: {}",
                    step.number,
                    columns.join(", "),
                    by.unwrap_or_default()
                )
            }
        }
    }
}

/// What a run did, by number of requests.
#[derive(Debug, Default)]
struct Tally {
    taken: Taken,
    completed: u64,
    exceptions: u64,
    not_found: u64,
    duplicates: u64,
    on_hold: u64,
    failed: u64,
    retry: u64,
    rows: u64,
}

/// Works on all that waits.
///
/// # Errors
/// When the run cannot go on; each request stands as its ledger says.
pub async fn execute(
    context: &mut JobContext,
    prepared: &Prepared,
    proof: &dyn Proof,
    zone: &TimeZone,
) -> Result<JobReport, JobError> {
    let operation = "prepare the run";
    let failed = |error: DatabaseError| JobError::database(operation, &error);
    let connection = context.session.connection();
    let (policy, approved_by) = drift::check(connection, context.run, &context.job, &prepared.intent()).await?;
    let name = erasures::worker(connection).await.map_err(failed)?;
    let root = prepared.plan.root().map(|root| root.relation.oid);
    let access = access::of(connection, root.as_slice(), &Need::Update(Vec::new()))
        .await
        .map_err(failed)?;
    let (job, database, recorder) = (
        context.job.to_string(),
        context.database.clone(),
        Arc::clone(&context.recorder),
    );
    let mut worker = Worker {
        fence: context.fence,
        run: context.run,
        job: &job,
        database: &database,
        plan: &prepared.plan,
        rule: &prepared.rule,
        proof,
        recorder: recorder.as_ref(),
        stop: context.stop.clone(),
        zone,
        policy,
        approved_by,
        name,
        may_lock: access.iter().all(|access| access.may_lock),
        session: &mut context.session,
    };
    let mut tally = Tally::default();
    let outcome = work(&mut worker, &mut tally, &context.progress).await;
    let report = report(&mut worker, &tally).await;
    match (outcome, report) {
        (Ok(()), report) => report,
        (Err(error), Ok(report)) => Err(error.with_partial(report.body)),
        (Err(error), Err(_)) => Err(error),
    }
}

/// Erases one person at once: for a database that was restored, where nobody else works. The request
/// is kept like any other.
///
/// # Errors
/// When it cannot be done now; what was done stays done, and repeating it goes on.
pub async fn erase_one(worker: &mut Worker<'_>, key: &SubjectKey, requested_by: &str) -> Result<Account, JobError> {
    let failed = |error: DatabaseError| JobError::database("keep the request", &error);
    let operation = "erase a person";
    let root = worker
        .plan
        .root()
        .map(|root| root.relation.display())
        .unwrap_or_default();
    let subject = Subject {
        database: worker.database,
        table: &root,
        key,
    };
    let token = worker.proof.token(&subject).map_err(super::execute::unproven)?;
    let (fence, run, job, zone, name) = (worker.fence, worker.run, worker.job, worker.zone, worker.name.clone());
    let (policy, digest) = (worker.policy.clone(), worker.plan.schema_digest());
    let now = Timestamp::now();
    let new = NewRequest {
        id: RequestId::new(),
        job,
        source_id: None,
        requested_by,
        subject: key,
        token: &token,
        state: RequestState::Received,
        received_at: now,
        due_at: deadline::due(now, zone),
    };
    let mut transaction = worker.begin().await?;
    fence
        .hold(&mut transaction)
        .await
        .map_err(|error| failed(error.into()))?;
    erasures::insert(&mut transaction, &new).await.map_err(failed)?;
    let request = erasures::begin_now(&mut transaction, new.id, run, &name, &policy, &digest)
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(|error| failed(error.into()))?;
    let mut tally = Tally::default();
    plan_for(worker, Planning::Steps).await?;
    let stepped = alone(worker, &request, &mut tally).await;
    if stepped.is_ok() {
        plan_for(worker, Planning::Scans).await?;
    }
    let ended = match stepped {
        Ok(true) => finish(worker, vec![request.clone()], &mut tally).await,
        Ok(false) => Ok(()),
        Err(Trouble::Run(error)) => Err(error),
        Err(Trouble::Lost | Trouble::Stopped) => Err(JobError::cancelled(operation)),
        Err(Trouble::Transient(cause) | Trouble::Late(cause)) => Err(JobError::transient(operation, cause)),
        Err(Trouble::Permanent(cause)) => Err(JobError::permanent(operation, cause)),
    };
    ended?;
    let today = erasures::find(worker.session.connection(), request.id)
        .await
        .map_err(failed)?;
    let state = today.as_ref().map_or(RequestState::Failed, |request| request.state);
    let residue = erasures::residue(worker.session.connection(), request.id)
        .await
        .map_err(failed)?;
    let account = close::account(worker, today.as_ref().unwrap_or(&request), state, residue).await;
    account.map_err(|trouble| match trouble {
        Trouble::Run(error) => error,
        other => JobError::permanent(operation, format!("{other:?}")),
    })
}

/// One request by itself, from its scope to its last step.
async fn alone(worker: &mut Worker<'_>, request: &Request, tally: &mut Tally) -> Result<bool, Trouble> {
    let found = scope::resolve(worker, request).await?;
    let request = Request {
        found: Some(found),
        ..request.clone()
    };
    close::announce(worker, std::slice::from_ref(&request)).await?;
    attempt(worker, &request, tally).await
}

async fn work(worker: &mut Worker<'_>, tally: &mut Tally, progress: &crate::job::Progress) -> Result<(), JobError> {
    tally.taken = intake::take(worker).await?;
    tally.failed += tally.taken.failed;
    ready(worker).await?;
    warn(worker).await?;
    plan_for(worker, Planning::Steps).await?;
    let stepped = erase(worker, tally, progress).await?;
    plan_for(worker, Planning::Scans).await?;
    finish(worker, stepped, tally).await
}

/// Chooses how the planner works from now on. Stale statistics must not turn a step into a read of
/// the whole table, and compiling costs more than a step; a scan is the opposite of both, and has the
/// settings that the session began with.
async fn plan_for(worker: &mut Worker<'_>, work: Planning) -> Result<(), JobError> {
    let value = match work {
        Planning::Steps => "'off'",
        Planning::Scans => "reset_val",
    };
    let sql = format!(
        "SELECT pg_catalog.set_config(name, {value}, false) FROM pg_catalog.pg_settings WHERE name IN ('enable_seqscan', 'jit')"
    );
    sqlx::query(AssertSqlSafe(sql))
        .execute(worker.session.connection())
        .await
        .map_err(|error| JobError::database("set up the session", &error.into()))?;
    Ok(())
}

/// What the planner plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planning {
    /// Statements that find few rows by an index.
    Steps,
    /// Reads of whole tables.
    Scans,
}

/// Does the steps of all that waits, some requests at a time, most urgent first. Answers with those
/// that are done.
async fn erase(
    worker: &mut Worker<'_>,
    tally: &mut Tally,
    progress: &crate::job::Progress,
) -> Result<Vec<Request>, JobError> {
    let mut stepped: Vec<Request> = Vec::new();
    let mut seen = BTreeSet::new();
    while !worker.stop.is_cancelled() {
        let (group, again): (Vec<Request>, Vec<Request>) =
            (claim(worker).await?.into_iter()).partition(|request| seen.insert(request.id));
        for request in &again {
            // It came back at once; the next run tries again.
            put_back(worker, request).await?;
        }
        if group.is_empty() {
            break;
        }
        for round in rounds(group) {
            for request in announced(worker, round, tally).await? {
                if worker.stop.is_cancelled() {
                    break;
                }
                match attempt(worker, &request, tally).await {
                    Ok(true) => stepped.push(request),
                    Ok(false) | Err(Trouble::Lost) => {}
                    Err(Trouble::Stopped) => break,
                    Err(trouble) => give_up(worker, &request, trouble, tally).await?,
                }
                progress.set("rows", tally.rows, None);
            }
        }
    }
    if worker.stop.is_cancelled() {
        return Err(JobError::cancelled("work on the requests for erasure"));
    }
    Ok(stepped)
}

/// Splits requests so that nobody is named twice in one part: what a request finds of its subject is
/// looked for when the steps of the one before are done.
fn rounds(group: Vec<Request>) -> Vec<Vec<Request>> {
    let mut named: BTreeMap<String, usize> = BTreeMap::new();
    let mut rounds: Vec<Vec<Request>> = Vec::new();
    for request in group {
        let count = named.entry(request.token.token.clone()).or_default();
        if rounds.len() == *count {
            rounds.push(Vec::new());
        }
        if let Some(round) = rounds.get_mut(*count) {
            round.push(request);
        }
        *count += 1;
    }
    rounds
}

/// Collects what finds the subjects of some requests, then makes it durable that they are about to be
/// erased. Answers with those whose steps may begin.
async fn announced(worker: &mut Worker<'_>, group: Vec<Request>, tally: &mut Tally) -> Result<Vec<Request>, JobError> {
    let mut ready = Vec::with_capacity(group.len());
    for mut request in group {
        let resolved = if request.resolved {
            Ok(request.found.unwrap_or_default())
        } else {
            scope::resolve(worker, &request).await
        };
        match resolved {
            Ok(found) => {
                request.found = Some(found || request.found.unwrap_or_default());
                ready.push(request);
            }
            Err(Trouble::Lost) => {}
            Err(trouble) => give_up(worker, &request, trouble, tally).await?,
        }
    }
    settled(close::announce(worker, &ready).await)?;
    Ok(ready)
}

/// The steps of one request that is announced. True when they are done, false when holds keep some of
/// them.
async fn attempt(worker: &mut Worker<'_>, request: &Request, tally: &mut Tally) -> Result<bool, Trouble> {
    let mut late = 0;
    let holds = loop {
        let stepped = steps::all(worker, request, late == 0).await;
        tally.rows += stepped.as_ref().map_or(0, |stepped| stepped.rows);
        let cause = match stepped {
            Ok(stepped) if stepped.verified => break stepped.holds,
            Ok(_) => "rows of the subject have come while it was erased".to_owned(),
            Err(Trouble::Late(cause)) => cause,
            Err(trouble) => return Err(trouble),
        };
        if late == MOST_LATE {
            return Err(Trouble::Late(cause));
        }
        late += 1;
        tracing::debug!(request.id = %request.id, cause, "rows have come meanwhile; the steps are done again");
        reopen(worker, request).await?;
        scope::resolve(worker, request).await?;
    };
    if holds.is_empty() {
        return Ok(true);
    }
    tally.on_hold += 1;
    let holds: Vec<String> = holds.iter().map(ToString::to_string).collect();
    let reason = format!("the rest waits for the release of the hold {}", holds.join(", "));
    wait(worker, request, RequestState::OnHold, &reason, 0.0).await?;
    Ok(false)
}

async fn reopen(worker: &mut Worker<'_>, request: &Request) -> Result<(), Trouble> {
    let mut transaction = worker.begin_on(request).await?;
    erasures::reopen(&mut transaction, request.id)
        .await
        .map_err(|error| Trouble::of("open the steps again", &error))?;
    transaction.commit().await.map_err(Trouble::sql("open the steps again"))
}

async fn wait(
    worker: &mut Worker<'_>,
    request: &Request,
    state: RequestState,
    reason: &str,
    seconds: f64,
) -> Result<(), Trouble> {
    let mut transaction = worker.begin_on(request).await?;
    erasures::wait(&mut transaction, request.id, state, Some(reason), seconds)
        .await
        .map_err(|error| Trouble::of("let a request wait", &error))?;
    transaction.commit().await.map_err(Trouble::sql("let a request wait"))
}

/// Decides what becomes of a request whose attempt failed. An error that is not about the request
/// ends the run.
async fn give_up(
    worker: &mut Worker<'_>,
    request: &Request,
    trouble: Trouble,
    tally: &mut Tally,
) -> Result<(), JobError> {
    let (reason, again) = match trouble {
        Trouble::Run(error) => return Err(error),
        Trouble::Lost | Trouble::Stopped => return Ok(()),
        Trouble::Transient(reason) | Trouble::Late(reason) => (reason, request.attempt < MOST_ATTEMPTS),
        Trouble::Permanent(reason) => (reason, false),
    };
    tracing::warn!(request.id = %request.id, reason, again, "an erasure did not come to its end");
    let done = if again {
        tally.retry += 1;
        let exponent = request.attempt.clamp(0, 7);
        wait(
            worker,
            request,
            RequestState::Retry,
            &reason,
            30.0 * 2_f64.powi(exponent),
        )
        .await
    } else {
        tally.failed += 1;
        close::fail(worker, request, &reason).await
    };
    settled(done)
}

/// What is left of an error after a request was dealt with.
fn settled(done: Result<(), Trouble>) -> Result<(), JobError> {
    match done {
        Ok(()) | Err(Trouble::Lost | Trouble::Stopped) => Ok(()),
        Err(Trouble::Run(error)) => Err(error),
        Err(Trouble::Transient(cause) | Trouble::Late(cause) | Trouble::Permanent(cause)) => {
            Err(JobError::transient("settle a request", cause))
        }
    }
}

/// Searches for what is left of all whose steps are done, in one pass, and closes each.
async fn finish(worker: &mut Worker<'_>, stepped: Vec<Request>, tally: &mut Tally) -> Result<(), JobError> {
    if stepped.is_empty() {
        return Ok(());
    }
    // The steps are on the disk before anything says that they are done.
    settled(close::verifying(worker, &stepped).await)?;
    let mut searches = Vec::with_capacity(stepped.len());
    for request in &stepped {
        let plan = worker.plan;
        let found = scope::search(worker.session.connection(), plan, request).await;
        match found {
            Ok(search) => searches.push(search),
            Err(trouble) => return settled(Err(trouble)),
        }
    }
    let residues = worker
        .proof
        .scan(worker.session.connection(), &searches)
        .await
        .map_err(super::execute::unproven)?;
    let found: Vec<Found<'_>> = (stepped.iter().zip(&searches).zip(residues))
        .map(|((request, search), residue)| Found {
            request,
            search,
            residue,
        })
        .collect();
    for group in found.chunks(GROUP) {
        for closed in close::complete(worker, group).await? {
            match closed {
                Ok(end) => {
                    match end.state {
                        RequestState::CompletedWithExceptions => tally.exceptions += 1,
                        _ => tally.completed += 1,
                    }
                    tally.not_found += u64::from(!end.found);
                    tally.duplicates += u64::from(end.duplicate);
                }
                Err(trouble) => settled(Err(trouble))?,
            }
        }
    }
    Ok(())
}

async fn claim(worker: &mut Worker<'_>) -> Result<Vec<Request>, JobError> {
    let failed = |error: DatabaseError| JobError::database("take the next requests", &error);
    let (fence, run, job, name) = (worker.fence, worker.run, worker.job, worker.name.clone());
    let mut transaction = worker.begin().await?;
    fence
        .hold(&mut transaction)
        .await
        .map_err(|error| failed(error.into()))?;
    let most = i64::try_from(GROUP).unwrap_or(i64::MAX);
    let requests = erasures::claim(&mut transaction, job, run, &name, most)
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(|error| failed(error.into()))?;
    Ok(requests)
}

async fn put_back(worker: &mut Worker<'_>, request: &Request) -> Result<(), JobError> {
    settled(
        wait(
            worker,
            request,
            RequestState::Retry,
            "it is tried again by the next run",
            0.0,
        )
        .await,
    )
}

async fn ready(worker: &mut Worker<'_>) -> Result<(), JobError> {
    let failed = |error: DatabaseError| JobError::database("let the requests begin", &error);
    let (fence, job) = (worker.fence, worker.job);
    let (policy, digest) = (worker.policy.clone(), worker.plan.schema_digest());
    let mut transaction = worker.begin().await?;
    fence
        .hold(&mut transaction)
        .await
        .map_err(|error| failed(error.into()))?;
    erasures::ready(&mut transaction, job, &policy, &digest)
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(|error| failed(error.into()))
}

/// Warns of deadlines, once at each part of the time.
async fn warn(worker: &mut Worker<'_>) -> Result<(), JobError> {
    let failed = |error: DatabaseError| JobError::database("look at the deadlines", &error);
    let job = worker.job;
    let now = Timestamp::now();
    for request in erasures::open(worker.session.connection(), job).await.map_err(failed)? {
        let part = deadline::elapsed(request.received_at, request.due_at, now);
        if part <= request.warned {
            continue;
        }
        tracing::warn!(
            request.id = %request.id, request.due_at = %request.due_at, request.state = request.state.as_str(), percent = part,
            "an erasure is not done and {} of its time is up",
            if part == 100 { "all".to_owned() } else { format!("{part} %") }
        );
        let fence = worker.fence;
        let mut transaction = worker.begin().await?;
        fence
            .hold(&mut transaction)
            .await
            .map_err(|error| failed(error.into()))?;
        erasures::warned(&mut transaction, request.id, part)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

async fn report(worker: &mut Worker<'_>, tally: &Tally) -> Result<JobReport, JobError> {
    let job = worker.job;
    let open = erasures::open(worker.session.connection(), job)
        .await
        .map_err(|error| JobError::database("read the open requests", &error))?;
    let now = Timestamp::now();
    let oldest = open.iter().min_by_key(|request| request.due_at);
    let overdue = open.iter().filter(|request| request.due_at <= now).count();
    let late = open.iter().filter(|request| request.warned >= 50).count();
    let unmapped: i64 = tally.taken.unmapped.values().sum();
    let mut reasons = Vec::new();
    for (count, what) in [
        (tally.failed, "cannot be done as they stand"),
        (tally.exceptions, "left something behind that the certificate names"),
        (tally.retry, "are tried again"),
        (u64::try_from(overdue).unwrap_or(u64::MAX), "are overdue"),
    ] {
        if count > 0 {
            reasons.push(format!("{count} requests {what}"));
        }
    }
    if unmapped > 0 {
        let words: Vec<&str> = tally.taken.unmapped.keys().map(String::as_str).collect();
        reasons.push(format!(
            "{unmapped} requests have a status that the configuration does not know: {}",
            words.join(", ")
        ));
    }
    let body = json!({
        "received": tally.taken.received, "completed": tally.completed, "completed_with_exceptions": tally.exceptions,
        "not_found": tally.not_found, "duplicates": tally.duplicates, "on_hold": tally.on_hold, "failed": tally.failed,
        "retry": tally.retry, "rows": tally.rows, "unmapped": tally.taken.unmapped, "open": open.len(),
        "overdue": overdue, "warned": late,
        "oldest_received_at": open.iter().map(|request| request.received_at).min(),
        "next_due_at": oldest.map(|request| request.due_at),
        "days_left": oldest.map(|request| deadline::days_left(request.due_at, now)),
        "warnings": worker.plan.warnings,
        "kept": worker.plan.reach.nodes.iter().filter(|node| node.action() == Action::Keep)
            .map(|node| node.relation.display()).collect::<Vec<_>>(),
    });
    Ok(JobReport {
        outcome: if reasons.is_empty() {
            Outcome::Succeeded
        } else {
            Outcome::Partial
        },
        reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
        body,
    })
}
