//! The records around a request's steps: announced before the first, closed after the last.

use std::collections::BTreeMap;

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
use crate::ledger::erasures::{self, End, Request};
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
    let (mut accounts, mut ends) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
    // Of two requests for one person that are closed together, the later one is the duplicate.
    let mut closing: BTreeMap<&str, RequestId> = BTreeMap::new();
    for found in group {
        let mut duplicate = erasures::duplicate_of(worker.session.connection(), found.request)
            .await
            .map_err(|error| run(Trouble::of("look for duplicates", &error)))?;
        if duplicate.is_none() {
            duplicate = closing.get(found.request.token.token.as_str()).copied();
        }
        closing.entry(&found.request.token.token).or_insert(found.request.id);
        let account = account(
            worker,
            found.request,
            RequestState::Completed,
            Some(found.residue.clone()),
        )
        .await
        .map_err(run)?;
        ends.push(duplicate.is_some());
        accounts.push(finished(account, duplicate));
    }
    let searches: Vec<(RequestId, &Search)> = group.iter().map(|found| (found.request.id, found.search)).collect();
    let shares = worker.proof.seal(&searches).await.map_err(unproven)?;
    let certificates = worker.proof.certify(&accounts).await.map_err(unproven)?;
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
    let mut closed = Vec::with_capacity(group.len());
    let last = group.len().saturating_sub(1);
    let parts = group.iter().zip(&accounts).zip(&certificates).zip(shares).zip(ends);
    for (at, ((((found, account), certificate), share), duplicate)) in parts.enumerate() {
        let end = End {
            state: account.state,
            reason: account.reason.as_deref(),
            residue: account.residue.as_ref().map(|residue| json!(residue)),
            certificate_sha256: certificate["sha256"].as_str().map(str::to_owned),
            certificate: certificate.get("document").cloned(),
            rescan_share: share,
        };
        let word = worker.rule.requests.as_ref().map(|requests| requests.done.clone());
        // The last of them waits for the disk, and that for all.
        let ended = self::closed(worker, found.request, &end, word, at == last).await;
        closed.push(ended.map(|()| Closed {
            state: account.state,
            found: account.found.unwrap_or_default(),
            duplicate,
        }));
    }
    Ok(closed)
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
    let word = worker.rule.requests.as_ref().map(|requests| requests.failed.clone());
    closed(worker, request, &end, word, true).await
}

/// Closes a request and answers the application, in one transaction.
async fn closed(
    worker: &mut Worker<'_>,
    request: &Request,
    end: &End<'_>,
    word: Option<String>,
    durable: bool,
) -> Result<(), Trouble> {
    let failed = |error| Trouble::of("close the request", &error);
    let (plan, rule) = (worker.plan, worker.rule);
    let mut transaction = worker.begin_on(request).await?;
    if !durable {
        sqlx::query("SELECT pg_catalog.set_config('synchronous_commit', 'off', true)")
            .execute(&mut *transaction)
            .await
            .map_err(Trouble::sql("close the request"))?;
    }
    erasures::close(&mut transaction, request.id, end)
        .await
        .map_err(failed)?;
    if let (Some(table), Some(id), Some(word)) = (RequestTable::new(plan, rule), &request.source_id, word) {
        write_status(&mut transaction, &table, id, &word, true)
            .await
            .map_err(failed)?;
    }
    transaction.commit().await.map_err(Trouble::sql("close the request"))
}

/// What a certificate may say of a request.
pub(super) async fn account(
    worker: &mut Worker<'_>,
    request: &Request,
    state: RequestState,
    residue: Option<Residue>,
) -> Result<Account, Trouble> {
    let failed = |error| Trouble::of("read the request", &error);
    let connection = worker.session.connection();
    let rows = erasures::steps(connection, request.id).await.map_err(failed)?;
    let holds = erasures::holds_on(connection, request.id).await.map_err(failed)?;
    let today = erasures::find(connection, request.id).await.map_err(failed)?;
    let today = today.as_ref().unwrap_or(request);
    let kept = |table: &str, rows: u64| {
        let node = worker
            .plan
            .reach
            .nodes
            .iter()
            .find(|node| node.relation.display() == table)?;
        let rule = node.rule.as_ref()?;
        Some(Kept {
            table: table.to_owned(),
            basis: rule.basis.clone().unwrap_or_default(),
            until: rule.until.map(|until| until.to_string()),
            rows,
        })
    };
    let (keeping, changing): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.action == "keep");
    Ok(Account {
        kept: keeping.iter().filter_map(|row| kept(&row.relation, row.rows)).collect(),
        steps: (changing.into_iter())
            .map(|row| StepAccount {
                step: row.step,
                table: row.relation,
                action: row.action,
                rows: row.rows,
                held: row.held,
                objects: row.objects,
                object_versions: row.object_versions,
            })
            .collect(),
        holds,
        residue,
        ..begun(worker, today, state)
    })
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
