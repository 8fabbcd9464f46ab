//! The names of all metrics, and who sets them. Base units, `_total` for counters, timestamps
//! rather than ages, few labels.

use std::time::Duration;

use jiff::Timestamp;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::words::Outcome;

const RUNS: &str = "pgreeve_job_runs_total";
const DURATION: &str = "pgreeve_job_duration_seconds";
const LAST_RUN: &str = "pgreeve_job_last_run_timestamp_seconds";
const LAST_SUCCESS: &str = "pgreeve_job_last_success_timestamp_seconds";
const LAST_FAILURE: &str = "pgreeve_job_last_failure_timestamp_seconds";
const NEXT_RUN: &str = "pgreeve_job_next_run_timestamp_seconds";
const RUNNING: &str = "pgreeve_job_running";
const START_DELAY: &str = "pgreeve_start_delay_seconds";
const ROWS: &str = "pgreeve_rows_changed_total";
const ROWS_LEFT: &str = "pgreeve_rows_past_limit";
const KEPT_WITHIN: &str = "pgreeve_kept_within_until_timestamp_seconds";
const BACKUP_BYTES: &str = "pgreeve_backup_bytes";
const ERASURES_OPEN: &str = "pgreeve_erasure_requests_open";
const ERASURES_OVERDUE: &str = "pgreeve_erasure_requests_overdue";
const ERASURE_OLDEST: &str = "pgreeve_erasure_oldest_received_timestamp_seconds";
const ERASURE_DUE: &str = "pgreeve_erasure_next_due_timestamp_seconds";
const SEALED: &str = "pgreeve_rollup_sealed_until_timestamp_seconds";
const LEADER: &str = "pgreeve_is_leader";
const EPOCH: &str = "pgreeve_leader_epoch";
const TICK: &str = "pgreeve_dispatcher_last_tick_timestamp_seconds";
const TASKS: &str = "pgreeve_tasks";
const BUILD: &str = "pgreeve_build_info";

/// One second to six hours.
const BUCKETS: [f64; 10] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 21600.0];

/// Starts the collection; the handle renders it.
///
/// # Errors
/// When another collector is installed in this process.
pub fn start() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(DURATION.to_owned()), &BUCKETS)?
        .install_recorder()?;
    describe_counter!(
        RUNS,
        "Runs and accounted slots that came to an end, by job and outcome."
    );
    describe_histogram!(DURATION, "How long runs took.");
    describe_gauge!(LAST_RUN, "When a run of the job last ended.");
    describe_gauge!(LAST_SUCCESS, "When a run of the job last succeeded; alert on its age.");
    describe_gauge!(LAST_FAILURE, "When a run of the job last ended in another way.");
    describe_gauge!(NEXT_RUN, "When the job is next due.");
    describe_gauge!(RUNNING, "Whether the job runs now.");
    describe_gauge!(START_DELAY, "How long after its slot the job's last run was started.");
    describe_counter!(ROWS, "Rows that the job deleted or changed.");
    describe_gauge!(
        ROWS_LEFT,
        "Rows that the job's last run found still due; counted up to 10001."
    );
    describe_gauge!(
        KEPT_WITHIN,
        "From when on the job's table may hold rows past their period; its age is the over-retention: alert on that."
    );
    describe_gauge!(BACKUP_BYTES, "The stored size of the job's last backup.");
    describe_gauge!(ERASURES_OPEN, "Requests for erasure that the job's last run left open.");
    describe_gauge!(ERASURES_OVERDUE, "Those of them whose deadline has passed.");
    describe_gauge!(ERASURE_OLDEST, "When the oldest open request for erasure was received.");
    describe_gauge!(
        ERASURE_DUE,
        "When the next open request for erasure is due; alert before that."
    );
    describe_gauge!(SEALED, "Until when the job's rollup is final; alert on its age.");
    describe_gauge!(LEADER, "Whether this instance leads the database.");
    describe_gauge!(EPOCH, "The epoch in which this instance last led the database.");
    describe_gauge!(TICK, "When the database's schedules were last evaluated.");
    describe_gauge!(
        TASKS,
        "Concurrent tasks of the daemon; a number that only grows is a leak."
    );
    describe_gauge!(BUILD, "1, with the version as a label.");
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

#[expect(clippy::cast_precision_loss, reason = "metrics are doubles")]
fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

/// What is only looked at when it is asked for. To be called inside the daemon's runtime.
pub fn look() {
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    gauge!(TASKS).set(f64::from(u32::try_from(tasks).unwrap_or(u32::MAX)));
}

