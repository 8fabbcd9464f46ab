//! Every due slot has exactly one row, whatever stops, starts and clocks do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pgreeve::job::{Outcome, Trigger};
use pgreeve::ledger::leader::{Campaign, Leader};
use pgreeve::ledger::runs::{self, RunEnd};
use pgreeve::ledger::{attempts, forgotten};
use pgreeve::schedule::cron::Schedule;
use pgreeve::schedule::due;
use pgreeve::schedule::marks::{first_seen, rewind};
use pgreeve::schedule::policy::Missed;
use pgreeve::schedule::recovery::recover;
use pgreeve::schedule::rows::{Admission, Writer};
use pgreeve::schedule::slots::ScheduledJob;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::support::bench::{Bench, green};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn job(name: &str, schedule: &str, zone: &str, missed: Missed) -> ScheduledJob {
    let runnable = Bench::job(name, Arc::new(|_| Box::pin(async { Ok(green()) })));
    let schedule = Schedule::parse(schedule, zone.parse().unwrap()).unwrap();
    ScheduledJob::new(runnable, schedule, missed, Duration::from_hours(2))
}

/// A daemon starts: what it knows of the job is in the ledger.
async fn start(bench: &mut Bench, job: ScheduledJob, now: Timestamp) -> ScheduledJob {
    let mut jobs = vec![job];
    first_seen(bench.lead.connection(), &mut jobs, &bench.audit, now)
        .await
        .unwrap();
    jobs.remove(0)
}

/// Has the rows of all due slots written; answers which runs may start.
async fn admit(bench: &mut Bench, job: &mut ScheduledJob, now: Timestamp) -> Vec<Admission> {
    let mut admitted = Vec::new();
    rewind(bench.lead.connection(), job, &bench.audit, now).await.unwrap();
    loop {
        let (decision, until) = job.due_until(now);
        if decision.is_empty() {
            return admitted;
        }
        let term = bench.lead.term.clone();
        let writer = Writer {
            audit: &bench.audit,
            instance: "bench",
            term: &term,
            job,
        };
        let more = writer
            .write(bench.lead.connection(), decision, Vec::new(), None, until)
            .await
            .unwrap();
        admitted.extend(more);
    }
}

/// One beat: rows are written, and what may start runs to a green end.
async fn beat(bench: &mut Bench, job: &mut ScheduledJob, now: Timestamp) -> Vec<Timestamp> {
    let mut ran = Vec::new();
    for admission in admit(bench, job, now).await {
        let end = RunEnd::without_report(Outcome::Succeeded, "");
        runs::finish(bench.lead.connection(), admission.run, &end)
            .await
            .unwrap();
        ran.push(admission.scheduled_for);
    }
    ran
}

/// The process is gone, and another one leads.
async fn take_over(bench: &mut Bench) {
    let sessions = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name LIKE 'pgreeve:leader:%'";
    bench.database.execute(sessions).await;
    let Campaign::Won(lead) = Leader::campaign(&bench.database.target, "bench", None).await.unwrap() else {
        panic!("nobody else leads")
    };
    bench.lead = lead;
    recover(&mut bench.lead, &bench.audit, &bench.database.name)
        .await
        .unwrap();
}

/// A job's rows: slot, outcome, zone.
async fn rows(bench: &Bench, job: &str) -> Vec<(Timestamp, String, String)> {
    let sql = "SELECT to_char(scheduled_for AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), coalesce(outcome, 'open'), timezone
               FROM pgreeve.run WHERE job = $1 ORDER BY scheduled_for";
    let rows: Vec<(String, String, String)> = sqlx::query_as(sql)
        .bind(job)
        .fetch_all(&mut bench.database.connect().await)
        .await
        .unwrap();
    rows.into_iter()
        .map(|(slot, outcome, zone)| (at(&slot), outcome, zone))
        .collect()
}

