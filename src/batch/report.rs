//! The published report of a run on rows, and the outcome it amounts to.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::leaf_walk::{Halt, Tally};
use super::verify::Remains;
use crate::job::Outcome;

/// Where counts of what is left stop: this number means "more than 10000".
pub const COUNT_LIMIT: u64 = 10_001;

/// All that a report says.
#[derive(Debug, Clone)]
pub(super) struct Report {
    /// `schema.table`.
    pub(super) table: String,
    /// RFC 3339.
    pub(super) cutoff: String,
    /// `time_range`, `tid_range` or `mixed`.
    pub(super) driver: String,
    /// Why that one.
    pub(super) why: String,
    /// Rows that the run's committed batches deleted or changed, over all attempts.
    pub(super) rows: u64,
    /// What this attempt did.
    pub(super) tally: Tally,
    /// The rollups that had to have sealed what was deleted.
    pub(super) gates: Value,
    /// How long it yielded.
    pub(super) throttle_ms: u64,
    /// What the throttle's signals said.
    pub(super) signals: Value,
    /// The signal that held it longest.
    pub(super) throttled: Option<(&'static str, Duration)>,
    /// What is left; nothing when that was not asked.
    pub(super) remains: Option<Remains>,
    /// Partitions whose rows are stored but hidden from the table.
    pub(super) hidden_not_erased: Vec<String>,
    /// Those of them whose detach this run brought to its end.
    pub(super) finalized: Vec<String>,
    /// What an operator should know.
    pub(super) warnings: Vec<String>,
    /// What was done beside the rows: `archive`, `objects`, `partitions`, where they apply.
    pub(super) beside: Map<String, Value>,
    /// What went wrong there.
    pub(super) problems: Vec<String>,
}

impl Report {
    /// The published format.
    pub(super) fn body(&self) -> Value {
        let mut body = json!({
            "table": self.table,
            "cutoff": self.cutoff,
            "driver": self.driver,
            "why": self.why,
            "rows": self.rows,
            "batches": self.tally.batches,
            "longest_batch_ms": u64::try_from(self.tally.longest.as_millis()).unwrap_or(u64::MAX),
            "exempt": self.remains.as_ref().map(|remains| remains.exempt),
            "held": self.remains.as_ref().map(|remains| remains.held),
            "exempt_referenced": self.remains.as_ref().map(|remains| remains.referenced),
            "locked": self.tally.locked,
            "remaining": self.remains.as_ref().map(|remains| remains.rows),
            "oldest_remaining": self.remains.as_ref().and_then(|remains| remains.oldest.clone()),
            "gates": self.gates,
            "throttle_ms": self.throttle_ms,
            "signals": self.signals,
            "hidden_not_erased": self.hidden_not_erased,
            "warnings": self.warnings,
        });
        if let Value::Object(body) = &mut body {
            body.extend(self.beside.clone());
        }
        body
    }

