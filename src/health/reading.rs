//! How each figure is read. A query answers with a figure and what it is about, worst first; a row without
//! a figure says what the role may not see.

use sqlx::{Connection, PgConnection};

use super::Check;
use crate::postgres::sqlstate::{DatabaseError, Nature};
use crate::upkeep;

/// How many of the worst are named.
const NAMED: usize = 5;
/// Indexes smaller than this are not looked at, in bytes.
const LARGE_INDEX: u64 = 100 * 1024 * 1024;

/// What was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reading {
    /// In the check's unit; of several the worst, of things that are counted their number.
    pub(super) value: f64,
    /// What that is about, worst first.
    pub(super) worst: Vec<String>,
    /// What was not seen.
    pub(super) hidden: Option<String>,
}

/// Reads one figure. What the role may not ask, or what takes too long, is hidden.
pub(super) async fn read(connection: &mut PgConnection, check: Check) -> Result<Reading, DatabaseError> {
    let mut reading = connection
        .begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
        .await?;
    sqlx::query("SELECT pg_catalog.set_config('statement_timeout', '30s', true)")
        .execute(&mut *reading)
        .await?;
    let rows = match check {
        Check::ArchiveBacklog if !archives(&mut reading).await? => Ok(Vec::new()),
        Check::BtreeBloat => upkeep::bloated(&mut reading, LARGE_INDEX).await,
        _ => sqlx::query_as(query(check))
            .fetch_all(&mut *reading)
            .await
            .map_err(DatabaseError::from),
    };
    let rolled_back = reading.rollback().await;
    match rows {
        Ok(rows) => {
            rolled_back?;
            Ok(gather(rows, is_counted(check)))
        }
        // What is dropped while it is looked at, or not to be had, keeps no other check from being read.
        Err(error) if error.nature == Nature::Lasting || error.is("57014") || error.is("55P03") => Ok(Reading {
            value: 0.0,
            worst: Vec::new(),
            hidden: Some(error.to_string()),
        }),
        Err(error) => Err(error),
    }
}

/// Whether the server archives at all. Else nobody need be allowed to look for what waits.
async fn archives(connection: &mut PgConnection) -> Result<bool, DatabaseError> {
    Ok(sqlx::query_scalar("SELECT current_setting('archive_mode') <> 'off'")
        .fetch_one(connection)
        .await?)
}

/// Whether the figure is how many rows there are.
fn is_counted(check: Check) -> bool {
    matches!(
        check,
        Check::InvalidIndexes | Check::LostSlots | Check::TableUnlogged | Check::UnindexedKeys
    )
}

fn gather(rows: Vec<(Option<f64>, Option<String>)>, counted: bool) -> Reading {
    let mut gathered = Reading {
        value: 0.0,
        worst: Vec::new(),
        hidden: None,
    };
    for (value, about) in rows {
        let Some(value) = value else {
            gathered.hidden = about.or(gathered.hidden);
            continue;
        };
        gathered.value = if counted {
            gathered.value + 1.0
        } else {
            gathered.value.max(value)
        };
        if let Some(about) = about
            && gathered.worst.len() < NAMED
        {
            gathered.worst.push(about);
        }
    }
    gathered
}

/// What is said of sessions whose rows are empty for whoever may not read all statistics.
macro_rules! hidden_sessions {
    () => {
        "UNION ALL
         SELECT NULL, format('%s sessions are hidden; GRANT pg_read_all_stats TO %I', count(*), current_user)
         FROM pg_catalog.pg_stat_activity WHERE backend_type IS NULL HAVING count(*) > 0
         ORDER BY 1 DESC NULLS FIRST LIMIT 6"
    };
}

fn query(check: Check) -> &'static str {
    match check {
        Check::Backends | Check::LongestQuery | Check::OldestIdlexact | Check::LockWaits => of_sessions(check),
        Check::OldestPrepared | Check::OldestXmin | Check::MaxFreezeAge | Check::DeadRows => of_age(check),
        Check::ArchiveBacklog | Check::LostSlots | Check::ReplicationLag | Check::ReplicationSlots => of_wal(check),
        _ => of_objects(check),
    }
}

fn of_sessions(check: Check) -> &'static str {
    match check {
        Check::LongestQuery => concat!(
            "SELECT extract(epoch FROM clock_timestamp() - query_start)::float8, format('session %s', pid)
             FROM pg_catalog.pg_stat_activity
             WHERE state = 'active' AND backend_type = 'client backend' AND datname = current_database()
               AND application_name NOT LIKE 'pgreeve:%' AND pid <> pg_backend_pid() ",
            hidden_sessions!()
        ),
        Check::OldestIdlexact => concat!(
            "SELECT extract(epoch FROM clock_timestamp() - state_change)::float8, format('session %s', pid)
             FROM pg_catalog.pg_stat_activity
             WHERE state LIKE 'idle in transaction%' AND datname = current_database() ",
            hidden_sessions!()
        ),
        // Who waits, and for whom, is shown to everybody.
        Check::LockWaits => {
            "SELECT extract(epoch FROM clock_timestamp() - waitstart)::float8,
                    format('session %s waits for %s', pid, array_to_string(pg_blocking_pids(pid), ', '))
             FROM pg_catalog.pg_locks JOIN pg_catalog.pg_stat_activity a USING (pid)
             WHERE NOT granted AND waitstart IS NOT NULL AND a.datname = current_database()
               AND coalesce(a.application_name, '') NOT LIKE 'pgreeve:%'
             ORDER BY 1 DESC LIMIT 5"
        }
        _ => {
            "SELECT sum(numbackends)::float8 / current_setting('max_connections')::float8, NULL::text
             FROM pg_catalog.pg_stat_database"
        }
    }
}