#[tokio::test]
async fn a_changed_schedule_leaves_no_slot_of_the_old_one_behind_and_begins_at_the_change() {
    let mut bench = Bench::set_up().await;
    let mut old = start(
        &mut bench,
        job("purge", "0 * * * *", "UTC", Missed::RunOnce),
        at("2026-06-01T00:30:00Z"),
    )
    .await;
    assert_eq!(
        beat(&mut bench, &mut old, at("2026-06-01T01:00:10Z")).await,
        [at("2026-06-01T01:00:00Z")]
    );
    // Down from 01:00 to 04:30, and another zone and schedule then.
    let changed = at("2026-06-01T04:30:00Z");
    let mut new = start(
        &mut bench,
        job("purge", "0,45 * * * *", "Asia/Kathmandu", Missed::RunAll),
        changed,
    )
    .await;
    assert_eq!(beat(&mut bench, &mut new, changed).await, Vec::<Timestamp>::new());
    assert_eq!(
        beat(&mut bench, &mut new, at("2026-06-01T05:00:01Z")).await,
        [at("2026-06-01T05:00:00Z")]
    );
    let expected = [
        ("2026-06-01T01:00:00Z", "succeeded", "UTC"),
        ("2026-06-01T02:00:00Z", "missed", "UTC"),
        ("2026-06-01T03:00:00Z", "missed", "UTC"),
        ("2026-06-01T04:00:00Z", "missed", "UTC"),
        ("2026-06-01T05:00:00Z", "succeeded", "Asia/Kathmandu"),
    ];
    let expected = expected.map(|(slot, outcome, zone)| (at(slot), outcome.to_owned(), zone.to_owned()));
    assert_eq!(rows(&bench, "purge").await, expected);
    let reason: String = bench
        .database
        .value("SELECT DISTINCT reason FROM pgreeve.run WHERE outcome = 'missed'")
        .await;
    assert!(reason.contains("\"0 * * * *\" in UTC"), "{reason}");
    // A restart with the same meaning, spelt otherwise, is no change.
    let mut again = start(
        &mut bench,
        job("purge", "0,45  * * * *", "Asia/Kathmandu", Missed::RunAll),
        at("2026-06-01T05:20:00Z"),
    )
    .await;
    assert_eq!(
        beat(&mut bench, &mut again, at("2026-06-01T05:20:00Z")).await,
        [at("2026-06-01T05:15:00Z")]
    );
}

#[tokio::test]
async fn a_crash_while_old_slots_are_written_goes_on_where_it_was() {
    let mut bench = Bench::set_up().await;
    let minutes = i64::try_from(pgreeve::schedule::slots::CHUNK).unwrap() + 10;
    let begin = at("2026-06-01T00:00:00Z");
    start(&mut bench, job("purge", "* * * * *", "UTC", Missed::RunOnce), begin).await;
    let changed = begin + SignedDuration::from_mins(minutes);
    let mut new = start(&mut bench, job("purge", "@daily", "UTC", Missed::RunOnce), changed).await;
    let (decision, until) = new.due_until(changed);
    assert!(until < changed);
    let term = bench.lead.term.clone();
    let writer = Writer {
        audit: &bench.audit,
        instance: "bench",
        term: &term,
        job: &mut new,
    };
    writer
        .write(bench.lead.connection(), decision, Vec::new(), None, until)
        .await
        .unwrap();
    // The process dies here.
    let mut again = start(&mut bench, job("purge", "@daily", "UTC", Missed::RunOnce), changed).await;
    assert_eq!(beat(&mut bench, &mut again, changed).await, Vec::<Timestamp>::new());
    let all = rows(&bench, "purge").await;
    assert_eq!(i64::try_from(all.len()).unwrap(), minutes);
    assert!(all.iter().all(|(_, outcome, _)| outcome == "missed"));
    assert_eq!(
        bench
            .database
            .value::<String>("SELECT schedule FROM pgreeve.schedule")
            .await,
        "@daily"
    );
}

#[tokio::test]
async fn a_clock_set_back_runs_nothing_twice_and_loses_nothing() {
    let mut bench = Bench::set_up().await;
    let mut minutely = start(
        &mut bench,
        job("purge", "*/10 * * * *", "UTC", Missed::RunOnce),
        at("2026-06-01T00:05:00Z"),
    )
    .await;
    let mut ran = Vec::new();
    for time in ["00:10:01", "00:20:01", "00:30:01"] {
        ran.extend(beat(&mut bench, &mut minutely, at(&format!("2026-06-01T{time}Z"))).await);
    }
    // Back by 25 minutes, then on.
    for time in ["00:05:02", "00:10:01", "00:20:01", "00:30:01", "00:40:01"] {
        ran.extend(beat(&mut bench, &mut minutely, at(&format!("2026-06-01T{time}Z"))).await);
    }
    let expected = ["00:10", "00:20", "00:30", "00:40"].map(|time| at(&format!("2026-06-01T{time}:00Z")));
    assert_eq!(ran, expected);
    assert!(
        bench
            .audit_records()
            .iter()
            .any(|record| record["kind"] == "clock.jump")
    );
}

