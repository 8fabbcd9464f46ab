//! One step, and whether it had its effect. A vacuum is no transaction, and one of a table that the server
//! passes over succeeds with a warning: so the server is asked whether it counted it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::indexes::Index;
use super::leftovers;
use super::need::{Step, Tending, is_mostly_dead};
use crate::job::JobContext;
use crate::ledger::index_sizes::{self, IndexSize};
use crate::ledger::locks;
use crate::postgres::sqlstate::DatabaseError;

/// How long the server may take to count what it did; before PostgreSQL 15 another process counts.
const COUNT_TIME: Duration = Duration::from_secs(10);
const COUNT_PAUSE: Duration = Duration::from_millis(50);
/// A rebuild waits for every transaction that is older than itself, at its end and with all its work
/// done. One that is open for so long already is not waited for.
const OLD_TRANSACTION: Duration = Duration::from_mins(5);
/// The longest such wait. Nobody waits behind it but who would change the table's definition.
const REBUILD_WAIT: Duration = Duration::from_mins(10);
/// How long another run may keep the rows of the table.
const ROWS_WAIT: Duration = Duration::from_secs(30);

/// What became of a step.
pub(super) enum Fate {
    /// It is done.
    Done {
        took: Duration,
        /// What is told of it beside.
        details: Value,
        /// What it should have reached and did not.
        short: Option<String>,
    },
    /// It is as it was, because of this.
    Left(String),
}

/// Does one step.
pub(super) async fn act(context: &mut JobContext, step: &Step, dead_fraction: f64) -> Result<Fate, DatabaseError> {
    let started = Instant::now();
    let done = |details, short| Fate::Done {
        took: started.elapsed(),
        details,
        short,
    };
    match step {
        Step::Drop(leftover) => {
            leftovers::drop(context.session.connection(), leftover).await?;
            Ok(done(json!({}), None))
        }
        Step::Tend(tending) => {
            let connection = context.session.connection();
            let before = counted(connection, tending.table.oid).await?;
            execute(connection, step.statement()).await?;
            let Some(after) = until_counted(connection, tending, &before).await? else {
                return Ok(Fate::Left("the server passed over it".to_owned()));
            };
            let details = json!({ "dead_before": before.dead, "dead_after": after.dead });
            let short = if tending.vacuum && is_mostly_dead(after.dead, after.live, dead_fraction) {
                Some(held(connection, after.dead).await?)
            } else {
                None
            };
            Ok(done(details, short))
        }
        Step::Rebuild { index, .. } => {
            let fate = apart_from_others(context, index, &step.statement()).await?;
            Ok(match fate {
                Ok(details) => done(details, None),
                Err(reason) => Fate::Left(reason),
            })
        }
    }
}

/// What the server counted of a table.
struct Counted {
    vacuums: i64,
    analyses: i64,
    live: i64,
    dead: i64,
}

async fn counted(connection: &mut PgConnection, table: Oid) -> Result<Counted, DatabaseError> {
    let (vacuums, analyses, live, dead) = sqlx::query_as(
        "SELECT pg_stat_get_vacuum_count($1), pg_stat_get_analyze_count($1),
                pg_stat_get_live_tuples($1), pg_stat_get_dead_tuples($1)",
    )
    .bind(table)
    .fetch_one(connection)
    .await?;
    Ok(Counted {
        vacuums,
        analyses,
        live,
        dead,
    })
}

async fn until_counted(
    connection: &mut PgConnection,
    tending: &Tending,
    before: &Counted,
) -> Result<Option<Counted>, DatabaseError> {
    let started = Instant::now();
    loop {
        let now = counted(connection, tending.table.oid).await?;
        let vacuumed = !tending.vacuum || now.vacuums > before.vacuums;
        let analyzed = !tending.analyze || now.analyses > before.analyses;
        if vacuumed && analyzed {
            return Ok(Some(now));
        }
        if started.elapsed() > COUNT_TIME {
            return Ok(None);
        }
        tokio::time::sleep(COUNT_PAUSE).await;
    }
}

/// Why dead rows are still there, and who has the snapshot that may see them.
async fn held(connection: &mut PgConnection, dead: i64) -> Result<String, DatabaseError> {
    let holder: Option<String> = sqlx::query_scalar(
        "SELECT who FROM (
             SELECT format('the session %s (%s), which may read them', pid, backend_type), age(backend_xmin)
             FROM pg_catalog.pg_stat_activity
             WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND backend_type IS DISTINCT FROM 'autovacuum worker'
               AND (datname = current_database() OR datname IS NULL)
             UNION ALL
             SELECT 'a prepared transaction, which may read them', age(transaction)
             FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()
             UNION ALL
             SELECT format('the replication slot %s', slot_name), age(xmin)
             FROM pg_catalog.pg_replication_slots WHERE xmin IS NOT NULL) AS holders (who, age)
         ORDER BY age DESC LIMIT 1",
    )
    .fetch_optional(connection)
    .await?;
    let holder = holder.unwrap_or_else(|| "something that has ended since".to_owned());
    Ok(format!("{dead} dead rows are left, kept by {holder}"))
}

