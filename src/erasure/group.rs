//! Several requests in few exchanges with the server: what each costs by itself, the way to the server
//! and the wait for the disk, they share.
//!
//! What comes out is what would come out of one after the other. A request that a group does not bring
//! to its end is as it was, and is done by itself: many rows, a legal hold, rows that come late, an error.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::execute::{Trouble, Worker};
use super::intake::write_status;
use super::scope;
use super::statement::requests::RequestTable;
use super::statement::script::{Limits, Scripts};
use super::steps::{AT_ONCE, STATEMENT_TIME};
use crate::ledger::erasures::{self, Request};
use crate::ledger::holds;

/// When a transaction about several requests ends before the last of them: locks are held meanwhile.
const LIMITS: Limits = Limits {
    rows: AT_ONCE,
    time: Duration::from_secs(2),
};

/// Collects the scopes of requests whose scope is not known. Answers with those that are known now, each
/// with whether the subject's row is there.
pub(super) async fn resolve(worker: &mut Worker<'_>, requests: &[Request]) -> BTreeMap<Uuid, bool> {
    let mut known = BTreeMap::new();
    let mut waiting: Vec<&Request> = requests.iter().filter(|request| !request.resolved).collect();
    while waiting.len() > 1 {
        match resolve_some(worker, &waiting).await {
            Ok(now) => {
                waiting = behind(waiting, &now);
                known.extend(now);
            }
            Err(trouble) => {
                apart("collect what finds their subjects", &trouble);
                break;
            }
        }
    }
    known
}

/// Does the steps of requests of which none is done. Answers with those that are done now, each with how
/// many rows were deleted or changed.
pub(super) async fn step(worker: &mut Worker<'_>, requests: &[Request]) -> BTreeMap<Uuid, u64> {
    let mut done = BTreeMap::new();
    // What a store has deleted does not come back with a transaction.
    if !worker.plan.objects.is_empty() {
        return done;
    }
    let mut waiting: Vec<&Request> = requests.iter().collect();
    while waiting.len() > 1 && !worker.stop.is_cancelled() {
        match step_some(worker, &waiting).await {
            Ok(now) => {
                waiting = behind(waiting, &now);
                done.extend(now);
            }
            Err(trouble) => {
                apart("do their steps", &trouble);
                break;
            }
        }
    }
    done
}

/// The error comes again, and is told, when the request that it is about is done by itself.
fn apart(operation: &str, trouble: &Trouble) {
    tracing::debug!(
        ?trouble,
        "could not {operation} for several requests together; each is done by itself"
    );
}

/// The requests behind the last one that is done: a script may have ended there. None when it did nothing.
fn behind<'r, T>(mut waiting: Vec<&'r Request>, done: &BTreeMap<Uuid, T>) -> Vec<&'r Request> {
    let last = waiting.iter().rposition(|request| done.contains_key(&request.id.0));
    last.map_or_else(Vec::new, |last| waiting.split_off(last.saturating_add(1)))
}

