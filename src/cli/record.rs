//! The audit log, for the verbs that put something on record.

use std::sync::OnceLock;

use super::{Exit, Failure, output};
use crate::audit::{AuditError, AuditLog};
use crate::config::Config;

/// What this process has opened: a process carries out one verb, on one log.
static OPENED: OnceLock<AuditLog> = OnceLock::new();

pub(super) fn open_audit(config: &Config) -> Result<AuditLog, Failure> {
    let audit = AuditLog::open(&config.daemon.state_dir.join("audit"), &config.daemon.instance)
        .map_err(|error| audit_failure(&error))?;
    Ok(OPENED.get_or_init(|| audit).clone())
}

/// Signs the end of the log where the verb may have written to it: without a daemon nobody else
/// would, and a tail that is not signed can be cut off. What the verb did stays done.
pub(super) async fn seal() {
    if let Some(audit) = OPENED.get()
        && let Err(error) = audit.append_checkpoint().await
    {
        let message = format!("the record of this verb is not sealed: {error}");
        output::error(&message, Some(error.remedy.as_str()));
    }
}

pub(super) fn audit_failure(error: &AuditError) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("the audit log cannot be used, so nothing runs: {error}"),
    )
    .with_remedy(error.remedy.clone())
}
