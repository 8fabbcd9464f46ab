//! Materialized views: brought up to date in the order in which they read each other, and without
//! keeping their readers out wherever the server can.
//!
//! A view shows what its tables hold now, so a purge of them empties it too; a rollup is what
//! outlives its source.

mod check;
mod manner;
mod order;
mod reads;
mod rights;
mod run;

use futures::future::BoxFuture;
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use self::check::View;
use crate::job::{JobContext, JobError, JobReport, Plan};
use crate::postgres::grant::Grant;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::TableName;

/// `[jobs.NAME] refresh = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Views {
    /// The materialized views, each once, in any order.
    pub views: Vec<TableName>,
    /// Whether readers go on meanwhile: `true` always, so that a view that cannot is refused; `false`
    /// never; none wherever the server can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrently: Option<bool>,
}

/// Looks the views up and decides how each is refreshed, within one read-only transaction.
///
/// # Errors
/// Refused, with cause and remedy, when a precondition does not hold.
pub async fn plan(views: Views, context: &mut JobContext) -> Result<Box<dyn Plan>, JobError> {
    let mut reading = context
        .session
        .connection()
        .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
        .await
        .map_err(|error| JobError::database("plan the refresh", &error.into()))?;
    let result = check::check(&mut reading, &views).await;
    if let Err(error) = reading.rollback().await {
        tracing::debug!(error = %DatabaseError::from(error), "the plan's transaction did not end in good order");
    }
    let (views, warnings) = result?;
    Ok(Box::new(RefreshPlan { views, warnings }))
}

/// The rights that the views need, each with whether the session's role has it.
///
/// # Errors
/// Refused when a view is not there.
pub async fn grants(connection: &mut PgConnection, views: &Views) -> Result<Vec<Grant>, JobError> {
    check::grants(connection, views).await
}

/// The views in the order in which they are refreshed.
struct RefreshPlan {
    views: Vec<View>,
    warnings: Vec<String>,
}

impl Plan for RefreshPlan {
    fn intent(&self) -> Value {
        let views: Vec<Value> = self
            .views
            .iter()
            .map(|view| {
                json!({
                    "view": view.relation.display(),
                    "concurrently": view.plainly.is_none(),
                    "reason": view.plainly,
                    "after": view.after.iter().filter_map(|place| self.views.get(*place)).map(|view| view.relation.display()).collect::<Vec<_>>(),
                    "statement": view.statement(),
                })
            })
            .collect();
        json!({ "views": views, "warnings": self.warnings })
    }

    fn execute<'a>(self: Box<Self>, context: &'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>>
    where
        Self: 'a,
    {
        Box::pin(async move { run::run(&self.views, &self.warnings, context).await })
    }
}
