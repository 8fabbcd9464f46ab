//! `erasure`: people who asked for it are gone everywhere, and that is proved.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde_json::Value;
use sqlx::PgConnection;

use crate::erasure::prepare::{self, Prepared};
use crate::erasure::rule::Rule;
use crate::erasure::run;
use crate::erasure::{Proof, ProofError};
use crate::job::{Exclusion, Job, JobContext, JobError, JobReport, Kind, Outcome, Plan};
use crate::postgres::grant::Grant;
use crate::values::Timezone;

/// Opens what proves an erasure; called by each run, never by a plan.
pub type OpenProof = Arc<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn Proof>, ProofError>> + Send + Sync>;

/// The job that an erasure is.
#[derive(Clone)]
pub struct ErasureJob {
    rule: Arc<Rule>,
    timezone: Timezone,
    open_proof: OpenProof,
}

impl fmt::Debug for ErasureJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErasureJob")
            .field("rule", &self.rule)
            .field("timezone", &self.timezone)
            .finish_non_exhaustive()
    }
}

impl ErasureJob {
    /// A job of these settings; deadlines are counted in the zone.
    #[must_use]
    pub fn new(rule: Rule, timezone: Timezone, open_proof: OpenProof) -> Self {
        Self {
            rule: Arc::new(rule),
            timezone,
            open_proof,
        }
    }
}

impl Job for ErasureJob {
    fn kind(&self) -> Kind {
        Kind::Erasure
    }

    fn exclusions(&self) -> Vec<Exclusion> {
        let requests = self.rule.requests.iter().map(|requests| &requests.table);
        let tables = self.rule.tables.keys().chain(requests);
        let mut names: Vec<String> = tables.map(ToString::to_string).collect();
        names.sort();
        names.dedup();
        names.into_iter().map(Exclusion::Rows).collect()
    }

    fn grants<'a>(&'a self, connection: &'a mut PgConnection) -> BoxFuture<'a, Result<Option<Vec<Grant>>, JobError>> {
        Box::pin(async move { prepare::grants(connection, &self.rule).await.map(Some) })
    }

    fn plan<'a>(&'a self, context: &'a mut JobContext) -> BoxFuture<'a, Result<Box<dyn Plan>, JobError>> {
        Box::pin(async move {
            let prepared = prepare::prepare(context.session.connection(), &self.rule).await?;
            let plan = ErasurePlan {
                prepared,
                timezone: self.timezone.clone(),
                open_proof: Arc::clone(&self.open_proof),
            };
            Ok(Box::new(plan) as Box<dyn Plan>)
        })
    }
}

struct ErasurePlan {
    prepared: Prepared,
    timezone: Timezone,
    open_proof: OpenProof,
}

impl Plan for ErasurePlan {
    fn intent(&self) -> Value {
        self.prepared.intent()
    }

    fn execute<'a>(self: Box<Self>, context: &'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>>
    where
        Self: 'a,
    {
        Box::pin(async move {
            let unproven = crate::erasure::execute::unproven;
            let proof = (self.open_proof)().await.map_err(unproven)?;
            let mut report = run::execute(context, &self.prepared, proof.as_ref(), self.timezone.rules()).await?;
            let afterwards = match proof.attend(context).await {
                Ok(afterwards) => afterwards,
                Err(error) => return Err(error.with_partial(report.body)),
            };
            let reasons = afterwards["reasons"].as_array().into_iter().flatten();
            let reasons: Vec<&str> = report
                .reason
                .as_deref()
                .into_iter()
                .chain(reasons.filter_map(Value::as_str))
                .collect();
            if !reasons.is_empty() {
                report.reason = Some(reasons.join("; "));
                report.outcome = Outcome::Partial;
            }
            report.body["afterwards"] = afterwards;
            Ok(report)
        })
    }
}
