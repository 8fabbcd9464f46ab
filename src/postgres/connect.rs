//! Connections: where to connect ([`ConnectTarget`]), and a session whose settings are known
//! ([`Session`]).
//!
//! Every connection is direct and belongs to one owner. There is no pool: a pool may hand out a
//! connection inside somebody else's open transaction after a cancelled `begin`
//! (sqlx issue 4385), and session locks do not survive one.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection, Row};

use super::sqlstate::DatabaseError;
use crate::values::{Secret, ValueError};

/// How long to wait for a connection when the URL does not say (`connect_timeout`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Where libpq looks for the server when no host is given.
const DEFAULT_SOCKET_DIRECTORY: &str = "/var/run/postgresql";

/// Where and as whom to connect. Made from a URL as libpq writes it; unknown parameters are errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectTarget {
    /// A host name, an address, or the directory of a Unix socket (starts with `/`).
    pub host: String,
    /// The TCP port, also part of the socket's name.
    pub port: u16,
    /// The role.
    pub user: String,
    /// The database's name on the server.
    pub dbname: String,
    /// `disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`.
    pub sslmode: String,
    /// The file of trusted certificate authorities.
    pub sslrootcert: Option<String>,
    /// The client's certificate.
    pub sslcert: Option<String>,
    /// The client's key.
    pub sslkey: Option<String>,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// A password written into the URL.
    pub password: Option<Secret>,
    /// A file whose first line is the password; read anew for each connection.
    pub password_file: Option<PathBuf>,
}

impl ConnectTarget {
    /// Reads `postgresql://user@host:port/dbname?param=value`.
    ///
    /// # Errors
    /// Says which part is wrong; the password is never part of the message.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let bad = |problem: String| ValueError {
            problem,
            help: "write postgresql://USER@HOST:PORT/DBNAME or postgresql:///DBNAME?host=/run/postgresql&user=USER"
                .to_owned(),
        };
        let url = url::Url::parse(text).map_err(|error| bad(format!("not a connection URL: {error}")))?;
        if !matches!(url.scheme(), "postgresql" | "postgres") {
            return Err(bad(format!("`{}` is not a scheme of PostgreSQL", url.scheme())));
        }
        let mut target = Self {
            host: url.host_str().map(decode).unwrap_or_default(),
            port: url.port().unwrap_or(5432),
            user: decode(url.username()),
            dbname: decode(url.path().trim_start_matches('/')),
            sslmode: "prefer".to_owned(),
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            connect_timeout: CONNECT_TIMEOUT,
            password: url.password().map(|text| Secret::new(decode(text))),
            password_file: None,
        };
        for (key, value) in url.query_pairs() {
            target.set(&key, value.into_owned()).map_err(bad)?;
        }
        if target.host.is_empty() {
            DEFAULT_SOCKET_DIRECTORY.clone_into(&mut target.host);
        }
        if target.user.is_empty() {
            return Err(bad("the URL names no user".to_owned()));
        }
        if target.dbname.is_empty() {
            target.dbname.clone_from(&target.user);
        }
        Ok(target)
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        match key {
            "host" | "hostaddr" => self.host = value,
            "port" => self.port = value.parse().map_err(|_| "`port` is not a port number".to_owned())?,
            "user" => self.user = value,
            "dbname" => self.dbname = value,
            "password" => self.password = Some(Secret::new(value)),
            "sslmode" => {
                ssl_mode(&value).ok_or_else(|| {
                    format!(
                        "`{value}` is not an sslmode; they are disable, allow, prefer, require, verify-ca, verify-full"
                    )
                })?;
                self.sslmode = value;
            }
            "sslrootcert" => self.sslrootcert = Some(value),
            "sslcert" => self.sslcert = Some(value),
            "sslkey" => self.sslkey = Some(value),
            "connect_timeout" => {
                let seconds: u64 = value
                    .parse()
                    .map_err(|_| "`connect_timeout` is not a number of seconds".to_owned())?;
                self.connect_timeout = Duration::from_secs(seconds.clamp(1, 3600));
            }
            // What stands behind an unquoted `?` of a password is no name, and must not be shown.
            _ if !key.chars().all(|c| c.is_ascii_lowercase() || c == '_') => {
                return Err("a connection parameter is not a name; write `?`, `@`, `/` and `#` in a password as %3F, %40, %2F and %23".to_owned());
            }
            _ => return Err(format!("`{key}` is not a connection parameter that pgreeve knows")),
        }
        Ok(())
    }

    /// The same server and role, another database.
    #[must_use]
    pub fn with_dbname(&self, dbname: &str) -> Self {
        Self {
            dbname: dbname.to_owned(),
            ..self.clone()
        }
    }

    /// `user@host:port/dbname`, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{}@{}:{}/{}", self.user, self.host, self.port, self.dbname)
    }

    /// The environment that leads libpq's programs (`pg_dump`, `pg_restore`) to the same place
    /// without showing anything in their arguments. Clear the environment's own `PG*` first.
    ///
    /// # Errors
    /// When the password file cannot be read.
    pub fn environment(&self) -> Result<Vec<(&'static str, String)>, DatabaseError> {
        let mut environment = vec![
            ("PGHOST", self.host.clone()),
            ("PGPORT", self.port.to_string()),
            ("PGUSER", self.user.clone()),
            ("PGDATABASE", self.dbname.clone()),
            ("PGSSLMODE", self.sslmode.clone()),
            ("PGCONNECT_TIMEOUT", self.connect_timeout.as_secs().to_string()),
        ];
        let files = [
            ("PGSSLROOTCERT", &self.sslrootcert),
            ("PGSSLCERT", &self.sslcert),
            ("PGSSLKEY", &self.sslkey),
        ];
        environment.extend(files.into_iter().filter_map(|(name, file)| Some((name, file.clone()?))));
        if let Some(password) = self.password()? {
            environment.push(("PGPASSWORD", password.expose().to_owned()));
        }
        Ok(environment)
    }

    fn password(&self) -> Result<Option<Secret>, DatabaseError> {
        let Some(file) = &self.password_file else {
            return Ok(self.password.clone());
        };
        let text = std::fs::read_to_string(file).map_err(|error| {
            DatabaseError::local(format!("read the password file {}: {error}", file.display()))
                .with_help("let the user that runs pgreeve read the file that password_file names")
        })?;
        Ok(Some(Secret::new(text.lines().next().unwrap_or_default().to_owned())))
    }

    fn options(&self, application_name: &str) -> Result<PgConnectOptions, DatabaseError> {
        let mut options = PgConnectOptions::new_without_pgpass()
            .port(self.port)
            .username(&self.user)
            .database(&self.dbname)
            .application_name(application_name)
            .ssl_mode(ssl_mode(&self.sslmode).unwrap_or(PgSslMode::Prefer));
        options = if self.host.starts_with('/') {
            options.socket(&self.host)
        } else {
            options.host(&self.host)
        };
        if let Some(file) = &self.sslrootcert {
            options = options.ssl_root_cert(file);
        }
        if let Some(file) = &self.sslcert {
            options = options.ssl_client_cert(file);
        }
        if let Some(file) = &self.sslkey {
            options = options.ssl_client_key(file);
        }
        if let Some(password) = self.password()? {
            options = options.password(password.expose());
        }
        // Statement texts reach the log at DEBUG only; values are bound and never logged.
        Ok(options.disable_statement_logging())
    }

    /// Opens a bare connection.
    ///
    /// # Errors
    /// Names the place and the cause; also when `connect_timeout` passes.
    pub async fn connect(&self, application_name: &str) -> Result<PgConnection, DatabaseError> {
        let options = self.options(application_name)?;
        match tokio::time::timeout(self.connect_timeout, PgConnection::connect_with(&options)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => {
                let error = DatabaseError::from(error);
                Err(DatabaseError {
                    message: format!("connect to {}: {}", self.describe(), error.message),
                    ..error
                })
            }
            Err(_) => Err(DatabaseError::passing(format!(
                "connect to {}: no answer within {} s",
                self.describe(),
                self.connect_timeout.as_secs()
            ))
            .with_help(
                "check the network, the firewall, and the host in `url`; connect_timeout there says how long to wait",
            )),
        }
    }
}

