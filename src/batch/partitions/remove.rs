//! Drops or detaches one partition after the other, each in one short transaction.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{Gone, Whole, describe};
use crate::batch::estimate::LIMIT_STATEMENT;
use crate::batch::fenced;
use crate::batch::held::Held;
use crate::batch::leaf_walk::Halt;
use crate::batch::statement::Statements;
use crate::job::{Disposition, JobContext, JobError};
use crate::ledger::batches::{self, Batch};
use crate::ledger::holds;
use crate::postgres::catalog::partitions::{self, Partition};
use crate::postgres::sqlstate::DatabaseError;

/// How long a lock of the table is waited for at most; everybody else waits behind it.
const LOCK_TIME: Duration = Duration::from_secs(1);

/// How long a lock is waited for at least.
const LEAST_LOCK_TIME: Duration = Duration::from_millis(50);

/// How long the rows of one partition may be counted; its writers wait meanwhile.
const COUNT_TIME: Duration = Duration::from_secs(15);

/// How often a partition is tried.
const TRIES: u32 = 4;

/// The longest wait for a backup to end.
const BACKUP_TIME: Duration = Duration::from_secs(30);

/// What became of one partition.
enum Fate {
    /// It is gone, with its rows; whether their number is an estimate.
    Removed(u64, bool),
    /// It holds rows that are not due, or is the last one: the batches purge it.
    ByRows,
    /// It is left as it is, because of this.
    Deferred(String),
}

/// Why a try at a partition changed nothing.
enum Miss {
    /// A legal hold was placed or released since the statements were compiled.
    HoldsChanged,
    /// Somebody waits for the partition, and may hold what the drop would wait for.
    InTheWay,
    /// The server refused.
    Database(DatabaseError),
    /// Another leader has taken over, or the transaction could not begin.
    Failed(JobError),
}

impl From<DatabaseError> for Miss {
    fn from(error: DatabaseError) -> Self {
        Self::Database(error)
    }
}

impl From<sqlx::Error> for Miss {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

/// The removal of partitions under way.
pub(in crate::batch) struct Removal<'a> {
    /// The run.
    pub(in crate::batch) context: &'a mut JobContext,
    /// The rule.
    pub(in crate::batch) statements: &'a mut Statements,
    /// The legal holds that are part of it.
    pub(in crate::batch) held: &'a mut Held,
    /// How many rows may still go.
    pub(in crate::batch) allowed: Option<u64>,
    /// What is gone.
    pub(in crate::batch) gone: &'a mut Gone,
}

impl Whole {
    /// Removes the partitions that are due, oldest first.
    pub(in crate::batch) async fn remove(&self, removal: &mut Removal<'_>) -> Result<(), Halt> {
        if self.due.is_empty() {
            return Ok(());
        }
        let excluded = removal.context.exclude_backups(BACKUP_TIME).await;
        if !excluded.map_err(|error| match error.disposition {
            Disposition::Cancelled => Halt::Cancelled,
            _ => Halt::Failed(error),
        })? {
            let reason = "a backup holds its snapshot; it would wait for the drop, or the drop for it";
            for partition in &self.due {
                defer(removal.gone, partition, reason);
            }
            return Ok(());
        }
        let done = self.each(removal).await;
        removal.context.admit_backups().await;
        done
    }

    async fn each(&self, removal: &mut Removal<'_>) -> Result<(), Halt> {
        for partition in &self.due {
            let fate = self.patiently(removal, partition).await?;
            let gone = &mut *removal.gone;
            match fate {
                Fate::ByRows => {}
                Fate::Deferred(reason) => defer(gone, partition, &reason),
                Fate::Removed(rows, estimated) => {
                    gone.leaves.extend(&partition.leaves);
                    if self.detach {
                        tracing::info!(batch.relation = %partition.display(), "a partition is detached");
                        gone.detached.push(partition.display());
                        continue;
                    }
                    tracing::info!(batch.relation = %partition.display(), batch.rows = rows, "a partition is dropped");
                    gone.rows = gone.rows.saturating_add(rows);
                    let mut entry = describe(partition);
                    entry["rows"] = json!(rows);
                    entry["estimated"] = json!(estimated);
                    gone.dropped.push(entry);
                }
            }
        }
        Ok(())
    }

