//! The records around a request's steps: announced before the first, closed after the last.

use jiff::Timestamp;
use serde_json::json;

use super::execute::{Trouble, Worker};
use super::intake::write_status;
use super::proof::{Account, Kept, Residue, Search, StepAccount};
use super::request::RequestState;
use super::statement::requests::RequestTable;
use crate::ledger::erasures::{self, End, Request};

/// How a request was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) state: RequestState,
    /// Whether the subject's row was there.
    pub(super) found: bool,
    /// Whether another request for the same subject was done before.
    pub(super) duplicate: bool,
}

/// Makes it durable, on the host and in the audit log, that the steps of a request are about to run.
pub(super) async fn announce(worker: &mut Worker<'_>, request: &Request) -> Result<(), Trouble> {
    let account = account(worker, request, RequestState::Processing, None).await?;
    let entry = worker.proof.remember(&account).await?;
    let body = json!({
        "request": account.request, "subject": account.subject, "attempt": request.attempt, "due_at": account.due_at,
        "found": account.found, "schema_digest": account.schema_digest, "ledger": entry,
    });
    worker.recorder.record("erasure.started", body).await?;
    let mut transaction = worker.begin_on(request).await?;
    erasures::started(&mut transaction, request.id)
        .await
        .map_err(|error| Trouble::of("begin the steps", &error))?;
    transaction.commit().await.map_err(Trouble::sql("begin the steps"))
}

/// Closes a request whose steps are done and whose residue was searched.
pub(super) async fn complete(
    worker: &mut Worker<'_>,
    request: &Request,
    search: &Search,
    residue: Residue,
) -> Result<Closed, Trouble> {
    let duplicate = erasures::duplicate_of(worker.session.connection(), request)
        .await
        .map_err(|error| Trouble::of("look for duplicates", &error))?;
    let mut account = account(worker, request, RequestState::Completed, Some(residue)).await?;
    let clean = account.residue.as_ref().is_some_and(Residue::is_clean);
    let found = account.found.unwrap_or_default();
    let mut reasons = Vec::new();
    if let Some(other) = duplicate {
        reasons.push(format!("duplicate of {other}"));
    } else if !found {
        reasons.push("not_found".to_owned());
    }
    if !clean {
        account.state = RequestState::CompletedWithExceptions;
        reasons.push("residue".to_owned());
    }
    account.reason = (!reasons.is_empty()).then(|| reasons.join("; "));
    account.finished_at = Some(Timestamp::now());
    let share = worker.proof.seal(request.id, search).await?;
    let certificate = worker.proof.certify(&account).await?;
    let body = json!({
        "request": account.request, "subject": account.subject, "state": account.state, "reason": account.reason,
        "steps": account.steps, "kept": account.kept, "residue": account.residue, "certificate": certificate["sha256"],
    });
    worker.recorder.record("erasure.completed", body).await?;
    let end = End {
        state: account.state,
        reason: account.reason.as_deref(),
        residue: account.residue.as_ref().map(|residue| json!(residue)),
        certificate_sha256: certificate["sha256"].as_str().map(str::to_owned),
        certificate: certificate.get("document").cloned(),
        rescan_share: share,
    };
    let word = worker.rule.requests.as_ref().map(|requests| requests.done.clone());
    closed(worker, request, &end, word).await?;
    Ok(Closed {
        state: account.state,
        found,
        duplicate: duplicate.is_some(),
    })
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
    closed(worker, request, &end, word).await
}

/// Closes a request and answers the application, in one transaction.
async fn closed(
    worker: &mut Worker<'_>,
    request: &Request,
    end: &End<'_>,
    word: Option<String>,
) -> Result<(), Trouble> {
    let failed = |error| Trouble::of("close the request", &error);
    let (plan, rule) = (worker.plan, worker.rule);
    let mut transaction = worker.begin_on(request).await?;
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
    let root = worker.plan.root().map(|root| root.relation.display());
    Ok(Account {
        request: request.id,
        job: worker.job.to_owned(),
        database: worker.database.to_owned(),
        subject_table: root.unwrap_or_default(),
        subject_column: worker.plan.key.clone(),
        subject: request.token.clone(),
        state,
        reason: None,
        requested_by: request.requested_by.clone(),
        extended_months: today.extended_months,
        found: today.found,
        received_at: request.received_at,
        due_at: today.due_at,
        started_at: today.started_at,
        finished_at: None,
        policy: worker.policy.clone(),
        approved_by: worker.approved_by.clone(),
        schema_digest: worker.plan.schema_digest(),
        kept: keeping.iter().filter_map(|row| kept(&row.relation, row.rows)).collect(),
        steps: (changing.into_iter())
            .map(|row| StepAccount {
                step: row.step,
                table: row.relation,
                action: row.action,
                rows: row.rows,
                held: row.held,
            })
            .collect(),
        holds,
        residue,
    })
}
