//! Where and as whom to connect.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};

use crate::postgres::sqlstate::DatabaseError;
use crate::values::{Secret, ValueError};

/// How long to wait for a connection when the URL does not say (`connect_timeout`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
