//! `pg_dump` and `pg_dumpall`, with the arguments a backup needs.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::ChildStdout;

use super::form::Format;
use super::program::{Input, Program, Programs, dbname_argument};
use super::selection::Selection;
use super::walker::{WalkError, Walked, Walker};
use crate::postgres::connect::ConnectTarget;
use crate::postgres::sqlstate::DatabaseError;

/// How much is read at once.
pub const CHUNK: usize = 256 * 1024;

/// How long `pg_dump` waits for its locks: behind an ACCESS EXCLUSIVE lock it would wait for ever,
/// and everybody else behind it.
const LOCK_WAIT: &str = "--lock-wait-timeout=30s";

/// The largest script of roles and tablespaces that is kept; a hundred thousand roles need less.
const GLOBALS_LIMIT: u64 = 64 * 1024 * 1024;

/// How long `pg_dumpall` may take for the roles and tablespaces.
const GLOBALS_TIME: Duration = Duration::from_mins(2);

/// What is dumped.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// What `pg_dump` writes.
    pub format: Format,
    /// Only the definitions.
    pub schema_only: bool,
    /// What is left out.
    pub selection: Selection,
    /// Whether the server is a standby, which cannot read unlogged tables.
    pub on_standby: bool,
}

impl Content {
    fn arguments(&self) -> Vec<String> {
        let mut arguments = match self.format {
            Format::Custom => vec!["--format=custom".to_owned(), "--compress=0".to_owned()],
            Format::Plain => vec!["--format=plain".to_owned()],
        };
        arguments.extend(self.schema_only.then(|| "--schema-only".to_owned()));
        arguments.extend(self.on_standby.then(|| "--no-unlogged-table-data".to_owned()));
        arguments.extend_from_slice(self.selection.arguments());
        arguments
    }
}

/// Starts `pg_dump`, under an exported snapshot if one is given; `more` are further arguments. Never
/// with `--enable-row-security`, which would leave out rows without a word.
///
/// # Errors
/// When it does not start.
pub fn start(
    programs: &Programs,
    target: &ConnectTarget,
    snapshot: Option<&str>,
    application_name: &str,
    content: &Content,
    more: &[String],
) -> Result<(Program, ChildStdout), DatabaseError> {
    let mut arguments = content.arguments();
    arguments.extend([LOCK_WAIT.to_owned(), "--no-password".to_owned()]);
    arguments.extend_from_slice(more);
    arguments.extend(snapshot.map(|snapshot| format!("--snapshot={snapshot}")));
    let mut program = Program::start(&programs.pg_dump, arguments, target, application_name, Input::Nothing)?;
    let stdout = program
        .stdout()
        .ok_or_else(|| DatabaseError::local("pg_dump has no standard output"))?;
    Ok((program, stdout))
}

/// Why a database could not be walked.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// `pg_dump` did not run to its end.
    #[error("{0}")]
    Program(#[from] DatabaseError),
    /// What it wrote is not an archive.
    #[error("{0}")]
    Walk(#[from] WalkError),
}

/// Dumps a database through the walker and keeps only what the walker saw.
pub async fn walk(programs: &Programs, target: &ConnectTarget, application_name: &str) -> Result<Walked, DumpError> {
    let (mut program, mut stdout) = start(programs, target, None, application_name, &Content::default(), &[])?;
    let mut walker = Walker::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = stdout
            .read(&mut buffer)
            .await
            .map_err(|error| DatabaseError::passing(format!("read from pg_dump: {error}")))?;
        if length == 0 {
            break;
        }
        walker.feed(buffer.get(..length).unwrap_or_default())?;
    }
    let ended = program.wait().await?;
    if !ended.status.success() {
        return Err(DatabaseError::passing(format!("pg_dump: {}", ended.cause())).into());
    }
    Ok(walker.finish()?)
}

/// Runs `pg_dumpall --globals-only --no-role-passwords`: the roles and tablespaces of the server as a
/// script, without the roles' passwords.
///
/// # Errors
/// Says why there is no script.
pub async fn globals(
    programs: &Programs,
    target: &ConnectTarget,
    application_name: &str,
) -> Result<Vec<u8>, DatabaseError> {
    tokio::time::timeout(GLOBALS_TIME, run_globals(programs, target, application_name))
        .await
        .unwrap_or_else(|_| {
            Err(DatabaseError::passing(format!(
                "pg_dumpall took more than {} s",
                GLOBALS_TIME.as_secs()
            )))
        })
}

async fn run_globals(
    programs: &Programs,
    target: &ConnectTarget,
    application_name: &str,
) -> Result<Vec<u8>, DatabaseError> {
    let failed = |cause: String| DatabaseError::passing(format!("pg_dumpall: {cause}"));
    let arguments = [
        "--globals-only".to_owned(),
        "--no-role-passwords".to_owned(),
        "--no-password".to_owned(),
        format!("--database={}", dbname_argument(&target.dbname)),
    ];
    let mut program = Program::start(
        &programs.pg_dumpall,
        arguments,
        target,
        application_name,
        Input::Nothing,
    )?;
    let mut script = Vec::new();
    if let Some(stdout) = program.stdout() {
        stdout
            .take(GLOBALS_LIMIT + 1)
            .read_to_end(&mut script)
            .await
            .map_err(|error| failed(error.to_string()))?;
    }
    if script.len() as u64 > GLOBALS_LIMIT {
        return Err(failed(format!("the script is longer than {GLOBALS_LIMIT} bytes")));
    }
    let ended = program.wait().await?;
    if !ended.status.success() {
        return Err(failed(ended.cause()));
    }
    Ok(script)
}
