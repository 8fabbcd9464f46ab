//! Proves a backup: up to restoring it into a throwaway server, comparing every table, and asking
//! what its owner wants to be true. Nothing of it stays, however it ends.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Column, Connection, Row, TypeInfo, ValueRef};
use tokio_util::sync::CancellationToken;

use super::manifest::Manifest;
use super::program::Programs;
use super::read::ReadError;
use super::restore::{Restore, restore};
use super::seal::Identities;
use super::sweep::store_error;
use super::verify::{self, Verified};
use crate::job::{JobError, Progress};
use crate::postgres::cluster::Cluster;
use crate::postgres::connect::ConnectTarget;
use crate::postgres::quote;
use crate::postgres::sqlstate::DatabaseError;
use crate::store::{Store, StoreError};

/// The database on the throwaway server.
const SCRATCH: &str = "proof";

/// How long one assertion may take.
const ASSERTION_LIMIT: &str = "SET statement_timeout = '10min'; SET default_transaction_read_only = on";

/// What must be true in the restored database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Assertion {
    /// A query whose answer is one row with one column.
    pub query: String,
    /// That answer: `true`, `false`, a number or a text.
    pub expect: String,
}

/// What is to be proved, and how far.
pub struct Proving<'a> {
    /// Where the backup is.
    pub store: &'a Arc<dyn Store>,
    /// The backup.
    pub manifest: &'a Manifest,
    /// 0: sizes. 1: every byte. 2: every row of a restored database. 3: the assertions too.
    pub level: u8,
    /// What is asked at level 3.
    pub assertions: &'a [Assertion],
    /// What opens an encrypted backup.
    pub identities: Option<Identities>,
    /// Who is told how far it is.
    pub progress: Progress,
    /// Cancelled when it should stop.
    pub stop: CancellationToken,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proof {
    /// Why the backup is not what its manifest says, or what its owner wants; `None` for one that is
    /// sound.
    pub problem: Option<String>,
    /// The comparison of the restored database, from level 2 on.
    pub verified: Option<Verified>,
    /// How many assertions held, at level 3.
    pub held: Option<usize>,
}

impl Proof {
    fn damaged(problem: String) -> Self {
        Self {
            problem: Some(problem),
            ..Self::default()
        }
    }

    /// As it stands in records and reports; without the values that assertions gave.
    #[must_use]
    pub fn body(&self, manifest: &Manifest, level: u8) -> Value {
        let mut body = json!({
            "backup_id": manifest.id, "level": level, "ok": self.problem.is_none(), "problem": self.problem,
        });
        if let Some(fields) = body.as_object_mut() {
            if let Some(verified) = &self.verified {
                fields.insert("compared".to_owned(), json!(verified.compared));
                fields.insert("rows".to_owned(), json!(verified.rows));
                fields.insert("mismatches".to_owned(), json!(verified.mismatches));
            }
            if let Some(held) = self.held {
                fields.insert("assertions_held".to_owned(), json!(held));
            }
        }
        body
    }
}

/// Checks a backup, up to the level.
///
/// # Errors
/// When it could not be found out whether the backup is sound: the store does not answer, no
/// throwaway server can be had, or it was asked to stop. A backup that is not sound is no error.
pub async fn prove(request: &Proving<'_>) -> Result<Proof, JobError> {
    let operation = format!("prove the backup {}", request.manifest.id);
    let manifest = request.manifest;
    let unreachable = |error: StoreError| store_error(operation.clone(), error);
    let damage = verify::find_damage(request.store.as_ref(), manifest)
        .await
        .map_err(unreachable)?;
    if let Some(damage) = damage {
        return Ok(Proof::damaged(damage));
    }
    if request.level == 0 {
        return Ok(Proof::default());
    }
    let read = tokio::select! {
        biased;
        () = request.stop.cancelled() => return Err(JobError::cancelled(operation)),
        read = verify::read_through(Arc::clone(request.store), manifest, request.progress.clone(), request.identities.as_ref()) => read,
    };
    match read {
        Ok(()) => {}
        Err(ReadError::Damaged(cause)) => return Ok(Proof::damaged(cause)),
        Err(ReadError::Store(error)) => return Err(unreachable(error)),
        // They say nothing of the backup.
        Err(ReadError::Sealed(cause)) => {
            return Err(JobError::refused(operation, cause, "level 0 needs no identity"));
        }
        Err(ReadError::Local(cause)) => return Err(JobError::permanent(operation, cause)),
    }
    if request.level == 1 {
        return Ok(Proof::default());
    }
    let (cluster, admin) = scratch(manifest, &operation).await?;
    let proof = on_scratch(request, &admin, &operation).await;
    // Stopping the server waits for it, and removes its files.
    let _ = tokio::task::spawn_blocking(move || drop(cluster)).await;
    proof
}

