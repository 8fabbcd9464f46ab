//! How gentle: what an application at work on the same table feels.

use std::time::{Duration, SystemTime};

use crate::figures::{Verdict, median, p99};
use crate::ground::Ground;
use crate::line;
use crate::load::{Load, RATE};
use crate::ways::Way;

/// How often each is run; the middle counts.
const ROUNDS: u32 = 5;
/// The load's time to settle, and how long it is alone before each purge.
const SETTLE: Duration = Duration::from_secs(1);
const ALONE: Duration = Duration::from_secs(8);

/// The p99 of the load alone and beside a purge, in ms, and how long that took, in seconds.
struct Beside {
    alone: f64,
    purging: f64,
    worst: f64,
    seconds: f64,
}

pub(crate) async fn measure(ground: &Ground) -> Vec<Verdict> {
    let ways = [Way::Single, Way::Pgreeve, Way::Cron];
    let mut measured: Vec<Vec<Beside>> = ways.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (way, all) in ways.iter().zip(&mut measured) {
            all.push(beside(ground, *way).await);
        }
    }
    line("");
    line(&format!("beside {RATE} transactions a second on the same table"));
    line(&format!(
        "{:<46} {:>10} {:>12} {:>8} {:>10} {:>8}",
        "", "p99 alone", "p99 beside", "by it", "worst", "seconds"
    ));
    let middle = |all: &[Beside], of: fn(&Beside) -> f64| median(all.iter().map(of));
    for (way, all) in ways.iter().zip(&measured) {
        line(&format!(
            "{:<46} {:>7.1} ms {:>9.1} ms {:>8.2} {:>7.0} ms {:>8.2}",
            way.name(),
            middle(all, |beside| beside.alone),
            middle(all, |beside| beside.purging),
            middle(all, |beside| beside.purging / beside.alone),
            middle(all, |beside| beside.worst),
            middle(all, |beside| beside.seconds),
        ));
    }
    let (single, pgreeve) = (&measured[0], &measured[1]);
    let p99 = middle(pgreeve, |beside| beside.purging / beside.alone);
    let time = median(
        pgreeve
            .iter()
            .zip(single)
            .map(|(mine, unit)| mine.seconds / unit.seconds),
    );
    vec![
        Verdict::at_most(1.5, "beside a load: its p99 by its p99 alone", p99),
        Verdict::at_most(6.0, "beside a load: time by one DELETE beside it", time),
    ]
}

async fn beside(ground: &Ground, way: Way) -> Beside {
    let target = ground.copy().await;
    let load = Load::start(&target).await;
    tokio::time::sleep(SETTLE).await;
    let alone = SystemTime::now();
    tokio::time::sleep(ALONE).await;
    let began = SystemTime::now();
    let ran = way.run(&target).await;
    let ended = SystemTime::now();
    let samples = load.end().await;
    let within = |from: SystemTime, until: SystemTime| {
        let took = samples
            .iter()
            .filter(move |sample| sample.due >= from && sample.due < until);
        took.map(|sample| sample.took)
    };
    Beside {
        alone: p99(within(alone, began)),
        purging: p99(within(began, ended)),
        worst: within(began, ended).fold(0.0, f64::max),
        seconds: ran.seconds,
    }
}
