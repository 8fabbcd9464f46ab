//! How fast and how even: on an idle server, and with an old snapshot open.

use sqlx::{Connection, Executor};

use crate::figures::{Verdict, median};
use crate::ground::Ground;
use crate::line;
use crate::ways::{Watched, Way};

/// How often the quick ways are run; the slow ones are run once.
const ROUNDS: u32 = 3;

/// How one way went, over all rounds.
struct Row {
    way: Way,
    seconds: Vec<f64>,
    processor: Vec<f64>,
    runs: Vec<Watched>,
}

impl Row {
    fn of(rows: &[Self], way: Way) -> &Self {
        rows.iter().find(|row| row.way == way).unwrap()
    }

    /// The middle of what this way took by what another one took, round by round.
    fn by(&self, unit: &Self, of: impl Fn(&Self) -> &Vec<f64>) -> f64 {
        let (mine, units) = (of(self), of(unit));
        median(mine.iter().zip(units.iter().cycle()).map(|(mine, unit)| mine / unit))
    }

    fn longest(&self) -> (f64, f64) {
        let most = |of: fn(&Watched) -> f64| self.runs.iter().map(of).fold(0.0, f64::max);
        (most(|run| run.longest.0), most(|run| run.longest.1))
    }

    fn slope(&self) -> f64 {
        median(self.runs.iter().map(|run| run.ran.slope))
    }
}

pub(crate) async fn measure(ground: &Ground) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for pinned in [false, true] {
        line("");
        line(if pinned {
            "with an old snapshot open; by one DELETE with it"
        } else {
            "on an idle server; by one DELETE there"
        });
        line(&format!(
            "{:<46} {:>8} {:>8} {:>8} {:>12} {:>10} {:>6}",
            "", "seconds", "time", "server", "longest lock", "snapshot", "slope"
        ));
        let rows = rows(ground, pinned).await;
        let single = Row::of(&rows, Way::Single);
        for row in &rows {
            let (writing, reading) = row.longest();
            line(&format!(
                "{:<46} {:>8.2} {:>8.2} {:>8.2} {:>9.0} ms {:>7.0} ms {:>6.2}",
                row.way.name(),
                median(row.seconds.iter().copied()),
                row.by(single, |row| &row.seconds),
                row.by(single, |row| &row.processor),
                writing * 1000.0,
                reading * 1000.0,
                row.slope(),
            ));
        }
        verdicts.extend(judge(&rows, pinned));
    }
    verdicts
}

fn judge(rows: &[Row], pinned: bool) -> Vec<Verdict> {
    let (single, pgreeve) = (Row::of(rows, Way::Single), Row::of(rows, Way::Pgreeve));
    let (longest, time) = (pgreeve.longest().0 * 1000.0, pgreeve.by(single, |row| &row.seconds));
    if pinned {
        let ordered = Row::of(rows, Way::Ordered).by(pgreeve, |row| &row.seconds);
        vec![
            Verdict::at_most(1.15, "old snapshot: time by one DELETE", time),
            Verdict::at_least(5.0, "old snapshot: times faster than the ORDER BY ctid loop", ordered),
            Verdict::at_most(500.0, "old snapshot: longest transaction that locks, ms", longest),
            Verdict::at_most(
                2.0,
                "old snapshot: last tenth of the batches by the first",
                pgreeve.slope(),
            ),
        ]
    } else {
        vec![
            Verdict::at_most(1.15, "idle: time by one DELETE", time),
            Verdict::at_most(500.0, "idle: longest transaction that locks, ms", longest),
            Verdict::at_most(2.0, "idle: last tenth of the batches by the first", pgreeve.slope()),
        ]
    }
}

async fn rows(ground: &Ground, pinned: bool) -> Vec<Row> {
    let mut rows: Vec<Row> = [Way::Single, Way::Pgreeve, Way::Ordered, Way::Cron]
        .into_iter()
        .map(|way| Row {
            way,
            seconds: Vec::new(),
            processor: Vec::new(),
            runs: Vec::new(),
        })
        .collect();
    for round in 0..ROUNDS {
        for row in &mut rows {
            if round > 0 && !matches!(row.way, Way::Single | Way::Pgreeve) {
                continue;
            }
            let (watched, processor) = run(ground, row.way, pinned).await;
            row.seconds.push(watched.ran.seconds);
            row.processor.push(processor);
            row.runs.push(watched);
        }
    }
    rows
}

async fn run(ground: &Ground, way: Way, pinned: bool) -> (Watched, f64) {
    let target = ground.copy().await;
    let mut old = target.connect("pgreeve:old").await.unwrap();
    if pinned {
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
        old.execute("SELECT count(*) FROM pg_class").await.unwrap();
    }
    let before = ground.processor();
    let watched = way.watched(&target).await;
    let processor = ground.processor() - before;
    old.close().await.unwrap();
    (watched, processor)
}