async fn on_scratch(request: &Proving<'_>, admin: &ConnectTarget, operation: &str) -> Result<Proof, JobError> {
    let programs = Programs::find().map_err(|error| missing(operation, &error))?;
    let restored = restore(Restore {
        store: Arc::clone(request.store),
        manifest: request.manifest,
        programs: &programs,
        admin,
        into: SCRATCH,
        no_owner: false,
        before_open: None,
        create_roles: false,
        jobs: 1,
        spool_directory: std::env::temp_dir(),
        identities: request.identities.clone(),
        progress: request.progress.clone(),
        stop: request.stop.clone(),
    });
    restored.await?;
    let target = admin.with_dbname(SCRATCH);
    let verified = verify::verify_against(&programs, request.manifest, &target).await?;
    let mut proof = Proof {
        problem: verified.mismatches.first().map(ToString::to_string),
        verified: Some(verified),
        held: None,
    };
    if request.level >= 3 && proof.problem.is_none() {
        let (held, problem) = ask(request.assertions, &target).await?;
        proof.held = Some(held);
        proof.problem = problem;
    }
    Ok(proof)
}

/// A throwaway server with the roles that the backup's objects belong to.
async fn scratch(manifest: &Manifest, operation: &str) -> Result<(Cluster, ConnectTarget), JobError> {
    enough_room(manifest, operation)?;
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(""))
        .await
        .map_err(|error| JobError::permanent(operation, format!("start a throwaway server: {error}")))?
        .map_err(|error| missing(operation, &error))?;
    let admin = cluster.target("postgres");
    let failed = |error: &DatabaseError| JobError::database(operation, error);
    let mut connection = admin.connect("pgreeve:verify").await.map_err(|error| failed(&error))?;
    for role in manifest.roles.iter().filter(|role| *role != "postgres") {
        // Owners and the roles of policies must exist; they need no password here.
        let statement = format!("CREATE ROLE {}", quote::identifier(role));
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut connection)
            .await
            .map_err(|error| failed(&error.into()))?;
    }
    connection.close().await.map_err(|error| failed(&error.into()))?;
    Ok((cluster, admin))
}

fn missing(operation: &str, error: &DatabaseError) -> JobError {
    JobError::refused(
        operation,
        format!("a throwaway server is needed: {error}"),
        "install PostgreSQL's server programs, of the backup's version or later, on this host",
    )
}

/// The server keeps its files in the directory for temporary files.
fn enough_room(manifest: &Manifest, operation: &str) -> Result<(), JobError> {
    let dir = std::env::temp_dir();
    let Ok(space) = rustix::fs::statvfs(&dir) else {
        return Ok(());
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    // Indexes are built, and WAL is kept, beside the tables.
    let wanted = manifest.database_bytes.saturating_add(manifest.database_bytes / 3);
    if free > wanted {
        return Ok(());
    }
    let cause = format!(
        "restoring {} beside this server's own data wants {wanted} bytes and {} has {free} left",
        manifest.id,
        dir.display()
    );
    let remedy = "set TMPDIR to a directory with more room, or take level 1";
    Err(JobError::refused(operation, cause, remedy))
}

/// Asks each assertion. Answers with how many held, and which did not first.
async fn ask(assertions: &[Assertion], target: &ConnectTarget) -> Result<(usize, Option<String>), JobError> {
    let operation = "ask the assertions";
    let failed = |error: &DatabaseError| JobError::database(operation, error);
    let mut connection = target.connect("pgreeve:verify").await.map_err(|error| failed(&error))?;
    sqlx::raw_sql(ASSERTION_LIMIT)
        .execute(&mut connection)
        .await
        .map_err(|error| failed(&error.into()))?;
    let (mut held, mut problem) = (0, None);
    for (number, assertion) in (1..).zip(assertions) {
        // The simple protocol gives every type as text.
        let answer = sqlx::raw_sql(AssertSqlSafe(assertion.query.as_str()))
            .fetch_all(&mut connection)
            .await;
        let wrong = match answer {
            Ok(rows) if single(&rows).as_deref() == Some(assertion.expect.as_str()) => {
                held += 1;
                continue;
            }
            // The answer may be personal data.
            Ok(rows) if rows.len() == 1 => "has another answer".to_owned(),
            Ok(rows) => format!("has {} rows instead of one", rows.len()),
            Err(error) => format!("fails: {}", DatabaseError::from(error)),
        };
        problem.get_or_insert(format!("assertion {number} {wrong}"));
    }
    Ok((held, problem))
}

/// The one value of an answer, as its type writes it; booleans as `true` and `false`.
fn single(rows: &[PgRow]) -> Option<String> {
    let [row] = rows else { return None };
    let [column] = row.columns() else { return None };
    let value = row.try_get_raw(0).ok().filter(|value| !value.is_null())?;
    let text = value.as_str().ok()?;
    Some(match (column.type_info().name(), text) {
        ("BOOL", "t") => "true".to_owned(),
        ("BOOL", "f") => "false".to_owned(),
        _ => text.to_owned(),
    })
}
