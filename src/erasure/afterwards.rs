//! What is to be done after the requests of a run: recipients are told, second scans made, and the
//! ledger is copied to where the backups lie. Each part is done whatever became of the others.

use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::Connection;

use super::certificate::{Addendum, AddendumEvent, Answer};
use super::copies;
use super::execute::unproven;
use super::host::{HostProof, blocking};
use super::outbox::{Delivery, Messenger};
use super::proof::{Proof, ProofError, Residue, Search};
use super::request::RequestId;
use crate::job::{JobContext, JobError};
use crate::ledger::notices::{self, DueScan};
use crate::postgres::sqlstate::DatabaseError;

/// Does all of it. What is not green is named in `reasons`.
///
/// # Errors
/// When the database or the audit log does not take a record.
pub async fn attend(proof: &HostProof, context: &mut JobContext) -> Result<Value, JobError> {
    let mut reasons = Vec::new();
    let notices = tell(proof, context, &mut reasons).await?;
    let scans = search_again(proof, context, &mut reasons).await?;
    let copies = copy(proof, &mut reasons).await;
    Ok(json!({ "notices": notices, "second_scans": scans, "ledger_copies": copies, "reasons": reasons }))
}

fn failed(operation: &'static str) -> impl Fn(DatabaseError) -> JobError {
    move |error| JobError::database(operation, &error)
}

/// A transaction that holds the leader's fence.
async fn begin(context: &mut JobContext) -> Result<sqlx::Transaction<'_, sqlx::Postgres>, JobError> {
    let fence = context.fence;
    let begun = context.session.connection().begin().await;
    let mut transaction = begun.map_err(|error| JobError::database("begin a transaction", &error.into()))?;
    fence
        .hold(&mut transaction)
        .await
        .map_err(|error| JobError::database("hold the leader's fence", &error.into()))?;
    Ok(transaction)
}

async fn tell(proof: &HostProof, context: &mut JobContext, reasons: &mut Vec<String>) -> Result<Value, JobError> {
    let operation = "tell the recipients";
    let recipients = proof.recipients();
    let job = context.job.to_string();
    if !recipients.is_empty() {
        let names: Vec<String> = recipients.keys().map(ToString::to_string).collect();
        let mut transaction = begin(context).await?;
        notices::queue(&mut transaction, &job, &names)
            .await
            .map_err(failed(operation))?;
        transaction
            .commit()
            .await
            .map_err(|error| failed(operation)(error.into()))?;
    }
    let pending = notices::pending(context.session.connection(), &job)
        .await
        .map_err(failed(operation))?;
    let messenger = if pending.is_empty() {
        None
    } else {
        Some(Messenger::new())
    };
    let mut acknowledged = 0_u64;
    for notice in pending {
        if context.stop.is_cancelled() {
            break;
        }
        let recipient = recipients.iter().find(|(name, _)| name.as_str() == notice.recipient);
        let delivery = match (&messenger, recipient) {
            (Some(Ok(messenger)), Some((_, recipient))) => {
                messenger.deliver(&notice, &job, &context.database, recipient).await
            }
            (_, None) => Delivery::GivenUp(0, "the configuration does not name it any more".to_owned()),
            (Some(Err(cause)), _) => Delivery::Pending(0, cause.clone(), 3600.0),
            (None, _) => continue,
        };
        if let Delivery::Acknowledged(tries) = &delivery {
            acknowledged = acknowledged.saturating_add(1);
            let body = json!({ "request": notice.request, "recipient": notice.recipient, "tries": tries });
            context.recorder.record("erasure.notified", body).await?;
        }
        let mut transaction = begin(context).await?;
        match &delivery {
            Delivery::Acknowledged(tries) => notices::acknowledged(&mut transaction, &notice, *tries).await,
            Delivery::Pending(tries, cause, rest) => {
                notices::not_acknowledged(&mut transaction, &notice, *tries, cause, Some(*rest)).await
            }
            Delivery::GivenUp(tries, cause) => {
                notices::not_acknowledged(&mut transaction, &notice, *tries, cause, None).await
            }
        }
        .map_err(failed(operation))?;
        transaction
            .commit()
            .await
            .map_err(|error| failed(operation)(error.into()))?;
    }
    let (waiting, given_up) = notices::outstanding(context.session.connection(), &job)
        .await
        .map_err(failed(operation))?;
    if waiting > 0 {
        reasons.push(format!("{waiting} messages wait for a recipient's acknowledgement"));
    }
    if given_up > 0 {
        reasons.push(format!(
            "{given_up} messages were given up; no recipient has acknowledged them"
        ));
    }
    Ok(json!({ "acknowledged": acknowledged, "pending": waiting, "failed": given_up }))
}

