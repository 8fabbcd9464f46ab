//! How a daemon carries a file of thousands of jobs, beside `pg_cron` with as many.
//!
//! An hour of hourly jobs, each at its own minute and second, is compressed into twelve minutes, and
//! one sixth of that is watched: as many slots as in ten minutes of the real hour, five times as close
//! together. Every slot must have its row. `pg_cron` runs the statement that each job comes to, at the
//! pace of the real hour, since it knows nothing below a minute but one interval for all; a server
//! without it is named and left out. `PGREEVE_BENCH_JOBS` sets the number of jobs, 5000 by default.

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
mod fleet;
mod pg_cron;
mod server;

use std::time::{Duration, Instant};

use figures::{Verdict, median, p99};
use fleet::{Fleet, Pace};
use server::Server;

/// How long an idle daemon, and an idle `pg_cron`, is watched.
pub(crate) const IDLE: Duration = Duration::from_secs(30);

fn main() {
    let jobs: usize = std::env::var("PGREEVE_BENCH_JOBS").map_or(5000, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let verdicts = runtime.block_on(measure(jobs));
    line("");
    for verdict in &verdicts {
        line(&verdict.to_string());
    }
    let held = verdicts.iter().filter(|verdict| verdict.holds()).count();
    line(&format!("{held} of {} limits hold", verdicts.len()));
}

async fn measure(jobs: usize) -> Vec<Verdict> {
    let server = Server::with_tables("", jobs).await;
    let mut fleet = Fleet::on(&server, jobs, Pace::Yearly);

    let started = Instant::now();
    fleet.check();
    let check = started.elapsed().as_secs_f64();
    line(&format!(
        "check of {jobs} jobs, {} KiB: {check:.2} s",
        fleet.file_size() / 1024
    ));

    let idle = fleet.idle(&server).await;
    line(&format!(
        "idle: {:.2} % of a core, {:.2} % in its server, {} MiB at most",
        idle.daemon * 100.0,
        idle.server * 100.0,
        idle.peak_kib / 1024
    ));

    let busy = fleet.busy(&server).await;
    let delays = || busy.delays.iter().copied();
    line(&format!(
        "{} slots came due in {:.0} s: {} ran, {} rows say why not, {} have no row; started after {:.0} ms (median), {:.0} ms (p99), {:.0} ms (longest)",
        busy.due,
        busy.seconds,
        busy.delays.len(),
        busy.accounted - busy.delays.len(),
        busy.due - busy.accounted,
        median(delays()) * 1000.0,
        p99(delays()) * 1000.0,
        delays().fold(0.0, f64::max) * 1000.0
    ));
    drop(fleet);
    drop(server);

    let verdicts = vec![
        Verdict::at_most(2.0, "seconds that `check` takes", check),
        Verdict::at_most(1.0, "processor of an idle daemon, in % of a core", idle.daemon * 100.0),
        Verdict::at_most(0.0, "due slots without a row", (busy.due - busy.accounted) as f64),
        Verdict::at_most(1.0, "p99 of the start's delay, in seconds", p99(delays())),
    ];
    if let Some(theirs) = pg_cron::measure(jobs).await {
        line(&format!(
            "pg_cron: idle {:.2} % of a core; started after {:.0} ms (median), {:.0} ms (p99); {} of {} due runs ended well",
            theirs.idle * 100.0,
            median(theirs.delays.iter().copied()) * 1000.0,
            p99(theirs.delays.iter().copied()) * 1000.0,
            theirs.delays.len(),
            theirs.due
        ));
        // Its run is one statement; one of ours plans, records, verifies.
        line(&format!(
            "by that of pg_cron: idle {:.1}, p99 of the start's delay {:.1}",
            (idle.daemon + idle.server) / theirs.idle,
            p99(delays()) / p99(theirs.delays.iter().copied())
        ));
    }
    verdicts
}

fn line(text: &str) {
    println!("{text}");
}
