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

mod identity;
mod pooler;
mod takeover;

use std::time::Duration;

use sqlx::{PgConnection, Row};

use self::identity::timeline;
pub use self::identity::{identify, is_standby};
pub use self::pooler::refuse_a_pooler;
use self::takeover::{end_a_silent_leader, notice_a_dead_peer, raise_epoch};
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
