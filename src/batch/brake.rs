//! Brakes: limits beyond which a run is implausible and is refused before a row is touched.
//!
//! A plan shows which brakes it trips. Executing it is refused, unless an operator has approved the
//! policy with a plan that showed as many rows: `pgreeve approve` lets that many rows (and a tenth
//! more, for those that became due meanwhile) pass until a run is green.

use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::estimate::{self, Estimate};
use super::preflight::{Target, refuse};
use super::rule::Brakes;
use super::statement::Statements;
use crate::job::{JobContext, JobError};
use crate::ledger::policies::{self, Allowance};
use crate::ledger::trend::{self, Trend};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::JobName;

/// How far the clocks of this host and of the database may be apart, in seconds.
const SKEW: f64 = 60.0;
/// How many green runs tell what is usual.
const RUNS: u32 = 5;
/// How many times the usual number of rows, and of the time between two runs, is plausible.
const SURGE: f64 = 5.0;
const JUMP: f64 = 2.0;
/// Fewer rows than this are no surge, whatever is usual.
const SURGE_FLOOR: u64 = 1000;

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Brake {
    /// More rows than `max_rows`.
    MaxRows,
    /// A larger part of the table than `max_fraction`.
    MaxFraction,
    /// Many times the rows of the job's last runs.
    Surge,
    /// The clocks of this host and of the database differ.
    ClockSkew,
    /// The database's clock went ahead, and nobody wrote meanwhile.
    ClockJump,
}

impl Brake {
    fn as_str(self) -> &'static str {
        match self {
            Self::MaxRows => "max_rows",
            Self::MaxFraction => "max_fraction",
            Self::Surge => "surge",
            Self::ClockSkew => "clock_skew",
            Self::ClockJump => "clock_jump",
        }
    }
}

/// A brake that a plan trips.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tripped {
    brake: Brake,
    cause: String,
}

impl Tripped {
    /// As the plan shows it.
    pub(super) fn shown(&self) -> Value {
        json!({ "brake": self.brake.as_str(), "cause": self.cause })
    }

    fn let_pass(&self, due: u64, allowance: &Allowance) -> bool {
        match self.brake {
            Brake::MaxRows | Brake::MaxFraction | Brake::Surge => due <= most(allowance),
            Brake::ClockJump => allowance.brakes.iter().any(|brake| brake == self.brake.as_str()),
            Brake::ClockSkew => false,
        }
    }
}

/// How many rows an approved plan lets pass.
fn most(allowance: &Allowance) -> u64 {
    allowance.eligible.saturating_add(allowance.eligible / 10)
}

