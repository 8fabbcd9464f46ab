//! One request by itself: its steps until nothing is left, or why it did not come to its end.

use super::execute::{Trouble, Worker};
use super::request::RequestState;
use super::tally::Tally;
use super::{close, scope, steps};
use crate::job::JobError;
use crate::ledger::erasures::{self, Request};

/// How often a request is tried before it has failed.
const MOST_ATTEMPTS: i32 = 12;

/// How often rows that come late are followed within one attempt.
const MOST_LATE: u32 = 5;

/// One request by itself, from its scope to its last step.
pub(super) async fn alone(worker: &mut Worker<'_>, request: &Request, tally: &mut Tally) -> Result<bool, Trouble> {
    let found = scope::resolve(worker, request).await?;
    let request = Request {
        found: Some(found),
        ..request.clone()
    };
    close::announce(worker, std::slice::from_ref(&request)).await?;
    attempt(worker, &request, tally).await
}

/// The steps of one request that is announced. True when they are done, false when holds keep some of
/// them.
pub(super) async fn attempt(worker: &mut Worker<'_>, request: &Request, tally: &mut Tally) -> Result<bool, Trouble> {
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
pub(super) async fn give_up(
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

pub(super) async fn put_back(worker: &mut Worker<'_>, request: &Request) -> Result<(), JobError> {
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

/// What is left of an error after a request was dealt with.
pub(super) fn settled(done: Result<(), Trouble>) -> Result<(), JobError> {
    match done {
        Ok(()) | Err(Trouble::Lost | Trouble::Stopped) => Ok(()),
        Err(Trouble::Run(error)) => Err(error),
        Err(Trouble::Transient(cause) | Trouble::Late(cause) | Trouble::Permanent(cause)) => {
            Err(JobError::transient("settle a request", cause))
        }
    }
}
