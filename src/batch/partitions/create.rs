//! Makes partitions, each in one short transaction that locks the table only against other changes of
//! its shape: the new table is made apart, and attached.

use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use super::bound_type;
use super::premake::{MOVE_ROWS, Missing, blocking};
use crate::batch::fenced;
use crate::batch::statement::AgeType;
use crate::job::{JobContext, JobError, JobReport, Outcome, Plan};
use crate::postgres::catalog::Relation;
use crate::postgres::quote::{identifier, literal, qualified};
use crate::postgres::sqlstate::DatabaseError;

/// How long attaching a partition may take.
const ATTACH_TIME: Duration = Duration::from_secs(10);

/// How often a partition is tried.
const TRIES: u32 = 4;

/// The partitions that a run is about to make.
pub(super) struct Creation {
    /// The table.
    pub(super) relation: Relation,
    /// Its owner, who will own its partitions.
    pub(super) owner: String,
    /// Where it wants its partitions stored, if not in the default place.
    pub(super) tablespace: Option<String>,
    /// The type of its bounds.
    pub(super) age_type: AgeType,
    /// What is to be made, oldest first.
    pub(super) free: Vec<Missing>,
    /// What rows of the default partition stand in the way of.
    pub(super) blocked: Vec<Value>,
    /// Holes in the past.
    pub(super) gaps: Vec<Value>,
    /// The last partitions that are there.
    pub(super) existing: Vec<Value>,
}

impl Plan for Creation {
    fn intent(&self) -> Value {
        let wanted: Vec<Value> = self
            .free
            .iter()
            .map(|missing| missing.body(&self.relation.schema))
            .collect();
        json!({
            "table": self.relation.display(),
            "create": wanted,
            "existing": self.existing,
            "blocked": self.blocked,
            "gaps": self.gaps,
        })
    }

    fn execute<'a>(self: Box<Self>, context: &'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>>
    where
        Self: 'a,
    {
        Box::pin(async move { self.run(context).await })
    }
}

impl Creation {
    async fn run(&self, context: &mut JobContext) -> Result<JobReport, JobError> {
        let mut created = Vec::new();
        for missing in &self.free {
            if context.stop.is_cancelled() {
                return Err(JobError::cancelled(self.doing(missing)).with_partial(self.body(&created)));
            }
            if let Err(error) = self.patiently(context, missing).await {
                return Err(error.with_partial(self.body(&created)));
            }
            tracing::info!(partition.name = %missing.name, "a partition is made");
            created.push(missing.body(&self.relation.schema));
        }
        let body = self.body(&created);
        let reason = self
            .blocked
            .first()
            .map(|first| format!("blocked: {}; {MOVE_ROWS}", blocking(first)));
        let outcome = if reason.is_some() {
            Outcome::Partial
        } else {
            Outcome::Succeeded
        };
        Ok(JobReport { outcome, reason, body })
    }

    fn body(&self, created: &[Value]) -> Value {
        json!({
            "table": self.relation.display(),
            "created": created,
            "blocked": self.blocked,
            "gaps": self.gaps,
        })
    }

    fn doing(&self, missing: &Missing) -> String {
        format!("make the partition {}.{}", self.relation.schema, missing.name)
    }

    async fn patiently(&self, context: &mut JobContext, missing: &Missing) -> Result<(), JobError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.once(context, missing).await {
                Ok(()) => return Ok(()),
                Err(error) if error.sqlstate.as_deref() == Some("55P03") && tries < TRIES => {
                    tracing::info!(partition.name = %missing.name, %error, "the table is locked; trying again");
                    let pause = Duration::from_millis(250) * 2_u32.pow(tries);
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = context.stop.cancelled() => return Err(JobError::cancelled(self.doing(missing))),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn once(&self, context: &mut JobContext, missing: &Missing) -> Result<(), JobError> {
        let operation = self.doing(missing);
        let failed = |error: DatabaseError| {
            let remedy = match error.sqlstate.as_deref() {
                Some("23514") => Some(MOVE_ROWS),
                Some("57014") => Some("the default partition is large: empty it, so that it need not be read for long"),
                Some("42P17" | "42P07") => Some("it was made by somebody else meanwhile; the next run finds it"),
                _ => None,
            };
            let job = JobError::database(operation.clone(), &error);
            match remedy {
                Some(remedy) => job.with_remedy(remedy),
                None => job,
            }
        };
        let fence = context.fence;
        let mut transaction = fenced::begin(context.session.connection(), fence, &operation).await?;
        for statement in self.statements(missing) {
            execute(&mut transaction, statement).await.map_err(&failed)?;
        }
        fenced::commit(transaction, &operation).await
    }

    fn statements(&self, missing: &Missing) -> Vec<String> {
        let partition = qualified(&self.relation.schema, &missing.name);
        let parent = self.relation.quoted();
        let kind = bound_type(self.age_type).name();
        let tablespace = self.tablespace.as_deref();
        let tablespace = tablespace.map_or_else(String::new, |name| format!(" TABLESPACE {}", identifier(name)));
        let bound = |text: &str| format!("({}::{kind})", literal(text));
        vec![
            "SET LOCAL lock_timeout = '1s'".to_owned(),
            // The default partition is locked while it is read for rows of the new one.
            format!("SET LOCAL statement_timeout = '{}s'", ATTACH_TIME.as_secs()),
            format!(
                "CREATE TABLE {partition} (LIKE {parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED \
                 INCLUDING STORAGE INCLUDING COMPRESSION){tablespace}"
            ),
            format!("ALTER TABLE {partition} OWNER TO {}", identifier(&self.owner)),
            format!(
                "ALTER TABLE {parent} ATTACH PARTITION {partition} FOR VALUES FROM {} TO {}",
                bound(&missing.from),
                bound(&missing.to)
            ),
        ]
    }
}

async fn execute(transaction: &mut PgConnection, sql: String) -> Result<(), DatabaseError> {
    sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .execute(transaction)
        .await?;
    Ok(())
}