fn decode(text: &str) -> String {
    // A query's decoder also reads `%2F` in a host and `%40` in a user; `+` must stay a plus.
    url::form_urlencoded::parse(
        text.replace('+', "%2B")
            .replace('&', "%26")
            .replace('=', "%3D")
            .as_bytes(),
    )
    .next()
    .map(|(key, _)| key.into_owned())
    .unwrap_or_default()
}

fn ssl_mode(name: &str) -> Option<PgSslMode> {
    Some(match name {
        "disable" => PgSslMode::Disable,
        "allow" => PgSslMode::Allow,
        "prefer" => PgSslMode::Prefer,
        "require" => PgSslMode::Require,
        "verify-ca" => PgSslMode::VerifyCa,
        "verify-full" => PgSslMode::VerifyFull,
        _ => return None,
    })
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_with_a_socket_directory_is_read_as_libpq_reads_it() {
        let target =
            ConnectTarget::parse("postgresql:///churn_saver?host=/run/postgresql&user=pgreeve&sslmode=disable")
                .unwrap();
        assert_eq!(target.describe(), "pgreeve@/run/postgresql:5432/churn_saver");
        let encoded = ConnectTarget::parse("postgresql://a%40b:p%2Bq@%2Frun%2Fpg:5433/my%20db").unwrap();
        assert_eq!(encoded.describe(), "a@b@/run/pg:5433/my db");
        assert_eq!(encoded.password.unwrap().expose(), "p+q");
    }

    #[test]
    fn an_unknown_parameter_or_mode_is_refused_without_showing_the_password() {
        for url in [
            "postgresql://u:hunter2@h/d?sslmod=require",
            "postgresql://u:hunter2@h/d?sslmode=yes",
            "postgresql://u:1?hunter2@h/d",
            "mysql://u:hunter2@h/d",
            "postgresql://h/d",
            "nonsense",
        ] {
            let error = ConnectTarget::parse(url).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{url}");
        }
    }
}
