//! What operators do about a request: ask for one, refuse one.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::proof::{Proof, Subject};
use super::request::{RequestId, RequestState, SubjectKey};
use super::rule::Rule;
use super::statement::requests::RequestTable;
use super::{deadline, execute, intake, plan, reach};
use crate::job::JobError;
use crate::ledger::erasures::{self, End, NewRequest};
use crate::postgres::sqlstate::DatabaseError;

/// A request by an operator.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The job that erases.
    pub job: &'a str,
    /// The database's name in the configuration.
    pub database: &'a str,
    /// Its settings.
    pub rule: &'a Rule,
    /// The zone in which its deadlines are counted.
    pub zone: &'a TimeZone,
    /// Who is to be erased.
    pub key: &'a SubjectKey,
    /// When the request came in.
    pub received_at: Timestamp,
    /// Who asks.
    pub requested_by: &'a str,
}

/// A request that was kept.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its identity.
    pub id: RequestId,
    /// By when it must be done.
    pub due_at: Timestamp,
    /// What the audit log says of it.
    pub record: Value,
}

/// Keeps a request, within a transaction.
///
/// # Errors
/// Refused when the key cannot be one, or when nobody has decided what happens to a table.
pub async fn receive(transaction: &mut PgConnection, asked: &Asked<'_>, proof: &dyn Proof) -> Result<Kept, JobError> {
    let failed = |error: DatabaseError| JobError::database("keep the request", &error);
    let plan = plan::decide(asked.rule, reach::read(transaction, asked.rule).await?)?;
    let key = intake::canonical(transaction, &plan, Some(asked.key.expose()))
        .await
        .map_err(failed)?;
    let key = key.map_err(|problem| {
        let remedy = format!(
            "give a value of {}.{}",
            asked.rule.subject.table, asked.rule.subject.key
        );
        JobError::refused("keep the request", problem, remedy)
    })?;
    let table = plan.root().map(|root| root.relation.display()).unwrap_or_default();
    let subject = Subject {
        database: asked.database,
        table: &table,
        key: &key,
    };
    let token = proof.token(&subject).map_err(execute::unproven)?;
    let due_at = deadline::due(asked.received_at, asked.zone);
    let new = NewRequest {
        id: RequestId::new(),
        job: asked.job,
        source_id: None,
        requested_by: asked.requested_by,
        subject: &key,
        token: &token,
        state: RequestState::Received,
        received_at: asked.received_at,
        due_at,
    };
    erasures::insert(transaction, &new).await.map_err(failed)?;
    let record = json!({
        "request": new.id, "subject": token, "received_at": new.received_at, "due_at": due_at, "state": new.state,
    });
    Ok(Kept {
        id: new.id,
        due_at,
        record,
    })
}

/// Refuses a request that was not begun, and answers the application, within a transaction. False
/// when there is no such request.
///
/// # Errors
/// When the database refuses.
pub async fn reject(
    transaction: &mut PgConnection,
    rule: &Rule,
    id: RequestId,
    reason: &str,
) -> Result<bool, JobError> {
    let failed = |error: DatabaseError| JobError::database("reject the request", &error);
    let Some(request) = erasures::take_unbegun(transaction, id).await.map_err(failed)? else {
        return Ok(false);
    };
    let end = End {
        state: RequestState::Rejected,
        reason: Some(reason),
        residue: None,
        certificate: None,
        certificate_sha256: None,
        rescan_share: None,
    };
    erasures::close(transaction, id, &end).await.map_err(failed)?;
    if let (Some(source), Some(requests)) = (&request.source_id, &rule.requests) {
        let plan = plan::decide(rule, reach::read(transaction, rule).await?)?;
        let word = requests.rejected.as_ref().unwrap_or(&requests.failed);
        if let Some(table) = RequestTable::new(&plan, rule) {
            intake::write_status(transaction, &table, &[source], word, true)
                .await
                .map_err(failed)?;
        }
    }
    Ok(true)
}