async fn search_again(
    proof: &HostProof,
    context: &mut JobContext,
    reasons: &mut Vec<String>,
) -> Result<Value, JobError> {
    let operation = "search what is left of the erased once more";
    let job = context.job.to_string();
    let due = notices::due_scans(context.session.connection(), &job)
        .await
        .map_err(failed(operation))?;
    if due.is_empty() {
        return Ok(json!({ "done": 0, "not_clean": 0, "impossible": 0 }));
    }
    let (mut searches, mut found_searches) = (Vec::new(), Vec::new());
    for scan in &due {
        let search = join(proof, scan).await;
        found_searches.push(search.as_ref().map(|_| ()).map_err(Clone::clone));
        searches.extend(search.ok());
    }
    let mut residues = proof
        .scan(context.session.connection(), &searches)
        .await
        .map_err(unproven)?
        .into_iter();
    let (mut not_clean, mut impossible) = (0_u64, 0_u64);
    for (scan, found) in due.iter().zip(found_searches) {
        let result = match found {
            Ok(()) => residues.next().ok_or_else(|| "the scan gave no answer".to_owned()),
            Err(cause) => Err(cause),
        };
        not_clean += u64::from(result.as_ref().is_ok_and(|residue| !residue.is_clean()));
        impossible += u64::from(result.is_err());
        close(proof, context, scan, result).await?;
    }
    for (count, what) in [
        (not_clean, "second scans found something that should not be there"),
        (impossible, "second scans could not be made on this host"),
    ] {
        if count > 0 {
            reasons.push(format!("{count} {what}"));
        }
    }
    Ok(json!({ "done": due.len(), "not_clean": not_clean, "impossible": impossible }))
}

/// What a second scan looks for; the error says why that is not known.
async fn join(proof: &HostProof, scan: &DueScan) -> Result<Search, String> {
    let Some(share) = scan.share.clone() else {
        return Err("nothing was kept to search for".to_owned());
    };
    let (sealed, request) = (proof.sealed().clone(), RequestId(scan.request));
    match blocking(move || sealed.join(request, &share)).await {
        Ok(Some(search)) => Ok(search),
        Ok(None) => Err("this host does not have its half of what to search for".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Signs the addendum, then closes the scan in the database, then destroys the host's half.
async fn close(
    proof: &HostProof,
    context: &mut JobContext,
    scan: &DueScan,
    result: Result<Residue, String>,
) -> Result<(), JobError> {
    let operation = "close a second scan";
    let answers = notices::answers(context.session.connection(), scan.request)
        .await
        .map_err(failed(operation))?;
    let recipients = answers.into_iter().map(|(kind, name, state, acknowledged_at)| Answer {
        kind,
        name,
        state,
        acknowledged_at,
    });
    let (residue, not_searched) = match result {
        Ok(residue) => (Some(residue), None),
        Err(cause) => (None, Some(cause)),
    };
    let shown = json!({ "residue": residue, "not_searched": not_searched });
    let event = AddendumEvent::SecondScan {
        residue,
        not_searched,
        recipients: recipients.collect(),
    };
    let certificate = scan.certificate.as_ref().and_then(|digest| digest.parse().ok());
    let addendum = Addendum::new(scan.request, certificate, Timestamp::now(), event, proof.public_key());
    let signed = proof
        .keep(&format!("{}.second-scan.json", scan.request), &addendum)
        .map_err(|error| unproven(error.into()))?;
    let body = json!({ "request": scan.request, "result": shown, "addendum_sha256": signed.digest() });
    context.recorder.record("erasure.searched", body).await?;
    let mut transaction = begin(context).await?;
    notices::scanned(&mut transaction, scan.request, &shown)
        .await
        .map_err(failed(operation))?;
    transaction
        .commit()
        .await
        .map_err(|error| failed(operation)(error.into()))?;
    let (sealed, request) = (proof.sealed().clone(), RequestId(scan.request));
    blocking(move || sealed.destroy(request))
        .await
        .map_err(|error| unproven(ProofError::from(error)))
}

/// Copies the ledger to each store of backups. A store that does not answer is tried by the next run.
async fn copy(proof: &HostProof, reasons: &mut Vec<String>) -> Value {
    let mut stores: Vec<&str> = Vec::new();
    let mut copied = 0_u64;
    for source in proof.backups() {
        if stores.contains(&source.store.as_str()) {
            continue;
        }
        stores.push(&source.store);
        let put = match (source.open)().await {
            Ok(store) => copies::put(proof.memory(), store.as_ref())
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match put {
            Ok(_) => copied = copied.saturating_add(1),
            Err(cause) => reasons.push(format!(
                "the ledger of erasures is not copied to {}: {cause}",
                source.store
            )),
        }
    }
    json!({ "stores": stores.len(), "copied": copied })
}
