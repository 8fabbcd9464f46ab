//! A run's row is closed, after nothing of the run is under way on the server any more.

use serde_json::{Value, json};
use sqlx::PgConnection;

use super::tried::Tried;
use super::{RunRequest, attempt, supervise};
use crate::job::Outcome;
use crate::ledger::batches;
use crate::ledger::runs::{self, RunEnd, RunRecord};
use crate::postgres::connect::{Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// Closes the run's row once; answers with the end that it has, and its record.
pub(super) async fn close(request: &RunRequest, tried: &Tried) -> Result<(RunEnd, Option<RunRecord>), DatabaseError> {
    let settings = SessionSettings::control(format!("pgreeve:close:{}", request.job.name));
    let mut session = Session::open(&request.site.target, &settings).await?;
    let connection = session.connection();
    // While a statement of the run may be under way, the run is not over.
    let name = attempt::application_name(&request.job, request.run);
    let backend_pid = runs::backend_pid(connection, request.run).await?;
    supervise::end_sessions(connection, backend_pid, &name).await?;
    let mut end = tried.end.clone();
    if tried.in_doubt {
        end.report = counted(connection, request.run, end.report).await?;
    }
    runs::finish(connection, request.run, &end).await?;
    let record = runs::find(connection, &request.site.database, request.run).await?;
    session.close().await;
    Ok((end, record))
}

/// What the ledger says was committed, now that nothing can be any more: each batch wrote its row in
/// its own transaction.
async fn counted(connection: &mut PgConnection, run: RunId, report: Value) -> Result<Value, DatabaseError> {
    let (rows, batches) = batches::total(connection, run).await?;
    let Value::Object(mut report) = report else {
        return Ok(json!({ "rows": rows, "batches": batches }));
    };
    if rows > 0 || report.contains_key("rows") {
        report.insert("rows".to_owned(), json!(rows));
        report.insert("batches".to_owned(), json!(batches));
    }
    Ok(Value::Object(report))
}

/// The end of a run about which the ledger could not be asked. When its last commit was not answered
/// either, nobody knows how it ended.
pub(super) fn unasked(tried: Tried) -> RunEnd {
    if !tried.in_doubt {
        return tried.end;
    }
    let said = tried.end.reason.unwrap_or_default();
    let reason = format!(
        "{said}; its last commit was not answered, and the ledger could not be asked: the next leader counts what it did"
    );
    RunEnd {
        outcome: Outcome::Unknown,
        reason: Some(reason),
        ..tried.end
    }
}
