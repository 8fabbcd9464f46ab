//! A whole run: what a plan shows, and the requests one after the other, most urgent first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::tz::TimeZone;
use sqlx::AssertSqlSafe;

use super::attempt::{attempt, give_up, put_back, settled};
use super::close::{self, Found};
use super::execute::{Trouble, Worker};
use super::prepare::Prepared;
use super::proof::Proof;
use super::request::RequestState;
use super::tally::{Tally, report, warn};
use super::{drift, group, intake, scope};
use crate::job::{JobContext, JobError, JobReport};
use crate::ledger::erasures::{self, Request};
use crate::postgres::catalog::access::{self, Need};
use crate::postgres::sqlstate::DatabaseError;

/// How many requests are resolved, announced, stepped and closed together. Each that is stepped holds a
/// subtransaction, and the server keeps no more than 64 of a session at hand.
const GROUP: usize = 64;

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
pub(super) async fn plan_for(worker: &mut Worker<'_>, work: Planning) -> Result<(), JobError> {
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
pub(super) enum Planning {
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
            let ready = announced(worker, round, tally).await?;
            let done = group::step(worker, &ready).await;
            tally.rows += done.values().sum::<u64>();
            progress.set("rows", tally.rows, None);
            for request in ready {
                if done.contains_key(&request.id.0) {
                    stepped.push(request);
                    continue;
                }
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
    let known = group::resolve(worker, &group).await;
    let mut ready = Vec::with_capacity(group.len());
    for mut request in group {
        let resolved = match known.get(&request.id.0) {
            Some(found) => Ok(*found),
            None if request.resolved => Ok(request.found.unwrap_or_default()),
            None => scope::resolve(worker, &request).await,
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

/// Searches for what is left of all whose steps are done, in one pass, and closes each.
pub(super) async fn finish(worker: &mut Worker<'_>, stepped: Vec<Request>, tally: &mut Tally) -> Result<(), JobError> {
    if stepped.is_empty() {
        return Ok(());
    }
    // The steps are on the disk before anything says that they are done.
    settled(close::verifying(worker, &stepped).await)?;
    let plan = worker.plan;
    let searches = match scope::searches(worker.session.connection(), plan, &stepped).await {
        Ok(searches) => searches,
        Err(trouble) => return settled(Err(trouble)),
    };
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
