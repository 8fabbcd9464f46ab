//! Running PostgreSQL's client programs: their environment, their messages, their end.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

use crate::postgres::connect::ConnectTarget;
use crate::postgres::programs;
use crate::postgres::sqlstate::DatabaseError;

/// How much of a program's standard error is kept: its end.
const KEPT_STDERR: usize = 64 * 1024;

/// How long a program may take to end after SIGTERM before it is killed.
const TERM_LIMIT: Duration = Duration::from_secs(10);

/// How long its standard error may stay open after it ended: a grandchild may hold it.
const STDERR_LIMIT: Duration = Duration::from_secs(2);

/// How many messages are kept, and how much of each.
const KEPT_MESSAGES: usize = 20;
const KEPT_MESSAGE: usize = 400;

/// Where the client programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `pg_dump`.
    pub pg_dump: PathBuf,
    /// `pg_dumpall`.
    pub pg_dumpall: PathBuf,
    /// `pg_restore`.
    pub pg_restore: PathBuf,
}

impl Programs {
    /// The newest installed.
    ///
    /// # Errors
    /// Names the program that is missing and the package to install.
    pub fn find() -> Result<Self, DatabaseError> {
        Ok(Self {
            pg_dump: programs::find("pg_dump")?,
            pg_dumpall: programs::find("pg_dumpall")?,
            pg_restore: programs::find("pg_restore")?,
        })
    }
}

/// A program's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its major version: 15.
    pub major: u32,
    /// As the program writes it: `15.18 (Debian 15.18-0+deb12u1)`.
    pub text: String,
}

/// Asks a program for its version.
///
/// # Errors
/// When it does not run, or answers something else.
pub async fn version(program: &Path) -> Result<Version, DatabaseError> {
    let failed = |cause: String| DatabaseError::local(format!("run {} --version: {cause}", program.display()));
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_once(") ")
        .map(|(_, version)| version.trim())
        .and_then(|version| {
            let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
            Some(Version {
                major: digits.parse().ok()?,
                text: version.to_owned(),
            })
        })
        .ok_or_else(|| failed("it does not tell one".to_owned()))
}

/// What a program wrote to its standard error, without what may tell about rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Messages {
    /// Its own messages, the last ones.
    pub lines: Vec<String>,
    /// How many other lines there were.
    pub others: usize,
}

impl Messages {
    /// Keeps the lines that the program wrote itself (`pg_dump: …`), cut before what the server
    /// adds about rows: DETAIL, HINT and CONTEXT stand on lines of their own, and a value that a
    /// message quotes stands at its end.
    fn read(stderr: &[u8]) -> Self {
        let text = String::from_utf8_lossy(stderr);
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with("pg_") && line.contains(": "))
            .filter(|line| {
                !["Command was", "Query was", "command was"]
                    .iter()
                    .any(|word| line.contains(word))
            })
            .map(|line| without_values(line).chars().take(KEPT_MESSAGE).collect())
            .collect();
        let surplus = lines.len().saturating_sub(KEPT_MESSAGES);
        lines.drain(..surplus);
        let others = text.lines().count().saturating_sub(lines.len());
        Self { lines, others }
    }

    /// The messages, and that there was more, for a manifest.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let more = (self.others > 0).then(|| format!("{} more lines on the standard error", self.others));
        self.lines.iter().cloned().chain(more).collect()
    }

    /// The messages in one line, for an error's cause.
    #[must_use]
    pub fn joined(&self) -> String {
        self.lines.join("; ")
    }
}

fn without_values(line: &str) -> &str {
    if line.contains("COPY failed") {
        return line.split_once(": ERROR").map_or(line, |(before, _)| before);
    }
    match line.rsplit_once(": \"") {
        Some((before, value)) if value.ends_with('"') && line.contains("ERROR") => before,
        _ => line,
    }
}

/// A running program. Dropped, it is killed.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    stderr: JoinHandle<()>,
    kept: Arc<Mutex<VecDeque<u8>>>,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it had to say.
    pub messages: Messages,
}

impl Ended {
    /// Why it failed, in words.
    #[must_use]
    pub fn cause(&self) -> String {
        let messages = self.messages.joined();
        if messages.is_empty() {
            self.status.to_string()
        } else {
            format!("{}: {messages}", self.status)
        }
    }
}

/// What a program's standard input is.
#[derive(Debug)]
pub enum Input {
    /// Empty.
    Nothing,
    /// What is written to [`Program::stdin`].
    Pipe,
    /// A file, which need not have a name: as `/dev/stdin` the program can open it as often as it wants
    /// and read where it wants.
    File(File),
}

impl From<Input> for Stdio {
    fn from(input: Input) -> Self {
        match input {
            Input::Nothing => Self::null(),
            Input::Pipe => Self::piped(),
            Input::File(file) => file.into(),
        }
    }
}

/// How much a pipe holds: what every user may have.
const PIPE: usize = 1024 * 1024;