    /// Tries a partition several times, with growing pauses in between.
    async fn patiently(&self, removal: &mut Removal<'_>, partition: &Partition) -> Result<Fate, Halt> {
        let mut tries = 0;
        loop {
            if removal.context.stop.is_cancelled() {
                return Err(Halt::Cancelled);
            }
            if Instant::now() + COUNT_TIME >= removal.context.deadline {
                return Err(Halt::Budget);
            }
            let error = match self.once(removal, partition).await {
                Ok(fate) => return Ok(fate),
                Err(Miss::HoldsChanged) => {
                    removal.held.refresh(removal.context.session.connection()).await?;
                    removal.statements.hold(&removal.held.holds().standing);
                    continue;
                }
                Err(Miss::Failed(error)) => return Err(Halt::Failed(error)),
                Err(Miss::InTheWay) => DatabaseError {
                    sqlstate: Some("55P03".to_owned()),
                    ..DatabaseError::passing("another session waits to write to it")
                },
                Err(Miss::Database(error)) => error,
            };
            tries += 1;
            let stop = &removal.context.stop;
            match error.sqlstate.as_deref() {
                Some("57014") if stop.is_cancelled() => return Err(Halt::Cancelled),
                Some("55P03" | "40P01" | "57014") if tries < TRIES => {
                    tracing::info!(batch.relation = %partition.display(), batch.tries = tries, %error,
                        "a partition could not be locked; trying again");
                    let pause = Duration::from_millis(250) * 2_u32.pow(tries);
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = stop.cancelled() => return Err(Halt::Cancelled),
                    }
                }
                Some("55P03" | "40P01" | "57014") => {
                    return Ok(Fate::Deferred(format!("other sessions kept it locked: {error}")));
                }
                // Something depends on it, or the role may not after all.
                Some("2BP01" | "42501" | "55006") => return Ok(Fate::Deferred(error.to_string())),
                _ => {
                    let operation = format!("remove the partition {}", partition.display());
                    return Err(Halt::Failed(JobError::database(operation, &error)));
                }
            }
        }
    }

    /// One try, in one transaction. Rows are counted under a lock that keeps writers of this partition
    /// only; the table as a whole is locked last and for a moment.
    async fn once(&self, removal: &mut Removal<'_>, partition: &Partition) -> Result<Fate, Miss> {
        let started = Instant::now();
        let (fence, run) = (removal.context.fence, removal.context.run);
        let connection = removal.context.session.connection();
        let begun = fenced::begin(connection, fence, "remove a partition").await;
        let mut transaction = begun.map_err(Miss::Failed)?;
        holds::share(&mut transaction).await?;
        if !holds::unchanged(&mut transaction, removal.held.holds()).await? {
            return Err(Miss::HoldsChanged);
        }
        let table = partition.quoted();
        execute(&mut transaction, format!("LOCK TABLE {table} IN SHARE MODE")).await?;
        let (rows, estimated) = match self.rows(&mut transaction, removal.statements, partition).await? {
            Ok(rows) => rows,
            Err(fate) => return Ok(fate),
        };
        let left = removal.allowed.map(|most| most.saturating_sub(removal.gone.rows));
        if left.is_some_and(|most| rows > most) {
            return Ok(Fate::Deferred("`max_rows` allows fewer rows than it holds".to_owned()));
        }
        if let Some(fate) = self.take(&mut transaction, partition).await? {
            return Ok(fate);
        }
        if rows > 0 && !self.detach {
            let batch = Batch {
                relation: partition.display(),
                rows,
                low: partition.lower.clone().unwrap_or_else(|| "-infinity".to_owned()),
                high: partition.upper.clone().unwrap_or_default(),
                milliseconds: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            };
            batches::record(&mut transaction, run, &batch).await?;
        }
        transaction.commit().await?;
        Ok(Fate::Removed(rows, estimated))
    }

    /// How many rows it holds, and whether that is an estimate; or what becomes of it if not all of
    /// them are due.
    async fn rows(
        &self,
        transaction: &mut PgConnection,
        statements: &Statements,
        partition: &Partition,
    ) -> Result<Result<(u64, bool), Fate>, DatabaseError> {
        Ok(match count(transaction, statements, partition).await? {
            Some((all, due)) if all == due && !(self.after_rows && all > 0) => Ok((all, false)),
            None if statements.is_by_age_alone() && !self.after_rows => Ok((partition.estimated_rows(), true)),
            Some(_) => Err(Fate::ByRows),
            None => Err(Fate::Deferred("its rows could not be counted in time".to_owned())),
        })
    }

    /// Locks the table and takes the partition away. Everybody else waits from here on: for the lock
    /// of the table at most [`LOCK_TIME`], and for a direct reader of the partition what is left of it.
    ///
    /// A writer that has the table and wants the partition would wait for this transaction, and this
    /// one for it. It gives up first: it does not begin to wait while somebody waits for it, nor wait
    /// until the server looks for deadlocks.
    async fn take(&self, transaction: &mut PgConnection, partition: &Partition) -> Result<Option<Fate>, Miss> {
        let (table, parent) = (partition.quoted(), partition.quoted_parent());
        let limit = limit_lock(transaction, LOCK_TIME).await?;
        if is_waited_for(transaction).await? {
            return Err(Miss::InTheWay);
        }
        let waiting = Instant::now();
        execute(
            &mut *transaction,
            format!("LOCK TABLE ONLY {parent} IN ACCESS EXCLUSIVE MODE"),
        )
        .await?;
        limit_lock(
            transaction,
            limit.saturating_sub(waiting.elapsed()).max(LEAST_LOCK_TIME),
        )
        .await?;
        let (unchanged, last) = partitions::is_unchanged(&mut *transaction, partition).await?;
        if !unchanged {
            return Ok(Some(Fate::Deferred("it changed meanwhile".to_owned())));
        }
        if last {
            return Ok(Some(Fate::ByRows));
        }
        let sql = if self.detach {
            format!("ALTER TABLE {parent} DETACH PARTITION {table}")
        } else {
            format!("DROP TABLE {table}")
        };
        execute(transaction, sql).await?;
        Ok(None)
    }
}

