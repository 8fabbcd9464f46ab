//! One person, erased at once.

use jiff::Timestamp;

use super::attempt::alone;
use super::execute::{Trouble, Worker};
use super::proof::{Account, Subject};
use super::request::{RequestId, RequestState, SubjectKey};
use super::run::{Planning, finish, plan_for};
use super::tally::Tally;
use super::{close, deadline};
use crate::job::JobError;
use crate::ledger::erasures::{self, NewRequest};
use crate::postgres::sqlstate::DatabaseError;

/// Erases one person at once: for a database that was restored, where nobody else works. The request
/// is kept like any other.
///
/// # Errors
/// When it cannot be done now; what was done stays done, and repeating it goes on.
pub(super) async fn erase_one(
    worker: &mut Worker<'_>,
    key: &SubjectKey,
    requested_by: &str,
) -> Result<Account, JobError> {
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
