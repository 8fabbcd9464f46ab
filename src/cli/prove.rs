//! `backup verify`: a backup at three levels, up to restoring it into a server of its own.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;
use sqlx::AssertSqlSafe;

use super::backup::{find, identities, record, store_failure};
use super::record::open_audit;
use super::run::{job_failure, show_progress};
use super::{Exit, Failure, VerifyArguments, output};
use crate::audit::RecordKind;
use crate::backup::manifest::Manifest;
use crate::backup::program::Programs;
use crate::backup::read::ReadError;
use crate::backup::restore::{Restore, restore};
use crate::backup::seal::Identities;
use crate::backup::verify::{self, Verified};
use crate::config::Config;
use crate::job::Progress;
use crate::lifecycle;
use crate::postgres::cluster::Cluster;
use crate::postgres::quote;
use crate::runner::Stops;
use crate::store::{Store, StoreError};

/// The database on the throwaway server.
const SCRATCH: &str = "proof";

/// What a check found.
enum Proof {
    /// The backup is what its manifest says.
    Sound(Option<Verified>),
    /// It is not.
    Damaged(String, Option<Verified>),
}

pub(super) async fn verify(config: &Config, arguments: &VerifyArguments, as_json: bool) -> Result<Exit, Failure> {
    let (store, manifest) = find(config, &arguments.id, arguments.job.as_ref()).await?;
    let identities = identities(arguments.identity.as_deref())?;
    // Whoever cannot write down that a backup was checked shall not find out after hours.
    let audit = open_audit(config)?;
    let progress = Progress::new();
    let shown = (output::is_watched() && !as_json).then(|| tokio::spawn(show_progress(progress.clone())));
    let proof = prove(&store, &manifest, arguments.level, progress, identities).await;
    if let Some(shown) = shown {
        shown.abort();
        output::progress("");
    }
    let proof = proof?;
    let at = Timestamp::now();
    let (ok, problem, verified) = match &proof {
        Proof::Sound(verified) => (true, None, verified),
        Proof::Damaged(problem, verified) => (false, Some(problem), verified),
    };
    let mut body = json!({ "backup_id": manifest.id, "level": arguments.level, "ok": ok, "problem": problem });
    if let Some(verified) = verified {
        body["compared"] = json!(verified.compared);
        body["rows"] = json!(verified.rows);
        body["mismatches"] = json!(verified.mismatches);
    }
    record(&audit, RecordKind::BackupVerified, &manifest, body.clone()).await?;
    if let Proof::Sound(Some(verified)) = &proof {
        verify::record_proof(store.as_ref(), &manifest, at, verified)
            .await
            .map_err(|error| failure_of_store(&error))?;
    }
    if as_json {
        output::document(&json!({ "version": 1, "verify": body }));
    } else {
        print(&manifest, arguments.level, &proof);
    }
    Ok(if ok { Exit::Green } else { Exit::NotGreen })
}

async fn prove(
    store: &Arc<dyn Store>,
    manifest: &Manifest,
    level: u8,
    progress: Progress,
    identities: Option<Identities>,
) -> Result<Proof, Failure> {
    let damage = verify::find_damage(store.as_ref(), manifest)
        .await
        .map_err(|error| failure_of_store(&error))?;
    if let Some(damage) = damage {
        return Ok(Proof::Damaged(damage, None));
    }
    if level >= 1
        && let Err(error) =
            verify::read_through(Arc::clone(store), manifest, progress.clone(), identities.as_ref()).await
    {
        return match error {
            ReadError::Store(error) => Err(failure_of_store(&error)),
            ReadError::Damaged(cause) => Ok(Proof::Damaged(cause, None)),
            // They say nothing of the backup.
            ReadError::Sealed(cause) => Err(Failure::new(Exit::Usage, format!("read {}: {cause}", manifest.id))
                .with_remedy("--level 0 needs no identity")),
            ReadError::Local(cause) => Err(Failure::new(Exit::Failed, cause)),
        };
    }
    if level < 2 {
        return Ok(Proof::Sound(None));
    }
    let verified = restore_and_compare(store, manifest, progress, identities).await?;
    Ok(match verified.mismatches.first() {
        None => Proof::Sound(Some(verified)),
        Some(first) => Proof::Damaged(first.to_string(), Some(verified)),
    })
}

