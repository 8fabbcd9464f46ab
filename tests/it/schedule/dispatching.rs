//! The dispatcher against a real ledger: what starts, what waits, what is given up.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use pgreeve::audit::AuditLog;
use pgreeve::job::{Exclusion, JobError, Kind};
use pgreeve::ledger::migrate;
use pgreeve::postgres::sqlstate::DatabaseError;
use pgreeve::runner::{RunnableJob, Runner, Stops};
use pgreeve::schedule::cron::Schedule;
use pgreeve::schedule::dispatcher::Dispatcher;
use pgreeve::schedule::policy::{Missed, Overlap};
use pgreeve::schedule::slots::ScheduledJob;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::support::Database;
use crate::support::bench::{Bench, Script, Scripted, green};
use crate::support::process::until;

/// A database whose jobs have a slot each minute.
struct Stage {
    database: Database,
    directory: TempDir,
    jobs: Vec<ScheduledJob>,
}

struct Show {
    stops: Stops,
    pokes: mpsc::Sender<()>,
    dispatcher: JoinHandle<()>,
}

impl Stage {
    async fn set_up() -> Self {
        let database = Database::create().await;
        migrate::apply(&database.target).await.unwrap();
        Self {
            database,
            directory: tempfile::tempdir().unwrap(),
            jobs: Vec::new(),
        }
    }

    /// Adds a job whose slots since `minutes` ago are due; it starts `delay` after its slot.
    async fn add(&mut self, job: RunnableJob, overlap: Overlap, delay: Duration, minutes: u32) {
        let sql = format!(
            "INSERT INTO pgreeve.schedule VALUES ('{}', '* * * * *', 'UTC',
                date_trunc('minute', now() - interval '{} s') - interval '{minutes} min')",
            job.name,
            delay.as_secs()
        );
        self.database.execute(&sql).await;
        let schedule = Schedule::parse("* * * * *", "UTC".parse().unwrap()).unwrap();
        let job = ScheduledJob::new(job, schedule, Missed::RunAll, Duration::from_hours(24));
        self.jobs.push(job.with(overlap, delay));
    }

    fn open(&mut self, max_runs: usize) -> Show {
        let audit = AuditLog::open(&self.directory.path().join("audit"), "stage").unwrap();
        let stops = Stops::default();
        let dispatcher = Dispatcher::new(
            "app".parse().unwrap(),
            self.database.target.clone(),
            "stage".to_owned(),
            std::mem::take(&mut self.jobs),
            Runner::new(audit.clone()),
            audit,
            stops.clone(),
        );
        let (pokes, receiver) = mpsc::channel(1);
        let dispatcher = dispatcher.within(max_runs, Duration::from_hours(24 * 400));
        let (_orders, commands) = tokio::sync::mpsc::channel(1);
        let dispatcher = tokio::spawn(dispatcher.run(receiver, commands));
        Show {
            stops,
            pokes,
            dispatcher,
        }
    }

    /// The slots of a job in order: outcome and reason.
    async fn slots(&self, job: &str) -> Vec<(String, String)> {
        sqlx::query_as(
            "SELECT coalesce(outcome, 'open'), coalesce(reason, '') FROM pgreeve.run WHERE job = $1 ORDER BY scheduled_for",
        )
        .bind(job)
        .fetch_all(&mut self.database.connect().await)
        .await
        .unwrap()
    }
}

impl Show {
    /// Pokes until a state holds.
    async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        until(what, async || {
            // A full channel has a poke waiting already.
            let _ = self.pokes.try_send(());
            holds().await
        })
        .await;
    }

    async fn close(self) {
        self.stops.soft.cancel();
        self.stops.hard.cancel();
        self.dispatcher.await.unwrap();
    }
}

fn quick() -> Arc<Script> {
    Arc::new(|_| Box::pin(async { Ok(green()) }))
}

fn sleeping() -> Arc<Script> {
    Arc::new(|context| {
        Box::pin(async move {
            sqlx::query("SELECT pg_sleep(3600)")
                .execute(context.session.connection())
                .await
                .map_err(|error| JobError::database("sleep", &DatabaseError::from(error)))?;
            Ok(green())
        })
    })
}

/// The first run waits to be let go; later ones are quick.
fn first_waits(go: &watch::Receiver<bool>) -> Arc<Script> {
    let go = go.clone();
    Arc::new(move |_| {
        let mut go = go.clone();
        Box::pin(async move {
            go.wait_for(|go| *go).await.unwrap();
            Ok(green())
        })
    })
}

/// A delay after which the next slot's start is `seconds` from now.
fn next_start_in(seconds: i64) -> Duration {
    let second = (Timestamp::now().as_second() + seconds).rem_euclid(60);
    Duration::from_secs(second.unsigned_abs())
}

