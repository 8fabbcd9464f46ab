//! How fast, how even and how gentle a purge is, beside what people write themselves.
//!
//! All runs work on identical copies of one database, one after the other, on one throwaway server
//! that syncs to disk, and each limit is a ratio within one run: the machine's speed is none of its
//! business. `PGREEVE_BENCH_ROWS` sets the number of rows, three millions by default; 45 of a hundred
//! are due.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark fails by panicking, and rounds"
)]

mod figures;
mod gentle;
mod ground;
mod load;
mod speed;
mod ways;

use std::time::Instant;

use ground::Ground;

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let started = Instant::now();
    // A task like the daemon's runs, not the thread that waits: that one is woken by another.
    let measuring = runtime.spawn(async {
        let ground = Ground::lay().await;
        let mut verdicts = speed::measure(&ground).await;
        verdicts.extend(gentle::measure(&ground).await);
        verdicts
    });
    let verdicts = runtime.block_on(measuring).unwrap();
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
    drop(runtime);
}

fn line(text: &str) {
    println!("{text}");
}