async fn resolve_some(worker: &mut Worker<'_>, requests: &[&Request]) -> Result<BTreeMap<Uuid, bool>, Trouble> {
    let operation = "collect what finds the subjects";
    let failed = |error| Trouble::of(operation, &error);
    let (plan, rule, may_lock) = (worker.plan, worker.rule, worker.may_lock);
    let Some(root) = plan.root() else {
        return Ok(BTreeMap::new());
    };
    let all: Vec<Uuid> = requests.iter().map(|request| request.id.0).collect();
    let (mut transaction, kept) = worker.begin_on_all(&all).await?;
    // Nothing is lost with it but work that is done again: the steps wait for the disk, too.
    sqlx::query("SELECT pg_catalog.set_config('synchronous_commit', 'off', true)")
        .execute(&mut *transaction)
        .await
        .map_err(Trouble::sql(operation))?;
    let sources = scope::own_sources(plan, root);
    let (mut ids, mut places, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for request in requests.iter().filter(|request| kept.contains(&request.id.0)) {
        let Some(subject) = &request.subject else { continue };
        for source in &sources {
            ids.push(request.id.0);
            places.push(source.as_str());
            values.push(subject.expose());
        }
    }
    erasures::put_all(&mut transaction, &ids, &places, &values)
        .await
        .map_err(failed)?;
    ids.dedup();
    let keys: Vec<[u8; 128]> = (ids.iter())
        .map(|_| scope::mask_pads().map_err(Trouble::Run))
        .collect::<Result<_, _>>()?;
    let keys: Vec<&[u8]> = keys.iter().map(<[u8; 128]>::as_slice).collect();
    erasures::keep_mask_keys(&mut transaction, &ids, &keys)
        .await
        .map_err(failed)?;
    let script = Scripts::new(plan).resolve(&ids, may_lock, LIMITS);
    run(&mut transaction, script, operation).await?;
    let known = erasures::known(&mut transaction, &ids).await.map_err(failed)?;
    let resolved: Vec<Uuid> = known.keys().copied().collect();
    if plan.replaces_texts() {
        scope::put_patterns(&mut transaction, &resolved).await?;
    }
    let word = rule
        .requests
        .as_ref()
        .and_then(|requests| requests.processing.as_deref());
    if let (Some(table), Some(word)) = (RequestTable::new(plan, rule), word) {
        let rows: Vec<&str> = (requests.iter().filter(|request| known.contains_key(&request.id.0)))
            .filter_map(|request| request.source_id.as_deref())
            .collect();
        write_status(&mut transaction, &table, &rows, word, false)
            .await
            .map_err(failed)?;
    }
    transaction.commit().await.map_err(Trouble::sql(operation))?;
    Ok(known)
}

async fn step_some(worker: &mut Worker<'_>, requests: &[&Request]) -> Result<BTreeMap<Uuid, u64>, Trouble> {
    let operation = "do the steps of several requests";
    let failed = |error| Trouble::of(operation, &error);
    let (plan, job_run, may_lock) = (worker.plan, worker.run, worker.may_lock);
    let all: Vec<Uuid> = requests.iter().map(|request| request.id.0).collect();
    let (mut transaction, kept) = worker.begin_on_all(&all).await?;
    // The steps' rows commit with them, and what closes the requests waits for the disk after all of them.
    sqlx::query(
        "SELECT pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.set_config('statement_timeout', $1, true)",
    )
    .bind(format!("{}ms", STATEMENT_TIME.as_millis()))
    .execute(&mut *transaction)
    .await
    .map_err(Trouble::sql(operation))?;
    holds::share(&mut transaction).await.map_err(failed)?;
    if holds::any_stands(&mut transaction).await.map_err(failed)? {
        return Ok(BTreeMap::new());
    }
    let begun = erasures::changed(&mut transaction, &all).await.map_err(failed)?;
    let ids: Vec<Uuid> = (all.into_iter())
        .filter(|id| kept.contains(id) && !begun.contains_key(id))
        .collect();
    let script = Scripts::new(plan).steps(&ids, job_run, may_lock, LIMITS);
    run(&mut transaction, script, operation).await?;
    let done = erasures::changed(&mut transaction, &ids).await.map_err(failed)?;
    // Whoever waits to place a hold came before these rows are gone: they come back.
    if holds::is_awaited(&mut transaction).await.map_err(failed)? {
        return Ok(BTreeMap::new());
    }
    transaction.commit().await.map_err(Trouble::sql(operation))?;
    Ok(done)
}

async fn run(transaction: &mut PgConnection, script: Option<String>, operation: &str) -> Result<(), Trouble> {
    let Some(script) = script else {
        return Err(Trouble::Permanent("a step of the plan makes no statement".to_owned()));
    };
    sqlx::query(AssertSqlSafe(script))
        .persistent(false)
        .execute(transaction)
        .await
        .map(|_| ())
        .map_err(Trouble::sql(operation))
}
