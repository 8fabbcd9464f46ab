//! Checking a log: offline, with nothing but its files, the public key and the anchors.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

use super::AuditError;
use super::chain::Chain;
use super::checkpoint::Anchor;
use super::digest::Digest;
use super::key::PublicKey;
use super::recovery::Torn;
use super::traces::Trace;
use super::walk::Walk;
use crate::values::RunId;

/// What a check of the log found. As JSON it is the document of `pgreeve audit verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// The version of this document, 1.
    pub version: u8,
    /// Whether nothing wrong was found. [`Verification::warnings`] say what was not checked.
    pub ok: bool,
    /// How many records are sound, from the first one on.
    pub records: u64,
    /// The first place that is not sound; nothing after it was read.
    pub first_bad: Option<FirstBad>,
    /// How many segments were read.
    pub segments: u64,
    /// How many signed checkpoints there are among the sound records.
    pub checkpoints: u64,
    /// The last record that a checkpoint in the log signs, 0 for none.
    pub signed_through: u64,
    /// How many of the given anchors agree with the log.
    pub anchors: u64,
    /// The last record that a given anchor agrees with, 0 for none.
    pub anchored_through: u64,
    /// The digest of the last sound record.
    pub head_hash: Digest,
    /// When the last sound record was written.
    pub last_ts: Option<Timestamp>,
    /// The key that signatures were checked with.
    pub public_key: PublicKey,
    /// What an auditor should know although it is no proof of tampering.
    pub warnings: Vec<String>,
    /// Runs that started and neither ended nor were closed as interrupted.
    pub unfinished_runs: Vec<UnfinishedRun>,
}

/// Where a log stops being sound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FirstBad {
    /// The number of the record.
    pub seq: u64,
    /// The name of its segment.
    pub file: String,
    /// The line in that file, from 1.
    pub line: u64,
    /// What is wrong.
    pub problem: String,
}

/// A run that the log does not close.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnfinishedRun {
    /// The run.
    pub run: RunId,
    /// Its job.
    pub job: Option<String>,
    /// The number of its `run.start`.
    pub seq: u64,
}

/// Checks a log from its first record to its last. Streams; blocks; changes nothing.
///
/// Without `public_key` the key beside the log is used, and a warning says what that is worth. An
/// error means that the log could not be checked, not that it is unsound.
pub fn verify(dir: &Path, public_key: Option<&PublicKey>, anchors: &[Anchor]) -> Result<Verification, AuditError> {
    let mut warnings = Vec::new();
    let key = choose_key(dir, public_key, &mut warnings)?;
    // Another key's anchors are about another log, unless the key itself may be the forgery.
    let (ours, others): (Vec<_>, Vec<_>) = anchors
        .iter()
        .partition(|anchor| public_key.is_none() || anchor.public_key == key);
    if !others.is_empty() {
        warnings.push(format!(
            "{} anchors were left out: they are signed by other keys",
            others.len()
        ));
    }
    let mut walk = Walk::new(dir, Chain::new(key, ours.into_iter()));
    let first_bad = walk.run(dir)?;
    if first_bad.is_none() {
        warn_of_open_ends(&walk.chain, &mut warnings);
    }
    warn_of_notes(dir, &walk.chain, &mut warnings);
    let chain = walk.chain;
    Ok(Verification {
        version: 1,
        ok: first_bad.is_none(),
        records: chain.seq,
        first_bad,
        segments: walk.segments,
        checkpoints: chain.checkpoints,
        signed_through: chain.signed_through,
        anchors: chain.anchored,
        anchored_through: chain.anchored_through,
        head_hash: chain.hash,
        last_ts: chain.ts,
        public_key: key,
        warnings,
        unfinished_runs: unfinished(chain.runs),
    })
}

fn unfinished(runs: BTreeMap<RunId, Trace>) -> Vec<UnfinishedRun> {
    let open = runs.into_iter().filter(|(_, trace)| trace.is_open());
    open.map(|(run, Trace { job, seq, .. })| UnfinishedRun { run, job, seq })
        .collect()
}

fn choose_key(dir: &Path, pinned: Option<&PublicKey>, warnings: &mut Vec<String>) -> Result<PublicKey, AuditError> {
    let Some(pinned) = pinned else {
        let Some(key) = PublicKey::beside(dir)? else {
            return Err(AuditError::new(
                format!("check the audit log {}", dir.display()),
                "there is no public key to check signatures with",
                "give the public key that was kept when the log was begun",
            ));
        };
        warnings.push(
            "the public key was taken from the log's own directory: whoever can replace the log can replace it too; give a copy that was kept elsewhere".to_owned(),
        );
        return Ok(key);
    };
    match PublicKey::beside(dir) {
        Ok(Some(beside)) if beside == *pinned => {}
        Ok(None) => {}
        Ok(Some(_)) => warnings.push("the public key beside the log is not the given one".to_owned()),
        Err(error) => warnings.push(format!("the public key beside the log cannot be read: {error}")),
    }
    Ok(*pinned)
}

/// Says plainly what no chain can show.
fn warn_of_open_ends(chain: &Chain, warnings: &mut Vec<String>) {
    if chain.signed_through.saturating_add(1) < chain.seq {
        // The checkpoint itself is the record after what it signs.
        let from = if chain.checkpoints == 0 {
            1
        } else {
            chain.signed_through.saturating_add(2)
        };
        warnings.push(format!(
            "records {from} to {} follow the last checkpoint: their links agree, but no signature covers them",
            chain.seq
        ));
    }
    warnings.push(if chain.anchored == 0 {
        "no anchor was given: a log whose newest records were cut off at the end of a line looks the same as this one"
            .to_owned()
    } else {
        format!(
            "the newest anchor is of record {}: later records that were cut off at the end of a line would not be missed",
            chain.anchored_through
        )
    });
}

fn warn_of_notes(dir: &Path, chain: &Chain, warnings: &mut Vec<String>) {
    if chain.steps_back > 0 {
        warnings.push(format!(
            "the time steps back {} time(s), first at record {}: the host's clock was set",
            chain.steps_back, chain.first_step_back
        ));
    }
    for (seq, torn) in &chain.torn {
        let state = match Torn::read(dir, torn.file.clone()) {
            Ok(found) if found == *torn => "they are kept in",
            Ok(_) => "they were changed since, in",
            Err(_) => "they are no longer in",
        };
        warnings.push(format!(
            "record {seq}: a crash cut a write of {} bytes short; {state} {}",
            torn.bytes, torn.file
        ));
    }
}
