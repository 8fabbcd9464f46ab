//! A session whose settings are known.

use std::time::Duration;

use sqlx::{Connection, PgConnection, Row};

use super::target::ConnectTarget;
use crate::postgres::sqlstate::DatabaseError;

/// How often a statement that a time limit not of ours ended is sent again.
const TIMEOUT_ATTEMPTS: u32 = 100;
/// How long a new session may take to get its settings.
const SETTLE_TIME: Duration = Duration::from_secs(20);

/// Settings that not every server has. The first lets a server process end that works or waits for
/// somebody who has gone (14); the second must not end a snapshot that a dump needs (17).
const WHERE_KNOWN: [(&str, &str); 2] = [
    ("client_connection_check_interval", "10s"),
    ("transaction_timeout", "0"),
];

/// The limits of a [`Session`]. Zero is PostgreSQL's "no limit".
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// `pgreeve:JOB:RUN`, cut to 63 bytes by PostgreSQL.
    pub application_name: String,
    /// How long a statement may wait for a lock.
    pub lock_timeout: Duration,
    /// How long a statement may run.
    pub statement_timeout: Duration,
    /// How long a transaction may stand idle before the server ends the session.
    pub idle_in_transaction_session_timeout: Duration,
}

impl SessionSettings {
    /// For short statements on pgreeve's own tables.
    #[must_use]
    pub fn control(application_name: impl Into<String>) -> Self {
        Self {
            application_name: application_name.into(),
            lock_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            idle_in_transaction_session_timeout: Duration::from_mins(1),
        }
    }

    /// For a run's own connection.
    #[must_use]
    pub fn run(application_name: impl Into<String>, lock_timeout: Duration, statement_timeout: Duration) -> Self {
        Self {
            lock_timeout,
            statement_timeout,
            ..Self::control(application_name)
        }
    }

    fn values(&self) -> [(&'static str, String); 9] {
        let millis = |limit: Duration| limit.as_millis().to_string();
        [
            ("row_security", "off".to_owned()),
            ("search_path", "pg_catalog".to_owned()),
            ("TimeZone", "UTC".to_owned()),
            ("lock_timeout", millis(self.lock_timeout)),
            ("statement_timeout", millis(self.statement_timeout)),
            (
                "idle_in_transaction_session_timeout",
                millis(self.idle_in_transaction_session_timeout),
            ),
            ("idle_session_timeout", "0".to_owned()),
            ("DateStyle", "ISO, MDY".to_owned()),
            ("default_transaction_isolation", "read committed".to_owned()),
        ]
    }
}

/// One server session with known settings: each was set and read back in another statement, so a
/// transaction pooler between us and the server is found here.
pub struct Session {
    connection: PgConnection,
    backend_pid: i32,
}

impl Session {
    /// Connects, sets the settings and reads them back.
    ///
    /// # Errors
    /// When the server cannot be reached, or when a setting does not hold: then a pooler in
    /// transaction mode, or a server older than 14, is in the way.
    pub async fn open(target: &ConnectTarget, settings: &SessionSettings) -> Result<Self, DatabaseError> {
        let limit = target.connect_timeout + SETTLE_TIME;
        tokio::time::timeout(limit, Self::settle(target, settings))
            .await
            .unwrap_or_else(|_| {
                Err(DatabaseError::passing(format!(
                    "connect to {}: no answer within {} s",
                    target.describe(),
                    limit.as_secs()
                )))
            })
    }

    async fn settle(target: &ConnectTarget, settings: &SessionSettings) -> Result<Self, DatabaseError> {
        let mut connection = target.connect(&settings.application_name).await?;
        lift_the_time_limit(&mut connection).await?;
        let backend_pid: i32 = sqlx::query_scalar("SELECT pg_catalog.pg_backend_pid()")
            .fetch_one(&mut connection)
            .await?;
        let wanted = settings.values();
        let (names, values): (Vec<&str>, Vec<&str>) =
            wanted.iter().map(|(name, value)| (*name, value.as_str())).unzip();
        sqlx::query("SELECT pg_catalog.set_config(s.name, s.value, false) FROM unnest($1::text[], $2::text[]) AS s (name, value)")
            .bind(&names)
            .bind(&values)
            .execute(&mut connection)
            .await?;
        for (name, value) in WHERE_KNOWN {
            // A server that lacks the setting, or the platform's support for it, does without.
            let set = sqlx::query(
                "SELECT pg_catalog.set_config(name, $2, false) FROM pg_catalog.pg_settings WHERE name = $1",
            )
            .bind(name)
            .bind(value)
            .execute(&mut connection)
            .await
            .map_err(DatabaseError::from);
            if let Err(error) = set
                && !error.is("22023")
            {
                return Err(error);
            }
        }
        let rows = sqlx::query(
            "SELECT name, setting, pg_catalog.pg_backend_pid() AS pid FROM pg_catalog.pg_settings WHERE name = ANY($1)",
        )
        .bind(&names)
        .fetch_all(&mut connection)
        .await?;
        for (name, value) in &wanted {
            let held = rows.iter().any(|row| {
                row.get::<&str, _>("name") == *name
                    && row.get::<&str, _>("setting") == value
                    && row.get::<i32, _>("pid") == backend_pid
            });
            if !held {
                return Err(DatabaseError::local(format!(
                    "the setting {name} = {value} does not hold on {}: a pooler in transaction mode is in the way, or the server is older than 14; connect to the server directly",
                    target.describe()
                )));
            }
        }
        Ok(Self {
            connection,
            backend_pid,
        })
    }

    /// The connection, for statements and transactions.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// The server process behind the session.
    #[must_use]
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// Ends the session in good order, which also frees its advisory locks.
    pub async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(error = %DatabaseError::from(error), "a session did not close in good order");
        }
    }
}

/// A role or a database may have a `statement_timeout` of its own, which holds until ours is set and
/// may be shorter than a busy server takes for any statement. So the shortest one comes first, more
/// than once if need be.
async fn lift_the_time_limit(connection: &mut PgConnection) -> Result<(), DatabaseError> {
    for attempt in 1.. {
        let set = sqlx::raw_sql("SET statement_timeout = 0")
            .execute(&mut *connection)
            .await;
        match set.map_err(DatabaseError::from) {
            Err(error) if error.is("57014") && attempt < TIMEOUT_ATTEMPTS => {}
            other => return other.map(drop),
        }
    }
    Ok(())
}
