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
    /// What it means for another attempt.
    pub nature: Nature,
}

/// What an error means for whoever thinks of another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    /// It may succeed: the way to the server broke, or others were in the way.
    Passing,
    /// It would fail in the same way.
    Lasting,
    /// It is not ours to make any more: the server is a standby now, or another pgreeve leads.
    Displaced,
}

/// Classes whose primary message may quote a row's value: data exceptions (22), integrity
/// constraints (23), check options (44), and whatever an application raises itself (P0).
const CLASSES_THAT_QUOTE_VALUES: [&str; 4] = ["22", "23", "44", "P0"];

/// Codes after which the same statement may succeed, beside those of connections (08): serialisation
/// failure, deadlock, lock not available, too many connections, server shutting down or starting up.
const TRANSIENT: [&str; 8] = ["40001", "40P01", "55P03", "53300", "57P01", "57P02", "57P03", "57P05"];

impl DatabaseError {
    /// An error that the server did not send, and that stays until somebody mends its cause.
    pub fn local(message: impl Into<String>) -> Self {
        Self {
            sqlstate: None,
            message: message.into(),
            help: None,
            nature: Nature::Lasting,
        }
    }

    /// An error of the way to the server, such as no answer in time: it may pass.
    pub fn passing(message: impl Into<String>) -> Self {
        Self {
            nature: Nature::Passing,
            ..Self::local(message)
        }
    }

    /// Another pgreeve has taken over.
    pub fn displaced(message: impl Into<String>) -> Self {
        Self {
            nature: Nature::Displaced,
            ..Self::local(message)
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
        self.nature == Nature::Passing
    }

    /// Whether a statement that met it may have been carried out all the same: the connection, or
    /// the server process, went before the answer came.
    #[must_use]
    pub fn leaves_in_doubt(&self) -> bool {
        match self.sqlstate.as_deref() {
            Some(code) => code.starts_with("08") || code.starts_with("57P"),
            None => self.is_transient(),
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
                nature: nature_of(code.as_deref()),
                sqlstate: code,
                message,
                help: None,
            };
        }
        match error {
            sqlx::Error::Io(io) => {
                let help = help_about_connecting(io.kind());
                Self::passing(format!("connection to the server: {io}")).with_help(help)
            }
            // A connection that breaks in the handshake looks like this too.
            sqlx::Error::Tls(tls) => Self::passing(format!("TLS: {tls}"))
                .with_help("check sslmode and sslrootcert in `url` against the server's certificate"),
            error @ (sqlx::Error::Protocol(_)
            | sqlx::Error::BeginFailed
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed) => Self::passing(error.to_string()),
            // What is left is said by a program that is wrong, about a server that answered.
            sqlx::Error::ColumnDecode { index, .. } => Self::local(format!("column {index} has an unexpected value")),
            sqlx::Error::RowNotFound => Self::local("no row came back"),
            other => Self::local(other.to_string()),
        }
    }
}

fn nature_of(code: Option<&str>) -> Nature {
    match code {
        Some(code) if code.starts_with("08") || TRANSIENT.contains(&code) => Nature::Passing,
        // Read only: a primary that has become a standby under our feet.
        Some("25006") => Nature::Displaced,
        _ => Nature::Lasting,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_way_to_the_server_and_the_codes_that_pass_are_tried_again() {
        let io = || sqlx::Error::Io(io::Error::from(io::ErrorKind::ConnectionReset));
        for passing in [
            io(),
            sqlx::Error::Protocol("unexpected message".to_owned()),
            sqlx::Error::Tls("the peer went".into()),
            sqlx::Error::PoolTimedOut,
            sqlx::Error::WorkerCrashed,
        ] {
            let error = DatabaseError::from(passing);
            assert!(error.is_transient() && error.leaves_in_doubt(), "{error}");
        }
        for lasting in [
            sqlx::Error::ColumnNotFound("nonesuch".to_owned()),
            sqlx::Error::Decode("not a number".into()),
            sqlx::Error::RowNotFound,
            sqlx::Error::Configuration("no such option".into()),
            sqlx::Error::TypeNotFound {
                type_name: "nonesuch".to_owned(),
            },
        ] {
            let error = DatabaseError::from(lasting);
            assert!(!error.is_transient() && !error.leaves_in_doubt(), "{error}");
        }
    }

    #[test]
    fn codes_have_their_nature() {
        for (code, nature) in [
            ("08006", Nature::Passing),
            ("40001", Nature::Passing),
            ("40P01", Nature::Passing),
            ("55P03", Nature::Passing),
            ("53300", Nature::Passing),
            ("57P01", Nature::Passing),
            ("57014", Nature::Lasting),
            ("42501", Nature::Lasting),
            ("42P01", Nature::Lasting),
            ("53100", Nature::Lasting),
            ("25006", Nature::Displaced),
        ] {
            assert_eq!(nature_of(Some(code)), nature, "{code}");
        }
    }
}
