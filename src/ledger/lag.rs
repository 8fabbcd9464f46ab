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

/// The instant from which on a table may hold rows past their period, as a run tells that looked at
/// `looked`: that very instant where nothing was left, earlier by the age of the oldest row that was.
/// None for a report without a cutoff, or of a run that was not verified.
#[must_use]
pub fn kept_within_until(report: &Value, looked: Timestamp) -> Option<Timestamp> {
    let tells = |key: &str| report.get(key).is_some_and(|value| !value.is_null());
    let verified = tells("cutoff") && tells("remaining");
    verified.then(|| looked.checked_sub(left(report)).unwrap_or(Timestamp::MIN))
}

/// The cutoff has moved on since the run by as much as the clock.
fn behind(report: &Value, since: f64) -> u64 {
    let behind = left(report).as_secs_f64() + since;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, whole seconds"
    )]
    let seconds = behind.max(0.0) as u64;
    seconds
}

/// By how much the oldest row that was left is past the policy's cutoff.
fn left(report: &Value) -> SignedDuration {
    let instant = |key: &str| report.get(key)?.as_str()?.parse::<Timestamp>().ok();
    // A gate lowers the cutoff: what it keeps is not counted, and begins where the run stopped.
    let gates = report.get("gates").and_then(Value::as_array).into_iter().flatten();
    let policy = gates
        .filter_map(|gate| gate.get("policy_cutoff")?.as_str()?.parse::<Timestamp>().ok())
        .max();
    let oldest = instant("oldest_remaining").or_else(|| policy.and(instant("cutoff")));
    match (policy.or_else(|| instant("cutoff")), oldest) {
        (Some(cutoff), Some(oldest)) => cutoff.duration_since(oldest),
        _ => SignedDuration::ZERO,
    }
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

    #[test]
    fn a_verified_run_tells_until_when_its_table_was_kept_within_the_period() {
        let looked: Timestamp = "2026-04-02T12:00:00Z".parse().unwrap();
        let clean = json!({ "cutoff": "2026-01-02T00:00:00Z", "remaining": 0, "oldest_remaining": null });
        assert_eq!(kept_within_until(&clean, looked), Some(looked));
        let left =
            json!({ "cutoff": "2026-01-02T00:00:00Z", "remaining": 1, "oldest_remaining": "2026-01-01T00:00:00Z" });
        assert_eq!(
            kept_within_until(&left, looked),
            Some(looked - SignedDuration::from_hours(24))
        );
        let unverified = json!({ "cutoff": "2026-01-02T00:00:00Z", "remaining": null });
        assert_eq!(kept_within_until(&unverified, looked), None);
        assert_eq!(kept_within_until(&json!({ "backup_id": "x" }), looked), None);
    }
}
