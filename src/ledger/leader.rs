//! Leadership of one database: a session lock says who leads, an epoch row says whose writes count.
//!
//! A leader that lost its connection may go on believing for a while. That is harmless: its
//! successor raises the epoch, and every transaction that writes first takes the epoch row at the
//! epoch it was admitted under ([`Fence::hold`]), so a late writer finds no row and rolls back.
//!
//! A leader that hangs keeps its session, and with it the lock. So the lead is also a lease: the
//! leader asks the server at least every [`CONFIRM_EVERY`] whether it still leads, believes an
//! answer for [`TRUST`] after it asked, and ends its runs when that is over. A follower that sees
//! the leader's session silent for [`LEASE`], which is longer, ends that session. Each of the two
//! measures with one clock of its own; nothing is written for it.

use std::time::Duration;

use sqlx::{Connection, PgConnection, Row};

use super::locks;
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;

/// How often a leader asks whether it still leads.
pub const CONFIRM_EVERY: Duration = Duration::from_secs(5);
/// How long a leader believes that it leads, from the moment it asked.
pub const TRUST: Duration = Duration::from_secs(25);
/// How long a leader's session may be silent before a follower ends it.
pub const LEASE: Duration = Duration::from_secs(30);
/// How long an answer of the server is waited for.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

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
            FenceError::Superseded(_) => Self::displaced(error.to_string()),
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
    /// The cluster's timeline. A promotion or a restore from an archive begins another, which may
    /// lack what the old one wrote last.
    pub timeline: i64,
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
        if is_standby(session.connection()).await? {
            session.close().await;
            return Ok(Campaign::Standby);
        }
        refuse_a_pooler(target, &mut session).await?;
        let connection = session.connection();
        notice_a_dead_peer(connection).await?;
        if !locks::try_lock(connection, locks::LEADER_CLASS, 1).await? {
            end_a_silent_leader(connection).await?;
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
        let timeline = timeline(connection).await?;
        let current: i64 = sqlx::query_scalar("SELECT epoch FROM pgreeve.leader")
            .fetch_one(&mut *connection)
            .await?;
        let epoch = match resume {
            Some(term) if (term.fence.epoch, term.timeline) == (current, timeline) && term.cluster == cluster => {
                current
            }
            _ => raise_epoch(connection, instance, timeline).await?,
        };
        let term = Term {
            fence: Fence { epoch },
            cluster,
            timeline,
        };
        Ok(Campaign::Won(Self { session, term }))
    }

    /// Asks the server whether we still lead: same session, same epoch, same cluster, same timeline.
    ///
    /// # Errors
    /// When we do not, or when that cannot be known in time; either way the lead is over.
    pub async fn confirm(&mut self) -> Result<(), DatabaseError> {
        let term = self.term.clone();
        let ask = async {
            let connection = self.session.connection();
            if is_standby(connection).await? {
                return Err(DatabaseError::displaced("the server has become a standby"));
            }
            let (cluster, timeline) = (identify(connection).await?, timeline(connection).await?);
            if cluster != term.cluster {
                return Err(DatabaseError::local(format!(
                    "the server is another cluster now ({cluster} instead of {})",
                    term.cluster
                )));
            }
            if timeline != term.timeline {
                return Err(DatabaseError::local(format!(
                    "the server is on another timeline now ({timeline} instead of {})",
                    term.timeline
                )));
            }
            let held: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pgreeve.leader WHERE epoch = $1)")
                .bind(term.fence.epoch)
                .fetch_one(connection)
                .await?;
            held.then_some(())
                .ok_or_else(|| FenceError::Superseded(term.fence.epoch).into())
        };
        tokio::time::timeout(ANSWER_LIMIT, ask).await.unwrap_or_else(|_| {
            Err(DatabaseError::passing(format!(
                "the server did not answer within {} s",
                ANSWER_LIMIT.as_secs()
            )))
        })
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

/// Whether a server is in recovery.
pub async fn is_standby(connection: &mut PgConnection) -> Result<bool, DatabaseError> {
    Ok(sqlx::query_scalar("SELECT pg_catalog.pg_is_in_recovery()")
        .fetch_one(connection)
        .await?)
}

