//! Ten writers with sleeping transactions against the real program, which is killed again and again.
//! What the rollup holds in the end is what the table holds.

use std::process::Stdio;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::events;
use crate::support::process::{Host, until};
use crate::support::{Database, cluster};

const WRITERS: u64 = 10;

/// Pseudo-random; the clock decides the order anyway.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// What one transaction of a writer does.
type Statement = fn(&mut Dice) -> String;

/// A row with the time at which its transaction began: what the recompute mode promises to count.
fn appended(dice: &mut Dice) -> String {
    format!(
        "INSERT INTO events (company, amount) SELECT {}, n FROM generate_series(1, {}) n",
        dice.below(3),
        1 + dice.below(4)
    )
}

/// Rows of any age, changed and deleted ones: what the exact mode promises besides.
fn anything(dice: &mut Dice) -> String {
    let (ago, company) = (dice.below(120_000), dice.below(3));
    let some = format!("id = (SELECT id FROM events OFFSET {} LIMIT 1)", dice.below(300));
    match dice.below(4) {
        0 => {
            format!("UPDATE events SET amount = amount + 1, created_at = created_at - interval '{ago} ms' WHERE {some}")
        }
        1 => format!("DELETE FROM events WHERE {some}"),
        _ => format!(
            "INSERT INTO events (company, amount, created_at) VALUES ({company}, 1, clock_timestamp() - interval '{ago} ms')"
        ),
    }
}

/// One writer until its time is over. Every transaction sleeps before it writes and before it ends; the
/// first of the first writer so long that any seal by the clock alone would have passed it.
async fn write(database: &Database, writer: u64, end: Instant, statement: Statement) -> u64 {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (writer + 1));
    let mut connection = database.connect().await;
    let mut transactions = 0;
    let mut longest = if writer == 0 { 9000 } else { 0 };
    while Instant::now() < end || longest > 0 {
        sqlx::raw_sql("BEGIN; SELECT 1").execute(&mut connection).await.unwrap();
        let sleep = std::mem::take(&mut longest);
        tokio::time::sleep(dice.millis(0, 400) + Duration::from_millis(sleep)).await;
        execute(&mut connection, statement(&mut dice)).await;
        tokio::time::sleep(dice.millis(0, 200)).await;
        let last = if dice.below(10) == 0 { "ROLLBACK" } else { "COMMIT" };
        execute(&mut connection, last.to_owned()).await;
        transactions += 1;
    }
    connection.close().await.unwrap();
    transactions
}

async fn execute(connection: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
}

/// Buckets and groups that are not what the table says.
const MISMATCHES: &str = "WITH fresh AS (SELECT date_trunc('second', created_at) AS bucket, company, count(*) AS events, sum(amount) AS total FROM events GROUP BY 1, 2),
     kept AS (SELECT bucket, company, events, total FROM event_seconds)
     SELECT count(*) FROM ((TABLE fresh EXCEPT ALL TABLE kept) UNION ALL (TABLE kept EXCEPT ALL TABLE fresh)) AS d";

