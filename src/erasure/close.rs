//! The records around a request's steps: announced before the first, closed after the last.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::execute::{Trouble, Worker, unproven};
use super::intake::write_status;
use super::proof::{Account, Kept, Residue, Search, StepAccount};
use super::request::{RequestId, RequestState};
use super::statement::requests::RequestTable;
use crate::job::JobError;
use crate::ledger::erasures::{self, End, Request, StepRow};
use crate::postgres::sqlstate::DatabaseError;

/// How a request was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) state: RequestState,
    /// Whether the subject's row was there.
    pub(super) found: bool,
    /// Whether another request for the same subject was done before.
    pub(super) duplicate: bool,
}

/// A request whose steps are done, what was searched for, and what was found.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) request: &'a Request,
    pub(super) search: &'a Search,
    pub(super) residue: Residue,
}

/// Makes it durable, on the host and in the audit log, that the steps of some requests are about to
/// run.
pub(super) async fn announce(worker: &mut Worker<'_>, requests: &[Request]) -> Result<(), Trouble> {
    if requests.is_empty() {
        return Ok(());
    }
    let accounts: Vec<Account> = requests
        .iter()
        .map(|request| begun(worker, request, RequestState::Processing))
        .collect();
    let entries = worker.proof.remember(&accounts).await?;
    let bodies = (requests.iter().zip(&accounts).zip(entries))
        .map(|((request, account), entry)| {
            json!({
                "request": account.request, "subject": account.subject, "attempt": request.attempt,
                "due_at": account.due_at, "found": account.found, "schema_digest": account.schema_digest, "ledger": entry,
            })
        })
        .collect();
    worker.recorder.record_all("erasure.started", bodies).await?;
    let ids: Vec<Uuid> = requests.iter().map(|request| request.id.0).collect();
    together(worker, "begin the steps", async |transaction, name| {
        erasures::started(transaction, &ids, name).await
    })
    .await
}

/// Makes the steps of some requests durable, and says that their residue is being searched.
pub(super) async fn verifying(worker: &mut Worker<'_>, requests: &[Request]) -> Result<(), Trouble> {
    let ids: Vec<Uuid> = requests.iter().map(|request| request.id.0).collect();
    together(worker, "end the steps", async |transaction, name| {
        erasures::verifying(transaction, &ids, name).await
    })
    .await
}

/// One transaction about several requests.
async fn together(
    worker: &mut Worker<'_>,
    operation: &str,
    work: impl AsyncFnOnce(&mut PgConnection, &str) -> Result<(), DatabaseError>,
) -> Result<(), Trouble> {
    let (fence, name) = (worker.fence, worker.name.clone());
    let mut transaction = worker.begin().await.map_err(Trouble::Run)?;
    fence.hold(&mut transaction).await?;
    work(&mut transaction, &name)
        .await
        .map_err(|error| Trouble::of(operation, &error))?;
    transaction.commit().await.map_err(Trouble::sql(operation))
}

