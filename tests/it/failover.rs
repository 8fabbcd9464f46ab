//! Who leads when servers and leaders come and go.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pgreeve::ledger::leader::{Campaign, LEASE, Leader, TRUST};
use pgreeve::ledger::migrate;
use pgreeve::postgres::cluster::Cluster;
use pgreeve::postgres::connect::{ConnectTarget, Session, SessionSettings};
use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection};

use crate::support::process::{Host, until};
use crate::support::{Database, cluster};

async fn execute(target: &ConnectTarget, sql: &str) {
    let mut connection = target.connect("test").await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

async fn value<T>(target: &ConnectTarget, sql: &str) -> T
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    let mut connection = target.connect("test").await.unwrap();
    let value = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    value
}

const EVENTS: &str = "CREATE TABLE events (id bigserial PRIMARY KEY, created_at timestamptz NOT NULL);
    INSERT INTO events (created_at) SELECT now() - interval '100 days' + i * interval '1 ms' FROM generate_series(1, 2000) i;
    CREATE INDEX ON events (created_at); ANALYZE events";

fn config(url: &str, schedule: &str, more: &str) -> String {
    format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.purge]\nschedule = \"{schedule}\"\napproval = \"none\"\n{more}\nretention = {{ table = \"events\", age_column = \"created_at\", keep = \"90d\", max_fraction = 1 }}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_promotion_the_standbys_daemon_leads_and_missed_slots_have_rows() {
    let (primary, standby) = tokio::task::spawn_blocking(|| {
        let primary = Cluster::start("").unwrap();
        let standby = Cluster::standby_of(&primary, "hot_standby = on").unwrap();
        (primary, standby)
    })
    .await
    .unwrap();
    let (first, second) = (primary.target("postgres"), standby.target("postgres"));
    execute(&first, EVENTS).await;
    let config = |cluster: &Cluster| {
        config(
            &cluster.url_as("postgres", "postgres"),
            "* * * * *",
            "missed = \"run_once\"",
        )
    };
    let (one, two) = (
        Host::named("one", &config(&primary)),
        Host::named("two", &config(&standby)),
    );
    let leader = one.daemon();
    until("the primary's daemon leads", async || {
        leader.log().contains("leading the database")
    })
    .await;
    let waiting = two.daemon();
    until("the standby's daemon waits", async || {
        waiting.log().contains("the database is a standby")
    })
    .await;
    // The schedule is known, and was last evaluated ten minutes ago when the primary is lost.
    until("the schedule is in the ledger", async || {
        value::<i64>(&first, "SELECT count(*) FROM pgreeve.schedule").await == 1
    })
    .await;
    leader.kill();
    execute(
        &first,
        "DELETE FROM pgreeve.run; UPDATE pgreeve.schedule SET evaluated_until = date_trunc('minute', now()) - interval '10 minutes'",
    )
    .await;
    let epoch: i64 = value(&first, "SELECT epoch FROM pgreeve.leader").await;
    let written: String = value(&first, "SELECT pg_current_wal_lsn()::text").await;
    until("the standby has it all", async || {
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        value::<bool>(&second, &replayed).await
    })
    .await;
    tokio::task::spawn_blocking(move || drop(primary)).await.unwrap();
    assert!(!waiting.log().contains("leading the database"));
    execute(&second, "SELECT pg_promote(true, 60)").await;
    let promoted = Instant::now();
    until("the standby's daemon leads", async || {
        waiting.log().contains("leading the database")
    })
    .await;
    assert!(promoted.elapsed() < Duration::from_secs(15), "{:?}", promoted.elapsed());
    until("every missed slot has a row, and one of them ran for all", async || {
        value::<bool>(
            &second,
            "SELECT count(*) FILTER (WHERE outcome IN ('missed', 'succeeded')) >= 10
                AND count(*) FILTER (WHERE outcome = 'succeeded') >= 1 FROM pgreeve.run",
        )
        .await
    })
    .await;
    let gaps: i64 = value(
        &second,
        "SELECT count(*) FROM (SELECT scheduled_for - lag(scheduled_for) OVER (ORDER BY scheduled_for) AS step FROM pgreeve.run) s
         WHERE step <> interval '1 minute'",
    )
    .await;
    assert_eq!(gaps, 0, "one row for each minute");
    let now: i64 = value(&second, "SELECT epoch FROM pgreeve.leader").await;
    assert!(
        now > epoch && now >> 32 == 2,
        "the second timeline counts above whatever the first may have counted: {epoch}, {now}"
    );
    assert_eq!(waiting.stop(), 0);
    two.run(&["audit", "verify"]).expect_code(0);
}

