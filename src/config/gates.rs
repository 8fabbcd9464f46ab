//! `after`: what a retention waits for must be a rollup of the same database.

use super::Config;
use super::finding::{Finding, Severity};
use crate::jobs::KindSettings;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for job in config.jobs.values() {
        let KindSettings::Retention(retention) = &job.kind else {
            continue;
        };
        for name in &retention.after {
            // That there is such a job was checked where it was read.
            let Some(gate) = config.jobs.get(name) else { continue };
            let (problem, help) = if !matches!(gate.kind, KindSettings::Rollup(_)) {
                (format!("`{name}` is no rollup"), "name jobs with a `rollup`")
            } else if gate.database != job.database {
                (
                    format!("`{name}` works on another database"),
                    "name rollups of the same database",
                )
            } else {
                continue;
            };
            let message = format!("`jobs.{}.retention.after`: {problem}", job.name);
            findings.push(Finding::new(
                Severity::Error,
                job.place_of("after").clone(),
                &message,
                Some(help),
            ));
        }
    }
    findings
}