/// Makes a pipe hold more than its usual 64 KiB, so that who reads finds the next piece when done with one,
/// instead of waking who writes for a part of it at a time.
pub fn widen(pipe: impl AsFd) {
    // A user with many large pipes is refused one, and the usual size does too.
    if let Err(error) = fcntl_setpipe_size(pipe, PIPE) {
        tracing::debug!(%error, "a pipe could not be made larger");
    }
}

impl Program {
    /// Starts a program that finds its server by environment; of the own environment's `PG*`
    /// nothing is left.
    ///
    /// # Errors
    /// When the password file cannot be read, or the program does not start.
    pub fn start(
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        target: &ConnectTarget,
        application_name: &str,
        input: Input,
    ) -> Result<Self, DatabaseError> {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .envs(target.environment()?)
            .env("PGAPPNAME", application_name)
            // A database may change the form of bytea; the same data must give the same text.
            .env("PGOPTIONS", "-c bytea_output=hex")
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let name = program.file_name().map_or_else(
            || program.display().to_string(),
            |name| name.to_string_lossy().into_owned(),
        );
        let mut child = command
            .spawn()
            .map_err(|error| DatabaseError::local(format!("start {}: {error}", program.display())))?;
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let stderr = tokio::spawn(drain(child.stderr.take(), Arc::clone(&kept)));
        Ok(Self {
            name,
            child,
            stderr,
            kept,
        })
    }

    /// The program's file name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its standard output, once.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard input, once.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        let stdin = self.child.stdin.take();
        if let Some(stdin) = &stdin {
            widen(stdin);
        }
        stdin
    }

    /// Waits for its end. May be cancelled and called again.
    ///
    /// # Errors
    /// When the operating system does not tell.
    pub async fn wait(&mut self) -> Result<Ended, DatabaseError> {
        let status = self
            .child
            .wait()
            .await
            .map_err(|error| DatabaseError::local(format!("wait for {}: {error}", self.name)))?;
        if tokio::time::timeout(STDERR_LIMIT, &mut self.stderr).await.is_err() {
            self.stderr.abort();
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Ended {
            status,
            messages: Messages::read(kept.make_contiguous()),
        })
    }

    /// Ends it: SIGTERM, on which `pg_dump` also cancels its query, and SIGKILL if that does not
    /// help.
    pub async fn terminate(mut self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = id.and_then(Pid::from_raw)
            && let Err(error) = kill_process(pid, Signal::TERM)
        {
            tracing::debug!(program = %self.name, %error, "a program could not be asked to end");
        }
        if tokio::time::timeout(TERM_LIMIT, self.child.wait()).await.is_err()
            && let Err(error) = self.child.kill().await
        {
            tracing::warn!(program = %self.name, %error, "a program could not be killed");
        }
    }
}

async fn drain(source: Option<impl AsyncRead + Unpin>, kept: Arc<Mutex<VecDeque<u8>>>) {
    let Some(mut source) = source else { return };
    let mut buffer = vec![0; 8192];
    // An error ends the messages as their end does: the exit status decides.
    while let Ok(length @ 1..) = source.read(&mut buffer).await {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(buffer.iter().take(length));
        let surplus = kept.len().saturating_sub(KEPT_STDERR);
        kept.drain(..surplus);
    }
}

/// A connection string that names a database and nothing else, whatever its name looks like.
#[must_use]
pub fn dbname_argument(dbname: &str) -> String {
    format!("dbname='{}'", dbname.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_no_values_of_rows() {
        let messages = Messages::read(
            b"pg_restore: error: could not execute query: ERROR:  invalid input syntax for type integer: \"a@b.example\"\n\
              Command was: INSERT INTO t VALUES ('a@b.example')\n\
              pg_restore: error: COPY failed for table \"t\": ERROR:  a@b.example is bad\n\
              CONTEXT:  COPY t, line 1, column email: \"a@b.example\"\n\
              pg_dump: detail: Command was: COPY public.t TO stdout;\n\
              pg_dump: error: query failed: ERROR:  permission denied for table \"users\"\n\
              noise of a library\n",
        );
        assert_eq!(
            messages.lines,
            [
                "pg_restore: error: could not execute query: ERROR:  invalid input syntax for type integer",
                "pg_restore: error: COPY failed for table \"t\"",
                "pg_dump: error: query failed: ERROR:  permission denied for table \"users\"",
            ]
        );
    }

    #[test]
    fn only_the_last_messages_are_kept() {
        let stderr = (0..50)
            .map(|n| format!("pg_dump: warning: {n}"))
            .collect::<Vec<_>>()
            .join("\n");
        let messages = Messages::read(stderr.as_bytes());
        assert_eq!(messages.lines.len(), KEPT_MESSAGES);
        assert_eq!(messages.lines.last().unwrap(), "pg_dump: warning: 49");
    }

    #[test]
    fn a_database_name_cannot_be_read_as_a_connection_string() {
        assert_eq!(dbname_argument("host=evil user='x'"), "dbname='host=evil user=\\'x\\''");
    }
}