#[tokio::test]
async fn a_clock_that_ran_a_year_ahead_does_not_silence_the_year() {
    let mut bench = Bench::set_up().await;
    let now = Timestamp::now();
    let daily = || job("purge", "@daily", "UTC", Missed::RunOnce);
    start(&mut bench, daily(), now).await;
    // The host starts with a clock a year ahead: all slots until then are called missed.
    let ahead = now + SignedDuration::from_hours(24 * 365);
    let mut wrong = start(&mut bench, daily(), ahead).await;
    beat(&mut bench, &mut wrong, ahead).await;
    assert!(rows(&bench, "purge").await.len() >= 364);
    // The clock is set right; each day's slot runs when it comes.
    let mut right = start(&mut bench, daily(), now).await;
    let schedule = Schedule::parse("@daily", "UTC".parse().unwrap()).unwrap();
    for slot in schedule.between(now, Timestamp::MAX).take(3) {
        let seen = slot.scheduled_for + SignedDuration::from_secs(1);
        assert_eq!(beat(&mut bench, &mut right, seen).await, [slot.scheduled_for]);
    }
}

/// Beats at these seconds after the start, and before which of them the daemon starts anew.
type Beats = Vec<(i64, bool)>;

fn beats() -> impl Strategy<Value = Beats> {
    let gap = prop_oneof![4 => 1_i64..50, 2 => 50_i64..400, 1 => 400_i64..20_000];
    prop::collection::vec((gap, any::<bool>()), 1..12)
}

fn schedules() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop::sample::select(SCHEDULES.to_vec())
}

fn policies() -> impl Strategy<Value = Missed> {
    prop::sample::select(vec![Missed::Skip, Missed::RunOnce, Missed::RunAll])
}

/// Shortly before New York's clocks go back.
const BEGIN: &str = "2026-11-01T04:58:17Z";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_pattern_of_downtime_and_restarts_leaves_one_row_for_each_slot() {
    let mut bench = Bench::set_up().await;
    let strategy = (beats(), schedules(), policies());
    let mut runner = TestRunner::deterministic();
    for case in 0..24 {
        let (beats, (text, zone), missed) = strategy.new_tree(&mut runner).unwrap().current();
        let (steady, restarted) = (format!("steady-{case}"), format!("restarted-{case}"));
        let mut sets = Vec::new();
        let mut end = at(BEGIN);
        for (name, restarts) in [(&steady, false), (&restarted, true)] {
            let mut now = at(BEGIN);
            let mut scheduled = start(&mut bench, job(name, text, zone, missed), now).await;
            let mut ran = Vec::new();
            for (gap, restart) in &beats {
                now += SignedDuration::from_secs(*gap);
                if restarts && *restart {
                    scheduled = start(&mut bench, job(name, text, zone, missed), now).await;
                }
                ran.extend(beat(&mut bench, &mut scheduled, now).await);
            }
            sets.push(ran);
            end = now;
        }
        assert_eq!(sets[0], sets[1], "{text} {missed:?} {beats:?}");
        let schedule = Schedule::parse(text, zone.parse().unwrap()).unwrap();
        let due: Vec<Timestamp> = schedule
            .between(at(BEGIN), end)
            .map(|slot| slot.scheduled_for)
            .collect();
        let rows = rows(&bench, &restarted).await;
        let slots: Vec<Timestamp> = rows.iter().map(|(slot, ..)| *slot).collect();
        assert_eq!(slots, due, "{text} {missed:?} {beats:?}");
        let ran: Vec<Timestamp> = rows
            .iter()
            .filter(|row| row.1 == "succeeded")
            .map(|row| row.0)
            .collect();
        assert_eq!(ran, sets[1]);
        assert!(rows.iter().all(|row| row.1 == "succeeded" || row.1 == "missed"));
    }
}

/// What happens to a daemon after it was left alone for a while: that it sleeps with its host is
/// nothing but the while.
#[derive(Debug, Clone)]
enum Event {
    Awake,
    Restart,
    /// `kill -9` after the rows of due runs were committed, and before or after the runs began.
    Kill {
        begun: bool,
    },
    /// One of [`SCHEDULES`] from now on.
    Reload(usize),
}

