//! The application's requests become the ledger's. Each is taken in a transaction of its own kind: a
//! request that makes no sense is answered and does not stop the others.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::deadline;
use super::execute::Worker;
use super::plan::ErasurePlan;
use super::proof::Subject;
use super::request::{RequestId, RequestState, SubjectKey};
use super::statement::Statements;
use super::statement::requests::RequestTable;
use crate::job::JobError;
use crate::ledger::erasures::{self, End, NewRequest};
use crate::postgres::sqlstate::DatabaseError;

/// How many requests are taken in one transaction.
const AT_ONCE: u32 = 200;

/// What was taken in.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// How many requests are new.
    pub received: u64,
    /// How many of them were answered at once, because they make no sense.
    pub failed: u64,
    /// Status words that the rule does not know, with how many requests have each.
    pub unmapped: BTreeMap<String, i64>,
}

/// One row of the application's table.
struct Asked {
    id: String,
    subject: Option<String>,
    received_at: Timestamp,
    known: bool,
}

/// Takes in all that is new.
pub async fn take(worker: &mut Worker<'_>) -> Result<Taken, JobError> {
    let mut taken = Taken::default();
    let (plan, rule) = (worker.plan, worker.rule);
    let Some(table) = RequestTable::new(plan, rule) else {
        return Ok(taken);
    };
    let failed = |error: sqlx::Error| {
        JobError::database(
            format!("read the requests in {}", table.display()),
            &DatabaseError::from(error),
        )
    };
    let known: Vec<&str> = rule.requests.iter().flat_map(super::rule::Requests::words).collect();
    let unknown: Vec<(Option<String>, i64)> = sqlx::query_as(AssertSqlSafe(table.unknown_words()))
        .persistent(false)
        .bind(&known)
        .fetch_all(worker.session.connection())
        .await
        .map_err(&failed)?;
    taken.unmapped = unknown
        .into_iter()
        .map(|(word, count)| (shown(word.as_deref()), count))
        .collect();
    identified(worker, &table).await?;
    loop {
        let rows: Vec<(String, Option<String>, Option<SqlTimestamp>, bool)> =
            sqlx::query_as(AssertSqlSafe(table.new_ones(AT_ONCE)))
                .persistent(false)
                .bind(worker.job)
                .fetch_all(worker.session.connection())
                .await
                .map_err(&failed)?;
        if rows.is_empty() || worker.stop.is_cancelled() {
            return Ok(taken);
        }
        let asked: Vec<Asked> = rows
            .into_iter()
            .map(|(id, subject, received_at, known)| Asked {
                id,
                subject,
                received_at: received_at.map_or_else(Timestamp::now, SqlTimestamp::to_jiff),
                known,
            })
            .collect();
        let before = taken.received;
        receive(worker, &table, &asked, &mut taken).await?;
        if taken.received == before {
            // Another worker was faster with each of them.
            return Ok(taken);
        }
    }
}

/// A word that is plainly one; anything else may be about a person.
fn shown(word: Option<&str>) -> String {
    match word {
        None => "NULL".to_owned(),
        Some(word)
            if word.len() <= 32
                && word
                    .chars()
                    .all(|c| c.is_ascii_alphabetic() || matches!(c, '_' | '-' | ' ')) =>
        {
            word.to_owned()
        }
        Some(_) => "(not a word)".to_owned(),
    }
}

