//! Erasures and restores: what `backup restore` does before a database opens, `erasure replay` and
//! `erasure keys`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::record::open_audit;
use super::run::job_failure;
use super::site::{database_failure, job, target};
use super::{Exit, Failure, actor, output, parse_instant, parse_job};
use crate::audit::{AuditLog, RunRecorder};
use crate::backup::manifest::Manifest;
use crate::backup::program::Programs;
use crate::backup::restore::BeforeOpen;
use crate::backup::verify::{Verified, verify_against};
use crate::config::{Config, JobSettings};
use crate::daemon;
use crate::erasure::copies;
use crate::erasure::host::{HostProof, blocking, ledger_dir};
use crate::erasure::memory::MemoryError;
use crate::erasure::recall::{Recall, Witness};
use crate::erasure::replay::{self as engine, Replay, ReplayJob, Replayed};
use crate::erasure::token::KeyId;
use crate::erasure::witnesses;
use crate::job::{JobError, Recorder};
use crate::jobs::KindSettings;
use crate::ledger::locks;
use crate::postgres::connect::{ConnectTarget, Session, SessionSettings};
use crate::runner::Stops;
use crate::store::Store;
use crate::values::JobName;

#[derive(Debug, Args)]
pub(super) struct ReplayArguments {
    /// The job that erases.
    #[arg(long, value_parser = parse_job)]
    job: JobName,
    /// As of when the database is: erasures that were done an hour or more before are in it. Default:
    /// all are repeated.
    #[arg(long, value_name = "T", value_parser = parse_instant)]
    since: Option<Timestamp>,
    /// The restored database; default: the job's own.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// A ledger of erasures of another host; may be given several times.
    #[arg(long, value_name = "DIR")]
    erasures: Vec<PathBuf>,
}

/// What is to happen between the last byte of a restore and its first visitor: every table is
/// compared with the manifest, then erasures since the snapshot are repeated.
pub(super) struct Opening {
    manifest: Manifest,
    programs: Programs,
    recall: Recall,
    /// Opened when there is something to repeat.
    proof: Option<HostProof>,
    recorder: RunRecorder,
    jobs: Vec<ReplayJob>,
    stop: CancellationToken,
    outcome: Mutex<Option<(Result<Verified, JobError>, Replayed)>>,
}

