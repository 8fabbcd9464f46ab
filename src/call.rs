//! Calls of a function of the application under the limits of a run.
//!
//! What the function does is its own affair: nothing here can count it, verify it, or say what it left.
//! Its report says so. A policy that pgreeve enforces itself is better wherever there is a kind for it.

mod function;

use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use self::function::{Answer, Function};
use crate::job::{JobContext, JobError, JobReport, Outcome, Plan};
use crate::ledger::leader::Fence;
use crate::postgres::grant::Grant;
use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::TableName;

/// `[jobs.NAME] call = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Call {
    /// The function: `name` or `schema.name`.
    pub function: TableName,
    /// What it is called with, as PostgreSQL reads it from text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// Whether it is called again as long as it answers with a number above zero.
    pub repeat_while_positive: bool,
    /// The schemas in which the function finds what it names without one, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search_path: Vec<String>,
}

/// Finds the function and checks that it can be called so, within one read-only transaction.
///
/// # Errors
/// Refused, with cause and remedy, when a precondition does not hold.
pub async fn plan(call: Call, context: &mut JobContext) -> Result<Box<dyn Plan>, JobError> {
    let mut reading = context
        .session
        .connection()
        .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
        .await
        .map_err(|error| JobError::database("plan the call", &error.into()))?;
    let result = function::find(&mut reading, &call).await;
    if let Err(error) = reading.rollback().await {
        tracing::debug!(error = %DatabaseError::from(error), "the plan's transaction did not end in good order");
    }
    let function = result?;
    function.allowed()?;
    let path: Vec<String> = call
        .search_path
        .iter()
        .map(|schema| quote::identifier(schema))
        .collect();
    Ok(Box::new(CallPlan {
        // The system's own comes first whatever is said, and temporary tables last, which anybody can make.
        path: (!path.is_empty()).then(|| format!("pg_catalog, {}, pg_temp", path.join(", "))),
        call,
        function,
    }))
}

/// The rights that the call needs, each with whether the session's role has it.
///
/// # Errors
/// Refused when the function is not there.
pub async fn grants(connection: &mut PgConnection, call: &Call) -> Result<Vec<Grant>, JobError> {
    function::find(connection, call).await.map(|function| function.grants)
}

/// What is called.
struct CallPlan {
    call: Call,
    function: Function,
    path: Option<String>,
}

impl Plan for CallPlan {
    fn intent(&self) -> Value {
        json!({
            "function": self.function.signature,
            "statement": self.function.statement,
            "arguments": self.call.arguments.len(),
            "repeat_while_positive": self.call.repeat_while_positive,
            "search_path": self.path,
            "owner": self.function.owner,
            "security_definer": self.function.as_owner,
            "warnings": self.function.warnings,
        })
    }

    fn execute<'a>(self: Box<Self>, context: &'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>>
    where
        Self: 'a,
    {
        Box::pin(async move { self.run(context).await })
    }
}

/// The calls so far.
#[derive(Default)]
struct Calls {
    number: u64,
    last: Option<i64>,
    /// Of the numbers above zero.
    sum: i64,
    longest: Duration,
}

impl CallPlan {
    async fn run(&self, context: &mut JobContext) -> Result<JobReport, JobError> {
        let started = Instant::now();
        let mut calls = Calls::default();
        let ended = self.calls(context, &mut calls).await;
        let body = json!({
            "function": self.function.signature,
            "calls": calls.number,
            "result": calls.last,
            "sum": calls.sum,
            "verified": false,
            "longest_call_ms": milliseconds(calls.longest),
            "duration_ms": milliseconds(started.elapsed()),
            "warnings": self.function.warnings,
        });
        let reason = ended.map_err(|error| error.with_partial(body.clone()))?;
        Ok(JobReport {
            outcome: if reason.is_none() {
                Outcome::Succeeded
            } else {
                Outcome::Partial
            },
            reason,
            body,
        })
    }

    /// Calls until there is no more to do; answers why it ended before.
    async fn calls(&self, context: &mut JobContext, calls: &mut Calls) -> Result<Option<String>, JobError> {
        let operation = format!("call {}", self.function.signature);
        loop {
            if context.stop.is_cancelled() {
                return Err(JobError::cancelled(operation));
            }
            let began = Instant::now();
            let (fence, stop) = (context.fence, context.stop.clone());
            let called = self.once(context.session.connection(), fence).await;
            calls.last = called.map_err(|error| {
                if error.is("57014") && stop.is_cancelled() {
                    return JobError::cancelled(operation.as_str());
                }
                let failed = JobError::database(operation.as_str(), &error);
                match error.sqlstate.as_deref() {
                    Some("42P01" | "42883" | "42704" | "42703") if self.path.is_none() => failed.with_remedy(
                        "it names something without a schema: give the schemas in `search_path`, or ALTER FUNCTION … SET search_path",
                    ),
                    _ => failed,
                }
            })?;
            calls.number += 1;
            calls.longest = calls.longest.max(began.elapsed());
            let more = calls.last.filter(|number| *number > 0);
            calls.sum = calls.sum.saturating_add(more.unwrap_or(0));
            context.progress.set("calls", calls.number, None);
            if !self.call.repeat_while_positive || more.is_none() {
                return Ok(None);
            }
            if Instant::now() + calls.longest >= context.deadline {
                return Ok(Some("the time was over, and the function had more to do".to_owned()));
            }
        }
    }

    /// One call, in one transaction.
    async fn once(&self, connection: &mut PgConnection, fence: Fence) -> Result<Option<i64>, DatabaseError> {
        let mut transaction = connection
            .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            .await?;
        fence.hold(&mut transaction).await?;
        if let Some(path) = &self.path {
            sqlx::query("SELECT pg_catalog.set_config('search_path', $1, true)")
                .bind(path)
                .execute(&mut *transaction)
                .await?;
        }
        let mut query = sqlx::query(AssertSqlSafe(self.function.statement.clone())).persistent(false);
        for argument in &self.call.arguments {
            query = query.bind(argument);
        }
        let row = query
            .fetch_one(&mut *transaction)
            .await
            .map_err(|error| veiled(error.into()))?;
        let number = match self.function.answer {
            Answer::Number => row.try_get::<Option<i64>, _>(0)?,
            // It may tell about people.
            Answer::Unread => None,
        };
        // What was deferred to the commit is said in the function's words, too.
        transaction.commit().await.map_err(|error| veiled(error.into()))?;
        Ok(number)
    }
}

/// An error without its words: a function raises what it likes, under any code, and may name people.
fn veiled(error: DatabaseError) -> DatabaseError {
    match &error.sqlstate {
        None => error,
        Some(code) => DatabaseError {
            message: format!("the function failed (SQLSTATE {code})"),
            ..error
        },
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