async fn survives(mode: &str, statement: Statement, seconds: u64) {
    let database = events().await;
    database
        .execute("ALTER TABLE events ALTER created_at SET DEFAULT now()")
        .await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.seconds]\nschedule = \"0 0 1 1 *\"\n\
         rollup = {{ source = \"events\", time_column = \"created_at\", bucket = \"1s\", target = \"event_seconds\", group_by = [\"company\"], measures = {{ events = \"count(*)\", total = \"sum(amount)\" }}, lateness = \"1s\", mode = \"{mode}\" }}\n"
    ));
    host.run(&["rollup", "init", "seconds"]).expect_code(0);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut runs, mut killed) = (0, 0);
    let refresh = async {
        let mut dice = Dice(7);
        while Instant::now() < end {
            let mut command = host.command(&["run", "seconds"]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            runs += 1;
            if dice.below(3) > 0 {
                tokio::time::sleep(dice.millis(20, 400)).await;
                killed += u32::from(child.try_wait().unwrap().is_none());
                child.kill().unwrap();
            }
            tokio::task::spawn_blocking(move || child.wait().unwrap())
                .await
                .unwrap();
        }
    };
    let writers = futures::future::join_all((0..WRITERS).map(|writer| write(&database, writer, end, statement)));
    let (transactions, ()) = tokio::join!(writers, refresh);
    assert!(killed > 2 && runs > killed, "{runs} runs, {killed} killed");
    assert!(transactions.iter().sum::<u64>() > 50, "{transactions:?}");
    until("a killed run's session is gone and the next one is green", async || {
        host.run(&["run", "seconds"]).code == 0
    })
    .await;
    assert_eq!(
        database.value::<i64>(MISMATCHES).await,
        0,
        "after {runs} runs, {killed} of them killed"
    );
    // Nothing was sealed before it was whole: the seal has passed the rows that came late.
    let sealed: i64 = database
        .value("SELECT count(*) FROM event_seconds s, pgreeve.rollup r WHERE s.bucket < r.sealed_until")
        .await;
    assert!(sealed > 0);
    host.run(&["audit", "verify"]).expect_code(0);
}

#[tokio::test]
async fn sleeping_writers_and_killed_runs_leave_no_bucket_wrong_when_rows_are_appended() {
    survives("recompute", appended, 14).await;
}

#[tokio::test]
async fn sleeping_writers_and_killed_runs_leave_no_bucket_wrong_in_the_exact_mode() {
    survives("exact", anything, 8).await;
}

/// The scenario that a seal by the clock, by transaction numbers or by locks loses: the writer has
/// neither a number nor a lock when the seal would pass it.
#[tokio::test]
async fn a_transaction_without_a_number_or_a_lock_holds_the_seal_of_the_program() {
    let database = events().await;
    database
        .execute("ALTER TABLE events ALTER created_at SET DEFAULT now()")
        .await;
    let url = cluster().await.url_as("postgres", &database.name);
    let host = Host::new(&format!(
        "[databases.app]\nurl = \"{url}\"\n[jobs.seconds]\nschedule = \"0 0 1 1 *\"\n\
         rollup = {{ source = \"events\", time_column = \"created_at\", bucket = \"1s\", target = \"event_seconds\", group_by = [\"company\"], measures = {{ events = \"count(*)\", total = \"sum(amount)\" }}, lateness = \"1s\" }}\n"
    ));
    host.run(&["rollup", "init", "seconds"]).expect_code(0);
    let mut late = database.connect().await;
    sqlx::raw_sql("BEGIN; SELECT 1").execute(&mut late).await.unwrap();
    let blind: bool = database
        .value("SELECT bool_and(backend_xmin IS NULL AND backend_xid IS NULL) AND count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'")
        .await;
    let locks: i64 = database
        .value("SELECT count(*) FROM pg_locks WHERE relation = 'events'::regclass AND pid <> pg_backend_pid()")
        .await;
    assert_eq!((blind, locks), (true, 0));
    until("the clock is past its bucket, margin and lateness", async || {
        database
            .value("SELECT clock_timestamp() - min(xact_start) > interval '7.5 s' FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()")
            .await
    })
    .await;
    let run = host.run(&["run", "seconds", "--json"]).expect_code(0).json();
    assert!(
        run["run"]["report"]["held_by"]
            .as_str()
            .unwrap()
            .contains("a transaction of server process"),
        "{run}"
    );
    sqlx::raw_sql("INSERT INTO events (company, amount) VALUES (1, 1); COMMIT")
        .execute(&mut late)
        .await
        .unwrap();
    host.run(&["run", "seconds"]).expect_code(0);
    assert_eq!(database.value::<i64>(MISMATCHES).await, 0);
    assert_eq!(
        database
            .value::<i64>("SELECT sum(events)::int8 FROM event_seconds")
            .await,
        1
    );
}
