//! The views, one transaction after another. One that fails does not keep the others from being
//! refreshed, but for those that read it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::check::View;
use crate::job::{JobContext, JobError, JobReport, Outcome};
use crate::ledger::batches::{self, Batch};
use crate::ledger::leader::Fence;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::RunId;

/// How often a view is tried that others keep locked.
const TRIES: u32 = 4;

/// The longest wait for a backup to end.
const BACKUP_TIME: Duration = Duration::from_mins(5);

/// What became of one view.
enum Fate {
    Refreshed(Done),
    /// It is as it was, because of this.
    Left(String),
}

/// What a refresh did.
struct Done {
    /// Rows that were written and, where readers went on, rows that were removed.
    inserted: i64,
    deleted: i64,
    bytes: i64,
    took: Duration,
}

/// Refreshes all views in their order.
pub(super) async fn run(views: &[View], warnings: &[String], context: &mut JobContext) -> Result<JobReport, JobError> {
    let started = Instant::now();
    let mut work = Work {
        context,
        views,
        fates: Vec::new(),
        patience: BACKUP_TIME,
    };
    let ended = work.all().await;
    let fates = work.fates;
    let body = report(views, &fates, warnings, started);
    ended.map_err(|error| error.with_partial(body.clone()))?;
    let left: Vec<String> = views
        .iter()
        .zip(&fates)
        .filter_map(|(view, fate)| match fate {
            Fate::Refreshed(_) => None,
            Fate::Left(reason) => Some(format!("{}: {reason}", view.relation.display())),
        })
        .collect();
    if left.is_empty() {
        return Ok(JobReport {
            outcome: Outcome::Succeeded,
            reason: None,
            body,
        });
    }
    let reason = left.join("; ");
    if left.len() == views.len() {
        return Err(JobError::permanent("refresh the views", reason).with_partial(body));
    }
    Ok(JobReport {
        outcome: Outcome::Partial,
        reason: Some(reason),
        body,
    })
}

fn report(views: &[View], fates: &[Fate], warnings: &[String], started: Instant) -> Value {
    let entries: Vec<Value> = views
        .iter()
        .zip(fates)
        .map(|(view, fate)| {
            let (done, error) = match fate {
                Fate::Refreshed(done) => (Some(done), None),
                Fate::Left(reason) => (None, Some(reason)),
            };
            json!({
                "view": view.relation.display(),
                "refreshed": done.is_some(),
                "error": error,
                "concurrently": view.plainly.is_none(),
                "reason": view.plainly,
                "rows_inserted": done.map(|done| done.inserted),
                "rows_deleted": done.map(|done| done.deleted),
                "bytes": done.map(|done| done.bytes),
                "duration_ms": done.map(|done| milliseconds(done.took)),
            })
        })
        .collect();
    let refreshed = fates.iter().filter(|fate| matches!(fate, Fate::Refreshed(_))).count();
    json!({
        "views": entries,
        "refreshed": refreshed,
        "left": views.len().saturating_sub(refreshed),
        "duration_ms": milliseconds(started.elapsed()),
        "warnings": warnings,
    })
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

struct Work<'a> {
    context: &'a mut JobContext,
    views: &'a [View],
    /// What became of the views so far, in their order.
    fates: Vec<Fate>,
    /// How long the next view may wait for a backup.
    patience: Duration,
}

