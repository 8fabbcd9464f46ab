//! Repeats erasures in a database that is older than they are: one that was restored from a backup.
//!
//! The ledger holds tokens, not people. So the token of every row of the subject's table is computed
//! anew, and whoever is in the ledger is erased once more, by the same engine, under the settings of
//! today.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use jiff::Timestamp;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio_util::sync::CancellationToken;

use super::certificate::{Addendum, AddendumEvent};
use super::entry::Begun;
use super::execute::{Worker, unproven};
use super::host::HostProof;
use super::prepare::{self, Prepared};
use super::proof::{Account, ProofError};
use super::recall::Recall;
use super::request::{RequestState, SubjectKey};
use super::rule::Rule;
use super::single;
use super::token::{KeyId, Subject, Token, TokenKey};
use crate::backup::manifest::ErasureMark;
use crate::job::{JobError, Recorder};
use crate::ledger::erasures;
use crate::ledger::leader::Fence;
use crate::ledger::migrate;
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::{RunId, Timezone};

/// Who asks, in the request's record.
const ACTOR: &str = "replay";

/// A job whose erasures are repeated.
#[derive(Debug, Clone)]
pub struct ReplayJob {
    /// Its name.
    pub name: String,
    /// Its settings.
    pub rule: Arc<Rule>,
    /// Their hash.
    pub policy: String,
    /// The zone in which its deadlines are counted.
    pub zone: Timezone,
}

/// What is to be repeated.
pub struct Replay<'a> {
    /// The ledgers.
    pub recall: &'a Recall,
    /// Where each repetition is remembered and certified.
    pub proof: &'a HostProof,
    /// Where records go.
    pub recorder: &'a dyn Recorder,
    /// The jobs that erase in this database.
    pub jobs: &'a [ReplayJob],
    /// The database's name in the configuration.
    pub database: &'a str,
    /// How far the ledger was when the snapshot was taken, where the backup says.
    pub mark: Option<&'a ErasureMark>,
    /// When the data was as it is in the restored database.
    pub snapshot: Timestamp,
    /// The backup, where it is one of pgreeve's.
    pub backup: Option<&'a str>,
    /// Cancelled when it should stop.
    pub stop: CancellationToken,
}

/// What was repeated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Replayed {
    /// How many erasures the ledger has since the snapshot.
    pub remembered: u64,
    /// How many of their subjects were in the database.
    pub found: u64,
    /// How many rows of theirs were deleted or changed.
    pub rows: u64,
}

/// Repeats all erasures that are not certain to be in the database.
///
/// # Errors
/// When one cannot be repeated: the database holds somebody who was erased, and must not be opened.
pub async fn replay(request: &Replay<'_>, target: &ConnectTarget) -> Result<Replayed, JobError> {
    let wanted = request.recall.since(request.database, request.mark, request.snapshot);
    let mut replayed = Replayed {
        remembered: wanted.len() as u64,
        ..Replayed::default()
    };
    if wanted.is_empty() {
        return Ok(replayed);
    }
    let operation = format!("repeat erasures in {}", target.dbname);
    let body = json!({ "database": target.dbname, "backup_id": request.backup, "remembered": wanted.len(), "mark": request.mark });
    request.recorder.record("restore.replayed", body).await?;
    migrate::apply(target)
        .await
        .map_err(|error| JobError::database(operation.as_str(), &error))?;
    let settings = SessionSettings::run(
        format!("pgreeve:replay:{}", request.database),
        Duration::from_secs(10),
        Duration::ZERO,
    );
    let mut session = Session::open(target, &settings)
        .await
        .map_err(|error| JobError::database(operation.as_str(), &error))?;
    let done = all(request, &mut session, &wanted, &mut replayed, &operation).await;
    session.close().await;
    done.map(|()| replayed)
}

async fn all(
    request: &Replay<'_>,
    session: &mut Session,
    wanted: &[&Begun],
    replayed: &mut Replayed,
    operation: &str,
) -> Result<(), JobError> {
    let fence = fence(session.connection())
        .await
        .map_err(|error| JobError::database(operation, &error))?;
    let tables: BTreeSet<&str> = wanted.iter().map(|begun| begun.table.as_str()).collect();
    for table in tables {
        let of_table: Vec<&Begun> = wanted.iter().copied().filter(|begun| begun.table == table).collect();
        let (job, prepared) = job_for(request, session, table, &of_table, operation).await?;
        for (key, begun) in find(request, session.connection(), &prepared, &of_table, operation).await? {
            if request.stop.is_cancelled() {
                return Err(JobError::cancelled(operation));
            }
            let account = again(request, session, fence, job, &prepared, &key).await?;
            replayed.found = replayed.found.saturating_add(1);
            let rows = account
                .steps
                .iter()
                .fold(0_u64, |sum, step| sum.saturating_add(step.rows));
            replayed.rows = replayed.rows.saturating_add(rows);
            tell(request, session, begun, account, operation).await?;
        }
    }
    Ok(())
}

/// The epoch that a restored database was left with: nobody leads it yet.
async fn fence(connection: &mut PgConnection) -> Result<Fence, DatabaseError> {
    let epoch: Option<i64> = sqlx::query_scalar("SELECT epoch FROM pgreeve.leader")
        .fetch_optional(connection)
        .await?;
    let epoch =
        epoch.ok_or_else(|| DatabaseError::local("nobody has ever led this database: pgreeve.leader is empty"))?;
    Ok(Fence { epoch })
}

