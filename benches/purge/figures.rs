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

/// The 99th of a hundred.
pub(crate) fn p99(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() * 99 / 100).copied().unwrap_or(f64::NAN)
}

/// The time per row of the last tenth of the rows by that of the first, of batches as rows and seconds.
pub(crate) fn slope(batches: &[(f64, f64)]) -> f64 {
    let tenth = batches.iter().map(|(rows, _)| rows).sum::<f64>() / 10.0;
    let mean = |batches: &mut dyn Iterator<Item = &(f64, f64)>| {
        let (mut rows, mut seconds) = (0.0, 0.0);
        while rows < tenth
            && let Some(batch) = batches.next()
        {
            rows += batch.0;
            seconds += batch.1;
        }
        seconds / rows
    };
    mean(&mut batches.iter().rev()) / mean(&mut batches.iter())
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
