//! What a run claims for itself before it begins: its job, and what its job excludes others from.
//! Advisory locks on the run's own session, so that they end with the work.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use super::{RunRequest, SameJob};
use crate::job::{Exclusion, Outcome};
use crate::ledger::locks;
use crate::ledger::runs::RunEnd;
use crate::postgres::catalog::{self, ResolveError};
use crate::postgres::connect::Session;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::TableName;

/// How a claim ended.
pub(super) enum Claimed {
    /// All of it is the run's, after it waited so long for other runs.
    All(Duration),
    /// Something is another's; the run ends like this.
    Not(RunEnd),
    /// The run was asked to stop while it waited. Its session may be waiting still.
    Stopped(RunEnd),
}

/// One thing that two runs must not use at the same time.
struct Thing {
    /// The same for the same thing, however it is called.
    lock: i32,
    /// For messages.
    name: String,
}

/// Claims what the run needs; waits for other runs as long as the job's `start_deadline` allows.
pub(super) async fn claim(session: &mut Session, request: &RunRequest) -> Result<Claimed, DatabaseError> {
    let connection = session.connection();
    let standby: bool = sqlx::query_scalar("SELECT pg_catalog.pg_is_in_recovery()")
        .fetch_one(&mut *connection)
        .await?;
    if standby {
        return Ok(not("standby: the server is in recovery".to_owned()));
    }
    let began = Instant::now();
    if let Some(end) = claim_job(connection, request).await? {
        return Ok(end);
    }
    let limit = limit(request);
    for thing in things(connection, request).await? {
        let waited = tokio::select! {
            waited = locks::lock_within(connection, locks::EXCLUSION_CLASS, thing.lock, limit) => waited,
            () = request.stops.asked() => return Ok(stopped(&thing.name)),
        };
        match waited {
            Ok(()) => {}
            Err(error) if error.is("55P03") => {
                let (name, limit) = (&thing.name, limit.as_secs());
                return Ok(not(format!(
                    "start_deadline: another run used the {name} for longer than {limit} s"
                )));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Claimed::All(began.elapsed()))
}

fn not(reason: String) -> Claimed {
    Claimed::Not(RunEnd::without_report(Outcome::Skipped, reason))
}

fn stopped(name: &str) -> Claimed {
    let reason = format!("stopped while it waited for another run to release the {name}");
    Claimed::Stopped(RunEnd::without_report(Outcome::Cancelled, reason))
}

fn limit(request: &RunRequest) -> Duration {
    request.job.sharing.start_deadline
}

/// Takes the lock of the job itself: who holds it runs the job, whatever a row says.
async fn claim_job(connection: &mut PgConnection, request: &RunRequest) -> Result<Option<Claimed>, DatabaseError> {
    let key = locks::key(request.job.name.as_str());
    if locks::try_lock(connection, locks::JOB_CLASS, key).await? {
        return Ok(None);
    }
    let holder = locks::holder(connection, locks::JOB_CLASS, key).await.ok().flatten();
    let holder = holder.as_deref().unwrap_or("another session");
    let overlap = |more: &str| Ok(Some(not(format!("overlap: the job is running as {holder}{more}"))));
    match request.job.sharing.same_job {
        SameJob::Skip => return overlap(""),
        SameJob::Wait => {}
        SameJob::Replace => {
            tracing::warn!(
                holder,
                "another session runs the job; it is ended (overlap = \"cancel_running\")"
            );
            locks::end_holder(connection, locks::JOB_CLASS, key).await?;
        }
    }
    let limit = limit(request);
    let waited = tokio::select! {
        waited = locks::lock_within(connection, locks::JOB_CLASS, key, limit) => waited,
        () = request.stops.asked() => return Ok(Some(stopped("job"))),
    };
    match waited {
        Err(error) if error.is("55P03") => overlap(&format!(" for longer than {} s (start_deadline)", limit.as_secs())),
        other => other.map(|()| None),
    }
}

/// What the job's exclusions and groups stand for, in one order for all runs, so that two of them
/// never wait for each other.
async fn things(connection: &mut PgConnection, request: &RunRequest) -> Result<Vec<Thing>, DatabaseError> {
    let mut things = Vec::new();
    for group in &request.job.sharing.groups {
        let name = format!("group {group}");
        things.push(Thing {
            lock: locks::key(&name),
            name,
        });
    }
    for exclusion in &request.job.job.exclusions() {
        let name = exclusion.lock_name();
        things.push(match exclusion {
            Exclusion::Snapshot => Thing {
                lock: locks::key(&name),
                name,
            },
            Exclusion::Rows(table) => {
                let lock = match root(connection, table).await? {
                    Some(root) => locks::rows_key(root),
                    None => locks::key(&name),
                };
                Thing { lock, name }
            }
        });
    }
    things.sort_by_key(|thing| thing.lock);
    things.dedup_by_key(|thing| thing.lock);
    Ok(things)
}

/// The relation that a configured name stands for; of a partition the root of its tree. `None`
/// when there is no single one; the job's plan says so.
async fn root(connection: &mut PgConnection, table: &str) -> Result<Option<Oid>, DatabaseError> {
    let Ok(table) = table.parse::<TableName>() else {
        return Ok(None);
    };
    let relation = match catalog::resolve(connection, &table).await {
        Ok(relation) => relation,
        Err(ResolveError::Database(error)) => return Err(error),
        Err(ResolveError::Missing { .. } | ResolveError::Ambiguous(_)) => return Ok(None),
    };
    let root = sqlx::query_scalar("SELECT coalesce(pg_catalog.pg_partition_root($1::oid::regclass)::oid, $1)")
        .bind(relation.oid)
        .fetch_one(connection)
        .await?;
    Ok(Some(root))
}
