//! The verbs of backups.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::record::open_audit;
use super::replay::Opening;
use super::run::{job_failure, show_progress};
use super::site::target;
use super::{Exit, Failure, RestoreArguments, actor, output};
use crate::audit::{AuditLog, Entry, RecordKind};
use crate::backup::catalog::{self, Filter};
use crate::backup::manifest::Manifest;
use crate::backup::program::Programs;
use crate::backup::restore::{BeforeOpen, Restore, restore as restore_backup};
use crate::backup::seal::Identities;
use crate::backup::verify::Verified;
use crate::config::{Config, JobSettings};
use crate::job::Progress;
use crate::jobs::KindSettings;
use crate::lifecycle;
use crate::postgres::connect::ConnectTarget;
use crate::runner::Stops;
use crate::store::{Store, StoreError, StoreErrorKind};
use crate::values::{JobName, Name};

pub(super) async fn list(config: &Config, only: Option<&JobName>, as_json: bool) -> Result<Exit, Failure> {
    let (mut backups, mut unreadable) = (Vec::new(), Vec::new());
    for (name, store) in open_stores(config, only).await? {
        let filter = Filter {
            job: only.map(Name::as_str),
            ..Filter::default()
        };
        let found = catalog::list(store.as_ref(), filter)
            .await
            .map_err(|error| store_failure(name.as_str(), &error))?;
        backups.extend(found.backups);
        unreadable.extend(found.unreadable);
    }
    backups.sort_by(|a, b| b.started_at.cmp(&a.started_at).then_with(|| b.id.cmp(&a.id)));
    for manifest in &unreadable {
        output::note(&format!(
            "pgreeve: the manifest {} cannot be used: {}",
            manifest.key, manifest.cause
        ));
    }
    if as_json {
        output::document(&json!({ "version": 1, "backups": backups }));
    } else {
        let rows: Vec<Vec<String>> = backups
            .iter()
            .map(|backup| {
                vec![
                    backup.id.clone(),
                    backup.database.clone(),
                    backup.job.clone(),
                    backup.started_at.to_string(),
                    backup.finished_at.to_string(),
                    backup.bytes.to_string(),
                    backup
                        .verified_at
                        .map_or_else(|| "never".to_owned(), |at| at.to_string()),
                ]
            })
            .collect();
        output::table(
            &["BACKUP", "DATABASE", "JOB", "SNAPSHOT", "FINISHED", "BYTES", "VERIFIED"],
            &rows,
        );
    }
    Ok(if unreadable.is_empty() {
        Exit::Green
    } else {
        Exit::NotGreen
    })
}

pub(super) async fn restore(config: &Config, arguments: &RestoreArguments, as_json: bool) -> Result<Exit, Failure> {
    let (store, manifest) = find(config, &arguments.id, arguments.job.as_ref()).await?;
    let admin = admin(config, arguments, &manifest)?;
    let programs = Programs::find().map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let identities = identities(arguments.identity.as_deref())?;
    let audit = open_audit(config)?;
    let stops = Stops::default();
    // Before anything is begun: without the whole ledger nothing is restored.
    let opening = Opening::new(
        config,
        &store,
        &manifest,
        &programs,
        &arguments.erasures,
        &audit,
        stops.soft.clone(),
    )
    .await?;
    let who = json!({ "backup_id": manifest.id, "into": arguments.into, "server": admin.describe() });
    record(&audit, RecordKind::RestoreStarted, &manifest, who).await?;
    lifecycle::listen(stops.clone())
        .map_err(|error| Failure::new(Exit::Failed, format!("listen to signals: {error}")))?;
    let progress = Progress::new();
    let shown = (output::is_watched() && !as_json).then(|| tokio::spawn(show_progress(progress.clone())));
    let request = Restore {
        store,
        manifest: &manifest,
        programs: &programs,
        admin: &admin,
        into: &arguments.into,
        no_owner: arguments.no_owner,
        create_roles: arguments.create_roles,
        jobs: arguments.jobs,
        spool_directory: std::env::temp_dir(),
        identities,
        before_open: Some(Arc::clone(&opening) as Arc<dyn BeforeOpen>),
        progress,
        stop: stops.soft,
    };
    let restored = restore_backup(request).await;
    if let Some(shown) = shown {
        shown.abort();
        output::progress("");
    }
    let restored = match restored {
        Ok(restored) => restored,
        Err(error) => {
            record(
                &audit,
                RecordKind::RestoreFailed,
                &manifest,
                json!({ "into": arguments.into, "reason": error.to_string() }),
            )
            .await?;
            return Err(job_failure(&error));
        }
    };
    let (verified, replayed) = opening.outcome()?;
    let proof = json!({
        "into": arguments.into, "tables": restored.tables, "rows": restored.rows,
        "compared": verified.compared, "mismatches": verified.mismatches, "erasures": replayed,
    });
    record(&audit, RecordKind::RestoreCompleted, &manifest, proof).await?;
    let document = json!({
        "version": 1,
        "restore": { "backup_id": manifest.id, "into": arguments.into, "rows": restored.rows, "verified": verified, "erasures": replayed },
    });
    if as_json {
        output::document(&document);
    } else {
        print(&manifest, &arguments.into, &verified);
        if replayed.remembered > 0 {
            output::line(&format!(
                "erased    {} people again, {} rows; the ledger has {} erasures since the snapshot",
                replayed.found, replayed.rows, replayed.remembered
            ));
        }
    }
    Ok(if verified.mismatches.is_empty() {
        Exit::Green
    } else {
        Exit::NotGreen
    })
}

