//! What a person decides about a request that is open: `erasure extend` and `erasure reject`.

use serde_json::json;
use sqlx::Connection;

use super::super::record::open_audit;
use super::super::run::{job_failure, look};
use super::super::site::{database_failure, target};
use super::super::{Exit, Failure, actor, output};
use super::{find, record, rule, said};
use crate::audit::RecordKind;
use crate::config::Config;
use crate::erasure::{RequestId, RequestState, deadline, desk};
use crate::ledger::erasures;

pub(super) async fn extend(
    config: &Config,
    id: RequestId,
    months: i16,
    reason: &str,
    as_json: bool,
) -> Result<Exit, Failure> {
    said(reason)?;
    let audit = open_audit(config)?;
    let failed = |error| database_failure("extend the deadline", &error);
    let (settings, mut session, request) = find(config, id).await?;
    let site = look(&settings.database, target(config, &settings.database)?).await?;
    let due_at = deadline::later(request.received_at, 1 + months, settings.schedule.timezone().rules());
    let mut transaction = session
        .connection()
        .begin()
        .await
        .map_err(|error| failed(error.into()))?;
    if !erasures::extend(&mut transaction, id, due_at, months, reason, &actor())
        .await
        .map_err(failed)?
    {
        let why = if request.state.is_over() {
            format!("it is over ({})", request.state.as_str())
        } else if request.extended_months > 0 {
            "it was extended before, and the law allows that once".to_owned()
        } else {
            format!(
                "it was due at {}, and a deadline is extended before it passes",
                request.due_at
            )
        };
        return Err(
            Failure::new(Exit::NotGreen, format!("request {id} cannot be extended: {why}"))
                .with_remedy("`pgreeve erasure list` shows what is open"),
        );
    }
    let body = json!({ "request": id, "months": months, "due_at": due_at, "reason": reason });
    record(&audit, &site, settings, RecordKind::ErasureExtended, body).await?;
    transaction.commit().await.map_err(|error| failed(error.into()))?;
    session.close().await;
    if as_json {
        output::document(&json!({ "version": 1, "request": { "request_id": id, "due_at": due_at } }));
    } else {
        output::line(&format!(
            "request {id} is due at {due_at}; the person is to be told within the first month"
        ));
    }
    Ok(Exit::Green)
}

pub(super) async fn reject(config: &Config, id: RequestId, reason: &str, as_json: bool) -> Result<Exit, Failure> {
    said(reason)?;
    let audit = open_audit(config)?;
    let failed = |error| database_failure("reject the request", &error);
    let (settings, mut session, request) = find(config, id).await?;
    let (_, rule) = rule(config, &settings.name)?;
    let site = look(&settings.database, target(config, &settings.database)?).await?;
    let mut transaction = session
        .connection()
        .begin()
        .await
        .map_err(|error| failed(error.into()))?;
    let rejected = desk::reject(&mut transaction, rule, id, reason)
        .await
        .map_err(|error| job_failure(&error))?;
    if !rejected {
        return Err(Failure::new(
            Exit::NotGreen,
            format!(
                "request {id} cannot be rejected: it is {}, or its steps have begun",
                request.state.as_str()
            ),
        )
        .with_remedy("what was begun is brought to its end; `pgreeve erasure list` shows it"));
    }
    record(
        &audit,
        &site,
        settings,
        RecordKind::ErasureRejected,
        json!({ "request": id, "reason": reason }),
    )
    .await?;
    transaction.commit().await.map_err(|error| failed(error.into()))?;
    session.close().await;
    if as_json {
        let request = json!({ "request_id": id, "state": RequestState::Rejected });
        output::document(&json!({ "version": 1, "request": request }));
    } else {
        output::line(&format!("request {id} is rejected"));
    }
    Ok(Exit::Green)
}