impl Opening {
    /// Reads the ledgers and asks all who have seen them; a ledger that is not whole ends it here.
    pub(super) async fn new(
        config: &Config,
        store: &Arc<dyn Store>,
        manifest: &Manifest,
        programs: &Programs,
        elsewhere: &[PathBuf],
        audit: &AuditLog,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, Failure> {
        let recall = load(config, elsewhere).await?;
        let dir = config.daemon.state_dir.join("audit");
        let recall = witnesses::recall(recall, manifest, store.as_ref(), &dir)
            .await
            .map_err(|error| refusal(&error))?;
        let wanted = recall.since(&manifest.database, manifest.erasures.as_ref(), manifest.started_at);
        for begun in &wanted {
            recall.key(&begun.key).map_err(|error| refusal(&error))?;
        }
        if let Some(begun) = wanted
            .iter()
            .find(|begun| !is_erased_by(config, manifest, &begun.table))
        {
            let message = format!(
                "{} people were erased from {} since the backup, and no job of the configuration erases from {}",
                wanted.len(),
                begun.database,
                begun.table
            );
            return Err(Failure::new(Exit::NotGreen, message)
                .with_remedy("restore with the configuration of its daemon: what to erase stands there"));
        }
        let of_database = |job: &&JobSettings| job.database.as_str() == manifest.database;
        let jobs: Vec<&JobSettings> = config.jobs.values().filter(of_database).collect();
        let proof = match (wanted.is_empty(), jobs.first()) {
            (false, Some(job)) => Some(open_proof(config, job).await?),
            _ => None,
        };
        let job = manifest
            .job
            .parse()
            .map_err(|_| Failure::new(Exit::Failed, "the manifest names a job that cannot be one"))?;
        Ok(Arc::new(Self {
            recorder: recorder(audit, job),
            jobs: replay_jobs(&jobs),
            manifest: manifest.clone(),
            programs: programs.clone(),
            recall,
            proof,
            stop,
            outcome: Mutex::new(None),
        }))
    }

    /// What was compared, and what was repeated.
    pub(super) fn outcome(&self) -> Result<(Verified, Replayed), Failure> {
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (verified, replayed) =
            outcome.ok_or_else(|| Failure::new(Exit::Failed, "the restored database was not compared"))?;
        Ok((verified.map_err(|error| job_failure(&error))?, replayed))
    }

    async fn work(&self, database: &ConnectTarget) -> Result<(), JobError> {
        // What cannot be compared, a script of SQL for one, is restored and erased from all the same.
        let verified = verify_against(&self.programs, &self.manifest, database).await;
        let replayed = match &self.proof {
            // Without rows there is nobody to erase.
            _ if self.manifest.schema_only => Replayed::default(),
            None => Replayed::default(),
            Some(proof) => {
                let request = Replay {
                    recall: &self.recall,
                    proof,
                    recorder: &self.recorder as &dyn Recorder,
                    jobs: &self.jobs,
                    database: &self.manifest.database,
                    mark: self.manifest.erasures.as_ref(),
                    snapshot: self.manifest.started_at,
                    backup: Some(&self.manifest.id),
                    stop: self.stop.clone(),
                };
                engine::replay(&request, database).await?
            }
        };
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some((verified, replayed));
        Ok(())
    }
}

impl BeforeOpen for Opening {
    fn prepare<'a>(&'a self, database: &'a ConnectTarget) -> BoxFuture<'a, Result<(), JobError>> {
        self.work(database).boxed()
    }
}

pub(super) async fn replay(config: &Config, arguments: &ReplayArguments, as_json: bool) -> Result<Exit, Failure> {
    let settings = job(config, &arguments.job)?;
    let database = match &arguments.url {
        None => target(config, &settings.database)?.clone(),
        Some(url) => ConnectTarget::parse(url)
            .map_err(|error| Failure::new(Exit::Usage, format!("--url: {error}")).with_remedy(error.help))?,
    };
    let jobs = replay_jobs(&[settings]);
    if jobs.is_empty() {
        return Err(Failure::new(Exit::Usage, format!("{} is no erasure", settings.name))
            .with_remedy("name a job with an `erasure` section"));
    }
    let audit = open_audit(config)?;
    let mut recall = load(config, &arguments.erasures).await?;
    let proof = open_proof(config, settings).await?;
    for source in proof.backups() {
        let store = (source.open)()
            .await
            .map_err(|error| super::backup::store_failure(&source.store, &error))?;
        for copy in copies::fetch(store.as_ref()).await.map_err(|error| refusal(&error))? {
            if recall.knows(&copy.ledger) {
                let witness = Witness {
                    who: format!("the copy in {}", copy.place),
                    mark: copy.mark,
                };
                recall.check(&witness).map_err(|error| refusal(&error))?;
            } else {
                recall
                    .add_lines(&copy.place, &copy.text)
                    .map_err(|error| refusal(&error))?;
            }
        }
    }
    let seen = witnesses::of_audit(&config.daemon.state_dir.join("audit"))
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()).with_remedy(error.remedy))?;
    for witness in &seen {
        recall.check(witness).map_err(|error| refusal(&error))?;
    }
    let mut guard = Session::open(&database, &SessionSettings::control("pgreeve:replay"))
        .await
        .map_err(|error| database_failure("repeat erasures", &error))?;
    let free = locks::try_lock(guard.connection(), locks::JOB_CLASS, locks::key(settings.name.as_str()))
        .await
        .map_err(|error| database_failure("repeat erasures", &error))?;
    if !free {
        return Err(
            Failure::new(Exit::TryAgain, format!("the job {} is running", settings.name))
                .with_remedy("try again when it has ended"),
        );
    }
    let stops = Stops::default();
    crate::lifecycle::listen(stops.clone())
        .map_err(|error| Failure::new(Exit::Failed, format!("listen to signals: {error}")))?;
    let recorder = recorder(&audit, settings.name.clone());
    let request = Replay {
        recall: &recall,
        proof: &proof,
        recorder: &recorder,
        jobs: &jobs,
        database: settings.database.as_str(),
        mark: None,
        snapshot: arguments.since.unwrap_or(Timestamp::MIN),
        backup: None,
        stop: stops.soft,
    };
    let replayed = engine::replay(&request, &database).await;
    guard.close().await;
    let replayed = replayed.map_err(|error| job_failure(&error))?;
    if as_json {
        output::document(&json!({ "version": 1, "replay": replayed }));
    } else {
        output::line(&format!(
            "the ledger has {} erasures since then; {} people were in {} and are erased again, {} rows",
            replayed.remembered, replayed.found, database.dbname, replayed.rows
        ));
    }
    Ok(Exit::Green)
}