/// Closes requests whose steps are done and whose residue was searched: certificates first, then the
/// records, then the requests themselves.
///
/// # Errors
/// When they cannot be certified or put on record; each one that cannot be closed is in the answer.
pub(super) async fn complete(
    worker: &mut Worker<'_>,
    group: &[Found<'_>],
) -> Result<Vec<Result<Closed, Trouble>>, JobError> {
    let run = |trouble: Trouble| trouble.into_run("close the requests");
    let requests: Vec<&Request> = group.iter().map(|found| found.request).collect();
    let job = worker.job;
    let known = erasures::duplicates(worker.session.connection(), job, &requests)
        .await
        .map_err(|error| run(Trouble::of("look for duplicates", &error)))?;
    let residues = group.iter().map(|found| Some(found.residue.clone())).collect();
    let accounts = accounts(worker, &requests, RequestState::Completed, residues)
        .await
        .map_err(run)?;
    // Of two requests for one person that are closed together, the later one is the duplicate.
    let mut closing: BTreeMap<&str, RequestId> = BTreeMap::new();
    let duplicates: Vec<Option<RequestId>> = (requests.iter())
        .map(|request| {
            let together = closing.get(request.token.token.as_str()).copied();
            closing.entry(&request.token.token).or_insert(request.id);
            known.get(&request.id.0).copied().or(together)
        })
        .collect();
    let accounts: Vec<Account> = (accounts.into_iter().zip(&duplicates))
        .map(|(account, duplicate)| finished(account, *duplicate))
        .collect();
    let searches: Vec<(RequestId, &Search)> = group.iter().map(|found| (found.request.id, found.search)).collect();
    // What both write waits for the same device.
    let (shares, certificates) =
        futures::try_join!(worker.proof.seal(&searches), worker.proof.certify(&accounts)).map_err(unproven)?;
    let bodies = (accounts.iter().zip(&certificates))
        .map(|(account, certificate)| {
            json!({
                "request": account.request, "subject": account.subject, "state": account.state, "reason": account.reason,
                "steps": account.steps, "kept": account.kept, "residue": account.residue,
                "certificate": certificate["sha256"],
            })
        })
        .collect();
    worker.recorder.record_all("erasure.completed", bodies).await?;
    let ends: Vec<End<'_>> = (accounts.iter().zip(&certificates).zip(shares))
        .map(|((account, certificate), share)| End {
            state: account.state,
            reason: account.reason.as_deref(),
            residue: account.residue.as_ref().map(|residue| json!(residue)),
            certificate_sha256: certificate["sha256"].as_str().map(str::to_owned),
            certificate: certificate.get("document").cloned(),
            rescan_share: share,
        })
        .collect();
    let word = worker.rule.requests.as_ref().map(|requests| requests.done.as_str());
    let ended = closed_all(worker, &requests, &ends, word).await;
    let closed = (ended.into_iter().zip(&accounts).zip(duplicates)).map(|((ended, account), duplicate)| {
        ended.map(|()| Closed {
            state: account.state,
            found: account.found.unwrap_or_default(),
            duplicate: duplicate.is_some(),
        })
    });
    Ok(closed.collect())
}

/// How an account ends.
fn finished(mut account: Account, duplicate: Option<RequestId>) -> Account {
    let clean = account.residue.as_ref().is_some_and(Residue::is_clean);
    let mut reasons = Vec::new();
    if let Some(other) = duplicate {
        reasons.push(format!("duplicate of {other}"));
    } else if !account.found.unwrap_or_default() {
        reasons.push("not_found".to_owned());
    }
    if !clean {
        account.state = RequestState::CompletedWithExceptions;
        reasons.push("residue".to_owned());
    }
    account.reason = (!reasons.is_empty()).then(|| reasons.join("; "));
    account.finished_at = Some(Timestamp::now());
    account
}

/// Closes a request that cannot be done as it stands. What was done of it stays done, and known.
pub(super) async fn fail(worker: &mut Worker<'_>, request: &Request, reason: &str) -> Result<(), Trouble> {
    let body = json!({ "request": request.id, "subject": request.token, "reason": reason, "attempt": request.attempt });
    worker.recorder.record("erasure.failed", body).await?;
    let end = End {
        state: RequestState::Failed,
        reason: Some(reason),
        residue: None,
        certificate: None,
        certificate_sha256: None,
        rescan_share: None,
    };
    let word = worker.rule.requests.as_ref().map(|requests| requests.failed.as_str());
    let mut ended = closed_all(worker, &[request], &[end], word).await;
    ended.pop().unwrap_or(Ok(()))
}

/// Closes requests and answers the application: in one transaction, or where that fails, each in its own.
async fn closed_all(
    worker: &mut Worker<'_>,
    requests: &[&Request],
    ends: &[End<'_>],
    word: Option<&str>,
) -> Vec<Result<(), Trouble>> {
    match closed(worker, requests, ends, word).await {
        Ok(kept) => {
            let ended = |request: &&Request| kept.contains(&request.id.0).then_some(()).ok_or(Trouble::Lost);
            return requests.iter().map(ended).collect();
        }
        Err(trouble) if requests.len() < 2 => return vec![Err(trouble)],
        Err(trouble) => tracing::debug!(
            ?trouble,
            "could not close several requests together; each is closed by itself"
        ),
    }
    let mut ended = Vec::with_capacity(requests.len());
    for (request, end) in requests.iter().zip(ends) {
        let kept = closed(worker, &[request], std::slice::from_ref(end), word).await;
        ended.push(kept.and_then(|kept| if kept.is_empty() { Err(Trouble::Lost) } else { Ok(()) }));
    }
    ended
}

/// Closes those of some requests that no other worker has, and answers the application, in one
/// transaction.
async fn closed(
    worker: &mut Worker<'_>,
    requests: &[&Request],
    ends: &[End<'_>],
    word: Option<&str>,
) -> Result<BTreeSet<Uuid>, Trouble> {
    let operation = "close the request";
    let failed = |error| Trouble::of(operation, &error);
    let (plan, rule) = (worker.plan, worker.rule);
    let ids: Vec<Uuid> = requests.iter().map(|request| request.id.0).collect();
    let (mut transaction, kept) = worker.begin_on_all(&ids).await?;
    let ends: Vec<(Uuid, &End<'_>)> = (ids.into_iter().zip(ends))
        .filter(|(id, _)| kept.contains(id))
        .collect();
    erasures::close_all(&mut transaction, &ends).await.map_err(failed)?;
    if let (Some(table), Some(word)) = (RequestTable::new(plan, rule), word) {
        let rows: Vec<&str> = (requests.iter().filter(|request| kept.contains(&request.id.0)))
            .filter_map(|request| request.source_id.as_deref())
            .collect();
        write_status(&mut transaction, &table, &rows, word, true)
            .await
            .map_err(failed)?;
    }
    transaction.commit().await.map_err(Trouble::sql(operation))?;
    Ok(kept)
}

/// What a certificate may say of a request.
pub(super) async fn account(
    worker: &mut Worker<'_>,
    request: &Request,
    state: RequestState,
    residue: Option<Residue>,
) -> Result<Account, Trouble> {
    let mut accounts = accounts(worker, &[request], state, vec![residue]).await?;
    accounts
        .pop()
        .ok_or_else(|| Trouble::Permanent("the request has no account".to_owned()))
}

/// What certificates may say of some requests, in their order.
async fn accounts(
    worker: &mut Worker<'_>,
    requests: &[&Request],
    state: RequestState,
    residues: Vec<Option<Residue>>,
) -> Result<Vec<Account>, Trouble> {
    let failed = |error| Trouble::of("read the requests", &error);
    let ids: Vec<Uuid> = requests.iter().map(|request| request.id.0).collect();
    let connection = worker.session.connection();
    let mut rows = erasures::steps_of(connection, &ids).await.map_err(failed)?;
    let mut holds = erasures::holds_on(connection, &ids).await.map_err(failed)?;
    let today = erasures::find_all(connection, &ids).await.map_err(failed)?;
    let accounts = requests.iter().zip(residues).map(|(request, residue)| {
        let id = request.id.0;
        let today = today.iter().find(|today| today.id.0 == id).unwrap_or(request);
        let (kept, steps) = sorted(worker, rows.remove(&id).unwrap_or_default());
        Account {
            kept,
            steps,
            holds: holds.remove(&id).unwrap_or_default(),
            residue,
            ..begun(worker, today, state)
        }
    });
    Ok(accounts.collect())
}

/// What steps kept, and what they changed.
fn sorted(worker: &Worker<'_>, rows: Vec<StepRow>) -> (Vec<Kept>, Vec<StepAccount>) {
    let nodes = &worker.plan.reach.nodes;
    let kept = |table: &str, rows: u64| {
        let node = nodes.iter().find(|node| node.relation.display() == table)?;
        let rule = node.rule.as_ref()?;
        Some(Kept {
            table: table.to_owned(),
            basis: rule.basis.clone().unwrap_or_default(),
            until: rule.until.map(|until| until.to_string()),
            rows,
        })
    };
    let (keeping, changing): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.action == "keep");
    let changed = changing.into_iter().map(|row| StepAccount {
        step: row.step,
        table: row.relation,
        action: row.action,
        rows: row.rows,
        held: row.held,
        objects: row.objects,
        object_versions: row.object_versions,
    });
    (
        keeping.iter().filter_map(|row| kept(&row.relation, row.rows)).collect(),
        changed.collect(),
    )
}

/// The same of a request of which nothing was done yet.
fn begun(worker: &Worker<'_>, request: &Request, state: RequestState) -> Account {
    let root = worker.plan.root().map(|root| root.relation.display());
    Account {
        request: request.id,
        job: worker.job.to_owned(),
        database: worker.database.to_owned(),
        subject_table: root.unwrap_or_default(),
        subject_column: worker.plan.key.clone(),
        subject: request.token.clone(),
        state,
        reason: None,
        requested_by: request.requested_by.clone(),
        extended_months: request.extended_months,
        found: request.found,
        received_at: request.received_at,
        due_at: request.due_at,
        started_at: request.started_at,
        finished_at: None,
        policy: worker.policy.clone(),
        approved_by: worker.approved_by.clone(),
        schema_digest: worker.plan.schema_digest(),
        kept: Vec::new(),
        steps: Vec::new(),
        holds: Vec::new(),
        residue: None,
    }
}