/// Rebuilds an index while no run of ours works on the rows of its table; or says why not.
async fn apart_from_others(
    context: &mut JobContext,
    index: &Index,
    statement: &str,
) -> Result<Result<Value, String>, DatabaseError> {
    let key = locks::rows_key(index.root);
    let limit = ROWS_WAIT.min(context.deadline.saturating_duration_since(Instant::now()) / 10);
    let locked = locks::lock_within(context.session.connection(), locks::EXCLUSION_CLASS, key, limit).await;
    match locked {
        Err(error) if error.is("55P03") => return Ok(Err("another run works on the rows of its table".to_owned())),
        other => other?,
    }
    let result = rebuild(context, index, statement).await;
    if let Err(error) = locks::unlock(context.session.connection(), locks::EXCLUSION_CLASS, key).await {
        tracing::debug!(%error, "the lock of the rows ends with the run");
    }
    result
}

async fn rebuild(
    context: &mut JobContext,
    index: &Index,
    statement: &str,
) -> Result<Result<Value, String>, DatabaseError> {
    if let Some(reason) = old_transaction(context.session.connection()).await? {
        return Ok(Err(reason));
    }
    let left = context.deadline.saturating_duration_since(Instant::now());
    let connection = context.session.connection();
    let before: i64 = sqlx::query_scalar("SELECT coalesce(pg_relation_size($1::oid::regclass), 0)")
        .bind(index.oid)
        .fetch_one(&mut *connection)
        .await?;
    let limit = locks::set(connection, "lock_timeout", &milliseconds(REBUILD_WAIT.min(left / 4))).await?;
    let rebuilt = execute(connection, statement.to_owned()).await;
    let back = locks::set(connection, "lock_timeout", &limit).await;
    if let Err(error) = rebuilt {
        drop_artifacts(connection, index).await;
        return Err(error);
    }
    back?;
    let bytes: i64 = sqlx::query_scalar(
        "SELECT pg_relation_size(x.oid)
         FROM pg_catalog.pg_class x JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
         JOIN pg_catalog.pg_index i ON i.indexrelid = x.oid
         WHERE n.nspname = $1 AND x.relname = $2 AND i.indisvalid AND x.oid <> $3",
    )
    .bind(&index.schema)
    .bind(&index.name)
    .bind(index.oid)
    .fetch_optional(&mut *connection)
    .await?
    .ok_or_else(|| DatabaseError::local("the index is not there any more, or not valid"))?;
    let mut transaction = connection.begin().await?;
    context.fence.hold(&mut transaction).await?;
    if let Some(rows) = index.rows.filter(|rows| *rows > 0.0)
        && bytes > 0
    {
        let size = IndexSize {
            schema: index.schema.clone(),
            name: index.name.clone(),
            rows,
            bytes,
            rebuilt: true,
        };
        index_sizes::note(&mut transaction, &[size]).await?;
    }
    transaction.commit().await?;
    Ok(Ok(json!({ "bytes_before": before, "bytes_after": bytes })))
}

/// A transaction that a rebuild would wait for, and that is open for long.
async fn old_transaction(connection: &mut PgConnection) -> Result<Option<String>, DatabaseError> {
    Ok(sqlx::query_scalar(
        "SELECT who || ' is open for ' || (extract(epoch FROM clock_timestamp() - began)::int8 / 60) || ' min, and a rebuild waits for it'
         FROM (SELECT format('a transaction of the session %s', pid), xact_start
               FROM pg_catalog.pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type IS DISTINCT FROM 'autovacuum worker'
                 AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
               UNION ALL
               SELECT 'a prepared transaction', prepared
               FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()) AS open (who, began)
         WHERE began < clock_timestamp() - make_interval(secs => $1) ORDER BY began LIMIT 1",
    )
    .bind(OLD_TRANSACTION.as_secs_f64())
    .fetch_optional(connection)
    .await?)
}

/// Drops what the rebuild left that has just failed; the next run finds what cannot be dropped now.
async fn drop_artifacts(connection: &mut PgConnection, index: &Index) {
    let dropped = async {
        for leftover in leftovers::find(connection, Some(&[index.table])).await?.leftovers {
            leftovers::drop(connection, &leftover).await?;
        }
        Ok::<(), DatabaseError>(())
    };
    if let Err(error) = dropped.await {
        tracing::warn!(index = %index.display(), %error, "what a failed rebuild left is not dropped yet");
    }
}

async fn execute(connection: &mut PgConnection, sql: String) -> Result<(), DatabaseError> {
    sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .execute(connection)
        .await?;
    Ok(())
}

fn milliseconds(time: Duration) -> String {
    format!("{}ms", time.as_millis().max(1))
}
