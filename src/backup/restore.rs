//! Restores a backup into a database that does not exist yet. Whatever goes wrong, the new database
//! is dropped again; nothing else is touched.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio::sync::mpsc;
use tokio_util::bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::manifest::Manifest;
use super::program::{self, Program, Programs, dbname_argument};
use super::read;
use super::snapshot::Locale;
use crate::job::{JobError, Progress};
use crate::postgres::connect::ConnectTarget;
use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;
use crate::store::Store;

/// Up to how many entries a restore is one transaction: each may need a lock until the end, and a
/// server has room for a few thousand.
const ONE_TRANSACTION: u64 = 2000;

/// A restore.
pub struct Restore<'a> {
    /// Where the backup is.
    pub store: Arc<dyn Store>,
    /// The backup.
    pub manifest: &'a Manifest,
    /// The client programs.
    pub programs: &'a Programs,
    /// Any database of the server to restore to, as a role that may create databases there.
    pub admin: &'a ConnectTarget,
    /// The new database's name.
    pub into: &'a str,
    /// Whether owners and grants are left out, so that no role need exist.
    pub no_owner: bool,
    /// Who is told how far it is.
    pub progress: Progress,
    /// Cancelled when it should stop.
    pub stop: CancellationToken,
}

/// A database that was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Its name.
    pub database: String,
    /// How many tables had rows in the archive.
    pub tables: usize,
    /// How many rows they have.
    pub rows: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Restores a backup. Until every digest agreed and `pg_restore` succeeded, only the role that
/// restores and superusers can connect to the new database.
///
/// # Errors
/// A refusal names what is missing and changes nothing; after any other error the new database is
/// gone again.
pub async fn restore(request: Restore<'_>) -> Result<Restored, JobError> {
    let begun_at = Instant::now();
    let operation = format!("restore {} into {}", request.manifest.id, request.into);
    let mut admin = request
        .admin
        .connect("pgreeve:restore")
        .await
        .map_err(|error| JobError::database(operation.as_str(), &error))?;
    check(&request, &mut admin, &operation).await?;
    create(&request, &mut admin)
        .await
        .map_err(|error| JobError::database(format!("create the database {}", request.into), &error))?;
    let mut created = Created {
        admin: request.admin.clone(),
        name: Some(request.into.to_owned()),
    };
    let filled = tokio::select! {
        biased;
        () = request.stop.cancelled() => Err(JobError::cancelled(operation.as_str())),
        filled = fill_and_open(&request, &mut admin, &operation) => filled,
    };
    if let Err(error) = filled {
        return Err(match created.remove().await {
            Ok(()) => error,
            Err(drop) => JobError {
                remedy: Some(format!(
                    "DROP DATABASE {} WITH (FORCE);",
                    quote::identifier(request.into)
                )),
                ..JobError::permanent(
                    operation,
                    format!("{}; the unfinished database could not be dropped: {drop}", error.cause),
                )
            },
        });
    }
    created.name = None;
    Ok(Restored {
        database: request.into.to_owned(),
        tables: request.manifest.tables.len(),
        rows: request.manifest.rows(),
        elapsed: begun_at.elapsed(),
    })
}

/// A database that is not finished. Dropped, it is removed from the server.
struct Created {
    admin: ConnectTarget,
    name: Option<String>,
}

impl Created {
    async fn remove(&mut self) -> Result<(), DatabaseError> {
        let Some(name) = self.name.take() else { return Ok(()) };
        let mut admin = self.admin.connect("pgreeve:restore").await?;
        // FORCE: pg_restore's session may take a moment to notice that its client is gone.
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote::identifier(&name));
        sqlx::query(AssertSqlSafe(statement)).execute(&mut admin).await?;
        admin.close().await?;
        Ok(())
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else { return };
        tracing::warn!(database = name, "an unfinished restore is being removed");
        let mut left = Self {
            admin: self.admin.clone(),
            name: Some(name),
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = left.remove().await {
                    tracing::error!(%error, "an unfinished restore could not be removed");
                }
            });
        } else {
            left.name = None;
        }
    }
}

async fn check(request: &Restore<'_>, admin: &mut PgConnection, operation: &str) -> Result<(), JobError> {
    let failed = |error: sqlx::Error| JobError::database(operation, &error.into());
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_database WHERE datname = $1)")
        .bind(request.into)
        .fetch_one(&mut *admin)
        .await
        .map_err(failed)?;
    if exists {
        return Err(JobError::refused(
            operation,
            format!("the database {} exists already", request.into),
            "name a database that does not exist; swap the names yourself once it is restored",
        ));
    }
    let (role, may_create): (String, bool) = sqlx::query_as(
        "SELECT rolname::text, rolcreatedb OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user",
    )
    .fetch_one(&mut *admin)
    .await
    .map_err(failed)?;
    if !may_create {
        return Err(JobError::refused(
            operation,
            format!("the role {role} may not create databases"),
            format!(
                "ALTER ROLE {} CREATEDB, or restore as another role with --url",
                quote::identifier(&role)
            ),
        ));
    }
    let client = program::version(&request.programs.pg_restore)
        .await
        .map_err(|error| JobError::refused(operation, error.to_string(), "install postgresql-client"))?;
    let dumped_by = major(&request.manifest.pg_dump_version);
    if dumped_by.is_some_and(|dumped_by| client.major < dumped_by) {
        return Err(JobError::refused(
            operation,
            format!(
                "the backup was made by pg_dump {} and pg_restore is {}",
                request.manifest.pg_dump_version, client.text
            ),
            format!("install postgresql-client-{} or later", dumped_by.unwrap_or_default()),
        ));
    }
    if request.no_owner {
        return Ok(());
    }
    let wanted: Vec<&str> = request.manifest.roles.iter().map(String::as_str).collect();
    let missing: Vec<String> = sqlx::query_scalar(
        "SELECT wanted FROM pg_catalog.unnest($1::text[]) AS wanted
         WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = wanted) ORDER BY wanted",
    )
    .bind(&wanted)
    .fetch_all(admin)
    .await
    .map_err(failed)?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(JobError::refused(
        operation,
        format!("the server lacks the roles {}", missing.join(", ")),
        "create them (globals.sql.gz of the backup does), or restore with --no-owner",
    ))
}

