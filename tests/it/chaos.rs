//! Two daemons on one database while everything around them breaks: processes are stopped and
//! killed, sessions ended, packets lost. In the end, by what the jobs' own statements left in the
//! database: no slot ran twice, none is lost, and nobody wrote whose epoch was over.
//!
//! Packets are lost in a proxy of our own, which lets nothing through, or nothing of one direction,
//! while both ends hold their connections: what a firewall's DROP does, without its privileges.

#![expect(clippy::print_stdout, reason = "the seed and the counts are part of the result")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pgreeve::ledger::leader::{Fence, FenceError};
use rustix::process::Signal;
use sqlx::Connection;

use crate::support::pg_proxy::{Frozen, PgProxy};
use crate::support::process::{Daemon, Host, until, until_within};
use crate::support::{Database, cluster};

const JOBS: [&str; 2] = ["purge-a", "purge-b"];

/// How long whoever hangs must do so for the other to take over: longer than a lease.
const LONG: (u64, u64) = (33_000, 45_000);

/// Pseudo-random, so that a seed repeats the order of the faults.
struct Dice {
    state: u64,
    /// Whether a pause may be a [`LONG`] one.
    patient: bool,
}

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % limit
    }

    fn millis(&mut self, (from, to): (u64, u64)) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }

    /// Short mostly; now and then so long that the other takes over.
    fn pause(&mut self) -> Duration {
        let long = self.below(12) == 0 && self.patient;
        self.millis(if long { LONG } else { (200, 4000) })
    }
}

/// What is done to a side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Stop,
    Kill,
    EndLeader,
    EndWorker,
    EndControl,
    Cut,
    DropAll,
    DropAnswers,
    DropRequests,
    Replace,
}

const FAULTS: [Fault; 12] = [
    Fault::Stop,
    Fault::Stop,
    Fault::Kill,
    Fault::EndLeader,
    Fault::EndWorker,
    Fault::EndWorker,
    Fault::EndControl,
    Fault::Cut,
    Fault::DropAll,
    Fault::DropAnswers,
    Fault::DropRequests,
    Fault::Replace,
];

/// A host, its way to the server, and its daemon.
struct Side {
    instance: &'static str,
    host: Host,
    proxy: PgProxy,
    daemon: Option<Daemon>,
}

impl Drop for Side {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(40).collect();
            println!("the last of daemon {}:", self.instance);
            last.iter().rev().for_each(|line| println!("{line}"));
        }
    }
}

impl Side {
    async fn new(instance: &'static str, database: &str) -> Self {
        let socket = cluster().await.directory().join(".s.PGSQL.5432");
        let proxy = PgProxy::start(socket).await;
        let schedules = [("*", "run_all"), ("*/2", "run_once")];
        let jobs = JOBS.iter().zip(schedules).map(|(job, (every, missed))| {
            let table = job.replace('-', "_");
            format!(
                "[jobs.{job}]\nschedule = \"{every} * * * * *\"\napproval = \"none\"\nmissed = \"{missed}\"\nrun_timeout = \"20s\"\nretention = {{ table = \"{table}\", age_column = \"created_at\", keep = \"90d\", max_fraction = 1 }}\n"
            )
        });
        let jobs: String = jobs.collect();
        let config = format!("[databases.app]\nurl = \"{}\"\n{jobs}", proxy.url(database));
        let host = Host::named(instance, &config);
        Self {
            instance,
            host,
            proxy,
            daemon: None,
        }
    }

    fn start(&mut self) {
        self.daemon = Some(self.host.daemon_with(|command| {
            command.env("PGREEVE_DEMO_SECONDS", "1");
        }));
    }

    fn kill(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    fn signal(&self, signal: Signal) {
        self.daemon.as_ref().unwrap().signal(signal);
    }

    fn stop(&mut self) {
        assert_eq!(self.daemon.take().unwrap().stop(), 0);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.host.path("daemon.log")).unwrap_or_default()
    }

    async fn lead(&mut self) {
        let before = self.log().len();
        self.start();
        until("it leads", async || {
            self.log()
                .get(before..)
                .is_some_and(|new| new.contains("leading the database"))
        })
        .await;
    }

