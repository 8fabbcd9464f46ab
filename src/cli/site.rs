//! What the verbs share to reach a job's database.

use super::{Exit, Failure};
use crate::config::{Config, JobSettings};
use crate::postgres::connect::ConnectTarget;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::{JobName, Name};

/// The settings of a job, or a failure that names those that exist.
pub(super) fn job<'a>(config: &'a Config, name: &JobName) -> Result<&'a JobSettings, Failure> {
    config.jobs.get(name).ok_or_else(|| {
        let names: Vec<&str> = config.jobs.keys().map(Name::as_str).collect();
        Failure::new(Exit::Usage, format!("there is no job `{name}`"))
            .with_remedy(format!("the jobs are {}", names.join(", ")))
    })
}

/// How to reach a database of the configuration.
pub(super) fn target<'a>(config: &'a Config, database: &Name) -> Result<&'a ConnectTarget, Failure> {
    // The configuration has checked every reference; this guards against a caller's own name.
    let settings = config.databases.get(database);
    settings
        .map(|settings| &settings.target)
        .ok_or_else(|| Failure::new(Exit::Usage, format!("there is no database `{database}`")))
}

/// A database's refusal, as a verb's failure: worth another try when the error may pass.
pub(super) fn database_failure(what: &str, error: &DatabaseError) -> Failure {
    let exit = if error.is_transient() {
        Exit::TryAgain
    } else {
        Exit::Failed
    };
    let failure = Failure::new(exit, format!("{what}: {error}"));
    match error.remedy() {
        Some(remedy) => failure.with_remedy(remedy),
        None => failure,
    }
}