fn of_age(check: Check) -> &'static str {
    match check {
        Check::OldestPrepared => {
            "SELECT extract(epoch FROM clock_timestamp() - prepared)::float8, format('prepared by %I', owner)
             FROM pg_catalog.pg_prepared_xacts WHERE database = current_database() ORDER BY 1 DESC LIMIT 5"
        }
        Check::OldestXmin => concat!(
            "SELECT age(backend_xmin)::float8, format('session %s', pid)
             FROM pg_catalog.pg_stat_activity
             WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()
               AND (datname = current_database() OR datname IS NULL)
             UNION ALL
             SELECT age(transaction)::float8, 'a prepared transaction'
             FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()
             UNION ALL
             SELECT greatest(age(xmin), age(catalog_xmin))::float8, format('slot %s', slot_name)
             FROM pg_catalog.pg_replication_slots WHERE coalesce(xmin, catalog_xmin) IS NOT NULL ",
            hidden_sessions!()
        ),
        Check::MaxFreezeAge => {
            "SELECT greatest(age(datfrozenxid) / current_setting('autovacuum_freeze_max_age')::float8,
                             mxid_age(datminmxid) / current_setting('autovacuum_multixact_freeze_max_age')::float8),
                    format('database %I', datname)
             FROM pg_catalog.pg_database ORDER BY 1 DESC LIMIT 5"
        }
        _ => {
            "SELECT n_dead_tup::float8 / (n_dead_tup + n_live_tup), format('%I.%I', schemaname, relname)
             FROM pg_catalog.pg_stat_user_tables WHERE n_dead_tup >= 10000 ORDER BY 1 DESC LIMIT 5"
        }
    }
}

fn of_wal(check: Check) -> &'static str {
    match check {
        Check::ArchiveBacklog => {
            "SELECT count(*)::float8, NULL::text FROM pg_catalog.pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
        }
        Check::LostSlots => {
            "SELECT 1::float8, format('slot %s', slot_name)
             FROM pg_catalog.pg_replication_slots WHERE wal_status IN ('unreserved', 'lost') ORDER BY 2"
        }
        Check::ReplicationLag => {
            "SELECT extract(epoch FROM replay_lag)::float8, format('session %s', pid)
             FROM pg_catalog.pg_stat_replication WHERE replay_lag IS NOT NULL
             UNION ALL
             SELECT NULL, format('%s standbys are hidden; GRANT pg_read_all_stats TO %I', count(*), current_user)
             FROM pg_catalog.pg_stat_replication WHERE state IS NULL HAVING count(*) > 0
             ORDER BY 1 DESC NULLS FIRST LIMIT 6"
        }
        _ => {
            "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::float8, format('slot %s', slot_name)
             FROM pg_catalog.pg_replication_slots WHERE restart_lsn IS NOT NULL ORDER BY 1 DESC LIMIT 5"
        }
    }
}

fn of_objects(check: Check) -> &'static str {
    match check {
        Check::BackupAge => {
            "SELECT extract(epoch FROM clock_timestamp() - max(started_at))::float8, format('job %s', job)
             FROM pgreeve.backup WHERE state = 'committed' GROUP BY job ORDER BY 1 DESC LIMIT 5"
        }
        Check::ChecksumErrors => {
            "SELECT checksum_failures::float8, format('database %I', datname)
             FROM pg_catalog.pg_stat_database WHERE checksum_failures > 0 ORDER BY 1 DESC LIMIT 5"
        }
        Check::InvalidIndexes => {
            "SELECT 1::float8, format('%I.%I', n.nspname, x.relname)
             FROM pg_catalog.pg_index i
             JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
             WHERE NOT i.indisvalid AND x.relkind = 'i'
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_locks l
                               WHERE l.relation IN (i.indexrelid, i.indrelid) AND l.pid <> pg_backend_pid()
                                 AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                                 AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'AccessExclusiveLock'))
             ORDER BY 2"
        }
        Check::SequencesExhausted => {
            "SELECT last_value::float8 / max_value, format('%I.%I', schemaname, sequencename)
             FROM pg_catalog.pg_sequences WHERE last_value IS NOT NULL AND increment_by > 0 AND NOT cycle
             UNION ALL
             SELECT NULL, format('%s sequences may not be read; GRANT SELECT ON ALL SEQUENCES … TO %I', count(*), current_user)
             FROM pg_catalog.pg_class c
             WHERE CASE WHEN c.relkind = 'S' THEN NOT has_sequence_privilege(c.oid, 'SELECT, USAGE') END
             HAVING count(*) > 0
             ORDER BY 1 DESC NULLS FIRST LIMIT 6"
        }
        Check::TableUnlogged => {
            "SELECT 1::float8, format('%I.%I', n.nspname, c.relname)
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind = 'r' AND c.relpersistence = 'u' ORDER BY 2"
        }
        // An index helps only if it begins with all columns of the key, holds every row and is valid.
        _ => {
            "SELECT 1::float8, format('%I.%I (%I)', n.nspname, t.relname, c.conname)
             FROM pg_catalog.pg_constraint c
             JOIN pg_catalog.pg_class t ON t.oid = c.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
             WHERE c.contype = 'f' AND c.conparentid = 0
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i
                               WHERE i.indrelid = c.conrelid AND i.indisvalid AND i.indpred IS NULL
                                 AND (i.indkey::int2[])[0:array_length(c.conkey, 1) - 1] @> c.conkey)
             ORDER BY 2"
        }
    }
}