    async fn suffer(&mut self, fault: Fault, database: &Database, dice: &mut Dice) {
        match fault {
            Fault::Stop => {
                self.signal(Signal::STOP);
                tokio::time::sleep(dice.pause()).await;
                self.signal(Signal::CONT);
            }
            Fault::Kill => {
                self.kill();
                tokio::time::sleep(dice.millis((0, 2000))).await;
                self.start();
            }
            Fault::Replace => {
                self.stop();
                self.start();
            }
            Fault::EndLeader => terminate(database, "pgreeve:leader:").await,
            Fault::EndWorker => terminate(database, "pgreeve:purge-").await,
            // Whatever else it has: it closes, cancels, looks and listens on sessions of their own.
            Fault::EndControl => terminate(database, "pgreeve:").await,
            Fault::Cut => self.proxy.cut(),
            Fault::DropAll => self.freeze(Frozen::Both, dice).await,
            Fault::DropAnswers => self.freeze(Frozen::Answers, dice).await,
            Fault::DropRequests => self.freeze(Frozen::Requests, dice).await,
        }
    }

    async fn freeze(&self, what: Frozen, dice: &mut Dice) {
        self.proxy.freeze(what);
        tokio::time::sleep(dice.pause()).await;
        self.proxy.freeze(Frozen::Nothing);
    }
}

/// What each deleted row leaves behind is written by the statement that deletes it.
async fn tables() -> Database {
    let database = Database::create().await;
    database
        .execute(
            "CREATE TABLE effect (session text NOT NULL, epoch bigint NOT NULL, job text NOT NULL, id bigint NOT NULL,
                                  at timestamptz NOT NULL DEFAULT clock_timestamp())",
        )
        .await;
    for job in JOBS {
        let table = job.replace('-', "_");
        database
            .execute(&format!(
                "CREATE TABLE {table} (id bigserial PRIMARY KEY, created_at timestamptz NOT NULL);
                 CREATE INDEX ON {table} (created_at);
                 CREATE FUNCTION {table}_gone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     INSERT INTO public.effect (session, epoch, job, id)
                         SELECT current_setting('application_name'), (SELECT epoch FROM pgreeve.leader), '{job}', id FROM gone;
                     PERFORM pg_sleep(random() * 0.3);
                     RETURN NULL; END $$;
                 CREATE TRIGGER gone AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone
                     FOR EACH STATEMENT EXECUTE FUNCTION {table}_gone()"
            ))
            .await;
    }
    database
}

