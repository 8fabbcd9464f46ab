//! `pgreeve.policy`: destructive policies as they were first planned, and who approved them.

use serde_json::Value;
use sqlx::{PgConnection, Row};

use crate::postgres::sqlstate::DatabaseError;
use crate::values::JobName;

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

/// Approves a planned policy.
pub async fn approve(connection: &mut PgConnection, policy: &str, actor: &str) -> Result<(), DatabaseError> {
    sqlx::query(
        "UPDATE pgreeve.policy SET approved_at = pg_catalog.clock_timestamp(), approved_by = $2
         WHERE policy = $1 AND approved_at IS NULL",
    )
    .bind(policy)
    .bind(actor)
    .execute(connection)
    .await?;
    Ok(())
}