const SCHEDULES: [(&str, &str); 4] = [
    ("* * * * *", "UTC"),
    ("*/5 * * * *", "America/New_York"),
    ("30 1 * * *", "America/New_York"),
    ("7,38 * * * *", "Europe/London"),
];

fn events() -> impl Strategy<Value = Vec<(i64, Event)>> {
    let gap = prop_oneof![4 => 1_i64..90, 2 => 50_i64..400, 1 => 400_i64..20_000];
    let event = prop_oneof![
        Just(Event::Awake),
        Just(Event::Restart),
        any::<bool>().prop_map(|begun| Event::Kill { begun }),
        (0..SCHEDULES.len()).prop_map(Event::Reload),
    ];
    prop::collection::vec((gap, event), 1..14)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_pattern_of_downtime_kills_sleep_and_reloads_leaves_one_ended_row_for_each_slot() {
    let mut bench = Bench::set_up().await;
    let mut runner = TestRunner::deterministic();
    let mut ends = BTreeSet::new();
    for case in 0..24 {
        let (events, missed) = (events(), policies()).new_tree(&mut runner).unwrap().current();
        let name = format!("job-{case}");
        let schedule = |index: usize| Schedule::parse(SCHEDULES[index].0, SCHEDULES[index].1.parse().unwrap()).unwrap();
        let as_of = |index: usize| job(&name, SCHEDULES[index].0, SCHEDULES[index].1, missed);
        let (mut now, mut since, mut in_force) = (at(BEGIN), at(BEGIN), 0);
        let mut scheduled = start(&mut bench, as_of(in_force), now).await;
        let mut due: Vec<Timestamp> = Vec::new();
        for (gap, event) in &events {
            now += SignedDuration::from_secs(*gap);
            match event {
                Event::Awake => {}
                Event::Restart => scheduled = start(&mut bench, as_of(in_force), now).await,
                Event::Kill { begun } => {
                    for admission in admit(&mut bench, &mut scheduled, now).await {
                        if *begun {
                            let fence = bench.lead.term.fence;
                            attempts::begin(bench.lead.connection(), fence, admission.run, 1, 1)
                                .await
                                .unwrap();
                        }
                    }
                    take_over(&mut bench).await;
                    scheduled = start(&mut bench, as_of(in_force), now).await;
                }
                Event::Reload(index) => {
                    due.extend(schedule(in_force).between(since, now).map(|slot| slot.scheduled_for));
                    (in_force, since) = (*index, now);
                    scheduled = start(&mut bench, as_of(in_force), now).await;
                }
            }
            beat(&mut bench, &mut scheduled, now).await;
        }
        due.extend(schedule(in_force).between(since, now).map(|slot| slot.scheduled_for));
        let rows = rows(&bench, &name).await;
        let slots: Vec<Timestamp> = rows.iter().map(|(slot, ..)| *slot).collect();
        assert_eq!(slots, due, "{missed:?} {events:?}");
        assert!(
            rows.iter().all(|(_, outcome, _)| outcome != "open"),
            "{missed:?} {events:?}"
        );
        ends.extend(rows.into_iter().map(|(_, outcome, _)| outcome));
    }
    let ends: Vec<&str> = ends.iter().map(String::as_str).collect();
    assert_eq!(
        ends,
        ["abandoned", "missed", "succeeded"],
        "the patterns reach every end"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// The same of the decisions alone, with many more patterns.
    #[test]
    fn every_due_slot_is_decided_about_once(beats in beats(), (text, zone) in schedules(), missed in policies()) {
        let schedule = Schedule::parse(text, zone.parse().unwrap()).unwrap();
        let (mut mark, mut now) = (at(BEGIN), at(BEGIN));
        let (mut ran, mut unrun) = (BTreeSet::new(), BTreeSet::new());
        for (gap, _) in beats {
            now += SignedDuration::from_secs(gap);
            let decision = due::decide(schedule.between(mark, now).collect(), now, missed, Duration::from_hours(2));
            for (slot, trigger) in decision.run {
                let late = slot.scheduled_for.duration_until(now);
                prop_assert_eq!(trigger == Trigger::Schedule, late <= SignedDuration::from_mins(1) && ran.last() < Some(&slot.scheduled_for) && schedule.next_after(slot.scheduled_for).is_none_or(|next| next.scheduled_for > now));
                prop_assert!(ran.insert(slot.scheduled_for));
            }
            for (slot, reason) in decision.missed {
                prop_assert!(unrun.insert(slot.scheduled_for) && !reason.is_empty());
            }
            mark = now;
        }
        let due: BTreeSet<Timestamp> = schedule.between(at(BEGIN), now).map(|slot| slot.scheduled_for).collect();
        prop_assert!(ran.is_disjoint(&unrun));
        prop_assert_eq!(ran.union(&unrun).copied().collect::<BTreeSet<_>>(), due);
    }
}

/// `pg_timetable` asked "does this minute match": a look at :58.4 whose successor came at :00.9 of the
/// minute after next lost the one between (its issues 160 and 690).
#[tokio::test]
async fn boundary_minute_160_690() {
    let mut bench = Bench::set_up().await;
    let mut minutely = start(
        &mut bench,
        job("purge", "* * * * *", "UTC", Missed::Skip),
        at("2026-06-01T11:59:30Z"),
    )
    .await;
    let mut ran = Vec::new();
    for beat_at in [
        "11:59:58.4",
        "12:00:00",
        "12:00:00.9",
        "12:00:58.4",
        "12:01:00.9",
        "12:01:58.4",
        "12:02:58.4",
        "12:03:00.000000001",
        "12:03:00.9",
    ] {
        ran.extend(beat(&mut bench, &mut minutely, at(&format!("2026-06-01T{beat_at}Z"))).await);
    }
    let minutes = ["12:00", "12:01", "12:02", "12:03"].map(|minute| at(&format!("2026-06-01T{minute}:00Z")));
    assert_eq!(ran, minutes, "each ran once");
    let rows: Vec<Timestamp> = rows(&bench, "purge").await.into_iter().map(|row| row.0).collect();
    assert_eq!(rows, minutes);
}

#[tokio::test]
async fn the_ledger_forgets_what_is_old_but_not_the_newest_run_of_a_job() {
    let mut bench = Bench::set_up().await;
    bench
        .database
        .execute(
            "INSERT INTO pgreeve.run (run_id, job, kind, timezone, trigger, actor, instance, epoch, policy, attempt, created_at, finished_at, outcome)
             SELECT gen_random_uuid(), job, 'backup', 'UTC', 'manual', 'a', 'i', 0, 'p', 1, now() - age, CASE WHEN job <> 'open' THEN now() END, CASE WHEN job <> 'open' THEN 'succeeded' END
             FROM (VALUES ('busy', interval '401 days'), ('busy', '400 days 1 hour'), ('busy', '399 days 23 hours'), ('busy', '1 day'),
                          ('dormant', '900 days'), ('dormant', '800 days'), ('open', '500 days'), ('open', '450 days')) v (job, age);
             INSERT INTO pgreeve.run_attempt (run_id, attempt, started_at) SELECT run_id, 1, created_at FROM pgreeve.run;
             INSERT INTO pgreeve.run_batch (run_id, seq, relation, rows, low, high, milliseconds) SELECT run_id, 1, 't', 1, '', '', 1 FROM pgreeve.run",
        )
        .await;
    let keep = Duration::from_hours(24 * 400);
    let term = bench.lead.term.clone();
    let connection = bench.lead.connection();
    let due = forgotten::due(connection, keep).await.unwrap().unwrap();
    assert_eq!(due.runs, 3);
    assert_eq!(forgotten::forget(connection, &term, due.cutoff).await.unwrap(), 3);
    forgotten::note(connection, &term, "bench", &due).await.unwrap();
    assert_eq!(forgotten::due(connection, keep).await.unwrap(), None, "once a day");
    let left: Vec<(String, i64)> = sqlx::query_as("SELECT job, count(*) FROM pgreeve.run GROUP BY 1 ORDER BY 1")
        .fetch_all(&mut *connection)
        .await
        .unwrap();
    let expected = [("busy", 2), ("dormant", 1), ("open", 2)].map(|(job, runs)| (job.to_owned(), runs));
    assert_eq!(left, expected);
    for table in ["run_attempt", "run_batch"] {
        let sql = format!("SELECT count(*) FROM pgreeve.{table}");
        assert_eq!(bench.database.value::<i64>(&sql).await, 5);
    }
}