/// What opens an encrypted backup, if a file was named.
pub(super) fn identities(file: Option<&Path>) -> Result<Option<Identities>, Failure> {
    file.map(Identities::read)
        .transpose()
        .map_err(|error| Failure::new(Exit::Usage, error.problem).with_remedy(error.help))
}

fn print(manifest: &Manifest, into: &str, verified: &Verified) {
    output::line(&format!("restored  {} into {into}", manifest.id));
    output::line(&format!(
        "compared  {} tables, {} rows, by digest",
        verified.compared, verified.rows
    ));
    for mismatch in &verified.mismatches {
        output::line(&format!("DIFFERS   {mismatch}"));
    }
}

/// The stores that backups go to, opened; those of one job, or of all.
async fn open_stores<'a>(
    config: &'a Config,
    only: Option<&JobName>,
) -> Result<BTreeMap<&'a Name, Arc<dyn Store>>, Failure> {
    let mut stores = BTreeMap::new();
    for settings in config
        .jobs
        .values()
        .filter(|job| only.is_none_or(|only| job.name == *only))
    {
        if let KindSettings::Backup(backup) = &settings.kind
            && let Some(store) = config.stores.get(&backup.store)
            && !stores.contains_key(&backup.store)
        {
            let opened = store
                .open_attended()
                .await
                .map_err(|error| store_failure(backup.store.as_str(), &error))?;
            stores.insert(&backup.store, opened);
        }
    }
    if stores.is_empty() {
        return Err(no_backup_job(config, only));
    }
    Ok(stores)
}

pub(super) fn no_backup_job(config: &Config, only: Option<&JobName>) -> Failure {
    let is_backup = |job: &&JobSettings| matches!(job.kind, KindSettings::Backup(_));
    let known: Vec<&str> = config
        .jobs
        .values()
        .filter(is_backup)
        .map(|job| job.name.as_str())
        .collect();
    match only {
        Some(name) if !known.is_empty() => Failure::new(Exit::Usage, format!("there is no backup job `{name}`"))
            .with_remedy(format!("the backup jobs are {}", known.join(", "))),
        _ => {
            Failure::new(Exit::Usage, "the configuration has no job of the kind `backup`").with_remedy("add one to it")
        }
    }
}

/// The backup that an id, or `latest`, means.
pub(super) async fn find(
    config: &Config,
    id: &str,
    job: Option<&JobName>,
) -> Result<(Arc<dyn Store>, Manifest), Failure> {
    let mut found: Vec<(Name, Manifest)> = Vec::new();
    for (name, store) in open_stores(config, job).await? {
        let filter = Filter {
            job: job.map(Name::as_str),
            ..Filter::default()
        };
        let listed = catalog::list(store.as_ref(), filter)
            .await
            .map_err(|error| store_failure(name.as_str(), &error))?;
        let wanted = |found: &str| id == "latest" || found == id;
        found.extend(
            listed
                .backups
                .into_iter()
                .filter(|entry| wanted(&entry.id))
                .map(|entry| (name.clone(), entry.manifest)),
        );
    }
    let jobs: std::collections::BTreeSet<&str> = found.iter().map(|(_, manifest)| manifest.job.as_str()).collect();
    if jobs.len() > 1 {
        return Err(
            Failure::new(Exit::Usage, "backups of several jobs could be meant").with_remedy("name one with --job")
        );
    }
    found.sort_by_key(|(_, manifest)| manifest.started_at);
    let newest = found.pop().ok_or_else(|| {
        Failure::new(Exit::Usage, format!("there is no backup `{id}`"))
            .with_remedy("`pgreeve backup list` shows those that exist")
    })?;
    // What follows may take hours, and is patient.
    let (name, manifest) = newest;
    let opened = config.stores[&name].open().await;
    Ok((opened.map_err(|error| store_failure(name.as_str(), &error))?, manifest))
}

/// As whom to restore: the role of `--url`, else the one the backup was made as.
fn admin(config: &Config, arguments: &RestoreArguments, manifest: &Manifest) -> Result<ConnectTarget, Failure> {
    if let Some(url) = &arguments.url {
        return ConnectTarget::parse(url)
            .map_err(|error| Failure::new(Exit::Usage, format!("--url: {error}")).with_remedy(error.help));
    }
    let of_job = |job: &&JobSettings| job.name.as_str() == manifest.job;
    let database = match config.jobs.values().find(of_job) {
        Some(job) => job.database.clone(),
        None => manifest
            .database
            .parse()
            .map_err(|_| Failure::new(Exit::Usage, "the backup's database is not in the configuration"))?,
    };
    target(config, &database).cloned()
}

pub(super) async fn record(
    audit: &AuditLog,
    kind: RecordKind,
    manifest: &Manifest,
    body: serde_json::Value,
) -> Result<(), Failure> {
    let mut entry = Entry::new(kind, body).actor(actor());
    if let Ok(job) = manifest.job.parse() {
        entry = entry.job(job);
    }
    audit
        .append(entry)
        .await
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()).with_remedy(error.remedy))?;
    Ok(())
}

pub(super) fn store_failure(name: &str, error: &StoreError) -> Failure {
    let exit = if error.kind == StoreErrorKind::Transient {
        Exit::TryAgain
    } else {
        Exit::Failed
    };
    let failure = Failure::new(exit, format!("store {name}: {error}"));
    match &error.remedy {
        Some(remedy) => failure.with_remedy(remedy.clone()),
        None => failure,
    }
}
