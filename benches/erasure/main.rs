//! What it costs to erase people: pgreeve, proof and all, beside the indexed `DELETE`s that somebody
//! would write by hand, one transaction a person; and whether the time per person grows.
//!
//! A shop of five million rows: people, their orders with lines, events that name them in JSON, and
//! clicks that stay without them. A thousand people go each way: half of those by hand, then all that
//! pgreeve erases in one run, then the other half by hand. All work on one throwaway server that syncs to
//! disk, and each limit is a ratio within one run. What is done by hand leaves no plan, no record, no
//! certificate, and nobody looks whether something is left: the search of every text of the database,
//! once for all the people of a run, is shown apart. `PGREEVE_BENCH_ROWS` sets the number of rows, five
//! millions by default.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark fails by panicking, and rounds"
)]

#[path = "../purge/figures.rs"]
#[allow(dead_code, reason = "another benchmark needs the rest")]
mod figures;
mod ground;
mod ways;

use std::time::Instant;

use figures::Verdict;
use ground::{Ground, REQUESTS};

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
    let half = REQUESTS / 2;
    let first = ways::by_hand(&ground, ground.people(1, half)).await;
    let ours = ways::pgreeve(&ground, ground.people(2, REQUESTS)).await;
    let second = ways::by_hand(&ground, ground.people(3, REQUESTS - half)).await;
    ground.assert_erased().await;
    let each = |seconds: f64| seconds * 1000.0 / REQUESTS as f64;
    let by_hand = each(first + second);
    line("");
    line(&format!("{:<58} {:>9} {:>9}", "", "ms each", "by hand"));
    for (what, ms) in [
        ("DELETEs by hand", by_hand),
        (
            "pgreeve: recorded, erased, certified, closed",
            each(ours.seconds - ours.search),
        ),
        ("  of that from the first step to the last", each(ours.stepping)),
        ("  of that from the first end to the last", each(ours.ending)),
        (
            "pgreeve: the search for what is left, of all at once",
            each(ours.search),
        ),
        ("pgreeve: the whole run", each(ours.seconds)),
    ] {
        line(&format!("{what:<58} {ms:>9.3} {:>9.2}", ms / by_hand));
    }
    vec![
        Verdict::at_most(
            1.5,
            "time per request, without the search, by that by hand",
            each(ours.seconds - ours.search) / by_hand,
        ),
        Verdict::at_most(1.5, "steps: the last tenth's time by the first's", ours.steps),
        Verdict::at_most(1.5, "closing: the last tenth's time by the first's", ours.closing),
    ]
}

fn line(text: &str) {
    println!("{text}");
}