    /// Green only when nothing is due any more and nothing is hidden; else why not.
    pub(super) fn outcome(&self, halt: Option<&Halt>) -> (Outcome, Option<String>) {
        let mut reasons = Vec::new();
        match &self.remains {
            None => reasons.push("unverified: the count of what is left did not end in time".to_owned()),
            Some(remains) if remains.rows > 0 => {
                let (left, verb) = match remains.rows {
                    1 => ("1 row".to_owned(), "is"),
                    COUNT_LIMIT.. => (format!("more than {} rows", COUNT_LIMIT - 1), "are"),
                    rows => (format!("{rows} rows"), "are"),
                };
                let cause = match (halt, self.throttled) {
                    (Some(Halt::Budget), Some((signal, held))) => format!(
                        "throttled: {signal} held the run for {:.0} s, and the time limit came before the end",
                        held.as_secs_f64()
                    ),
                    (Some(Halt::Budget), None) => "budget: the time limit came before the end".to_owned(),
                    (Some(Halt::Store(error)), _) => format!("store: {error}"),
                    (Some(Halt::Brake), _) => "max_rows: as many rows as the policy allows are done".to_owned(),
                    _ if self.tally.locked > 0 => "locked: other sessions hold rows that are due".to_owned(),
                    _ => "remaining: rows became due meanwhile, or a trigger or another partition's server kept them"
                        .to_owned(),
                };
                reasons.push(format!("{cause}; {left} {verb} still due"));
            }
            Some(_) => {}
        }
        let pending: Vec<&str> = self.hidden_not_erased.iter().map(String::as_str).collect();
        let (finalized, pending): (Vec<&str>, Vec<&str>) = pending
            .into_iter()
            .partition(|partition| self.finalized.iter().any(|done| done == partition));
        if !pending.is_empty() {
            reasons.push(format!(
                "hidden, not erased: the detach of {} is pending; see the warnings for the statement that ends it",
                pending.join(", ")
            ));
        }
        if !finalized.is_empty() {
            reasons.push(format!(
                "hidden, not erased: the interrupted detach of {} is final now, and the rows are still stored there;                  drop it, or give it a retention of its own",
                finalized.join(", ")
            ));
        }
        reasons.extend(self.problems.iter().cloned());
        if reasons.is_empty() {
            (Outcome::Succeeded, None)
        } else {
            (Outcome::Partial, Some(reasons.join("; ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            table: "public.events".to_owned(),
            cutoff: "2026-01-01T00:00:00Z".to_owned(),
            driver: "time_range".to_owned(),
            why: "the index events_created_at_idx leads with created_at".to_owned(),
            rows: 1200,
            tally: Tally {
                rows: 1000,
                batches: 2,
                longest: Duration::from_millis(12),
                locked: 0,
            },
            gates: json!([]),
            throttle_ms: 40,
            signals: json!({ "replica_lag": { "state": "ok", "held_ms": 0 } }),
            throttled: None,
            remains: Some(Remains {
                rows: 0,
                oldest: None,
                exempt: 7,
                held: 2,
                referenced: 3,
            }),
            hidden_not_erased: Vec::new(),
            finalized: Vec::new(),
            warnings: vec!["a warning".to_owned()],
            beside: Map::new(),
            problems: Vec::new(),
        }
    }

    /// The format is published: a change here is a change for everyone who reads reports.
    #[test]
    fn the_report_has_its_published_format() {
        let expected = r#"{
  "batches": 2,
  "cutoff": "2026-01-01T00:00:00Z",
  "driver": "time_range",
  "exempt": 7,
  "exempt_referenced": 3,
  "gates": [],
  "held": 2,
  "hidden_not_erased": [],
  "locked": 0,
  "longest_batch_ms": 12,
  "oldest_remaining": null,
  "remaining": 0,
  "rows": 1200,
  "signals": {
    "replica_lag": {
      "held_ms": 0,
      "state": "ok"
    }
  },
  "table": "public.events",
  "throttle_ms": 40,
  "warnings": [
    "a warning"
  ],
  "why": "the index events_created_at_idx leads with created_at"
}"#;
        assert_eq!(serde_json::to_string_pretty(&report().body()).unwrap(), expected);
    }

    #[test]
    fn only_nothing_left_and_nothing_hidden_is_green() {
        assert_eq!(report().outcome(None), (Outcome::Succeeded, None));
        // The limit came exactly at the end: nothing is due, so nothing is wrong.
        assert_eq!(report().outcome(Some(&Halt::Budget)).0, Outcome::Succeeded);
        let left = |rows| {
            let mut report = report();
            report.remains.as_mut().unwrap().rows = rows;
            report
        };
        let (outcome, reason) = left(1).outcome(Some(&Halt::Budget));
        assert_eq!(outcome, Outcome::Partial);
        assert!(reason.unwrap().starts_with("budget: "));
        assert!(
            left(COUNT_LIMIT)
                .outcome(None)
                .1
                .unwrap()
                .contains("more than 10000 rows are")
        );
        let mut hidden = report();
        hidden.hidden_not_erased.push("public.p1".to_owned());
        assert_eq!(hidden.outcome(None).0, Outcome::Partial);
        let mut unverified = report();
        unverified.remains = None;
        assert_eq!(unverified.outcome(None).0, Outcome::Partial);
    }
}
