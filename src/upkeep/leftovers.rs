//! What interrupted rebuilds leave: an index that every write maintains and no query uses.

use std::time::Duration;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection};

use super::tables::display;
use crate::job::{JobError, RecoveryContext};
use crate::ledger::locks;
use crate::postgres::connect::{Session, SessionSettings};
use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::JobName;

/// What `REINDEX … CONCURRENTLY` calls the index that it builds, and the one that it replaces.
const SUFFIX: &str = "_cc(new|old)[0-9]*$";

/// An index that an interrupted rebuild left.
#[derive(Debug, Clone)]
pub(super) struct Leftover {
    pub(super) schema: String,
    pub(super) name: String,
}

impl Leftover {
    pub(super) fn display(&self) -> String {
        display(&self.schema, &self.name)
    }

    pub(super) fn statement(&self) -> String {
        format!(
            "DROP INDEX CONCURRENTLY IF EXISTS {}",
            quote::qualified(&self.schema, &self.name)
        )
    }
}

/// The indexes that are not valid, and on which nobody is at work.
pub(super) struct Invalid {
    /// Those that are certainly of a rebuild.
    pub(super) leftovers: Vec<Leftover>,
    /// The others, for people.
    pub(super) strangers: Vec<String>,
}

/// The invalid indexes of some tables, or of all that the role owns.
///
/// Only an index of a rebuild's name beside another one of the name that it was made from is certainly a
/// rebuild's: long names are cut to make room for the suffix. Who builds or drops an index concurrently
/// has it locked all the while.
pub(super) async fn find(connection: &mut PgConnection, tables: Option<&[Oid]>) -> Result<Invalid, DatabaseError> {
    let rows: Vec<(String, String, bool)> = sqlx::query_as(
        "SELECT n.nspname::text, x.relname::text,
                x.relname ~ $3 AND EXISTS (
                    SELECT FROM pg_catalog.pg_index o JOIN pg_catalog.pg_class y ON y.oid = o.indexrelid
                    WHERE o.indrelid = i.indrelid AND o.indexrelid <> i.indexrelid AND o.indisvalid
                      AND starts_with(y.relname, regexp_replace(x.relname, $3, '')))
         FROM pg_catalog.pg_index i
         JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
         WHERE NOT i.indisvalid AND x.relkind = 'i' AND pg_has_role(x.relowner, 'USAGE')
           AND (i.indrelid = ANY($2) OR $1 AND n.nspname !~ '^pg_')
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_locks l
                           WHERE l.relation IN (i.indexrelid, i.indrelid) AND l.pid <> pg_backend_pid()
                             AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                             AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'AccessExclusiveLock'))
         ORDER BY 1, 2",
    )
    .bind(tables.is_none())
    .bind(tables.unwrap_or_default())
    .bind(SUFFIX)
    .fetch_all(connection)
    .await?;
    let mut found = Invalid {
        leftovers: Vec::new(),
        strangers: Vec::new(),
    };
    for (schema, name, is_leftover) in rows {
        if is_leftover {
            found.leftovers.push(Leftover { schema, name });
        } else {
            found.strangers.push(display(&schema, &name));
        }
    }
    Ok(found)
}

/// Drops one.
pub(super) async fn drop(connection: &mut PgConnection, leftover: &Leftover) -> Result<(), DatabaseError> {
    sqlx::query(AssertSqlSafe(leftover.statement()))
        .persistent(false)
        .execute(connection)
        .await?;
    Ok(())
}

/// How long the server may take to notice that the process of a run is gone (`client_connection_check_interval`)
/// and to give its statement up.
const NOTICE_TIME: Duration = Duration::from_secs(30);

/// Drops what the rebuilds of a process that died left, once the server has given them up.
///
/// # Errors
/// When the server does not answer, or a lock is not to be had; the next run finds what is left.
pub async fn clean_up(context: RecoveryContext) -> Result<(), JobError> {
    let failed = |error: DatabaseError| JobError::database("drop what an interrupted rebuild left", &error);
    let settings = SessionSettings::control(format!("pgreeve:{}:clean-up", context.job));
    let mut session = Session::open(&context.target, &settings).await.map_err(failed)?;
    let result = match until_idle(&mut session, &context.job).await {
        Ok(()) => drop_all(&mut session).await,
        Err(error) => Err(error),
    };
    let result = result.map_err(failed);
    session.close().await;
    result
}

/// Waits until no session runs the job; not for ever, since one may that is alive.
async fn until_idle(session: &mut Session, job: &JobName) -> Result<(), DatabaseError> {
    let key = locks::key(job.as_str());
    match locks::lock_within(session.connection(), locks::JOB_CLASS, key, NOTICE_TIME).await {
        Ok(()) => locks::unlock(session.connection(), locks::JOB_CLASS, key)
            .await
            .map(|_| ()),
        Err(error) if error.is("55P03") => Ok(()),
        Err(error) => Err(error),
    }
}

async fn drop_all(session: &mut Session) -> Result<(), DatabaseError> {
    for leftover in find(session.connection(), None).await?.leftovers {
        drop(session.connection(), &leftover).await?;
        tracing::info!(index = %leftover.display(), "the index that an interrupted rebuild left is dropped");
    }
    Ok(())
}