/// The brakes that a run of so many due rows trips.
pub(super) async fn tripped(
    connection: &mut PgConnection,
    job: &JobName,
    target: &Target,
    statements: &Statements,
    brakes: &Brakes,
    due: &Estimate,
    deadline: Instant,
) -> Result<Vec<Tripped>, JobError> {
    if due.rows == 0 {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let mut trip = |brake, cause: Option<String>| found.extend(cause.map(|cause| Tripped { brake, cause }));
    let failed = |error: DatabaseError| JobError::database("look at the job's last runs", &error);
    trip(Brake::MaxRows, too_many(due.rows, brakes.max_rows));
    if let Some(most) = brakes.max_fraction {
        let part = estimate::fraction(connection, target, statements, due.rows, most, deadline).await?;
        trip(Brake::MaxFraction, part);
    }
    let skew = clock_skew(connection).await.map_err(failed)?;
    trip(Brake::ClockSkew, skewed(skew));
    if let Some(trend) = trend::of(connection, job).await.map_err(failed)? {
        trip(Brake::Surge, surge(due.rows, &trend));
        if let Some(cause) = jumped(&trend) {
            let table = target.relation.display();
            let written = estimate::written_since(connection, &table, statements, trend.last, deadline).await?;
            trip(Brake::ClockJump, (!written).then_some(cause));
        }
    }
    Ok(found)
}

/// Refuses a run whose plan trips a brake, unless an approved plan lets it pass; answers then with
/// how many rows may go.
pub(super) async fn check(
    context: &mut JobContext,
    table: &str,
    tripped: &[Tripped],
    due: u64,
) -> Result<Option<u64>, JobError> {
    let Some(first) = tripped.first() else { return Ok(None) };
    let run = context.run;
    let allowance = policies::allowance(context.session.connection(), run)
        .await
        .map_err(|error| JobError::database("look for the policy's approval", &error))?;
    let stopped = tripped.iter().find(|tripped| {
        let approved = allowance.as_ref().filter(|allowance| allowance.valid);
        !approved.is_some_and(|allowance| tripped.let_pass(due, allowance))
    });
    let Some(stopped) = stopped else {
        tracing::warn!(
            brake.name = first.brake.as_str(), brake.cause = %first.cause,
            "a brake lets this run pass: its policy was approved with a plan that showed it"
        );
        return Ok(allowance.as_ref().map(most));
    };
    let policy = allowance.map_or_else(|| "HASH".to_owned(), |allowance| allowance.policy);
    let remedy = match stopped.brake {
        Brake::ClockSkew => "set the clocks of both hosts; nothing lets this pass".to_owned(),
        brake => {
            let or = match brake {
                Brake::MaxRows | Brake::MaxFraction => format!(", or raise `{}`", brake.as_str()),
                _ => String::new(),
            };
            format!(
                "look at `pgreeve plan {}`; if it is right, `pgreeve approve {policy}` lets it pass until a run is green{or}",
                context.job
            )
        }
    };
    Err(refuse(
        table,
        format!("the brake {} stops the run: {}", stopped.brake.as_str(), stopped.cause),
        remedy,
    ))
}

fn too_many(due: u64, most: Option<u64>) -> Option<String> {
    let most = most.filter(|most| due > *most)?;
    Some(format!("{due} rows are due, more than `max_rows` = {most}"))
}

/// Runs that did not happen are no surge: what is usual grows with the time that has passed.
fn surge(due: u64, trend: &Trend) -> Option<String> {
    let missed = trend
        .gap
        .filter(|gap| *gap > 0.0)
        .map_or(1.0, |gap| (trend.since / gap).max(1.0));
    let usual = trend.rows * missed;
    #[expect(clippy::cast_precision_loss, reason = "a comparison with many times a median")]
    let exceeds = due as f64 > usual * SURGE;
    (trend.runs >= RUNS && due > SURGE_FLOOR && exceeds).then(|| {
        format!(
            "{due} rows are due, more than {SURGE} times the {usual:.0} that the last {} green runs make usual",
            trend.runs
        )
    })
}

fn skewed(seconds: f64) -> Option<String> {
    (seconds.abs() > SKEW).then(|| {
        let way = if seconds > 0.0 { "ahead of" } else { "behind" };
        format!("the database's clock is {:.0} s {way} this host's", seconds.abs())
    })
}

fn jumped(trend: &Trend) -> Option<String> {
    let gap = trend.gap.filter(|gap| *gap > 0.0)?;
    (trend.runs >= RUNS && trend.since > JUMP * gap).then(|| {
        format!(
            "by the database's clock {:.0} s have passed since the last green run instead of the usual {gap:.0} s, \
             and the table has no row of that time: did the clock jump?",
            trend.since
        )
    })
}

/// The seconds by which the database's clock is ahead of this host's, as far as they are not due to
/// the way between them.
async fn clock_skew(connection: &mut PgConnection) -> Result<f64, DatabaseError> {
    let before = Timestamp::now();
    let there: f64 = sqlx::query_scalar("SELECT extract(epoch FROM clock_timestamp())::float8")
        .fetch_one(connection)
        .await?;
    let after = Timestamp::now();
    let seconds = |at: Timestamp| at.duration_since(Timestamp::UNIX_EPOCH).as_secs_f64();
    Ok(if there > seconds(after) {
        there - seconds(after)
    } else if there < seconds(before) {
        there - seconds(before)
    } else {
        0.0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trend(runs: u32, rows: f64, gap: f64, since: f64) -> Trend {
        Trend {
            runs,
            rows,
            gap: Some(gap),
            last: Timestamp::UNIX_EPOCH,
            since,
        }
    }

    #[test]
    fn a_surge_is_more_than_five_times_the_usual_and_no_trifle() {
        let usual = trend(5, 1000.0, 86_400.0, 86_400.0);
        assert_eq!(surge(5000, &usual), None);
        assert!(surge(5001, &usual).is_some());
        assert_eq!(surge(5001, &trend(4, 1000.0, 86_400.0, 86_400.0)), None);
        // After three days without a run three times as much is usual.
        assert_eq!(surge(15_000, &trend(10, 1000.0, 86_400.0, 3.0 * 86_400.0)), None);
        assert!(surge(15_001, &trend(10, 1000.0, 86_400.0, 3.0 * 86_400.0)).is_some());
        assert_eq!(surge(1000, &trend(10, 0.0, 600.0, 600.0)), None);
        assert!(surge(1001, &trend(10, 0.0, 600.0, 600.0)).is_some());
    }

    #[test]
    fn clocks_may_differ_by_a_minute_and_runs_by_one_interval() {
        assert_eq!(skewed(60.0), None);
        assert!(skewed(60.1).unwrap().contains("ahead of"));
        assert!(skewed(-61.0).unwrap().contains("behind"));
        assert_eq!(jumped(&trend(5, 1.0, 100.0, 200.0)), None);
        assert!(jumped(&trend(5, 1.0, 100.0, 200.1)).is_some());
        assert_eq!(jumped(&trend(4, 1.0, 100.0, 1000.0)), None);
    }

    #[test]
    fn an_approved_plan_lets_its_own_count_pass_and_a_tenth_more() {
        let allowance = Allowance {
            policy: "sha256:1".to_owned(),
            eligible: 1000,
            brakes: vec!["clock_jump".to_owned()],
            valid: true,
        };
        let trips = |brake| Tripped {
            brake,
            cause: String::new(),
        };
        assert!(trips(Brake::MaxFraction).let_pass(1100, &allowance));
        assert!(!trips(Brake::MaxFraction).let_pass(1101, &allowance));
        assert!(trips(Brake::ClockJump).let_pass(5000, &allowance));
        assert!(!trips(Brake::ClockSkew).let_pass(1, &allowance));
    }
}
