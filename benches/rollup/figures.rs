//! What becomes of measured times.

use std::fmt;

/// The middle of some figures; the lower one of two.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures
        .get(figures.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(f64::NAN)
}

/// A limit, and what was measured.
pub(crate) struct Verdict {
    what: &'static str,
    measured: f64,
    limit: Limit,
}

enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Verdict {
    pub(crate) fn at_most(limit: f64, what: &'static str, measured: f64) -> Self {
        Self {
            what,
            measured,
            limit: Limit::AtMost(limit),
        }
    }

    pub(crate) fn at_least(limit: f64, what: &'static str, measured: f64) -> Self {
        Self {
            what,
            measured,
            limit: Limit::AtLeast(limit),
        }
    }

    pub(crate) fn holds(&self) -> bool {
        match self.limit {
            Limit::AtMost(limit) => self.measured <= limit,
            Limit::AtLeast(limit) => self.measured >= limit,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = match self.limit {
            Limit::AtMost(limit) => format!("at most {limit}"),
            Limit::AtLeast(limit) => format!("at least {limit}"),
        };
        let holds = if self.holds() { "holds" } else { "DOES NOT HOLD" };
        write!(f, "{:<66} {:>8.2}  {limit:<13} {holds}", self.what, self.measured)
    }
}
