//! How far behind a policy is: for how long rows have been kept that are past their period.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use sqlx::PgConnection;

use crate::postgres::sqlstate::DatabaseError;
use crate::values::JobName;

/// How far behind a job's table is at most, in seconds, as its last verified run tells: the age of
/// the oldest row that was left, or else of the run itself, since when nobody has looked. None
/// before a run of the job was verified.
pub async fn over_retention(connection: &mut PgConnection, job: &JobName) -> Result<Option<u64>, DatabaseError> {
    let row: Option<(Value, f64)> = sqlx::query_as(
        "SELECT report, extract(epoch FROM clock_timestamp() - started_at)::float8 FROM pgreeve.run
         WHERE job = $1 AND started_at IS NOT NULL AND report->>'cutoff' IS NOT NULL AND report->>'remaining' IS NOT NULL
         ORDER BY started_at DESC LIMIT 1",
    )
    .bind(job.as_str())
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(report, since)| behind(&report, since)))
}

/// The cutoff has moved on since the run by as much as the clock.
fn behind(report: &Value, since: f64) -> u64 {
    let instant = |key: &str| report.get(key)?.as_str()?.parse::<Timestamp>().ok();
    // A gate lowers the cutoff: what it keeps is not counted, and begins where the run stopped.
    let gates = report.get("gates").and_then(Value::as_array).into_iter().flatten();
    let policy = gates
        .filter_map(|gate| gate.get("policy_cutoff")?.as_str()?.parse::<Timestamp>().ok())
        .max();
    let oldest = instant("oldest_remaining").or_else(|| policy.and(instant("cutoff")));
    let left = match (policy.or_else(|| instant("cutoff")), oldest) {
        (Some(cutoff), Some(oldest)) => cutoff.duration_since(oldest),
        _ => SignedDuration::ZERO,
    };
    let behind = left.as_secs_f64() + since;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, whole seconds"
    )]
    let seconds = behind.max(0.0) as u64;
    seconds
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_policy_is_behind_by_its_oldest_row_and_by_the_time_since() {
        let cutoff = "2026-01-02T00:00:00Z";
        let left = json!({ "cutoff": cutoff, "oldest_remaining": "2026-01-01T00:00:00Z" });
        assert_eq!(behind(&left, 60.4), 86_460);
        assert_eq!(behind(&json!({ "cutoff": cutoff, "oldest_remaining": null }), 60.4), 60);
        let gates = json!([{ "policy_cutoff": null }, { "policy_cutoff": "2026-01-03T00:00:00Z" }]);
        let held_back = json!({ "cutoff": cutoff, "oldest_remaining": null, "gates": gates });
        assert_eq!(behind(&held_back, 60.4), 86_460);
        // A row that has no finite age has no place on a clock.
        assert_eq!(
            behind(&json!({ "cutoff": cutoff, "oldest_remaining": "-infinity" }), 1.0),
            1
        );
    }
}
