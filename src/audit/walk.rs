//! The way of a verification through the files, and the naming of the place where they stop being
//! sound.

use std::path::Path;
use std::sync::Arc;

use serde::de::IgnoredAny;

use super::AuditError;
use super::chain::{Chain, Fault, check_anchor};
use super::digest::Digest;
use super::record::Record;
use super::segment::{Lines, RawLine, Segment};
use super::verify::FirstBad;

/// A line of a segment.
#[derive(Debug, Clone)]
struct Place {
    file: Arc<str>,
    line: u64,
}

impl Place {
    fn bad(&self, seq: u64, problem: impl Into<String>) -> FirstBad {
        FirstBad {
            seq,
            file: self.file.to_string(),
            line: self.line,
            problem: problem.into(),
        }
    }
}

/// The way through the files.
pub(super) struct Walk<'a> {
    pub(super) chain: Chain<'a>,
    /// How many segments are sound.
    pub(super) segments: u64,
    /// Where the last sound record stands.
    place: Place,
    /// Where the record of [`Chain::unknown_kind`] stands.
    unknown_kind: Place,
}

impl<'a> Walk<'a> {
    pub(super) fn new(dir: &Path, chain: Chain<'a>) -> Self {
        let nowhere = Place {
            file: dir.display().to_string().into(),
            line: 0,
        };
        Self {
            chain,
            segments: 0,
            place: nowhere.clone(),
            unknown_kind: nowhere,
        }
    }

    /// Goes from the first record to the last, or to the first place that is not sound.
    pub(super) fn run(&mut self, dir: &Path) -> Result<Option<FirstBad>, AuditError> {
        let bad = self.segments(dir)?;
        Ok(bad.or_else(|| self.missing_tail()).or_else(|| self.unproven_kind()))
    }

    fn segments(&mut self, dir: &Path) -> Result<Option<FirstBad>, AuditError> {
        let segments = Segment::snapshot(dir)?;
        if segments.is_empty() {
            return Ok(Some(self.place.bad(
                1,
                "there are no segments: the whole log is gone, or this is not its directory",
            )));
        }
        let mut rest = segments.as_slice();
        while let Some((this, following)) = rest.split_first() {
            if let Some(bad) = self.segment(this, following.first())? {
                return Ok(Some(bad));
            }
            rest = following;
            self.segments = self.segments.saturating_add(1);
        }
        Ok(None)
    }

    fn segment(
        &mut self,
        (segment, length): &(Segment, u64),
        following: Option<&(Segment, u64)>,
    ) -> Result<Option<FirstBad>, AuditError> {
        let first = Place {
            file: segment.name().into(),
            line: 1,
        };
        if let Some(problem) = self.misplaced(segment, *length) {
            return Ok(Some(first.bad(self.chain.expected().min(segment.first_seq), problem)));
        }
        let mut lines = segment.lines(*length)?;
        while let Some(line) = lines.next_line()? {
            let here = Place {
                line: line.number,
                ..first.clone()
            };
            match check_line(&mut self.chain, line) {
                Ok(()) => {
                    if self.chain.unknown_kind == Some(self.chain.seq) {
                        self.unknown_kind = here.clone();
                    }
                    self.place = here;
                }
                Err(Fault::Here(problem)) => return Ok(Some(here.bad(self.chain.expected(), problem))),
                Err(Fault::Link { hash, sealed }) => {
                    let next = match (next_prev(&mut lines)?, following) {
                        (None, Some((segment, length))) => next_prev(&mut segment.lines(*length)?)?,
                        (next, _) => next,
                    };
                    return Ok(Some(self.blame(&here, hash, sealed, next)));
                }
            }
        }
        Ok(None)
    }

    /// Says why a segment can not be the next one.
    fn misplaced(&self, segment: &Segment, length: u64) -> Option<String> {
        let expected = self.chain.expected();
        if segment.first_seq > expected {
            return Some(format!(
                "records {expected} to {} are missing: a segment was removed, or the one before was cut off",
                segment.first_seq.saturating_sub(1)
            ));
        }
        if segment.first_seq < expected {
            return Some("the file begins with a record that another file holds already".to_owned());
        }
        (length == 0).then(|| "the segment is empty".to_owned())
    }

    /// Finds which of two records was changed when the second does not carry the digest of the first:
    /// a record that its own successor, or its own signature, agrees with is intact.
    fn blame(&self, here: &Place, hash: Digest, sealed: Option<bool>, next: Option<Digest>) -> FirstBad {
        let here_is_intact = next.map(|prev| prev == hash).or(sealed).unwrap_or(true);
        let seq = self.chain.seq;
        if here_is_intact && seq > 0 {
            self.place
                .bad(seq, "it was changed: the next record carries another digest for it")
        } else {
            here.bad(
                self.chain.expected(),
                "it does not carry the digest of the record before it",
            )
        }
    }

    /// A word that this program does not write, in a record that nobody signed: a newer pgreeve, or a
    /// changed byte. Were it let pass, the last checkpoint could be made into something else.
    fn unproven_kind(&self) -> Option<FirstBad> {
        let problem = "its kind is not known and no signature covers it: it was changed, or a newer pgreeve wrote it; check again with that version";
        self.chain.unknown_kind.map(|seq| self.unknown_kind.bad(seq, problem))
    }

    /// Anchors of records that the log does not have.
    fn missing_tail(&self) -> Option<FirstBad> {
        let (_, anchors) = self.chain.anchors.last_key_value()?;
        let anchor = anchors.first()?;
        let problem = match check_anchor(anchor, &self.chain.key) {
            Ok(()) => format!(
                "the log ends at record {}, but an anchor of {} proves record {}: its tail was cut off",
                self.chain.seq, anchor.ts, anchor.seq
            ),
            Err(problem) => problem,
        };
        Some(self.place.bad(self.chain.expected(), problem))
    }
}

/// What the next line says about the one before it.
fn next_prev(lines: &mut Lines) -> Result<Option<Digest>, AuditError> {
    let next = lines.next_line()?.map(|line| Record::<IgnoredAny>::parse(line.bytes));
    Ok(next.and_then(Result::ok).map(|record| record.prev))
}

fn check_line(chain: &mut Chain, line: RawLine) -> Result<(), Fault> {
    if line.ended {
        return chain.take(line.bytes, line.number == 1);
    }
    Err(Fault::from(
        "the line has no end: a crash cut a write short, or bytes were removed; after a crash, start the daemon, which keeps the torn bytes aside and puts that on record",
    ))
}
