//! The state of a verification: what is known of the log up to a record, and what the next line must
//! be.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::Deserialize;

use super::checkpoint::Anchor;
use super::digest::Digest;
use super::key::PublicKey;
use super::kind::RecordKind;
use super::record::{Link, Record};
use super::recovery::{RecoveredBody, Torn};
use super::traces::{self, Trace};
use crate::values::RunId;

/// What is wrong with a line.
#[derive(Debug)]
pub(super) enum Fault {
    /// This record is not what it should be.
    Here(String),
    /// This record does not carry the digest of the one before: one of the two was changed.
    Link {
        /// The digest of this line, by which the next one tells whether this one is intact.
        hash: Digest,
        /// Whether this is a checkpoint, and if so, whether it is sound in itself.
        sealed: Option<bool>,
    },
}

impl<T: fmt::Display> From<T> for Fault {
    fn from(problem: T) -> Self {
        Self::Here(problem.to_string())
    }
}

/// What follows from the records so far.
#[derive(Debug)]
pub(super) struct Chain<'a> {
    pub(super) key: PublicKey,
    /// Anchors of records that were not met yet.
    pub(super) anchors: BTreeMap<u64, Vec<&'a Anchor>>,
    /// Anchors that agree with the log.
    pub(super) anchored: u64,
    /// The newest record that an anchor agrees with.
    pub(super) anchored_through: u64,
    /// The last sound record and the digest of its line.
    pub(super) seq: u64,
    pub(super) hash: Digest,
    pub(super) ts: Option<Timestamp>,
    pub(super) checkpoints: u64,
    /// The last record that a checkpoint in the log signs.
    pub(super) signed_through: u64,
    /// The first record after the last checkpoint whose kind is not known.
    pub(super) unknown_kind: Option<u64>,
    /// How often the time steps back, and at which record first.
    pub(super) steps_back: u64,
    pub(super) first_step_back: u64,
    /// What crashes left, by the record that says so.
    pub(super) torn: Vec<(u64, Torn)>,
    /// Runs that are not closed yet.
    pub(super) runs: BTreeMap<RunId, Trace>,
}

/// The part of a `segment` body that must repeat the chain.
#[derive(Deserialize)]
struct SegmentBody {
    last_seq: u64,
    last_hash: Digest,
}

impl<'a> Chain<'a> {
    pub(super) fn new(key: PublicKey, anchors: impl Iterator<Item = &'a Anchor>) -> Self {
        let mut by_seq: BTreeMap<u64, Vec<&Anchor>> = BTreeMap::new();
        for anchor in anchors {
            by_seq.entry(anchor.seq).or_default().push(anchor);
        }
        Self {
            key,
            anchors: by_seq,
            anchored: 0,
            anchored_through: 0,
            seq: 0,
            hash: Digest::GENESIS,
            ts: None,
            checkpoints: 0,
            signed_through: 0,
            unknown_kind: None,
            steps_back: 0,
            first_step_back: 0,
            torn: Vec::new(),
            runs: BTreeMap::new(),
        }
    }

    /// The number that the next record must have.
    pub(super) fn expected(&self) -> u64 {
        self.seq.saturating_add(1)
    }

    /// Takes the next line, which is sound if this returns `Ok`.
    pub(super) fn take(&mut self, line: &[u8], first_of_segment: bool) -> Result<(), Fault> {
        let record: Record = Record::parse(line)?;
        let hash = Digest::of(line);
        if record.seq != self.expected() {
            return Err(Fault::Here(format!(
                "record {} stands in the place of record {}: records were removed, repeated or moved",
                record.seq,
                self.expected()
            )));
        }
        let checkpoint = record
            .is(RecordKind::Checkpoint)
            .then(|| read_checkpoint(line, &self.key));
        if record.prev != self.hash {
            let sealed = checkpoint.map(|checkpoint| checkpoint.is_ok());
            return Err(Fault::Link { hash, sealed });
        }
        if record.is(RecordKind::Segment) != first_of_segment {
            return Err(Fault::from(if first_of_segment {
                "the file does not begin with a `segment` record"
            } else {
                "a `segment` record stands inside a file: files were joined"
            }));
        }
        if first_of_segment {
            let body = Record::<SegmentBody>::parse(line)?.body;
            if (body.last_seq, body.last_hash) != (self.seq, self.hash) {
                return Err(Fault::from("it does not repeat the end of the file before"));
            }
        }
        if let Some(anchor) = checkpoint.transpose()? {
            self.checkpoints = self.checkpoints.saturating_add(1);
            self.signed_through = anchor.seq;
            self.unknown_kind = None;
        }
        if RecordKind::from_word(&record.kind).is_none() {
            self.unknown_kind = self.unknown_kind.or(Some(record.seq));
        }
        self.meet_anchors(record.seq, hash)?;
        self.note(&record, line)?;
        (self.seq, self.hash) = (record.seq, hash);
        Ok(())
    }

    /// Compares a record with what is anchored of it.
    fn meet_anchors(&mut self, seq: u64, hash: Digest) -> Result<(), String> {
        for anchor in self.anchors.remove(&seq).unwrap_or_default() {
            check_anchor(anchor, &self.key)?;
            if anchor.hash != hash {
                return Err(format!(
                    "it is not the record that was anchored at {}: the log was rewritten",
                    anchor.ts
                ));
            }
            self.anchored = self.anchored.saturating_add(1);
            self.anchored_through = seq;
        }
        Ok(())
    }

    /// Notes what is not a matter of the chain.
    fn note(&mut self, record: &Record<'_>, line: &[u8]) -> Result<(), String> {
        if self.ts.is_some_and(|last| record.ts < last) {
            if self.steps_back == 0 {
                self.first_step_back = record.seq;
            }
            self.steps_back = self.steps_back.saturating_add(1);
        }
        self.ts = Some(record.ts);
        if record.is(RecordKind::LogRecovered) {
            let torn = Record::<RecoveredBody>::parse(line)?.body.torn;
            self.torn.extend(torn.into_iter().map(|part| (record.seq, part)));
        }
        traces::observe(&mut self.runs, record, line);
        if let Some(run) = record.run
            && self.runs.get(&run).is_some_and(|trace| !trace.is_open())
        {
            self.runs.remove(&run);
        }
        Ok(())
    }
}

/// Says why an anchor proves nothing.
pub(super) fn check_anchor(anchor: &Anchor, key: &PublicKey) -> Result<(), String> {
    anchor
        .check(key)
        .map_err(|cause| format!("an anchor of {} for this record is not valid: {cause}", anchor.ts))
}

/// Reads a checkpoint that is sound in itself: signed, and without a byte that the signature leaves
/// open.
fn read_checkpoint(line: &[u8], key: &PublicKey) -> Result<Anchor, String> {
    let anchor = Record::<Anchor>::parse(line)?.body;
    anchor.check(key).map_err(|cause| format!("a checkpoint: {cause}"))?;
    let place = Link {
        seq: anchor.seq.saturating_add(1),
        ts: anchor.ts,
        prev: anchor.hash,
    };
    let expected = anchor.record(place).encode().map_err(|error| error.to_string())?;
    if expected.strip_suffix(b"\n") == Some(line) {
        Ok(anchor)
    } else {
        Err("a checkpoint: it is not about the record before it, or not as pgreeve writes it".to_owned())
    }
}