/// The timeline that a primary writes to.
async fn timeline(connection: &mut PgConnection) -> Result<i64, DatabaseError> {
    let file: String = sqlx::query_scalar("SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn())")
        .fetch_one(connection)
        .await?;
    // The first eight of its hexadecimal digits.
    file.get(..8)
        .and_then(|digits| i64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| DatabaseError::local(format!("`{file}` is not the name of a WAL file")))
}

/// A pooler in transaction mode gives each transaction whatever server process is free: a lock of
/// the session would be somebody else's the next moment. It gives itself away to two connections,
/// one of which keeps a transaction open: both have the same server process, or the other's changes.
///
/// # Errors
/// When there is one; the message says what to do.
pub async fn refuse_a_pooler(target: &ConnectTarget, session: &mut Session) -> Result<(), DatabaseError> {
    match moves_between_processes(target, session).await {
        Ok(false) => Ok(()),
        Ok(true) => Err(pooler(target)),
        // A statement that another client prepared, or one of ours that is gone, tells as much.
        Err(error) if error.is("42P05") || error.is("26000") => Err(pooler(target)),
        Err(error) => Err(error),
    }
}

async fn moves_between_processes(target: &ConnectTarget, session: &mut Session) -> Result<bool, DatabaseError> {
    let pid = "SELECT pg_catalog.pg_backend_pid()";
    let mut probe = target.connect("pgreeve:probe").await?;
    let mut transaction = probe.begin().await?;
    let others: i32 = sqlx::query_scalar(pid).fetch_one(&mut *transaction).await?;
    let ours: i32 = sqlx::query_scalar(pid).fetch_one(session.connection()).await?;
    transaction.rollback().await?;
    probe.close().await?;
    Ok(others == session.backend_pid() || ours != session.backend_pid())
}

fn pooler(target: &ConnectTarget) -> DatabaseError {
    DatabaseError::local(format!(
        "{} is a pooler in transaction mode, which cannot keep a session's locks and settings: let `url` name the server itself, or a pool in session mode",
        target.describe()
    ))
}

/// Lets the server notice within seconds that this host has gone, instead of hours. A Unix socket
/// ignores the settings.
async fn notice_a_dead_peer(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    for (name, value) in [
        ("tcp_keepalives_idle", "5"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "20s"),
    ] {
        sqlx::query("SELECT pg_catalog.set_config($1, $2, false)")
            .bind(name)
            .bind(value)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Ends the session of a leader that has asked nothing for a whole lease. It has stopped believing
/// in itself before, unless it is stopped altogether; then the fence keeps it out when it goes on.
async fn end_a_silent_leader(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    let ended = sqlx::query_scalar::<_, Option<i32>>(
        // Found first, ended then: in a condition the server might call the function on all of them.
        "WITH silent AS MATERIALIZED (
             SELECT a.pid FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
             WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid = $1::bigint::oid AND l.objid = 1::oid
               AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
               AND pg_catalog.clock_timestamp() - a.state_change > $2::double precision * interval '1 second')
         SELECT CASE WHEN pg_catalog.pg_terminate_backend(pid, 5000) THEN pid END FROM silent",
    )
    .bind(i64::from(locks::LEADER_CLASS.cast_unsigned()))
    .bind(LEASE.as_secs_f64())
    .fetch_optional(connection)
    .await?
    .flatten();
    if let Some(pid) = ended {
        tracing::warn!(
            backend.pid = pid,
            "the leader was silent for longer than its lease; its session was ended"
        );
    }
    Ok(())
}

async fn raise_epoch(connection: &mut PgConnection, instance: &str, timeline: i64) -> Result<i64, DatabaseError> {
    for attempt in 1.. {
        end_older_runs(connection).await?;
        let raised = sqlx::query_scalar(
            // The timeline leads the number: what an old primary counted last may never have reached
            // this one, and must not be counted a second time.
            "UPDATE pgreeve.leader SET epoch = greatest(epoch + 1, $2::bigint << 32), instance = $1, since = pg_catalog.clock_timestamp()
             RETURNING epoch",
        )
        .bind(instance)
        .bind(timeline)
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
