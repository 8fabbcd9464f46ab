//! The exported snapshot that a dump is taken under, and what was true at that instant.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff_sqlx::Timestamp as SqlTimestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{PgConnection, Row};

use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;

/// A transaction that holds a snapshot open. Other sessions can take it over until this is dropped.
pub struct Snapshot {
    session: Session,
    /// What to hand to `pg_dump --snapshot`.
    pub id: String,
    /// Since when it is held, by this host's clock.
    pub exported_at: Instant,
    /// What was true at that instant.
    pub source: Source,
}

/// What the snapshot's transaction saw of its server and database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// When the snapshot was taken, by the server's clock.
    pub started_at: Timestamp,
    /// Where the server's log stood.
    pub lsn: String,
    /// `15.18 (Debian 15.18-0+deb12u1)`.
    pub server_version: String,
    /// The cluster's identity; `None` when the role may not read it.
    pub system_identifier: Option<String>,
    /// The database's size on disk.
    pub database_bytes: u64,
    /// How a new database must be made to hold the same data.
    pub locale: Locale,
    /// Extensions and their versions.
    pub extensions: Vec<Extension>,
    /// Roles that own something here, or that something here is granted to.
    pub roles: BTreeSet<String>,
    /// Up to where retention is verified to have purged each table.
    pub retention_cutoffs: BTreeMap<String, Timestamp>,
}

/// The encoding and sort order of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locale {
    /// The encoding's name.
    pub encoding: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// `libc`, `icu` or `builtin`.
    pub provider: String,
    /// The locale of a provider that is not `libc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_locale: Option<String>,
}

/// An extension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Snapshot {
    /// Opens a session, exports its snapshot and reads what goes with it.
    ///
    /// # Errors
    /// When the server cannot be reached or does not export a snapshot: on a standby, for one.
    pub async fn export(target: &ConnectTarget, application_name: &str) -> Result<Self, DatabaseError> {
        let settings = SessionSettings {
            // The transaction stands idle as long as the dump takes.
            statement_timeout: Duration::ZERO,
            idle_in_transaction_session_timeout: Duration::ZERO,
            ..SessionSettings::control(application_name)
        };
        let mut session = Session::open(target, &settings).await?;
        let connection = session.connection();
        sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .execute(&mut *connection)
            .await?;
        let exported_at = Instant::now();
        let id = sqlx::query_scalar("SELECT pg_catalog.pg_export_snapshot()")
            .fetch_one(&mut *connection)
            .await?;
        let source = read_source(connection).await?;
        Ok(Self {
            session,
            id,
            exported_at,
            source,
        })
    }

    /// The session whose transaction it is.
    pub fn connection(&mut self) -> &mut PgConnection {
        self.session.connection()
    }

    /// Ends the transaction and with it the hold on old rows.
    pub async fn release(self) {
        self.session.close().await;
    }
}

async fn read_source(connection: &mut PgConnection) -> Result<Source, DatabaseError> {
    let row = sqlx::query(
        "SELECT pg_catalog.transaction_timestamp() AS started_at,
                CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                     ELSE pg_catalog.pg_current_wal_lsn() END::text AS lsn,
                pg_catalog.current_setting('server_version') AS server_version,
                pg_catalog.pg_database_size(pg_catalog.current_database()) AS bytes,
                pg_catalog.pg_encoding_to_char(d.encoding)::text AS encoding,
                pg_catalog.to_jsonb(d) AS database,
                pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE') AS may_read_control
         FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()",
    )
    .fetch_one(&mut *connection)
    .await?;
    let system_identifier = if row.try_get("may_read_control")? {
        sqlx::query_scalar("SELECT system_identifier::text FROM pg_catalog.pg_control_system()")
            .fetch_one(&mut *connection)
            .await?
    } else {
        None
    };
    let extensions = sqlx::query("SELECT extname::text, extversion FROM pg_catalog.pg_extension ORDER BY extname")
        .fetch_all(&mut *connection)
        .await?
        .into_iter()
        .map(|row| {
            Ok(Extension {
                name: row.try_get(0)?,
                version: row.try_get(1)?,
            })
        })
        .collect::<Result<_, sqlx::Error>>()?;
    // Owners, grantees and the roles of policies; roles that every server has are not listed there.
    let roles: Vec<String> = sqlx::query_scalar(
        "SELECT DISTINCT r.rolname::text FROM pg_catalog.pg_shdepend s
         JOIN pg_catalog.pg_roles r ON r.oid = s.refobjid
         JOIN pg_catalog.pg_database d ON d.oid = s.dbid AND d.datname = pg_catalog.current_database()
         WHERE s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass",
    )
    .fetch_all(&mut *connection)
    .await?;
    let cutoffs: Vec<(String, SqlTimestamp)> =
        sqlx::query_as("SELECT relation, max(purged_until) FROM pgreeve.purge GROUP BY relation")
            .fetch_all(&mut *connection)
            .await?;
    Ok(Source {
        started_at: row.try_get::<SqlTimestamp, _>("started_at")?.to_jiff(),
        lsn: row.try_get("lsn")?,
        server_version: row.try_get("server_version")?,
        system_identifier,
        database_bytes: row.try_get::<i64, _>("bytes")?.unsigned_abs(),
        locale: locale(row.try_get("encoding")?, &row.try_get("database")?),
        extensions,
        roles: roles.into_iter().collect(),
        retention_cutoffs: cutoffs
            .into_iter()
            .map(|(name, until)| (name, until.to_jiff()))
            .collect(),
    })
}

/// The columns' names differ between versions: `daticulocale` is `datlocale` from 17 on.
fn locale(encoding: String, database: &Value) -> Locale {
    let text = |key: &str| database.get(key).and_then(Value::as_str).map(str::to_owned);
    let provider = match text("datlocprovider").as_deref() {
        Some("i") => "icu",
        Some("b") => "builtin",
        _ => "libc",
    };
    Locale {
        encoding,
        collate: text("datcollate").unwrap_or_default(),
        ctype: text("datctype").unwrap_or_default(),
        provider: provider.to_owned(),
        provider_locale: text("datlocale").or_else(|| text("daticulocale")),
    }
}
