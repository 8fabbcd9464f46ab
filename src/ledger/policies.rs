//! `pgreeve.policy`: destructive policies as they were first planned, and who approved them.

use serde_json::Value;
use sqlx::{PgConnection, Row};

use crate::postgres::sqlstate::DatabaseError;
use crate::values::{JobName, RunId};

/// Whether a policy may act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Approval {
    /// An operator approved it.
    Approved,
    /// It waits for `pgreeve approve`.
    Waiting,
}

/// Keeps a policy's plan, the first time it is seen, and tells whether it is approved.
pub async fn propose(
    connection: &mut PgConnection,
    policy: &str,
    job: &JobName,
    plan: &Value,
) -> Result<Approval, DatabaseError> {
    sqlx::query("INSERT INTO pgreeve.policy (policy, job, plan) VALUES ($1, $2, $3) ON CONFLICT (policy) DO NOTHING")
        .bind(policy)
        .bind(job.as_str())
        .bind(plan)
        .execute(&mut *connection)
        .await?;
    let approved: bool = sqlx::query_scalar("SELECT approved_at IS NOT NULL FROM pgreeve.policy WHERE policy = $1")
        .bind(policy)
        .fetch_one(connection)
        .await?;
    Ok(if approved {
        Approval::Approved
    } else {
        Approval::Waiting
    })
}

/// A policy that was planned.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// Its fingerprint.
    pub policy: String,
    /// Its job.
    pub job: String,
    /// The plan it was proposed with.
    pub plan: Value,
    /// Whether it is approved already.
    pub approved: bool,
}

/// The planned policies whose fingerprint starts with `start` (with or without `sha256:`).
pub async fn find(connection: &mut PgConnection, start: &str) -> Result<Vec<Proposal>, DatabaseError> {
    let start = start.strip_prefix("sha256:").unwrap_or(start);
    let rows = sqlx::query(
        "SELECT policy, job, plan, approved_at IS NOT NULL AS approved FROM pgreeve.policy
         WHERE pg_catalog.starts_with(policy, 'sha256:' || $1) ORDER BY policy",
    )
    .bind(start)
    .fetch_all(connection)
    .await?;
    Ok(rows
        .iter()
        .map(|row| Proposal {
            policy: row.get("policy"),
            job: row.get("job"),
            plan: row.get("plan"),
            approved: row.get("approved"),
        })
        .collect())
}

/// Approves a policy with the plan that was looked at. Approving it again approves today's plan.
pub async fn approve(
    connection: &mut PgConnection,
    policy: &str,
    job: &JobName,
    plan: &Value,
    actor: &str,
) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT INTO pgreeve.policy (policy, job, plan, approved_at, approved_by)
         VALUES ($1, $2, $3, pg_catalog.clock_timestamp(), $4)
         ON CONFLICT (policy) DO UPDATE
         SET plan = excluded.plan, approved_at = excluded.approved_at, approved_by = excluded.approved_by",
    )
    .bind(policy)
    .bind(job.as_str())
    .bind(plan)
    .bind(actor)
    .execute(connection)
    .await?;
    Ok(())
}

/// What the approved plan of a run's policy showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowance {
    /// The policy.
    pub policy: String,
    /// How many rows were due.
    pub eligible: u64,
    /// The brakes that it tripped.
    pub brakes: Vec<String>,
    /// Whether it is approved and no run of the policy was green since.
    pub valid: bool,
}

/// The allowance of a run; none when the run is not in the ledger.
pub async fn allowance(connection: &mut PgConnection, run: RunId) -> Result<Option<Allowance>, DatabaseError> {
    let row: Option<(String, Option<i64>, Vec<String>, bool)> = sqlx::query_as(
        "SELECT r.policy, (p.plan->>'eligible')::int8,
                ARRAY(SELECT pg_catalog.jsonb_path_query(p.plan, '$.brakes[*].brake')#>>'{}'),
                p.approved_at IS NOT NULL
                    AND NOT EXISTS (SELECT FROM pgreeve.run g
                                    WHERE g.policy = r.policy AND g.job = r.job AND g.outcome = 'succeeded'
                                      AND g.started_at > p.approved_at)
         FROM pgreeve.run r LEFT JOIN pgreeve.policy p ON p.policy = r.policy
         WHERE r.run_id = $1",
    )
    .bind(run.0)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(policy, eligible, brakes, valid)| Allowance {
        policy,
        eligible: eligible.unwrap_or_default().unsigned_abs(),
        brakes,
        valid,
    }))
}