#[tokio::test]
async fn a_leader_that_meets_another_timeline_does_not_go_on_with_its_term() {
    let database = Database::create().await;
    migrate::apply(&database.target).await.unwrap();
    let Campaign::Won(lead) = Leader::campaign(&database.target, "one", None).await.unwrap() else {
        panic!("nobody else leads")
    };
    let mut earlier = lead.term.clone();
    lead.resign().await;
    let Campaign::Won(mut same) = Leader::campaign(&database.target, "one", Some(&earlier)).await.unwrap() else {
        panic!("nobody else leads")
    };
    assert_eq!(same.term, earlier, "a broken connection alone is no new term");
    // The server says what it is at each question; what we remember is made to differ.
    same.confirm().await.unwrap();
    same.term.timeline += 1;
    let error = same.confirm().await.unwrap_err();
    assert!(error.message.contains("another timeline"), "{error}");
    same.term.timeline -= 1;
    "7300000000000000000".clone_into(&mut same.term.cluster);
    let error = same.confirm().await.unwrap_err();
    assert!(error.message.contains("another cluster"), "{error}");
    same.resign().await;
    earlier.timeline += 1;
    let Campaign::Won(next) = Leader::campaign(&database.target, "one", Some(&earlier)).await.unwrap() else {
        panic!("nobody else leads")
    };
    assert_eq!(next.term.fence.epoch, earlier.fence.epoch + 1);
    next.resign().await;
}

#[tokio::test]
async fn only_one_of_many_electors_wins_at_a_time() {
    let database = Database::create().await;
    migrate::apply(&database.target).await.unwrap();
    let mut epochs = Vec::new();
    for _ in 0..3 {
        let names: Vec<String> = (0..6).map(|number| format!("elector-{number}")).collect();
        let campaigns = names.iter().map(|name| Leader::campaign(&database.target, name, None));
        let mut won = Vec::new();
        for campaign in futures::future::join_all(campaigns).await {
            if let Campaign::Won(lead) = campaign.unwrap() {
                won.push(lead);
            }
        }
        assert_eq!(won.len(), 1);
        for lead in won {
            epochs.push(lead.term.fence.epoch);
            lead.resign().await;
        }
        until("the lock is free", async || {
            database
                .value::<bool>("SELECT NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgreeve:leader:%')")
                .await
        })
        .await;
    }
    assert!(epochs.is_sorted() && epochs.first() < epochs.last(), "{epochs:?}");
}

/// Due rows, beside 2000 others, and how long each of them takes to delete.
async fn slow_purge(rows: u32, seconds_each: f64) -> Database {
    let database = Database::create().await;
    database.execute(EVENTS).await;
    database
        .execute(&format!(
            "INSERT INTO events (created_at) SELECT now() - interval '100 days' + i * interval '1 ms' FROM generate_series(1, {rows}) i;
             ANALYZE events;
             CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep({seconds_each}); RETURN OLD; END $$;
             CREATE TRIGGER slow BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION slow()",
        ))
        .await;
    database
}