async fn identified(worker: &mut Worker<'_>, table: &RequestTable<'_>) -> Result<(), JobError> {
    let Some(sql) = table.identified() else { return Ok(()) };
    let failed = |error: DatabaseError| JobError::database(format!("read the requests in {}", table.display()), &error);
    let ids: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
        .persistent(false)
        .bind(worker.job)
        .fetch_all(worker.session.connection())
        .await
        .map_err(|error| failed(error.into()))?;
    for id in ids {
        let (fence, job) = (worker.fence, worker.job);
        let mut transaction = worker.begin().await?;
        fence
            .hold(&mut transaction)
            .await
            .map_err(|error| failed(error.into()))?;
        erasures::identified(&mut transaction, job, &id).await.map_err(failed)?;
        transaction.commit().await.map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

/// Keeps some requests, in one transaction that ends after they are on record.
async fn receive(
    worker: &mut Worker<'_>,
    table: &RequestTable<'_>,
    asked: &[Asked],
    taken: &mut Taken,
) -> Result<(), JobError> {
    let failed = |error: DatabaseError| JobError::database(format!("keep the requests in {}", table.display()), &error);
    let (fence, recorder) = (worker.fence, worker.recorder);
    let (plan, rule, job, database, zone) = (worker.plan, worker.rule, worker.job, worker.database, worker.zone);
    let (proof, source) = (worker.proof, table.display());
    let root = plan.root().map(|root| root.relation.display()).unwrap_or_default();
    let mut transaction = worker.begin().await?;
    fence
        .hold(&mut transaction)
        .await
        .map_err(|error| failed(error.into()))?;
    let subjects: Vec<Option<&str>> = asked.iter().map(|row| row.subject.as_deref()).collect();
    let keys = canonical_all(&mut transaction, plan, &subjects).await.map_err(failed)?;
    let mut people = Vec::with_capacity(asked.len());
    for (row, key) in asked.iter().zip(keys) {
        let (key, problem) = match key {
            Ok(key) => (key, None),
            Err(problem) => (SubjectKey::new(row.subject.clone().unwrap_or_default()), Some(problem)),
        };
        let subject = Subject {
            database,
            table: &root,
            key: &key,
        };
        let stand_in = proof.token(&subject).map_err(super::execute::unproven)?;
        people.push((row, key, stand_in, problem));
    }
    let new: Vec<NewRequest<'_>> = (people.iter())
        .map(|(row, key, stand_in, _)| NewRequest {
            id: RequestId::new(),
            job,
            source_id: Some(&row.id),
            requested_by: &source,
            subject: key,
            token: stand_in,
            state: if row.known {
                RequestState::Received
            } else {
                RequestState::AwaitingIdentity
            },
            received_at: row.received_at,
            due_at: deadline::due(row.received_at, zone),
        })
        .collect();
    let kept = erasures::insert_all(&mut transaction, &new).await.map_err(failed)?;
    let mut records: Vec<Value> = Vec::new();
    for (new, (row, _, _, problem)) in new.iter().zip(&people) {
        if !kept.contains(&new.id.0) {
            continue;
        }
        taken.received += 1;
        records.push(json!({
            "request": new.id, "subject": new.token, "received_at": new.received_at, "due_at": new.due_at, "state": new.state,
        }));
        if let (Some(problem), Some(requests)) = (*problem, &rule.requests) {
            taken.failed += 1;
            refuse(&mut transaction, table, new.id, &row.id, problem, &requests.failed).await?;
        }
    }
    if !records.is_empty() {
        recorder
            .record("erasure.requested", json!({ "requests": records }))
            .await?;
    }
    transaction.commit().await.map_err(|error| failed(error.into()))
}

/// Answers a request that makes no sense.
async fn refuse(
    transaction: &mut PgConnection,
    table: &RequestTable<'_>,
    id: RequestId,
    row: &str,
    problem: &str,
    word: &str,
) -> Result<(), JobError> {
    let operation = || format!("answer a request in {}", table.display());
    let failed = |error: DatabaseError| JobError::database(operation(), &error);
    let end = End {
        state: RequestState::Failed,
        reason: Some(problem),
        residue: None,
        certificate: None,
        certificate_sha256: None,
        rescan_share: None,
    };
    erasures::close(transaction, id, &end).await.map_err(failed)?;
    if write_status(transaction, table, &[row], word, true)
        .await
        .map_err(failed)?
    {
        return Ok(());
    }
    // It would come again and again.
    Err(JobError::permanent(
        operation(),
        "its status was not changed, by a trigger perhaps",
    ))
}

/// The keys of subjects as the server writes them, or why each cannot be one.
async fn canonical_all(
    transaction: &mut PgConnection,
    plan: &ErasurePlan,
    texts: &[Option<&str>],
) -> Result<Vec<Result<SubjectKey, &'static str>>, DatabaseError> {
    let possible: Option<Vec<&str>> = texts.iter().map(|text| plausible(*text).ok()).collect();
    if let (Some(possible), Some(sql)) = (possible, Statements::new(plan).canonical_keys()) {
        let mut savepoint = transaction.begin().await?;
        let read: Result<Vec<String>, sqlx::Error> = sqlx::query_scalar(AssertSqlSafe(sql))
            .persistent(false)
            .bind(possible)
            .fetch_one(&mut *savepoint)
            .await;
        if let Ok(keys) = read {
            savepoint.commit().await?;
            return Ok(keys.into_iter().map(|key| Ok(SubjectKey::new(key))).collect());
        }
        // Which of them it is, each tells by itself.
        savepoint.rollback().await?;
    }
    let mut keys = Vec::with_capacity(texts.len());
    for text in texts {
        keys.push(canonical(transaction, plan, *text).await?);
    }
    Ok(keys)
}

/// A text that may be a key at all.
fn plausible(text: Option<&str>) -> Result<&str, &'static str> {
    match text.filter(|text| !text.is_empty()) {
        None => Err("the request names no subject"),
        Some(text) if text.contains('\0') => Err("the subject's key holds a NUL character"),
        Some(text) => Ok(text),
    }
}

/// The subject's key as the server writes it, or why it cannot be one.
pub async fn canonical(
    transaction: &mut PgConnection,
    plan: &ErasurePlan,
    text: Option<&str>,
) -> Result<Result<SubjectKey, &'static str>, DatabaseError> {
    let text = match plausible(text) {
        Ok(text) => text,
        Err(problem) => return Ok(Err(problem)),
    };
    let Some(sql) = Statements::new(plan).canonical_key() else {
        return Ok(Err("the subject's table has no such key"));
    };
    let mut savepoint = transaction.begin().await?;
    let read: Result<Option<String>, sqlx::Error> = sqlx::query_scalar(AssertSqlSafe(sql))
        .persistent(false)
        .bind(text)
        .fetch_one(&mut *savepoint)
        .await;
    match read {
        Ok(key) => {
            savepoint.commit().await?;
            Ok(key.map(SubjectKey::new).ok_or("the request names no subject"))
        }
        Err(error) => {
            savepoint.rollback().await?;
            let error = DatabaseError::from(error);
            // Class 22: the text is no value of the key's type; 23: its domain refuses it.
            let malformed = error
                .sqlstate
                .as_deref()
                .is_some_and(|code| code.starts_with("22") || code.starts_with("23"));
            if malformed {
                Ok(Err("the subject's key is not of the key's type"))
            } else {
                Err(error)
            }
        }
    }
}

/// Answers the application in rows of its own; `false` when there is none of them, which may be gone
/// with the subject.
pub(super) async fn write_status(
    transaction: &mut PgConnection,
    table: &RequestTable<'_>,
    ids: &[&str],
    word: &str,
    finished: bool,
) -> Result<bool, DatabaseError> {
    let done = sqlx::query(AssertSqlSafe(table.write_status(finished)))
        .persistent(false)
        .bind(ids)
        .bind(word)
        .execute(transaction)
        .await?;
    Ok(done.rows_affected() > 0)
}
