//! Brings the schema `pgreeve` of a database to the version this program needs.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};

use super::leader;
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::postgres::sqlstate::DatabaseError;

/// The files of `migrations/`, in the order of their numbers.
static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Applies what is missing, under an advisory lock of the database: of two daemons that start
/// together one waits for the other and then finds nothing to do.
///
/// # Errors
/// When a pooler in transaction mode is in the way, when the role may not create the schema, when a migration was changed after it was applied, or
/// when the database was migrated by a newer pgreeve.
pub async fn apply(target: &ConnectTarget) -> Result<(), DatabaseError> {
    let settings = SessionSettings {
        // The lock is waited for as long as another daemon's migration takes.
        lock_timeout: Duration::ZERO,
        statement_timeout: Duration::ZERO,
        ..SessionSettings::control("pgreeve:migrate")
    };
    let mut session = Session::open(target, &settings).await?;
    leader::refuse_a_pooler(target, &mut session).await?;
    let mut migrator = Migrator {
        ..Migrator::with_migrations(MIGRATIONS.iter().cloned().collect())
    };
    migrator.create_schema("pgreeve");
    migrator.dangerous_set_table_name("pgreeve.migration");
    // `run` takes an `Acquire`, whose lifetimes keep the future from being `Send`; this is what it calls.
    let result = migrator.run_direct(None, session.connection(), false).await;
    session.close().await;
    result.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            let error = DatabaseError::from(error);
            DatabaseError {
                message: format!("set up the schema pgreeve: {}", error.message),
                ..error
            }
        }
        MigrateError::VersionMissing(version) => DatabaseError::local(format!(
            "the schema pgreeve is at version {version}, which this pgreeve does not know: run the newer one"
        )),
        other => DatabaseError::local(format!("set up the schema pgreeve: {other}")),
    })
}
