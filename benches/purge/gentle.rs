//! How gentle: what an application at work on the same table feels.

use std::time::{Duration, SystemTime};

use crate::figures::{Verdict, median, p99};
use crate::ground::Ground;
use crate::line;
use crate::load::{Load, RATE};
use crate::ways::Way;

/// How often each is run; of times the middle counts, of the load's times all.
const ROUNDS: u32 = 5;
/// The load's time to settle, and how long it is alone before each purge.
const SETTLE: Duration = Duration::from_secs(1);
const ALONE: Duration = Duration::from_secs(8);

/// What the load's transactions took alone and beside a way to purge, in ms, and how long that took each
/// time, in seconds.
#[derive(Default)]
struct Beside {
    alone: Vec<f64>,
    purging: Vec<f64>,
    seconds: Vec<f64>,
}

impl Beside {
    /// The p99 alone and beside.
    fn p99(&self) -> (f64, f64) {
        (p99(self.alone.iter().copied()), p99(self.purging.iter().copied()))
    }
}

pub(crate) async fn measure(ground: &Ground) -> Vec<Verdict> {
    let ways = [Way::Single, Way::Pgreeve, Way::Cron];
    let mut measured: Vec<Beside> = ways.iter().map(|_| Beside::default()).collect();
    for _ in 0..ROUNDS {
        for (way, all) in ways.iter().zip(&mut measured) {
            beside(ground, *way, all).await;
        }
    }
    line("");
    line(&format!(
        "beside {RATE} transactions a second on the same table; of all {ROUNDS} rounds"
    ));
    line(&format!(
        "{:<46} {:>10} {:>12} {:>8} {:>10} {:>8}",
        "", "p99 alone", "p99 beside", "by it", "worst", "seconds"
    ));
    for (way, all) in ways.iter().zip(&measured) {
        let (alone, purging) = all.p99();
        line(&format!(
            "{:<46} {alone:>7.1} ms {purging:>9.1} ms {:>8.2} {:>7.0} ms {:>8.2}",
            way.name(),
            purging / alone,
            all.purging.iter().copied().fold(0.0, f64::max),
            median(all.seconds.iter().copied()),
        ));
    }
    let (single, pgreeve) = (&measured[0], &measured[1]);
    let (alone, purging) = pgreeve.p99();
    let time = median(
        pgreeve
            .seconds
            .iter()
            .zip(&single.seconds)
            .map(|(mine, unit)| mine / unit),
    );
    vec![
        Verdict::at_most(1.5, "beside a load: its p99 by its p99 alone", purging / alone),
        Verdict::at_most(6.0, "beside a load: time by one DELETE beside it", time),
    ]
}

async fn beside(ground: &Ground, way: Way, all: &mut Beside) {
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
    all.alone.extend(within(alone, began));
    all.purging.extend(within(began, ended));
    all.seconds.push(ran.seconds);
}
