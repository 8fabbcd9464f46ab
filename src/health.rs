//! Figures of a database with a limit each: what runs full, grows old or stands in the way of others.
//!
//! Reads only, and decides nothing but a colour. The names of the checks are those of
//! [check_pgactivity](https://github.com/OPMDG/check_pgactivity) wherever it has the check.

mod check;
mod reading;

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgConnection;

pub use self::check::{Check, Limits, Unit};
use self::reading::Reading;
use crate::job::{JobContext, JobError, JobReport, Outcome, Plan};
use crate::postgres::grant::Grant;
use crate::postgres::quote::identifier;

/// `[jobs.NAME] health = { … }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// The checks, each with its limits.
    pub checks: BTreeMap<Check, Limits>,
}

/// What the role needs to see all that is looked at.
///
/// # Errors
/// When the server does not answer.
pub async fn grants(connection: &mut PgConnection) -> Result<Vec<Grant>, JobError> {
    let (role, sees): (String, bool) =
        sqlx::query_as("SELECT current_user::text, pg_catalog.pg_has_role('pg_monitor', 'USAGE')")
            .fetch_one(connection)
            .await
            .map_err(|error| JobError::database("read the rights of the role", &error.into()))?;
    let statement = format!("GRANT pg_monitor TO {}", identifier(&role));
    Ok(vec![Grant::new(statement, sees)])
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Ok,
    /// The role may not see it, or the server did not answer.
    Unknown,
    Warning,
    Critical,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Checks to be read. Nothing is decided before.
pub struct HealthPlan {
    health: Health,
}

impl HealthPlan {
    /// A plan of these checks.
    #[must_use]
    pub fn new(health: Health) -> Self {
        Self { health }
    }
}

impl Plan for HealthPlan {
    fn intent(&self) -> Value {
        let checks = self.health.checks.iter().map(|(check, limits)| {
            json!({
                "check": check.as_str(),
                "unit": check.unit().as_str(),
                "warning": limits.warning,
                "critical": limits.critical,
            })
        });
        json!({ "checks": checks.collect::<Vec<_>>() })
    }

    fn execute<'a>(self: Box<Self>, context: &'a mut JobContext) -> BoxFuture<'a, Result<JobReport, JobError>>
    where
        Self: 'a,
    {
        Box::pin(async move { run(&self.health, context).await })
    }
}

type Finding = (Check, Limits, Reading, Level);

async fn run(health: &Health, context: &mut JobContext) -> Result<JobReport, JobError> {
    let mut found: Vec<Finding> = Vec::new();
    for (check, limits) in &health.checks {
        if context.stop.is_cancelled() {
            return Err(JobError::cancelled(format!("check {}", check.as_str())));
        }
        let reading = reading::read(context.session.connection(), *check)
            .await
            .map_err(|error| JobError::database(format!("check {}", check.as_str()), &error))?;
        let level = judge(&reading, *limits);
        found.push((*check, *limits, reading, level));
    }
    let count = |level: Level| found.iter().filter(|(_, _, _, found)| *found == level).count();
    let body = json!({
        "checks": found.iter().map(describe).collect::<Vec<_>>(),
        "ok": count(Level::Ok),
        "warning": count(Level::Warning),
        "critical": count(Level::Critical),
        "unknown": count(Level::Unknown),
    });
    let mut named: Vec<&Finding> = found.iter().filter(|(_, _, _, level)| *level != Level::Ok).collect();
    // The worst first.
    named.sort_by_key(|(_, _, _, level)| std::cmp::Reverse(*level));
    let reasons: Vec<String> = named.into_iter().map(explain).collect();
    if count(Level::Critical) > 0 {
        return Err(JobError::permanent("check the database", reasons.join("; ")).with_partial(body));
    }
    Ok(JobReport {
        outcome: if reasons.is_empty() {
            Outcome::Succeeded
        } else {
            Outcome::Partial
        },
        reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
        body,
    })
}

/// A figure that reaches a limit has passed it. What is hidden may be worse than what is seen.
fn judge(reading: &Reading, limits: Limits) -> Level {
    let reaches = |limit: Option<f64>| limit.is_some_and(|limit| reading.value >= limit);
    if reaches(limits.critical) {
        Level::Critical
    } else if reaches(limits.warning) {
        Level::Warning
    } else if reading.hidden.is_some() {
        Level::Unknown
    } else {
        Level::Ok
    }
}

fn describe((check, limits, reading, level): &Finding) -> Value {
    json!({
        "check": check.as_str(),
        "level": level.as_str(),
        "value": reading.value,
        "unit": check.unit().as_str(),
        "warning": limits.warning,
        "critical": limits.critical,
        "worst": reading.worst,
        "hidden": reading.hidden,
    })
}

fn explain((check, _, reading, level): &Finding) -> String {
    let name = check.as_str();
    if let (Some(hidden), Level::Unknown) = (&reading.hidden, level) {
        return format!("{name} is unknown: {hidden}");
    }
    let about = match reading.worst.as_slice() {
        [] => String::new(),
        worst => format!(" ({})", worst.join(", ")),
    };
    let value = check.unit().write(reading.value);
    format!("{name} is {}: {value}{about}", level.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(value: f64, hidden: bool) -> Reading {
        Reading {
            value,
            worst: vec!["public.a".to_owned()],
            hidden: hidden.then(|| "3 sessions".to_owned()),
        }
    }

    #[test]
    fn a_figure_that_reaches_its_limit_has_passed_it_and_a_hidden_one_is_not_green() {
        let limits = Limits {
            warning: Some(0.5),
            critical: Some(0.75),
        };
        for (value, hidden, level) in [
            (0.49, false, Level::Ok),
            (0.49, true, Level::Unknown),
            (0.5, false, Level::Warning),
            (0.5, true, Level::Warning),
            (0.74, false, Level::Warning),
            (0.75, true, Level::Critical),
        ] {
            assert_eq!(judge(&reading(value, hidden), limits), level, "{value} {hidden}");
        }
        let none = Limits {
            warning: None,
            critical: None,
        };
        assert_eq!(judge(&reading(9.0, false), none), Level::Ok);
    }
}