/// The job that erases from a table: the one that did, else any other.
async fn job_for<'a>(
    request: &'a Replay<'_>,
    session: &mut Session,
    table: &str,
    wanted: &[&Begun],
    operation: &str,
) -> Result<(&'a ReplayJob, Prepared), JobError> {
    let mut jobs: Vec<&ReplayJob> = request.jobs.iter().collect();
    jobs.sort_by_key(|job| !wanted.iter().any(|begun| begun.job == job.name));
    for job in jobs {
        // A plan that is refused may be of another table; which one, only the plan knows.
        let names = &job.rule.subject.table;
        if names.name != table.rsplit_once('.').map_or(table, |(_, name)| name) {
            continue;
        }
        let prepared = prepare::prepare(session.connection(), &job.rule).await?;
        if prepared
            .plan
            .root()
            .is_some_and(|root| root.relation.display() == table)
        {
            return Ok((job, prepared));
        }
    }
    Err(JobError::refused(
        operation,
        format!(
            "{} people were erased from {table} since the backup, and no job of the configuration erases from it",
            wanted.len()
        ),
        "restore with a configuration that has the job, as it was or under another name",
    ))
}

/// The rows of the subject's table that an entry names, by their keys.
async fn find<'a>(
    request: &Replay<'_>,
    connection: &mut PgConnection,
    prepared: &Prepared,
    wanted: &[&'a Begun],
    operation: &str,
) -> Result<Vec<(SubjectKey, &'a Begun)>, JobError> {
    let mut by_key: BTreeMap<&KeyId, BTreeMap<Token, &'a Begun>> = BTreeMap::new();
    for begun in wanted.iter().copied() {
        by_key.entry(&begun.key).or_default().insert(begun.token, begun);
    }
    let mut keys: Vec<(TokenKey, &BTreeMap<Token, &'a Begun>)> = Vec::new();
    for (id, tokens) in &by_key {
        let key = request
            .recall
            .key(id)
            .map_err(|error| unproven(ProofError::from(error)))?;
        keys.push((key, tokens));
    }
    let Some(root) = prepared.plan.root() else {
        return Ok(Vec::new());
    };
    let (table, relation) = (
        root.relation.display(),
        quote::qualified(&root.relation.schema, &root.relation.name),
    );
    let sql = format!("SELECT {}::text FROM {relation}", quote::identifier(&prepared.plan.key));
    let mut found = Vec::new();
    let failed = |error: sqlx::Error| JobError::database(operation, &error.into());
    let mut rows = sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(sql))
        .persistent(false)
        .fetch(connection);
    while let Some(key) = rows.try_next().await.map_err(failed)? {
        let Some(key) = key else { continue };
        let subject = Subject {
            database: request.database,
            table: &table,
            key: &key,
        };
        let named = keys
            .iter()
            .find_map(|(with, tokens)| tokens.get(&with.token(&subject)).copied());
        if let Some(begun) = named {
            found.push((SubjectKey::new(key), begun));
        }
    }
    Ok(found)
}

async fn again(
    request: &Replay<'_>,
    session: &mut Session,
    fence: Fence,
    job: &ReplayJob,
    prepared: &Prepared,
    key: &SubjectKey,
) -> Result<Account, JobError> {
    let name = erasures::worker(session.connection())
        .await
        .map_err(|error| JobError::database("name the session", &error))?;
    let mut worker = Worker {
        session,
        fence,
        run: RunId::new(),
        job: &job.name,
        database: request.database,
        plan: &prepared.plan,
        rule: &prepared.rule,
        proof: request.proof,
        recorder: request.recorder,
        stop: request.stop.clone(),
        zone: job.zone.rules(),
        policy: job.policy.clone(),
        approved_by: None,
        name,
        // Nobody else is there to add rows meanwhile.
        may_lock: false,
    };
    single::erase_one(&mut worker, key, ACTOR).await
}

/// A hold that covered the person when the backup was made was released before the erasure, or there
/// would have been none; only an operator may say so to the restored database.
fn remedy(account: &Account) -> &'static str {
    if account.holds.is_empty() {
        "restore a later backup, or restore by hand with pg_restore and erase before anybody uses the database"
    } else {
        "the hold was released after the backup was made: restore a later backup, or restore by hand with pg_restore, \
         release the hold there with `pgreeve hold release`, and run `pgreeve erasure replay` before anybody uses the \
         database"
    }
}

/// Puts on record what was repeated, and signs an addendum to the certificate.
async fn tell(
    request: &Replay<'_>,
    session: &mut Session,
    begun: &Begun,
    account: Account,
    operation: &str,
) -> Result<(), JobError> {
    let is_done = matches!(
        account.state,
        RequestState::Completed | RequestState::CompletedWithExceptions
    );
    if !is_done {
        return Err(JobError::refused(
            operation,
            format!(
                "the erasure {} cannot be repeated: it is {}; legal holds: {}",
                begun.request,
                account.state.as_str(),
                account.holds.len()
            ),
            remedy(&account),
        ));
    }
    let body = json!({
        "request": begun.request, "again": account.request, "subject": account.subject, "state": account.state,
        "steps": account.steps,
    });
    request.recorder.record("erasure.replayed", body).await?;
    let event = AddendumEvent::Replay {
        restored: session_database(session.connection())
            .await
            .map_err(|error| JobError::database(operation, &error))?,
        backup: request.backup.map(str::to_owned),
        found: account.found.unwrap_or_default(),
        steps: account.steps,
        residue: account.residue,
    };
    let addendum = Addendum::new(begun.request, None, Timestamp::now(), event, request.proof.public_key());
    let name = format!("{}.replay-{}.json", begun.request, account.request);
    request
        .proof
        .keep(&name, &addendum)
        .map_err(|error| unproven(ProofError::from(error)))?;
    Ok(())
}

async fn session_database(connection: &mut PgConnection) -> Result<String, DatabaseError> {
    Ok(sqlx::query_scalar("SELECT pg_catalog.current_database()::text")
        .fetch_one(connection)
        .await?)
}