/// Whether another session waits for this transaction.
async fn is_waited_for(transaction: &mut PgConnection) -> Result<bool, DatabaseError> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l
                        WHERE NOT l.granted AND pg_backend_pid() = ANY (pg_blocking_pids(l.pid)))",
    )
    .fetch_one(transaction)
    .await?)
}

/// Sets the limit for locks, which is never longer than the session's, and shorter than the server
/// waits to look for deadlocks; answers with it.
async fn limit_lock(transaction: &mut PgConnection, limit: Duration) -> Result<Duration, DatabaseError> {
    let limit: i64 = sqlx::query_scalar(
        "SELECT asked.ms FROM (
             SELECT least($1, nullif(l.setting::int8, 0), d.setting::int8 * 4 / 5) AS ms
             FROM pg_catalog.pg_settings l, pg_catalog.pg_settings d
             WHERE l.name = 'lock_timeout' AND d.name = 'deadlock_timeout') AS asked
         WHERE set_config('lock_timeout', asked.ms::text, true) IS NOT NULL",
    )
    .bind(i64::try_from(limit.as_millis()).unwrap_or(i64::MAX))
    .fetch_one(transaction)
    .await?;
    Ok(Duration::from_millis(limit.unsigned_abs()))
}

fn defer(gone: &mut Gone, partition: &Partition, reason: &str) {
    tracing::warn!(batch.relation = %partition.display(), reason, "a partition past the cutoff is left for the next run");
    gone.leaves.extend(&partition.leaves);
    let mut entry = describe(partition);
    entry["reason"] = json!(reason);
    gone.deferred.push(entry);
}

/// `(rows, rows that are due)`; nothing when that takes too long.
async fn count(
    transaction: &mut PgConnection,
    statements: &Statements,
    partition: &Partition,
) -> Result<Option<(u64, u64)>, DatabaseError> {
    let mut savepoint = transaction.begin().await?;
    sqlx::query(LIMIT_STATEMENT)
        .bind(i64::try_from(COUNT_TIME.as_millis()).unwrap_or(i64::MAX))
        .execute(&mut *savepoint)
        .await?;
    let counted: Result<(i64, i64), DatabaseError> =
        sqlx::query_as(AssertSqlSafe(statements.count_whole(&partition.quoted())))
            .persistent(false)
            .fetch_one(&mut *savepoint)
            .await
            .map_err(DatabaseError::from);
    savepoint.rollback().await?;
    match counted {
        Ok((all, due)) => Ok(Some((all.unsigned_abs(), due.unsigned_abs()))),
        Err(error) if error.is("57014") => Ok(None),
        Err(error) => Err(error),
    }
}

async fn execute(transaction: &mut PgConnection, sql: String) -> Result<(), DatabaseError> {
    sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .execute(transaction)
        .await?;
    Ok(())
}
