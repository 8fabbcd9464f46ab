//! Watching the daemon at work, from outside: through the ledger.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{PgConnection, Row};

use super::say;
use super::stage::{DATABASE, DemoError, Stage};
use crate::ledger::runs::{self, HistoryFilter, RunRecord};
use crate::postgres::sqlstate::DatabaseError;

/// How many runs the configuration makes due.
const RUNS: usize = 5;
/// How long after the last slot all must be done.
const LIMIT: Duration = Duration::from_mins(15);
/// How often the ledger is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// One line of a terminal that is written over and over; nothing in a pipe.
pub(super) struct Line {
    terminal: bool,
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
        }
    }

    pub(super) fn show(&mut self, text: &str) {
        if self.terminal {
            let mut stderr = std::io::stderr().lock();
            let _ = write!(stderr, "\r\x1b[2K{text}");
            let _ = stderr.flush();
        }
    }

    pub(super) fn end(self, text: &str) {
        if self.terminal {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K");
        }
        say(text);
    }
}

/// `what: 120000 of 1000000`.
pub(super) fn amount(what: &str, done: u64, total: u64) -> String {
    if total == 0 {
        format!("{what} {done}")
    } else {
        format!("{what} {done} of {total}")
    }
}

/// Waits until every run has ended, and answers their records in the order of their slots.
pub(super) async fn until_done(stage: &mut Stage, last_slot: Timestamp) -> Result<Vec<RunRecord>, DemoError> {
    let mut connection = stage
        .superuser(DATABASE)
        .connect("pgreeve:demo")
        .await
        .map_err(DemoError::of("watch the ledger"))?;
    let mut line = Line::new();
    loop {
        stage.check_daemon()?;
        let records = read(&mut connection).await.map_err(DemoError::of("watch the ledger"))?;
        let done = records.iter().filter(|record| record.outcome.is_some()).count();
        if done == RUNS {
            line.end("  All five runs have ended");
            return Ok(records);
        }
        let now = Timestamp::now();
        if last_slot.duration_until(now) > LIMIT.try_into().unwrap_or(jiff::SignedDuration::MAX) {
            return Err(DemoError(format!("the runs do not end:\n{}", stage.daemon_log())));
        }
        line.show(
            &progress(&mut connection, &records, last_slot, now)
                .await
                .map_err(DemoError::of("watch the ledger"))?,
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn read(connection: &mut PgConnection) -> Result<Vec<RunRecord>, DatabaseError> {
    let known: bool = sqlx::query_scalar("SELECT to_regclass('pgreeve.run') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !known {
        return Ok(Vec::new());
    }
    let filter = HistoryFilter {
        limit: 100,
        ..HistoryFilter::default()
    };
    let mut records = runs::history(connection, DATABASE, &filter).await?;
    records.sort_by(|a, b| (a.scheduled_for, &a.job).cmp(&(b.scheduled_for, &b.job)));
    Ok(records)
}

async fn progress(
    connection: &mut PgConnection,
    records: &[RunRecord],
    last_slot: Timestamp,
    now: Timestamp,
) -> Result<String, DatabaseError> {
    let done = records.iter().filter(|record| record.outcome.is_some()).count();
    let running: Vec<&str> = records
        .iter()
        .filter(|record| record.outcome.is_none())
        .map(|record| record.job.as_str())
        .collect();
    if running.is_empty() {
        let seconds = now.duration_until(last_slot).as_secs().max(0);
        return Ok(format!(
            "  {done} of {RUNS} runs done; the last slot is {seconds} s away"
        ));
    }
    let row = sqlx::query("SELECT coalesce(sum(rows), 0)::bigint AS rows, count(*) AS batches FROM pgreeve.run_batch")
        .fetch_one(connection)
        .await?;
    let (rows, batches): (i64, i64) = (row.get("rows"), row.get("batches"));
    Ok(format!(
        "  {done} of {RUNS} runs done; running {}; {rows} rows in {batches} batches so far",
        running.join(", ")
    ))
}
