//! Leadership of one database: a session lock says who leads, an epoch row says whose writes count.
//!
//! A leader that lost its connection may go on believing for a while. That is harmless: its
//! successor raises the epoch, and every transaction that writes first takes the epoch row at the
//! epoch it was admitted under ([`Fence::hold`]), so a late writer finds no row and rolls back.

use sqlx::{PgConnection, Row};

use super::locks;
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;

/// How often a campaign ends the sessions of older epochs and tries to raise the epoch.
const EPOCH_ATTEMPTS: u32 = 5;

/// The right to write, as of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// The leader's epoch when the run was admitted.
    pub epoch: i64,
}

/// Why a fenced transaction must not go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FenceError {
    /// Another leader has taken over since.
    #[error("another pgreeve has taken over this database (epoch {0} is over)")]
    Superseded(i64),
    /// The row could not be read.
    #[error("read the leader row: {0}")]
    Database(#[source] DatabaseError),
}

impl Fence {
    /// Takes the leader row FOR SHARE at this epoch: to be called first in every transaction that
    /// writes. Until that transaction ends no other leader can raise the epoch.
    ///
    /// # Errors
    /// [`FenceError::Superseded`] when the epoch is over: roll back.
    pub async fn hold(&self, transaction: &mut PgConnection) -> Result<(), FenceError> {
        let row = sqlx::query("SELECT 1 FROM pgreeve.leader WHERE epoch = $1 FOR SHARE")
            .bind(self.epoch)
            .fetch_optional(transaction)
            .await
            .map_err(|error| FenceError::Database(error.into()))?;
        row.map(|_| ()).ok_or(FenceError::Superseded(self.epoch))
    }
}

impl From<FenceError> for DatabaseError {
    fn from(error: FenceError) -> Self {
        match error {
            FenceError::Database(error) => error,
            // 25006: what the server itself says to a writer that is no longer the primary's.
            FenceError::Superseded(_) => Self {
                sqlstate: Some("25006".to_owned()),
                ..Self::local(error.to_string())
            },
        }
    }
}

/// How a campaign for a database's leadership ended.
pub enum Campaign {
    /// We lead.
    Won(Leader),
    /// Somebody else leads, at this epoch.
    Held {
        /// The leader's instance.
        instance: String,
        /// Its epoch; a run an operator asks for may join it.
        epoch: i64,
    },
    /// The server is a standby; nobody leads here.
    Standby,
}

/// The lead of one database. It ends with the connection it lives on.
pub struct Leader {
    session: Session,
    /// The term that is led.
    pub term: Term,
}

/// One uninterrupted right to write to one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// The right to write in this epoch.
    pub fence: Fence,
    /// Which database of which cluster it is; see [`identify`].
    pub cluster: String,
}

impl Leader {
    /// Tries to lead. A new term raises the epoch and ends the sessions of older runs, whose writes
    /// would be refused anyway. A term whose connection broke goes on (`resume`) if nobody has led
    /// since: its runs are still the only ones that may write.
    pub async fn campaign(
        target: &ConnectTarget,
        instance: &str,
        resume: Option<&Term>,
    ) -> Result<Campaign, DatabaseError> {
        let settings = SessionSettings::control(format!("pgreeve:leader:{instance}"));
        let mut session = Session::open(target, &settings).await?;
        let connection = session.connection();
        let standby: bool = sqlx::query_scalar("SELECT pg_catalog.pg_is_in_recovery()")
            .fetch_one(&mut *connection)
            .await?;
        if standby {
            session.close().await;
            return Ok(Campaign::Standby);
        }
        if !locks::try_lock(connection, locks::LEADER_CLASS, 1).await? {
            let row = sqlx::query("SELECT instance, epoch FROM pgreeve.leader")
                .fetch_one(&mut *connection)
                .await?;
            let held = Campaign::Held {
                instance: row.get("instance"),
                epoch: row.get("epoch"),
            };
            session.close().await;
            return Ok(held);
        }
        let cluster = identify(connection).await?;
        let current: i64 = sqlx::query_scalar("SELECT epoch FROM pgreeve.leader")
            .fetch_one(&mut *connection)
            .await?;
        let epoch = match resume {
            Some(term) if term.fence.epoch == current && term.cluster == cluster => current,
            _ => raise_epoch(connection, instance).await?,
        };
        let term = Term {
            fence: Fence { epoch },
            cluster,
        };
        Ok(Campaign::Won(Self { session, term }))
    }

    /// Asks the server whether we still lead: same session, same epoch.
    ///
    /// # Errors
    /// When we do not, or when that cannot be known; either way the lead is over.
    pub async fn confirm(&mut self) -> Result<(), DatabaseError> {
        let epoch = self.term.fence.epoch;
        let held: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pgreeve.leader WHERE epoch = $1)")
            .bind(epoch)
            .fetch_one(self.session.connection())
            .await?;
        held.then_some(()).ok_or_else(|| FenceError::Superseded(epoch).into())
    }

    /// The leader's own connection, for the ledger.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.session.connection()
    }

    /// Gives up the lead.
    pub async fn resign(self) {
        self.session.close().await;
    }
}

/// Which database a connection reaches, as `SYSTEM_IDENTIFIER/OID`: what `initdb` made, and the
/// number in that cluster, which outlives a new name. Two databases of one cluster share an audit
/// log, and neither may close the runs of the other. `oid:OID` where the role may not read the first.
pub async fn identify(connection: &mut PgConnection) -> Result<String, DatabaseError> {
    let allowed: bool =
        sqlx::query_scalar("SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')")
            .fetch_one(&mut *connection)
            .await?;
    let identity = if allowed {
        "SELECT c.system_identifier::text || '/' || d.oid FROM pg_catalog.pg_control_system() c, pg_catalog.pg_database d
         WHERE d.datname = pg_catalog.current_database()"
    } else {
        "SELECT 'oid:' || oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"
    };
    Ok(sqlx::query_scalar(identity).fetch_one(connection).await?)
}

async fn raise_epoch(connection: &mut PgConnection, instance: &str) -> Result<i64, DatabaseError> {
    for attempt in 1.. {
        end_older_runs(connection).await?;
        let raised = sqlx::query_scalar(
            "UPDATE pgreeve.leader SET epoch = epoch + 1, instance = $1, since = pg_catalog.clock_timestamp() RETURNING epoch",
        )
        .bind(instance)
        .fetch_one(&mut *connection)
        .await
        .map_err(DatabaseError::from);
        match raised {
            // An old writer opened a transaction between the two statements; end it too.
            Err(error) if error.is("55P03") && attempt < EPOCH_ATTEMPTS => {}
            other => return other,
        }
    }
    unreachable!("the loop returns")
}

/// Ends every session that holds a job's lock: with the leader's lock in our hand, none of them
/// belongs to a run that may still write. Their work is rolled back by the server.
async fn end_older_runs(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    sqlx::query(
        "SELECT pg_catalog.pg_terminate_backend(l.pid, 5000)
         FROM pg_catalog.pg_locks l
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid = $1::bigint::oid
           AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())",
    )
    .bind(i64::from(locks::JOB_CLASS.cast_unsigned()))
    .execute(connection)
    .await?;
    Ok(())
}