fn major(version: &str) -> Option<u32> {
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

async fn create(request: &Restore<'_>, admin: &mut PgConnection) -> Result<(), DatabaseError> {
    let server: i32 = sqlx::query_scalar("SELECT pg_catalog.current_setting('server_version_num')::int / 10000")
        .fetch_one(&mut *admin)
        .await?;
    let name = quote::identifier(request.into);
    let statement = format!(
        "CREATE DATABASE {name} TEMPLATE template0 {}",
        locale_clause(&request.manifest.locale, server)
    );
    sqlx::query(AssertSqlSafe(statement)).execute(admin).await?;
    Ok(())
}

async fn fill_and_open(request: &Restore<'_>, admin: &mut PgConnection, operation: &str) -> Result<(), JobError> {
    let name = quote::identifier(request.into);
    let mut public = async |statement: String| {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut *admin)
            .await
            .map_err(|error| JobError::database(format!("close or open the database {}", request.into), &error.into()))
    };
    public(format!("REVOKE CONNECT, TEMPORARY ON DATABASE {name} FROM PUBLIC")).await?;
    fill(request, operation).await?;
    public(format!("GRANT CONNECT, TEMPORARY ON DATABASE {name} TO PUBLIC")).await?;
    Ok(())
}

fn locale_clause(locale: &Locale, server: i32) -> String {
    let mut clause = format!(
        "ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        quote::literal(&locale.encoding),
        quote::literal(&locale.collate),
        quote::literal(&locale.ctype)
    );
    if server >= 15 {
        let keyword = match locale.provider.as_str() {
            "icu" => Some("ICU_LOCALE"),
            "builtin" => Some("BUILTIN_LOCALE"),
            _ => None,
        };
        let provider = keyword.map_or("libc", |_| locale.provider.as_str());
        clause = format!("{clause} LOCALE_PROVIDER {provider}");
        if let (Some(keyword), Some(name)) = (keyword, &locale.provider_locale) {
            clause = format!("{clause} {keyword} {}", quote::literal(name));
        }
    }
    clause
}

async fn fill(request: &Restore<'_>, operation: &str) -> Result<(), JobError> {
    let failed = |cause: String| JobError::permanent(operation, cause);
    let mut arguments = vec![
        "--exit-on-error".to_owned(),
        "--no-password".to_owned(),
        format!("--dbname={}", dbname_argument(request.into)),
    ];
    if request.manifest.toc_entries <= ONE_TRANSACTION {
        arguments.push("--single-transaction".to_owned());
    }
    if request.no_owner {
        arguments.extend(["--no-owner".to_owned(), "--no-acl".to_owned()]);
    }
    let target = request.admin.with_dbname(request.into);
    let pg_restore = &request.programs.pg_restore;
    let mut program = Program::start(pg_restore, arguments, &target, "pgreeve:restore", true)
        .map_err(|error| failed(error.to_string()))?;
    let stdin = program.stdin();
    let (sink, pieces) = mpsc::channel(8);
    let reading = read::read(
        Arc::clone(&request.store),
        request.manifest,
        request.progress.clone(),
        Some(sink),
    );
    let (read, stdin) = tokio::join!(reading, feed(stdin, pieces));
    if let Err(error) = read {
        // Its input is still open, so it waits and has not committed the rest.
        program.terminate().await;
        return Err(failed(error.to_string()));
    }
    drop(stdin);
    let ended = program.wait().await.map_err(|error| failed(error.to_string()))?;
    if ended.status.success() {
        Ok(())
    } else {
        Err(failed(format!("pg_restore ended with {}", ended.cause())))
    }
}

/// Passes pieces on, and hands the input back still open. When `pg_restore` is gone its exit status
/// says why.
async fn feed(mut stdin: Option<ChildStdin>, mut pieces: mpsc::Receiver<Bytes>) -> Option<ChildStdin> {
    while let Some(piece) = pieces.recv().await {
        stdin.as_mut()?.write_all(&piece).await.ok()?;
    }
    stdin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locale_is_written_as_each_server_understands_it() {
        let mut locale = Locale {
            encoding: "UTF8".to_owned(),
            collate: "en_GB.UTF-8".to_owned(),
            ctype: "C".to_owned(),
            provider: "libc".to_owned(),
            provider_locale: None,
        };
        assert_eq!(
            locale_clause(&locale, 14),
            "ENCODING 'UTF8' LC_COLLATE 'en_GB.UTF-8' LC_CTYPE 'C'"
        );
        locale.provider = "icu".to_owned();
        locale.provider_locale = Some("de-AT".to_owned());
        assert_eq!(
            locale_clause(&locale, 15),
            "ENCODING 'UTF8' LC_COLLATE 'en_GB.UTF-8' LC_CTYPE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'de-AT'"
        );
    }
}