impl Work<'_> {
    async fn all(&mut self) -> Result<(), JobError> {
        for view in self.views {
            if self.context.stop.is_cancelled() {
                return Err(JobError::cancelled(operation(view)));
            }
            let fate = match self.stale(view) {
                Some(read) => Fate::Left(format!("it reads {read}, which was not refreshed")),
                None => self.one(view).await?,
            };
            match &fate {
                Fate::Refreshed(done) => tracing::info!(
                    view = %view.relation.display(), concurrently = view.plainly.is_none(),
                    rows.inserted = done.inserted, rows.deleted = done.deleted, "a view is refreshed"
                ),
                Fate::Left(reason) => {
                    tracing::warn!(view = %view.relation.display(), reason, "a view is left as it was");
                }
            }
            self.fates.push(fate);
            let (done, all) = (self.fates.len(), self.views.len());
            let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
            self.context.progress.set("views", count(done), Some(count(all)));
        }
        Ok(())
    }

    /// A view that it reads and that is as it was.
    fn stale(&self, view: &View) -> Option<String> {
        let left = |place: &&usize| matches!(self.fates.get(**place), Some(Fate::Left(_)));
        let read = view.after.iter().find(left)?;
        Some(self.views.get(*read)?.relation.display())
    }

    async fn one(&mut self, view: &View) -> Result<Fate, JobError> {
        if view.plainly.is_none() {
            return self.patiently(view).await;
        }
        // It waits for a dump that reads the view, and everybody who wants the view behind it.
        if !self.context.exclude_backups(self.patience).await? {
            // A dump takes hours; the other views have waited long enough with this one.
            self.patience = Duration::from_millis(1);
            return Ok(Fate::Left(
                "a backup holds its snapshot; it would wait for the refresh, or the refresh for it".to_owned(),
            ));
        }
        let fate = self.patiently(view).await;
        self.context.admit_backups().await;
        fate
    }

    /// Tries a view several times, with growing pauses while others keep it locked.
    async fn patiently(&mut self, view: &View) -> Result<Fate, JobError> {
        let mut tries = 0;
        loop {
            let (fence, run) = (self.context.fence, self.context.run);
            let error = match once(self.context.session.connection(), view, fence, run).await {
                Ok(done) => return Ok(Fate::Refreshed(done)),
                Err(error) => error,
            };
            tries += 1;
            let stop = &self.context.stop;
            match error.sqlstate.as_deref() {
                Some("57014") if stop.is_cancelled() => return Err(JobError::cancelled(operation(view))),
                Some("55P03" | "40P01") if tries < TRIES => {
                    tracing::info!(view = %view.relation.display(), tries, %error, "a view could not be locked; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(Duration::from_millis(250) * 2_u32.pow(tries)) => {}
                        () = stop.cancelled() => return Err(JobError::cancelled(operation(view))),
                    }
                }
                Some("55P03" | "40P01") => {
                    return Ok(Fate::Left(format!("other sessions kept it locked: {error}")));
                }
                // The way to the server is gone, or the lead is: no other view would fare better.
                _ if error.is_transient() || error.nature == crate::postgres::sqlstate::Nature::Displaced => {
                    return Err(JobError::database(operation(view), &error));
                }
                Some("57014") => return Err(JobError::database(operation(view), &error)),
                _ => return Ok(Fate::Left(explained(&error))),
            }
        }
    }
}

fn operation(view: &View) -> String {
    format!("refresh {}", view.relation.display())
}

/// An error of the view's own query, with what mends it.
fn explained(error: &DatabaseError) -> String {
    let remedy = match error.sqlstate.as_deref() {
        Some("42883" | "42P01" | "42704") => {
            Some("a function that it calls relies on search_path; ALTER FUNCTION … SET search_path gives it its own")
        }
        Some("21000") => Some("its unique index allows rows without a value to be there twice, and they are"),
        _ => None,
    };
    match remedy.map(str::to_owned).or_else(|| error.remedy()) {
        Some(remedy) => format!("{error}; {remedy}"),
        None => error.to_string(),
    }
}

/// One view, in one transaction.
async fn once(connection: &mut PgConnection, view: &View, fence: Fence, run: RunId) -> Result<Done, DatabaseError> {
    let started = Instant::now();
    let mut transaction = connection
        .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
        .await?;
    fence.hold(&mut transaction).await?;
    sqlx::query(AssertSqlSafe(view.statement()))
        .persistent(false)
        .execute(&mut *transaction)
        .await?;
    // The server counts what the transaction wrote, so nobody has to read the view for it.
    let (inserted, deleted, bytes): (i64, i64, i64) = sqlx::query_as(
        "SELECT pg_stat_get_xact_tuples_inserted($1), pg_stat_get_xact_tuples_deleted($1), pg_relation_size($1::regclass)",
    )
    .bind(view.relation.oid)
    .fetch_one(&mut *transaction)
    .await?;
    let took = started.elapsed();
    let batch = Batch {
        relation: view.relation.display(),
        rows: inserted.unsigned_abs().saturating_add(deleted.unsigned_abs()),
        low: String::new(),
        high: String::new(),
        milliseconds: milliseconds(took),
    };
    batches::record(&mut transaction, run, &batch).await?;
    transaction.commit().await?;
    Ok(Done {
        inserted,
        deleted,
        bytes,
        took: started.elapsed(),
    })
}
