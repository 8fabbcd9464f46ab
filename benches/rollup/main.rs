//! What it costs to bring figures up to date when a hundredth of the rows is new: a rollup, in both of
//! its modes, beside `REFRESH MATERIALIZED VIEW CONCURRENTLY` of the same query; and whether the cost
//! grows with the history.
//!
//! Events of some months lie in one table, those of a tenth of that time in another, and the last day's
//! events are new in both. All ways work on one throwaway server that syncs to disk, in turn, and each
//! limit is a ratio within one run. `PGREEVE_BENCH_ROWS` sets the number of rows, ten millions by default.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark fails by panicking"
)]

mod figures;
mod ground;
mod ways;

use std::time::Instant;

use figures::{Verdict, median};
use ground::Ground;
use pgreeve::rollup::spec::Mode;
use ways::Kept;

/// How often each rollup is refreshed; the view takes so much longer that twice will do.
const ROUNDS: usize = 5;
const ROUNDS_OF_THE_VIEW: usize = 2;

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let started = Instant::now();
    let verdicts = runtime.block_on(measure());
    line("");
    for verdict in &verdicts {
        line(&verdict.to_string());
    }
    let held = verdicts.iter().filter(|verdict| verdict.holds()).count();
    line(&format!(
        "{held} of {} limits hold; {:.0} s",
        verdicts.len(),
        started.elapsed().as_secs_f64()
    ));
}

async fn measure() -> Vec<Verdict> {
    let ground = Ground::lay().await;
    let mut kept = Vec::new();
    for mode in [Mode::Recompute, Mode::Exact] {
        for table in ["events", "recent"] {
            kept.push((Kept::fill(&ground, table, mode).await, Vec::new()));
        }
    }
    ground.add_the_new_rows().await;
    let mut view = Vec::new();
    for round in 0..ROUNDS {
        for (kept, seconds) in &mut kept {
            kept.as_it_was_a_day_ago(&ground).await;
            seconds.push(kept.refresh(&ground).await);
        }
        if round < ROUNDS_OF_THE_VIEW {
            view.push(ground.refresh_the_view().await);
        }
    }
    for (kept, _) in &kept {
        kept.assert_equals_its_query(&ground).await;
    }
    let view = median(view);
    line("");
    line(&format!("{:<52} {:>9} {:>9}", "", "seconds", "by view"));
    line(&format!(
        "{:<52} {view:>9.3} {:>9.3}",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY", 1.0
    ));
    let figures: Vec<f64> = kept
        .iter()
        .map(|(kept, seconds)| {
            let seconds = median(seconds.iter().copied());
            line(&format!("{:<52} {seconds:>9.3} {:>9.3}", kept.name(), seconds / view));
            seconds
        })
        .collect();
    let [recompute, recompute_recent, exact, exact_recent] = figures.try_into().unwrap();
    vec![
        Verdict::at_least(20.0, "recompute: times faster than the view", view / recompute),
        Verdict::at_least(20.0, "exact: times faster than the view", view / exact),
        Verdict::at_most(
            1.2,
            "recompute: time by that of a tenth of the history",
            recompute / recompute_recent,
        ),
        Verdict::at_most(
            1.2,
            "exact: time by that of a tenth of the history",
            exact / exact_recent,
        ),
    ]
}

fn line(text: &str) {
    println!("{text}");
}