#[tokio::test]
async fn a_leader_that_was_stopped_in_the_middle_is_replaced_and_its_late_write_is_rolled_back() {
    let database = slow_purge(60_000, 0.001).await;
    let url = cluster().await.url_as("postgres", &database.name);
    let (one, two) = (
        Host::named("one", &config(&url, "0 0 1 1 *", "")),
        Host::named("two", &config(&url, "0 0 1 1 *", "")),
    );
    let old = one.daemon();
    until("the first leads", async || old.log().contains("leading the database")).await;
    let mut asked = one
        .command(&["run", "purge", "--json"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("a batch is committed", async || {
        database.value::<i64>("SELECT count(*) FROM pgreeve.run_batch").await >= 1
    })
    .await;
    let follower = two.daemon();
    until("the second follows", async || follower.log().contains("following")).await;
    old.signal(Signal::STOP);
    let stopped = Instant::now();
    until("the second leads", async || {
        follower.log().contains("leading the database")
    })
    .await;
    assert!(
        stopped.elapsed() + Duration::from_secs(6) >= LEASE,
        "{:?}",
        stopped.elapsed()
    );
    assert!(
        follower.log().contains("silent for longer than its lease"),
        "{}",
        follower.log()
    );
    let account =
        "SELECT (SELECT 62000 - count(*) FROM events), (SELECT coalesce(sum(rows), 0)::bigint FROM pgreeve.run_batch)";
    let counts = async || -> (i64, i64) {
        sqlx::query_as(account)
            .fetch_one(&mut database.connect().await)
            .await
            .unwrap()
    };
    let before = counts().await;
    assert_eq!(before.0, before.1);
    assert_eq!(
        database.value::<String>("SELECT outcome FROM pgreeve.run").await,
        "abandoned",
        "the new leader has closed the run"
    );
    old.signal(Signal::CONT);
    until("the old leader follows", async || old.log().contains("following")).await;
    asked.wait().unwrap();
    assert_eq!(counts().await, before, "nothing that it tried afterwards has an effect");
    assert_eq!(old.stop(), 0);
    assert_eq!(follower.stop(), 0);
    for host in [one, two] {
        host.run(&["audit", "verify"]).expect_code(0);
    }
}

#[tokio::test]
async fn a_guest_that_leads_for_a_long_run_is_not_taken_for_dead() {
    // Longer than a lease.
    let database = slow_purge(1_500, 0.01).await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::named("guest", &config(&url, "0 0 1 1 *", ""));
    let other = Host::named("daemon", &config(&url, "0 0 1 1 *", ""));
    let guest = host
        .command(&["run", "purge", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until("the guest's batch is committed", async || {
        database
            .value::<bool>("SELECT to_regclass('pgreeve.run_batch') IS NOT NULL")
            .await
            && database.value::<i64>("SELECT count(*) FROM pgreeve.run_batch").await >= 1
    })
    .await;
    let daemon = other.daemon();
    until("the daemon follows the guest", async || {
        daemon.log().contains("following")
    })
    .await;
    let output = guest.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let ended = Instant::now();
    until("the daemon leads afterwards", async || {
        daemon.log().contains("leading the database")
    })
    .await;
    assert!(ended.elapsed() < Duration::from_secs(15), "{:?}", ended.elapsed());
    assert!(!daemon.log().contains("silent"), "{}", daemon.log());
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test]
async fn a_recovery_that_takes_longer_than_an_answer_is_believed_does_not_end_the_new_term() {
    let database = Database::create().await;
    database.execute(EVENTS).await;
    migrate::apply(&database.target).await.unwrap();
    // Seven runs of a dead process; closing each of them takes 4 s.
    database
        .execute(
            "INSERT INTO pgreeve.run (run_id, job, kind, timezone, trigger, actor, instance, epoch, policy, attempt)
             SELECT gen_random_uuid(), 'dead', 'retention', 'UTC', 'manual', 'a', 'gone', 0, 'p', 1 FROM generate_series(1, 7);
             CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(4); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE UPDATE ON pgreeve.run FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&config(&url, "0 0 1 1 *", ""));
    let started = Instant::now();
    let daemon = host.daemon();
    until("the daemon leads", async || {
        daemon.log().contains("leading the database")
    })
    .await;
    assert!(started.elapsed() > TRUST, "{:?}", started.elapsed());
    database.execute("DROP TRIGGER slow ON pgreeve.run").await;
    host.run(&["run", "purge"]).expect_code(0);
    assert!(daemon.log().contains("run finished"), "it ran in the daemon");
    assert!(
        !daemon.log().contains("could not be confirmed in time"),
        "{}",
        daemon.log()
    );
    assert_eq!(daemon.stop(), 0);
}

/// `PgBouncer` before a server. It ends with its owner.
struct Pooler {
    child: Child,
    directory: tempfile::TempDir,
}

impl Pooler {
    /// `None`, and a line that is seen also when the test passes, where it is not installed.
    async fn start(mode: &str) -> Option<Self> {
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
            .into_iter()
            .find(|program| std::path::Path::new(program).exists());
        let Some(program) = program else {
            use std::io::Write;
            // Not eprintln!, which the test harness captures.
            std::io::stderr()
                .write_all(b"SKIPPED: pgbouncer is not installed\n")
                .unwrap();
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let server = cluster().await.directory().display().to_string();
        std::fs::write(
            path.join("pgbouncer.ini"),
            format!(
                "[databases]\n* = host={server}\n[pgbouncer]\nlisten_addr =\nunix_socket_dir = {0}\nlisten_port = 6432\nauth_type = any\npool_mode = {mode}\nignore_startup_parameters = extra_float_digits\nlogfile = {0}/log\n",
                path.display()
            )
            // `any` logs everybody in as one user.
            .replace("host=", "user=postgres host="),
        )
        .unwrap();
        let mut command = Command::new(program);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(65534), None).unwrap();
            command.args(["-u", "nobody"]);
        }
        let child = command
            .arg(path.join("pgbouncer.ini"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pooler = Self { child, directory };
        until("the pooler answers", async || {
            std::os::unix::net::UnixStream::connect(pooler.directory.path().join(".s.PGSQL.6432")).is_ok()
        })
        .await;
        Some(pooler)
    }

    fn url(&self, database: &str) -> String {
        format!(
            "postgresql:///{database}?host={}&port=6432&user=postgres&sslmode=disable",
            self.directory.path().display()
        )
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_refused_before_anything_is_written() {
    let Some(pooler) = Pooler::start("transaction").await else {
        return;
    };
    let database = Database::create().await;
    database.execute(EVENTS).await;
    let host = Host::new(&config(&pooler.url(&database.name), "0 0 1 1 *", ""));
    let refused = host.run(&["run", "purge"]);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("pooler in transaction mode") && refused.stderr.contains("let `url` name the server"),
        "{}",
        refused.stderr
    );
    let daemon = host.daemon();
    until("the daemon names the pooler and the remedy", async || {
        let log = daemon.log();
        log.contains("pooler in transaction mode") && log.contains("let `url` name the server")
    })
    .await;
    assert!(!daemon.log().contains("leading the database"));
    assert!(
        !database
            .value::<bool>("SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = 'pgreeve')")
            .await,
        "nothing was set up through it"
    );
    assert_eq!(daemon.stop(), 0);
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 2000);
}

#[tokio::test]
async fn a_pooler_in_session_mode_is_no_hindrance() {
    let Some(pooler) = Pooler::start("session").await else {
        return;
    };
    let database = Database::create().await;
    database.execute(EVENTS).await;
    let host = Host::new(&config(&pooler.url(&database.name), "0 0 1 1 *", ""));
    host.run(&["run", "purge"]).expect_code(0);
    assert_eq!(database.value::<i64>("SELECT count(*) FROM events").await, 0);
}

#[tokio::test]
async fn two_connections_of_a_busy_pooler_are_told_from_two_sessions() {
    let Some(pooler) = Pooler::start("transaction").await else {
        return;
    };
    let database = Database::create().await;
    let target = ConnectTarget::parse(&pooler.url(&database.name)).unwrap();
    // Another client keeps a server process busy, so that the probe is given a second one.
    let mut busy = target.connect("busy").await.unwrap();
    let mut transaction = busy.begin().await.unwrap();
    sqlx::raw_sql("SELECT 1").execute(&mut *transaction).await.unwrap();
    let opened = Session::open(&target, &SessionSettings::control("test")).await;
    let refused = match opened {
        // The pooler's reuse of a server process may already show in the settings or the statements.
        Err(error) => error.remedy().unwrap_or(error.message),
        Ok(mut session) => {
            pgreeve::ledger::leader::refuse_a_pooler(&target, &mut session)
                .await
                .unwrap_err()
                .message
        }
    };
    assert!(refused.contains("pooler in transaction mode"), "{refused}");
}
