//! `backup verify`: a backup at four levels, up to restoring it into a server of its own and asking the
//! assertions of its `restore_check`.

use jiff::Timestamp;
use serde_json::json;

use super::backup::{find, identities, record, store_failure};
use super::record::open_audit;
use super::run::{job_failure, show_progress};
use super::{Exit, Failure, VerifyArguments, output};
use crate::audit::RecordKind;
use crate::backup::manifest::Manifest;
use crate::backup::prove::{Assertion, Proof, Proving, prove};
use crate::backup::verify;
use crate::config::Config;
use crate::job::Progress;
use crate::jobs::KindSettings;
use crate::lifecycle;
use crate::runner::Stops;
use crate::store::StoreError;

pub(super) async fn verify(config: &Config, arguments: &VerifyArguments, as_json: bool) -> Result<Exit, Failure> {
    let (store, manifest) = find(config, &arguments.id, arguments.job.as_ref()).await?;
    let identities = identities(arguments.identity.as_deref())?;
    let assertions = assertions(config, &manifest);
    if arguments.level >= 3 && assertions.is_empty() {
        let failure = Failure::new(
            Exit::Usage,
            format!("nothing is asserted of the backups of {}", manifest.job),
        );
        return Err(failure.with_remedy("add a job restore_check = { backup, assert } for it, or give --level 2"));
    }
    // Whoever cannot write down that a backup was checked shall not find out after hours.
    let audit = open_audit(config)?;
    let stops = Stops::default();
    lifecycle::listen(stops.clone())
        .map_err(|error| Failure::new(Exit::Failed, format!("listen to signals: {error}")))?;
    let progress = Progress::new();
    let shown = (output::is_watched() && !as_json).then(|| tokio::spawn(show_progress(progress.clone())));
    let proof = prove(&Proving {
        store: &store,
        manifest: &manifest,
        level: arguments.level,
        assertions,
        identities,
        progress,
        stop: stops.soft,
    })
    .await;
    if let Some(shown) = shown {
        shown.abort();
        output::progress("");
    }
    let proof = proof.map_err(|error| job_failure(&error))?;
    let at = Timestamp::now();
    let body = proof.body(&manifest, arguments.level);
    record(&audit, RecordKind::BackupVerified, &manifest, body.clone()).await?;
    if let (None, Some(verified)) = (&proof.problem, &proof.verified) {
        verify::record_proof(store.as_ref(), &manifest, at, arguments.level, verified)
            .await
            .map_err(|error| failure_of_store(&error))?;
    }
    if as_json {
        output::document(&json!({ "version": 1, "verify": body }));
    } else {
        print(&manifest, arguments.level, &proof);
    }
    Ok(if proof.problem.is_none() {
        Exit::Green
    } else {
        Exit::NotGreen
    })
}

/// What the configuration asserts of backups of that job.
fn assertions<'a>(config: &'a Config, manifest: &Manifest) -> &'a [Assertion] {
    let checks = config.jobs.values().filter_map(|job| match &job.kind {
        KindSettings::RestoreCheck(check) if check.backup.as_str() == manifest.job => Some(check.assertions.as_slice()),
        _ => None,
    });
    checks.max_by_key(|assertions| assertions.len()).unwrap_or_default()
}

fn failure_of_store(error: &StoreError) -> Failure {
    store_failure("of the backup", error)
}

fn print(manifest: &Manifest, level: u8, proof: &Proof) {
    let how = match level {
        0 => "every object is there and has its size",
        1 => "every byte was read and agrees with the manifest",
        _ => "restored, and every table's rows agree with the manifest",
    };
    match &proof.problem {
        None => output::labelled("verified", &format!("{} at level {level}: {how}", manifest.id)),
        Some(problem) => output::labelled("DAMAGED", &format!("{}: {problem}", manifest.id)),
    }
    if let Some(verified) = &proof.verified {
        let compared = format!("{} tables, {} rows, by digest", verified.compared, verified.rows);
        output::labelled("compared", &compared);
        for mismatch in &verified.mismatches {
            output::labelled("DIFFERS", &mismatch.to_string());
        }
    }
    if let Some(held) = proof.held {
        output::labelled("asserted", &format!("{held} held"));
    }
}