#[tokio::test]
async fn a_slot_that_meets_a_run_is_skipped_queued_or_replaces_it() {
    let mut stage = Stage::set_up().await;
    let (go, gone) = watch::channel(false);
    let delay = next_start_in(8);
    let once_asleep = {
        let calls = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let (sleeping, quick) = (sleeping(), quick());
        let script: Arc<Script> = Arc::new(move |context| {
            let first = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            if first { sleeping(context) } else { quick(context) }
        });
        script
    };
    // Each has one slot due now, and the next one in a few seconds.
    for (name, overlap, script) in [
        ("skips", Overlap::Skip, first_waits(&gone)),
        ("queues", Overlap::QueueOne, first_waits(&gone)),
        ("replaces", Overlap::CancelRunning, once_asleep),
    ] {
        stage.add(Bench::job(name, script), overlap, delay, 1).await;
    }
    let show = stage.open(8);
    show.until("the second slots have rows", async || {
        let mut all = Vec::new();
        for job in ["skips", "queues", "replaces"] {
            all.push(stage.slots(job).await.len());
        }
        all == [2, 2, 2]
    })
    .await;
    let skipped = stage.slots("skips").await;
    assert_eq!((skipped[0].0.as_str(), skipped[1].0.as_str()), ("open", "skipped"));
    assert!(
        skipped[1].1.starts_with("overlap: run ") && skipped[1].1.contains("under way since"),
        "{skipped:?}"
    );
    assert_eq!(stage.slots("queues").await[1].0, "open");
    go.send(true).unwrap();
    show.until("all have ended", async || {
        let mut open = 0;
        for job in ["skips", "queues", "replaces"] {
            open += stage.slots(job).await.iter().filter(|slot| slot.0 == "open").count();
        }
        open == 0
    })
    .await;
    show.close().await;
    let outcomes = async |job: &str| {
        let slots = stage.slots(job).await;
        slots
            .into_iter()
            .map(|(outcome, _)| outcome)
            .take(2)
            .collect::<Vec<_>>()
    };
    assert_eq!(outcomes("skips").await, ["succeeded", "skipped"]);
    assert_eq!(outcomes("queues").await, ["succeeded", "succeeded"]);
    assert_eq!(outcomes("replaces").await, ["cancelled", "succeeded"]);
    let replaced = stage.slots("replaces").await;
    assert!(replaced[0].1.contains("cancelled by a newer slot"), "{replaced:?}");
}

#[tokio::test]
async fn a_slot_is_accounted_for_when_it_comes_due_and_not_at_the_next_beat() {
    let mut stage = Stage::set_up().await;
    let job = Bench::job("purge", quick());
    stage.add(job, Overlap::Skip, next_start_in(4), 0).await;
    let show = stage.open(4);
    show.until("it leads and knows its schedule", async || {
        let known = "SELECT EXISTS (SELECT 1 FROM pgreeve.leader WHERE instance = 'stage')";
        stage.database.value::<bool>(known).await
    })
    .await;
    // One beat that finds nothing due, and none after it.
    show.pokes.send(()).await.unwrap();
    until("the slot has run", async || {
        stage
            .slots("purge")
            .await
            .iter()
            .any(|(outcome, _)| outcome == "succeeded")
    })
    .await;
    show.close().await;
}

#[tokio::test]
async fn the_most_urgent_goes_first_when_there_is_room_for_one() {
    let mut stage = Stage::set_up().await;
    let order = Arc::new(Mutex::new(Vec::new()));
    for (name, kind) in [
        ("a-sweep", Kind::Transition),
        ("b-purge", Kind::Retention),
        ("c-dump", Kind::Backup),
    ] {
        let order = Arc::clone(&order);
        let script: Arc<Script> = Arc::new(move |context| {
            order.lock().unwrap().push(context.job.to_string());
            Box::pin(async { Ok(green()) })
        });
        let mut job = Bench::job(name, Arc::clone(&script));
        job.job = Arc::new(Scripted {
            kind,
            exclusions: vec![Exclusion::Snapshot],
            script,
        });
        stage.add(job, Overlap::Skip, next_start_in(50), 1).await;
    }
    let show = stage.open(1);
    show.until("all have run", async || order.lock().unwrap().len() >= 3)
        .await;
    show.close().await;
    assert_eq!(*order.lock().unwrap(), ["c-dump", "b-purge", "a-sweep"]);
}

#[tokio::test]
async fn a_run_that_waits_too_long_for_its_group_is_given_up() {
    let mut stage = Stage::set_up().await;
    let delay = next_start_in(50);
    for (name, script, limit) in [("daily", sleeping(), 60), ("weekly", quick(), 1)] {
        let mut job = Bench::job(name, script);
        job.sharing.groups = vec!["dumps".parse().unwrap()];
        job.sharing.start_deadline = Duration::from_secs(limit);
        stage.add(job, Overlap::Skip, delay, 1).await;
    }
    let show = stage.open(4);
    show.until("one is given up", async || {
        stage
            .slots("weekly")
            .await
            .first()
            .is_some_and(|slot| slot.0 == "skipped")
    })
    .await;
    assert_eq!(
        stage.slots("weekly").await[0].1,
        "start_deadline: waited 1 s for the group dumps, which daily has"
    );
    assert_eq!(stage.slots("daily").await[0].0, "open");
    show.close().await;
}

/// `pg_timetable` dropped a run when its channel was full, with a line in the log.
#[tokio::test]
async fn full_channel_drop() {
    let mut stage = Stage::set_up().await;
    stage
        .add(Bench::job("purge", quick()), Overlap::Skip, next_start_in(50), 7)
        .await;
    let show = stage.open(4);
    // Far more pokes than the channel holds, before the dispatcher has looked once.
    let lost = (0..500).filter(|_| show.pokes.try_send(()).is_err()).count();
    assert!(lost > 0, "the channel was never full");
    show.until("all have run", async || {
        let slots = stage.slots("purge").await;
        slots.len() >= 7 && slots.iter().all(|slot| slot.0 == "succeeded")
    })
    .await;
    show.close().await;
}
