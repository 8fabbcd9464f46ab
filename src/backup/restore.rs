//! Restores a backup into a database that does not exist yet. Whatever goes wrong, the new database
//! is dropped again; after the death of the process the next restore into its name does that. Nothing else
//! is touched.

mod fill;
mod roles;
mod spool;
mod unfinished;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use self::unfinished::Found;
use super::form::Format;
use super::manifest::Manifest;
use super::program::{self, Programs};
use super::seal::Identities;
use super::snapshot::Locale;
use crate::job::{JobError, Progress};
use crate::postgres::connect::ConnectTarget;
use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;
use crate::store::Store;

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
    /// Whether roles that the server lacks are created from the backup, without passwords.
    pub create_roles: bool,
    /// How many processes load rows, build indexes and check constraints. The rows of an archive are loaded
    /// by several only if `spool_directory` has room for all of it, and less than three quarters of them are
    /// of one table.
    pub jobs: u32,
    /// Where an archive lies while several processes read it.
    pub spool_directory: PathBuf,
    /// What opens an encrypted backup.
    pub identities: Option<Identities>,
    /// What is to happen in the database before anybody else sees it.
    pub before_open: Option<Arc<dyn BeforeOpen>>,
    /// Who is told how far it is.
    pub progress: Progress,
    /// Cancelled when it should stop.
    pub stop: CancellationToken,
}

/// Works on a restored database between its last byte and its first visitor.
pub trait BeforeOpen: Send + Sync {
    /// Does the work. On an error the database is dropped.
    fn prepare<'a>(&'a self, database: &'a ConnectTarget) -> BoxFuture<'a, Result<(), JobError>>;
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
    clear(&request, &mut admin, &operation).await?;
    let mut created = create(&request)
        .await
        .map_err(|error| JobError::database(format!("create the database {}", request.into), &error))?;
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

/// Removes what a restore into the same name left that died.
async fn clear(request: &Restore<'_>, admin: &mut PgConnection, operation: &str) -> Result<(), JobError> {
    let failed = |error: DatabaseError| JobError::database(operation, &error);
    if unfinished::find(admin, request.into).await.map_err(failed)? != Found::Left {
        return Ok(());
    }
    tracing::warn!(
        database = request.into,
        "a restore into this database did not end; it is dropped, and restored anew"
    );
    let mut left = Created {
        admin: request.admin.clone(),
        name: Some(request.into.to_owned()),
    };
    left.remove().await.map_err(failed)
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
    check_name(request, admin, operation).await?;
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
    if !request.manifest.encrypted_to.is_empty() && request.identities.is_none() {
        return Err(JobError::refused(
            operation,
            format!(
                "it is encrypted to {}, and no identity was given",
                request.manifest.encrypted_to.join(", ")
            ),
            "give the file of one of their identities with --identity",
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
    if request.no_owner && request.manifest.format == Format::Plain {
        return Err(JobError::refused(
            operation,
            "the backup is a script, which sets its owners itself",
            "restore it with --create-roles",
        ));
    }
    if request.no_owner {
        return Ok(());
    }
    let missing = missing_roles(request, admin).await.map_err(failed)?;
    if missing.is_empty() {
        return Ok(());
    }
    if request.create_roles {
        roles::create(request, admin, &missing, operation).await?;
    }
    let missing = missing_roles(request, admin).await.map_err(failed)?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(JobError::refused(
        operation,
        format!("the server lacks the roles {}", missing.join(", ")),
        "restore with --create-roles, create them yourself, or restore with --no-owner",
    ))
}

/// The name is free, or stands for what a restore left that died.
async fn check_name(request: &Restore<'_>, admin: &mut PgConnection, operation: &str) -> Result<(), JobError> {
    let failed = |error: DatabaseError| JobError::database(operation, &error);
    let claimed = unfinished::claim(admin, request.into).await.map_err(failed)?;
    let found = unfinished::find(admin, request.into).await.map_err(failed)?;
    let remedy = "name a database that does not exist; swap the names yourself once it is restored";
    let cause = match found {
        Found::Nothing | Found::Left if claimed => return Ok(()),
        Found::Database => format!("the database {} exists already", request.into),
        _ => format!("another restore into {} is at work", request.into),
    };
    Err(JobError::refused(operation, cause, remedy))
}

async fn missing_roles(request: &Restore<'_>, admin: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let wanted: Vec<&str> = request.manifest.roles.iter().map(String::as_str).collect();
    sqlx::query_scalar(
        "SELECT wanted FROM pg_catalog.unnest($1::text[]) AS wanted
         WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = wanted) ORDER BY wanted",
    )
    .bind(&wanted)
    .fetch_all(admin)
    .await
}

fn major(version: &str) -> Option<u32> {
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Creates the database, in a task of its own: who stops waiting in the middle of it would not know
/// whether there is one to remove.
async fn create(request: &Restore<'_>) -> Result<Created, DatabaseError> {
    let (target, name) = (request.admin.clone(), request.into.to_owned());
    let locale = request.manifest.locale.clone();
    let task = tokio::spawn(async move {
        let mut admin = target.connect("pgreeve:restore").await?;
        let server: i32 = sqlx::query_scalar("SELECT pg_catalog.current_setting('server_version_num')::int / 10000")
            .fetch_one(&mut admin)
            .await?;
        let statement = format!(
            "CREATE DATABASE {} TEMPLATE template0 {}",
            quote::identifier(&name),
            locale_clause(&locale, server)
        );
        sqlx::query(AssertSqlSafe(statement)).execute(&mut admin).await?;
        let created = Created {
            admin: target,
            name: Some(name.clone()),
        };
        unfinished::mark(&mut admin, &name).await?;
        Ok(created)
    });
    task.await
        .unwrap_or_else(|error| Err(DatabaseError::local(format!("its task ended: {error}"))))
}

async fn fill_and_open(request: &Restore<'_>, admin: &mut PgConnection, operation: &str) -> Result<(), JobError> {
    let name = quote::identifier(request.into);
    let failed =
        |error: DatabaseError| JobError::database(format!("close or open the database {}", request.into), &error);
    let mut public = async |statement: String| {
        let done = sqlx::query(AssertSqlSafe(statement)).execute(&mut *admin).await;
        done.map_err(|error| failed(error.into()))
    };
    public(format!("REVOKE CONNECT, TEMPORARY ON DATABASE {name} FROM PUBLIC")).await?;
    fill::fill(request, operation).await?;
    if let Some(before_open) = &request.before_open {
        before_open.prepare(&request.admin.with_dbname(request.into)).await?;
    }
    public(format!("GRANT CONNECT, TEMPORARY ON DATABASE {name} TO PUBLIC")).await?;
    unfinished::unmark(admin, request.into).await.map_err(failed)
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