/// Rows come due all the time; so few that a long pause is no surge to the jobs' brakes, and young
/// ones among them, which show that the clock did not jump.
async fn feed(database: &Database, done: &AtomicBool) {
    let mut connection = database.connect().await;
    while !done.load(Ordering::Relaxed) {
        sqlx::raw_sql(
            "INSERT INTO purge_a (created_at) SELECT now() - days * interval '1 day' FROM unnest(ARRAY[0, 100, 101]) days;
             INSERT INTO purge_b (created_at) SELECT now() - days * interval '1 day' FROM unnest(ARRAY[0, 100]) days",
        )
        .execute(&mut connection)
        .await
        .unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Ends one of pgreeve's server processes, whichever it is.
async fn terminate(database: &Database, kind: &str) {
    database
        .execute(&format!(
            "WITH victim AS MATERIALIZED (SELECT pid FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name LIKE '{kind}%' ORDER BY random() LIMIT 1)
             SELECT pg_terminate_backend(pid) FROM victim"
        ))
        .await;
}

/// The leader stands still for longer than its lease, the other takes over, and then it goes on:
/// what it writes by its old right is rolled back.
async fn revive_an_old_leader(sides: &mut [Side; 2], database: &Database) {
    let epoch = "SELECT epoch FROM pgreeve.leader";
    let old: i64 = database.value(epoch).await;
    let name: String = database.value("SELECT instance FROM pgreeve.leader").await;
    let leader = sides.iter().find(|side| side.instance == name).unwrap();
    leader.signal(Signal::STOP);
    // A lease, then a campaign, which may wait a minute for answers and begins anew.
    until_within(Duration::from_mins(3), "the other leads", async || {
        database.value::<i64>(epoch).await > old
    })
    .await;
    leader.signal(Signal::CONT);
    let mut connection = database.connect().await;
    let mut transaction = connection.begin().await.unwrap();
    let refused = Fence { epoch: old }.hold(&mut transaction).await.unwrap_err();
    assert!(matches!(refused, FenceError::Superseded(_)), "{refused}");
    transaction.rollback().await.unwrap();
}

async fn break_things(sides: &mut [Side; 2], database: &Database, dice: &mut Dice, until: Instant) {
    let mut count = BTreeMap::new();
    while Instant::now() < until {
        let fault = FAULTS[usize::try_from(dice.below(12)).unwrap()];
        let side = &mut sides[usize::try_from(dice.below(2)).unwrap()];
        *count.entry(fault).or_insert(0) += 1;
        side.suffer(fault, database, dice).await;
        tokio::time::sleep(dice.millis((200, 1500))).await;
    }
    println!("faults: {count:?}");
}

async fn chaos(duration: Duration, patient: bool) {
    let asked = std::env::var("CHAOS_SEED").map(|seed| seed.parse().unwrap());
    let seed: u64 = asked.unwrap_or_else(|_| {
        u64::from(std::process::id()) * 0x9e37_79b9
            + u64::from(jiff::Timestamp::now().subsec_nanosecond().unsigned_abs())
    });
    println!("CHAOS_SEED={seed}");
    let mut dice = Dice {
        state: seed | 1,
        patient,
    };
    let database = tables().await;
    let mut sides = [
        Side::new("one", &database.name).await,
        Side::new("two", &database.name).await,
    ];
    sides[0].lead().await;
    sides[1].start();
    let done = AtomicBool::new(false);
    let end = Instant::now() + duration;
    let breaking = async {
        until("the second follows", async || sides[1].log().contains("following")).await;
        revive_an_old_leader(&mut sides, &database).await;
        break_things(&mut sides, &database, &mut dice, end).await;
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(feed(&database, &done), breaking);
    // All is well again; each of them leads once more alone and closes what it knows of.
    for side in &mut sides {
        side.stop();
    }
    for side in &mut sides {
        side.lead().await;
        side.stop();
    }
    verify_the_database(&database).await;
    verify_the_records(&sides);
}

/// Each is a count of what must not be.
const BROKEN: [(&str, &str); 12] = [
    ("rows deleted twice", "SELECT count(*) - count(DISTINCT (job, id)) FROM effect"),
    (
        "rows neither there nor accounted for",
        "SELECT abs((SELECT last_value FROM purge_a_id_seq) + (SELECT last_value FROM purge_b_id_seq)
            - (SELECT count(*) FROM effect) - (SELECT count(*) FROM purge_a) - (SELECT count(*) FROM purge_b))",
    ),
    (
        "rows that the ledger does not know",
        "SELECT abs((SELECT count(*) FROM effect) - (SELECT coalesce(sum(rows), 0) FROM pgreeve.run_batch))::bigint",
    ),
    (
        "runs that acted and whose slot says that it did not run",
        "SELECT count(*) FROM acted LEFT JOIN pgreeve.run r ON r.run_id = run WHERE coalesce(r.outcome, 'missed') IN ('missed', 'skipped')",
    ),
    (
        "writes of an epoch that was over",
        "SELECT count(*) FROM acted JOIN pgreeve.run r ON r.run_id = run WHERE acted.epoch <> r.epoch",
    ),
    (
        "writes of a run that was closed",
        "SELECT count(*) FROM acted JOIN pgreeve.run r ON r.run_id = run WHERE acted.last > r.finished_at",
    ),
    (
        "runs of one job that overlapped",
        "SELECT count(*) FROM (SELECT first < lag(last) OVER (PARTITION BY job ORDER BY first) AS early FROM acted) o WHERE early",
    ),
    ("slots without an end", "SELECT count(*) FROM pgreeve.run WHERE outcome IS NULL"),
    (
        "slots that ended without a reason and are not green",
        "SELECT count(*) FROM pgreeve.run WHERE outcome <> 'succeeded' AND coalesce(reason, '') = ''",
    ),
    (
        "slots without a row",
        "SELECT count(*) FROM (SELECT job, scheduled_for - lag(scheduled_for) OVER (PARTITION BY job ORDER BY scheduled_for) AS step
            FROM pgreeve.run) s WHERE step <> CASE job WHEN 'purge-a' THEN interval '1 s' ELSE interval '2 s' END",
    ),
    (
        "schedules that were evaluated further than their rows",
        "SELECT count(*) FROM pgreeve.schedule s WHERE s.evaluated_until - (SELECT max(scheduled_for) FROM pgreeve.run r WHERE r.job = s.job)
            >= CASE s.job WHEN 'purge-a' THEN interval '1 s' ELSE interval '2 s' END",
    ),
    (
        "sessions that were left behind",
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgreeve:%'",
    ),
];

async fn verify_the_database(database: &Database) {
    database
        .execute(
            "CREATE VIEW acted AS SELECT split_part(session, ':', 3)::uuid AS run, epoch, job, min(at) AS first, max(at) AS last
             FROM effect GROUP BY session, epoch, job",
        )
        .await;
    let count = async |sql: &str| database.value::<i64>(sql).await;
    let effects = count("SELECT count(*) FROM effect").await;
    let runs = count("SELECT count(DISTINCT run) FROM acted").await;
    let slots = count("SELECT count(*) FROM pgreeve.run").await;
    let outcomes: Vec<String> =
        sqlx::query_scalar("SELECT outcome || ' ' || count(*) FROM pgreeve.run GROUP BY outcome ORDER BY 1")
            .fetch_all(&mut database.connect().await)
            .await
            .unwrap();
    let epochs = count("SELECT epoch & 4294967295 FROM pgreeve.leader").await;
    let reasons: Vec<String> = sqlx::query_scalar(
        "SELECT count(*) || ' ' || outcome || ': ' || regexp_replace(max(reason), '[0-9a-f]{8}-[-0-9a-f]{27}', 'ID') FROM pgreeve.run
         WHERE outcome <> 'succeeded' GROUP BY outcome, regexp_replace(reason, '[0-9][-0-9a-f:.TZ]*', 'N', 'g') ORDER BY count(*) DESC",
    )
    .fetch_all(&mut database.connect().await)
    .await
    .unwrap();
    println!("{}", reasons.join("\n"));
    println!("{effects} rows by {runs} runs, {slots} slots, {epochs} epochs, {outcomes:?}");
    assert!(effects > 0 && runs > 1, "the jobs did something");
    for (what, sql) in BROKEN {
        assert_eq!(count(sql).await, 0, "{what}");
    }
}

/// Both audit logs are whole, every run that began has its end there, and no slot began as two runs.
fn verify_the_records(sides: &[Side; 2]) {
    let mut begun: BTreeMap<(String, String), String> = BTreeMap::new();
    for side in sides {
        let dir = side.host.audit();
        let arguments = ["audit", "verify", "--json", "--dir", dir.to_str().unwrap()];
        let verified = side.host.run(&arguments).expect_code(0).json();
        assert_eq!(
            verified["unfinished_runs"].as_array().map(Vec::len),
            Some(0),
            "{verified}"
        );
        assert!(!side.log().contains("panicked"), "{}", side.log());
        for record in side.host.audit_records() {
            if record["kind"] == "run.start" {
                let slot = (record["job"].to_string(), record["body"]["scheduled_for"].to_string());
                let run = record["run"].to_string();
                let first = begun.entry(slot).or_insert_with(|| run.clone());
                assert_eq!(*first, run, "a slot was begun twice");
            }
        }
    }
    println!("{} slots were begun, each once", begun.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_slot_runs_twice_or_is_lost_while_everything_breaks() {
    chaos(Duration::from_secs(105), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes CHAOS_MINUTES; `make chaos` runs it"]
async fn for_as_long_as_asked() {
    let minutes = std::env::var("CHAOS_MINUTES").map_or(30, |minutes| minutes.parse().unwrap());
    chaos(Duration::from_mins(minutes), true).await;
}
