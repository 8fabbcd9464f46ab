//! What the log says of each run, so that a daemon at its start finds the runs whose process died.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::AuditError;
use super::kind::RecordKind;
use super::record::Record;
use super::segment::Segment;
use crate::values::RunId;

/// How many segments [`runs`] reads: two months of daily ones. A run without an end is closed at the
/// next start, so an older one can not be open.
const NEWEST: usize = 64;

/// The trace of one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// Its job.
    pub job: Option<String>,
    /// Its database.
    pub database: Option<String>,
    /// The hash of its policy.
    pub policy: Option<String>,
    /// The number of the record that says it starts, or of the first one about it.
    pub seq: u64,
    /// When that was written.
    pub ts: Timestamp,
    /// Whether there is a `run.start`.
    pub started: bool,
    /// The outcome of its `run.end`; empty when the record names none.
    pub ended: Option<String>,
    /// Whether there is a `run.interrupted`.
    pub interrupted: bool,
}

impl Trace {
    /// Whether it started and nothing says that it came to an end.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.started && self.ended.is_none() && !self.interrupted
    }
}

/// The runs that the newest 64 segments speak of. Blocks.
///
/// A line that cannot be read is logged and left out: whether the log is sound is for
/// [`super::verify()`] to say.
pub fn runs(dir: &Path) -> Result<BTreeMap<RunId, Trace>, AuditError> {
    let segments = Segment::snapshot(dir)?;
    let mut runs = BTreeMap::new();
    for (segment, length) in segments.iter().skip(segments.len().saturating_sub(NEWEST)) {
        let mut lines = segment.lines(*length)?;
        while let Some(line) = lines.next_line()? {
            match Record::parse(line.bytes) {
                Ok(record) => observe(&mut runs, &record, line.bytes),
                Err(cause) => tracing::warn!(
                    "audit log: line {} of {} is {cause}; run `pgreeve audit verify`",
                    line.number,
                    segment.name()
                ),
            }
        }
    }
    Ok(runs)
}

/// The part of a `run.end` body that matters here.
#[derive(Deserialize)]
struct EndBody {
    #[serde(default)]
    outcome: String,
}

/// Notes what a record says about a run. `line` is the record's own.
pub(super) fn observe(runs: &mut BTreeMap<RunId, Trace>, record: &Record<'_>, line: &[u8]) {
    let Some(run) = record.run else { return };
    let owned = |text: &Option<std::borrow::Cow<'_, str>>| text.as_deref().map(str::to_owned);
    let trace = runs.entry(run).or_insert_with(|| Trace {
        job: owned(&record.job),
        database: owned(&record.database),
        policy: owned(&record.policy),
        seq: record.seq,
        ts: record.ts,
        started: false,
        ended: None,
        interrupted: false,
    });
    if record.is(RecordKind::RunStart) {
        // A further attempt opens the run again.
        (trace.started, trace.ended, trace.interrupted) = (true, None, false);
        (trace.seq, trace.ts) = (record.seq, record.ts);
    } else if record.is(RecordKind::RunEnd) {
        let body = Record::<EndBody>::parse(line).map(|record| record.body.outcome);
        trace.ended = Some(body.unwrap_or_default());
    } else if record.is(RecordKind::RunInterrupted) {
        trace.interrupted = true;
    }
}