pub(super) async fn keys(config: &Config, destroy: bool, as_json: bool) -> Result<Exit, Failure> {
    let recall = load(config, &[]).await?;
    let erasing = |job: &&JobSettings| matches!(job.kind, KindSettings::Erasure(_));
    let jobs: Vec<&JobSettings> = config.jobs.values().filter(erasing).collect();
    let Some(first) = jobs.first() else {
        return Err(
            Failure::new(Exit::Usage, "the configuration has no job of the kind `erasure`").with_remedy("add one"),
        );
    };
    let audit = open_audit(config)?;
    let proof = open_proof(config, first).await?;
    let mut holdings = Vec::new();
    for job in &jobs {
        holdings.push(copies::list(&daemon::proof::of(config, job).backups, &[]).await);
    }
    let year = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).year();
    let needed = |id: &KeyId| -> Option<&'static str> {
        if id.year >= year {
            return Some("it names subjects this year");
        }
        let named = recall.begun().filter(|begun| begun.key == *id);
        let ends: Vec<Option<Timestamp>> = named.map(|begun| recall.ending(begun.request)).collect();
        if ends.contains(&None) {
            return Some("an erasure under it is not done");
        }
        let may_hold = |end: &Timestamp| holdings.iter().any(|held| held.may_hold(*end));
        let held = ends.iter().flatten().any(may_hold);
        held.then_some("a backup may hold a subject that it names")
    };
    let known = proof.memory().keys().list().map_err(|error| refusal(&error))?;
    let mut rows = Vec::new();
    for id in known {
        let subjects = recall.begun().filter(|begun| begun.key == id).count();
        let why = needed(&id);
        let mut state = why.unwrap_or("not needed any more");
        if why.is_none() && destroy {
            let recorder = recorder(&audit, first.name.clone());
            let body = json!({ "key": id, "subjects": subjects });
            recorder
                .record("erasure.key_destroyed", body)
                .await
                .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
            proof
                .memory()
                .forget_key(id.clone())
                .await
                .map_err(|error| refusal(&error))?;
            proof.memory().keys().destroy(&id).map_err(|error| refusal(&error))?;
            state = "destroyed";
        }
        rows.push((id, subjects, state));
    }
    if as_json {
        let keys: Vec<_> = rows
            .iter()
            .map(|(id, subjects, state)| json!({ "key": id, "subjects": subjects, "state": state }))
            .collect();
        output::document(&json!({ "version": 1, "keys": keys }));
    } else {
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|(id, subjects, state)| vec![id.to_string(), subjects.to_string(), (*state).to_owned()])
            .collect();
        output::table(&["KEY", "SUBJECTS", "STATE"], &rows);
    }
    Ok(Exit::Green)
}

/// Whether a job of the backup's database erases from a table.
fn is_erased_by(config: &Config, manifest: &Manifest, table: &str) -> bool {
    let own = table.rsplit_once('.').map_or(table, |(_, name)| name);
    config.jobs.values().any(|job| {
        let erases = matches!(&job.kind, KindSettings::Erasure(rule) if rule.subject.table.name == own);
        erases && job.database.as_str() == manifest.database
    })
}

/// The ledgers of this host and of the places that were given.
async fn load(config: &Config, elsewhere: &[PathBuf]) -> Result<Recall, Failure> {
    let mut places = vec![ledger_dir(&config.daemon.state_dir)];
    if let Some(missing) = elsewhere.iter().find(|place| !place.exists()) {
        return Err(Failure::new(Exit::Usage, format!("there is no {}", missing.display())));
    }
    places.extend_from_slice(elsewhere);
    blocking(move || Recall::load(&places))
        .await
        .map_err(|error| refusal(&error))
}

async fn open_proof(config: &Config, job: &JobSettings) -> Result<HostProof, Failure> {
    let settings = daemon::proof::of(config, job);
    blocking(move || HostProof::open(settings))
        .await
        .map_err(|error| refusal(&error))
}

fn replay_jobs(jobs: &[&JobSettings]) -> Vec<ReplayJob> {
    let erasing = jobs.iter().filter_map(|job| match &job.kind {
        KindSettings::Erasure(rule) => Some(ReplayJob {
            name: job.name.to_string(),
            rule: Arc::new(rule.as_ref().clone()),
            policy: job.kind.fingerprint(),
            zone: job.schedule.timezone().clone(),
        }),
        _ => None,
    });
    erasing.collect()
}

fn recorder(audit: &AuditLog, job: JobName) -> RunRecorder {
    RunRecorder {
        log: audit.clone(),
        run: None,
        job,
        database: None,
        policy: None,
        actor: Some(actor()),
    }
}

/// A ledger that is not whole refuses the work; nothing was changed.
fn refusal(error: &MemoryError) -> Failure {
    Failure::new(Exit::NotGreen, error.to_string()).with_remedy(error.remedy.clone())
}
