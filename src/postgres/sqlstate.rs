//! PostgreSQL's errors, stripped of what they may tell about rows, and sorted into classes.

use std::io;

use sqlx::postgres::PgDatabaseError;

/// An error of the database or of the way to it. It never carries DETAIL, HINT, CONTEXT or
/// parameters, which may hold the values of a row, nor the message of an error class whose
/// messages quote values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DatabaseError {
    /// The five-character code, where the server answered.
    pub sqlstate: Option<String>,
    /// What went wrong, safe to log and to store.
    pub message: String,
    /// What an operator can do, where the server did not answer and that is known.
    pub help: Option<&'static str>,
}

/// Classes whose primary message may quote a row's value: data exceptions (22), integrity
/// constraints (23), check options (44), and whatever an application raises itself (P0).
const CLASSES_THAT_QUOTE_VALUES: [&str; 4] = ["22", "23", "44", "P0"];

/// Codes after which the same statement may succeed: connection loss (08), serialisation failure,
/// deadlock, lock not available, too many connections, server shutting down or starting up.
const TRANSIENT: [&str; 8] = ["40001", "40P01", "55P03", "53300", "57P01", "57P02", "57P03", "57P05"];

impl DatabaseError {
    /// An error that the server did not send.
    pub fn local(message: impl Into<String>) -> Self {
        Self {
            sqlstate: None,
            message: message.into(),
            help: None,
        }
    }

    /// Adds what an operator can do.
    #[must_use]
    pub fn with_help(mut self, help: &'static str) -> Self {
        self.help = Some(help);
        self
    }

    /// Whether another attempt may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match &self.sqlstate {
            Some(code) => code.starts_with("08") || TRANSIENT.contains(&code.as_str()),
            None => true,
        }
    }

    /// Whether the server says it is `code`.
    #[must_use]
    pub fn is(&self, code: &str) -> bool {
        self.sqlstate.as_deref() == Some(code)
    }

    /// What an operator can do, for the codes where that is known.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        if let Some(help) = self.help {
            return Some(help.to_owned());
        }
        let text = match self.sqlstate.as_deref()? {
            "42501" => "grant the role what the message names; `ALTER ROLE … BYPASSRLS` where row security filters it",
            "28P01" | "28000" => "check the user, the password file and pg_hba.conf",
            "57P03" => "wait until the server has started",
            "3D000" => "create the database, or correct its name in `url`",
            "53300" => "raise max_connections or close idle sessions",
            "53100" => "free disk space on the database host",
            "55P03" => "another session holds the lock; the next attempt may get it",
            // What a pooler in transaction mode makes of prepared statements and of our first message.
            "42P05" | "26000" => {
                "a pooler in transaction mode is in the way: let `url` name the server itself, or a pool in session mode"
            }
            "08P01" if self.message.contains("startup parameter") => {
                "a pooler is in the way: let `url` name the server itself, or a pool in session mode that ignores this parameter"
            }
            "25006" => "the server is read only, a standby perhaps; run against the primary",
            _ => return None,
        };
        Some(text.to_owned())
    }
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        if let sqlx::Error::Database(database) = &error {
            let code = database.code().map(std::borrow::Cow::into_owned);
            let quotes_values = code
                .as_deref()
                .is_none_or(|code| CLASSES_THAT_QUOTE_VALUES.iter().any(|class| code.starts_with(class)));
            let message = if quotes_values {
                let place = database
                    .try_downcast_ref::<PgDatabaseError>()
                    .map(place)
                    .unwrap_or_default();
                format!(
                    "the server refused with SQLSTATE {}{place}",
                    code.as_deref().unwrap_or("unknown")
                )
            } else {
                format!(
                    "{} (SQLSTATE {})",
                    database.message(),
                    code.as_deref().unwrap_or("unknown")
                )
            };
            return Self {
                sqlstate: code,
                message,
                help: None,
            };
        }
        let error = match error {
            sqlx::Error::Io(io) => {
                let help = help_about_connecting(io.kind());
                return Self::local(format!("connection to the server: {io}")).with_help(help);
            }
            sqlx::Error::Tls(tls) => {
                return Self::local(format!("TLS: {tls}"))
                    .with_help("check sslmode and sslrootcert in `url` against the server's certificate");
            }
            error => error,
        };
        Self::local(match &error {
            sqlx::Error::ColumnDecode { index, .. } => format!("column {index} has an unexpected value"),
            sqlx::Error::RowNotFound => "no row came back".to_owned(),
            other => other.to_string(),
        })
    }
}

/// What to do when the way to the server is broken.
fn help_about_connecting(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => {
            "there is no such socket: start the server, or correct the host (its socket directory) and the port in `url`"
        }
        io::ErrorKind::ConnectionRefused => {
            "nothing listens there: start the server, or correct the host and the port in `url`"
        }
        io::ErrorKind::PermissionDenied => "let the user that runs pgreeve use the server's socket directory",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::TimedOut => {
            "check the network, the firewall, and the host in `url`"
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
            "the server or something before it ended the connection; its log says why"
        }
        // A name that is not resolved has no kind of its own.
        _ => "check the host in `url`, the name service and the network",
    }
}

/// Which object a constraint or data error is about; names only.
fn place(error: &PgDatabaseError) -> String {
    let parts = [
        ("schema", error.schema()),
        ("table", error.table()),
        ("column", error.column()),
        ("constraint", error.constraint()),
    ];
    let mut text = String::new();
    for (what, name) in parts {
        if let Some(name) = name {
            text.push_str(if text.is_empty() { " at " } else { ", " });
            text.push_str(what);
            text.push(' ');
            text.push_str(name);
        }
    }
    text
}