/// A job of the configuration: its series exist from the start, at zero.
pub fn job_known(job: &str) {
    for outcome in Outcome::ALL {
        counter!(RUNS, "job" => job.to_owned(), "outcome" => outcome.as_str()).absolute(0);
    }
    gauge!(RUNNING, "job" => job.to_owned()).set(0.0);
}

/// The job's next slot.
pub fn job_due(job: &str, next: Option<Timestamp>) {
    gauge!(NEXT_RUN, "job" => job.to_owned()).set(next.map_or(f64::NAN, seconds));
}

/// A run of the job begins.
pub fn run_started(job: &str, scheduled_for: Option<Timestamp>) {
    gauge!(RUNNING, "job" => job.to_owned()).set(1.0);
    if let Some(slot) = scheduled_for {
        gauge!(START_DELAY, "job" => job.to_owned()).set(seconds(Timestamp::now()) - seconds(slot));
    }
}

/// A run of the job has ended.
pub fn run_ended(job: &str, outcome: Outcome, took: Duration, report: &serde_json::Value) {
    let now = seconds(Timestamp::now());
    gauge!(RUNNING, "job" => job.to_owned()).set(0.0);
    slots_ended(job, outcome, 1);
    histogram!(DURATION, "job" => job.to_owned()).record(took.as_secs_f64());
    gauge!(LAST_RUN, "job" => job.to_owned()).set(now);
    let last = if outcome == Outcome::Succeeded {
        LAST_SUCCESS
    } else {
        LAST_FAILURE
    };
    gauge!(last, "job" => job.to_owned()).set(now);
    if let Some(rows) = report
        .get("rows")
        .filter(|_| report.get("batches").is_some())
        .and_then(serde_json::Value::as_u64)
    {
        counter!(ROWS, "job" => job.to_owned()).increment(rows);
    }
    requests_stand(job, report);
    if let Some(left) = report.get("remaining").and_then(serde_json::Value::as_f64) {
        gauge!(ROWS_LEFT, "job" => job.to_owned()).set(left);
    }
    let sealed = report.get("sealed_until").and_then(serde_json::Value::as_str);
    if let Some(sealed) = sealed.and_then(|sealed| sealed.parse::<Timestamp>().ok()) {
        gauge!(SEALED, "job" => job.to_owned()).set(seconds(sealed));
    }
    if report.get("backup_id").is_some()
        && let Some(bytes) = report.get("bytes").and_then(serde_json::Value::as_f64)
    {
        gauge!(BACKUP_BYTES, "job" => job.to_owned()).set(bytes);
    }
}

/// From this instant on the job's table may hold rows past their period.
pub fn kept_within(job: &str, until: Timestamp) {
    gauge!(KEPT_WITHIN, "job" => job.to_owned()).set(seconds(until));
}

/// How the requests of an erasure stand after a run; nothing for any other kind.
fn requests_stand(job: &str, report: &serde_json::Value) {
    let number = |key: &str| report.get(key).and_then(serde_json::Value::as_f64);
    let (Some(open), Some(overdue)) = (number("open"), number("overdue")) else {
        return;
    };
    gauge!(ERASURES_OPEN, "job" => job.to_owned()).set(open);
    gauge!(ERASURES_OVERDUE, "job" => job.to_owned()).set(overdue);
    for (name, key) in [(ERASURE_OLDEST, "oldest_received_at"), (ERASURE_DUE, "next_due_at")] {
        let at = report
            .get(key)
            .and_then(serde_json::Value::as_str)
            .and_then(|text| text.parse().ok());
        gauge!(name, "job" => job.to_owned()).set(at.map_or(f64::NAN, seconds));
    }
}

/// Slots of the job were accounted for without a run.
pub fn slots_ended(job: &str, outcome: Outcome, slots: u64) {
    counter!(RUNS, "job" => job.to_owned(), "outcome" => outcome.as_str()).increment(slots);
}

/// A database's schedules were evaluated, by its leader or in vain.
pub fn evaluated(database: &str, epoch: Option<i64>) {
    gauge!(TICK, "database" => database.to_owned()).set(seconds(Timestamp::now()));
    gauge!(LEADER, "database" => database.to_owned()).set(f64::from(u8::from(epoch.is_some())));
    if let Some(epoch) = epoch {
        #[expect(clippy::cast_precision_loss, reason = "metrics are doubles")]
        gauge!(EPOCH, "database" => database.to_owned()).set(epoch as f64);
    }
}
