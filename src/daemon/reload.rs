//! Another configuration for a daemon that runs: checked as a whole, on record, then in force; or
//! the old one stays.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::desk::OfficeState;
use super::policies_and_schedules;
use crate::audit::{AuditError, Entry, RecordKind};
use crate::config::{Config, DaemonSettings, Finding, Place, Severity};
use crate::control::{Refusal, Why};
use crate::values::Name;

/// What a reload changes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    added: Vec<Name>,
    changed: Vec<Name>,
    removed: Vec<Name>,
}

impl Changes {
    fn between<T: PartialEq>(old: &BTreeMap<Name, T>, new: &BTreeMap<Name, T>) -> Self {
        let mut changes = Self::default();
        for (name, value) in new {
            match old.get(name) {
                None => changes.added.push(name.clone()),
                Some(before) if before != value => changes.changed.push(name.clone()),
                Some(_) => {}
            }
        }
        changes.removed = old.keys().filter(|name| !new.contains_key(name)).cloned().collect();
        changes
    }

    fn to_json(&self) -> Value {
        json!({ "added": self.added, "changed": self.changed, "removed": self.removed })
    }
}

/// Loads, checks and applies the configuration, as `check` does.
pub(super) async fn reload(state: &mut OfficeState, actor: &str) -> Result<Value, Refusal> {
    let old = state.config.clone();
    let file = old.files.first().cloned().unwrap_or_default();
    let path = file.clone();
    let loaded = tokio::task::spawn_blocking(move || Config::load(&path))
        .await
        .map_err(|error| Refusal::new(Why::Failed, format!("read the configuration: {error}")))?;
    let (mut new, mut warnings) = match loaded {
        Ok(loaded) => loaded,
        Err(findings) => return Err(reject(state, &file, &findings, actor).await),
    };
    warnings.extend(keep_daemon_settings(&mut new, &old.daemon, &file));
    let databases = Changes::between(&old.databases, &new.databases);
    let jobs = Changes::between(&old.job_fingerprints(), &new.job_fingerprints());
    let (policies, schedules) = policies_and_schedules(&new);
    let files: Vec<String> = new.files.iter().map(|file| file.display().to_string()).collect();
    let body = json!({
        "files": files, "fingerprint": new.fingerprint, "fingerprint_before": old.fingerprint,
        "jobs": jobs.to_json(), "databases": databases.to_json(), "policies": policies, "schedules": schedules,
    });
    let entry = Entry::new(RecordKind::ConfigApplied, body).actor(actor);
    state.audit.append(entry).await.map_err(|error| unrecorded(&error))?;
    state.fleet.apply(&new).await;
    tracing::info!(
        actor,
        fingerprint = new.fingerprint,
        "the configuration was read again and is in force"
    );
    let answer = json!({
        "fingerprint": new.fingerprint, "fingerprint_before": old.fingerprint,
        "jobs": jobs.to_json(), "databases": databases.to_json(), "warnings": shown(&warnings),
    });
    state.config = new;
    Ok(answer)
}

/// The old configuration stays; the record says where each mistake is.
async fn reject(state: &OfficeState, file: &Path, findings: &[Finding], actor: &str) -> Refusal {
    let errors: Vec<Value> = findings
        .iter()
        .filter(|finding| finding.is_error())
        .map(|finding| json!({ "file": finding.file, "line": finding.line, "message": finding.message }))
        .collect();
    let count = errors.len();
    let noun = if count == 1 { "mistake" } else { "mistakes" };
    // Not a digest of the bytes: they may hold a password, and a digest of it could be guessed.
    let body = json!({
        "files": [file.display().to_string()], "fingerprint": state.config.fingerprint, "errors": errors,
    });
    let entry = Entry::new(RecordKind::ConfigRejected, body).actor(actor);
    if let Err(error) = state.audit.append(entry).await {
        tracing::error!(error = %error, "the rejection of a configuration could not be put on record");
    }
    tracing::error!(
        actor,
        errors = count,
        "the configuration has {count} {noun}; the old one stays in force"
    );
    let message = format!(
        "{} has {count} {noun}; the configuration in force is still the old one",
        file.display()
    );
    Refusal {
        findings: shown(findings),
        ..Refusal::new(Why::BadConfiguration, message).with_remedy("mend them and reload again")
    }
}

/// What belongs to the process as a whole stays as it is until a restart, and a warning says so.
fn keep_daemon_settings(new: &mut Config, old: &DaemonSettings, file: &Path) -> Option<Finding> {
    let kept = DaemonSettings {
        timezone: new.daemon.timezone.clone(),
        ..old.clone()
    };
    if new.daemon == kept {
        return None;
    }
    new.daemon = kept;
    Some(Finding::new(
        Severity::Warning,
        Place::whole(file.display().to_string()),
        "a change in [daemon] has no effect before a restart",
        Some("systemctl restart pgreeve"),
    ))
}

fn shown(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(ToString::to_string).collect()
}

fn unrecorded(error: &AuditError) -> Refusal {
    Refusal::new(
        Why::Failed,
        format!("the audit log cannot be written, so the old configuration stays: {error}"),
    )
    .with_remedy(error.remedy.clone())
}