async fn restore_and_compare(
    store: &Arc<dyn Store>,
    manifest: &Manifest,
    progress: Progress,
    identities: Option<Identities>,
) -> Result<Verified, Failure> {
    let failed = |error: &crate::postgres::sqlstate::DatabaseError| {
        Failure::new(Exit::Failed, format!("start a throwaway server: {error}"))
            .with_remedy("install PostgreSQL's server programs, of the backup's version or later, on this host")
    };
    enough_room(manifest)?;
    let programs = Programs::find().map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let stops = Stops::default();
    lifecycle::listen(stops.clone())
        .map_err(|error| Failure::new(Exit::Failed, format!("listen to signals: {error}")))?;
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(""))
        .await
        .map_err(|error| Failure::new(Exit::Failed, format!("start a throwaway server: {error}")))?
        .map_err(|error| failed(&error))?;
    let admin = cluster.target("postgres");
    let mut connection = admin.connect("pgreeve:verify").await.map_err(|error| failed(&error))?;
    for role in manifest.roles.iter().filter(|role| *role != "postgres") {
        // Owners and the roles of policies must exist; they need no password here.
        let statement = format!("CREATE ROLE {}", quote::identifier(role));
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut connection)
            .await
            .map_err(|error| failed(&error.into()))?;
    }
    drop(connection);
    let request = Restore {
        store: Arc::clone(store),
        manifest,
        programs: &programs,
        admin: &admin,
        into: SCRATCH,
        no_owner: false,
        create_roles: false,
        jobs: 1,
        identities,
        progress,
        stop: stops.soft,
    };
    restore(request).await.map_err(|error| job_failure(&error))?;
    let verified = verify::verify_against(&programs, manifest, &admin.with_dbname(SCRATCH))
        .await
        .map_err(|error| job_failure(&error))?;
    // Stopping the server waits for it.
    let _ = tokio::task::spawn_blocking(move || drop(cluster)).await;
    Ok(verified)
}

/// The server keeps its files in the directory for temporary files.
fn enough_room(manifest: &Manifest) -> Result<(), Failure> {
    let dir = std::env::temp_dir();
    let Ok(space) = rustix::fs::statvfs(&dir) else {
        return Ok(());
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free > manifest.database_bytes {
        return Ok(());
    }
    let message = format!(
        "restore {} beside this server's own data: the database had {} bytes and {} has {free} left",
        manifest.id,
        manifest.database_bytes,
        dir.display()
    );
    Err(Failure::new(Exit::Failed, message).with_remedy("set TMPDIR to a directory with more room, or give --level 1"))
}

fn failure_of_store(error: &StoreError) -> Failure {
    store_failure("of the backup", error)
}

fn print(manifest: &Manifest, level: u8, proof: &Proof) {
    let how = match level {
        0 => "every object is there and has its size",
        1 => "every byte was read and agrees with the manifest",
        _ => "restored, and every table's rows agree with the manifest",
    };
    let verified = match proof {
        Proof::Sound(verified) => {
            output::labelled("verified", &format!("{} at level {level}: {how}", manifest.id));
            verified
        }
        Proof::Damaged(problem, verified) => {
            output::labelled("DAMAGED", &format!("{}: {problem}", manifest.id));
            verified
        }
    };
    if let Some(verified) = verified {
        let compared = format!("{} tables, {} rows, by digest", verified.compared, verified.rows);
        output::labelled("compared", &compared);
        for mismatch in &verified.mismatches {
            output::labelled("DIFFERS", &mismatch.to_string());
        }
    }
}
