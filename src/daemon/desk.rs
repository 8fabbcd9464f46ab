//! Where the control socket's verbs are answered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use sd_notify::NotifyState;
use serde_json::{Value, json};
use tokio::sync::{Mutex, oneshot, watch};

use super::fleet::{Fleet, Post};
use super::reload;
use crate::audit::{AuditLog, Entry, RecordKind};
use crate::config::Config;
use crate::control::{Desk, Refusal, Update, Verb, Watcher, Why};
use crate::lifecycle;
use crate::postgres::connect::ConnectTarget;
use crate::schedule::board::LiveRun;
use crate::schedule::cancelling;
use crate::schedule::command::{Command, RunNow, RunRefusal};
use crate::schedule::dispatcher::Standing;
use crate::schedule::pausing;
use crate::schedule::recovery::RecoveryError;
use crate::values::{JobName, Name, RunId};

/// How often a watcher is told how far a run is at the most.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// How long a run that was told to end may take to be closed: asked, cancelled, terminated, closed.
const CANCEL_LIMIT: Duration = Duration::from_secs(100);

/// What the verbs work on.
pub(super) struct OfficeState {
    pub(super) config: Config,
    pub(super) audit: AuditLog,
    pub(super) fleet: Arc<Fleet>,
}

/// The desk of a daemon. Cheap to clone.
#[derive(Clone)]
pub(super) struct Office {
    /// Held while a reload is under way, so that reloads come one after the other.
    reloading: Arc<Mutex<OfficeState>>,
    /// The configuration in force, for verbs that need not wait for a reload.
    config: Arc<StdMutex<Arc<Config>>>,
    audit: AuditLog,
    fleet: Arc<Fleet>,
    since: Timestamp,
    /// What became of the last reload.
    verdict: watch::Sender<Option<String>>,
}

impl Office {
    pub(super) fn new(config: Config, audit: AuditLog, fleet: Arc<Fleet>) -> Self {
        Self {
            config: Arc::new(StdMutex::new(Arc::new(config.clone()))),
            reloading: Arc::new(Mutex::new(OfficeState {
                config,
                audit: audit.clone(),
                fleet: Arc::clone(&fleet),
            })),
            audit,
            fleet,
            since: Timestamp::now(),
            verdict: watch::Sender::new(None),
        }
    }

    /// What became of the last reload, for the service manager.
    pub(super) fn verdict(&self) -> watch::Receiver<Option<String>> {
        self.verdict.subscribe()
    }

    /// Reads the configuration again. The service manager is told in any case.
    pub(super) async fn reload(&self, actor: &str) -> Result<Value, Refusal> {
        let mut state = self.reloading.lock().await;
        lifecycle::notify_reloading();
        let result = reload::reload(&mut state, actor).await;
        let now = Timestamp::now().strftime("%FT%TZ");
        let verdict = match &result {
            Ok(_) => {
                *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(state.config.clone());
                format!("configuration reloaded at {now}")
            }
            Err(refusal) => format!("reload rejected at {now}: {refusal}"),
        };
        lifecycle::notify(&[NotifyState::Ready, NotifyState::Status(&verdict)]);
        self.verdict.send_replace(Some(verdict));
        result
    }

    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn status(&self) -> Value {
        let databases: Vec<Value> = self
            .fleet
            .posts()
            .iter()
            .map(|(name, post)| {
                let standing = post.status.borrow().standing.clone();
                let running: Vec<Value> = post.board.list().iter().map(shown).collect();
                json!({
                    "database": name, "standing": word(&standing), "detail": detail(&standing), "running": running,
                })
            })
            .collect();
        let config = self.config();
        json!({
            "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id(), "instance": config.daemon.instance,
            "since": self.since, "fingerprint": config.fingerprint,
            "last_reload": *self.verdict.borrow(), "databases": databases,
        })
    }

    async fn pause(&self, job: &JobName, seconds: u64, reason: &str, actor: &str) -> Result<Value, Refusal> {
        let (_, target) = self.place(job)?;
        let length = Duration::from_secs(seconds);
        let pause = pausing::pause(&target, &self.audit, job, length, reason, actor)
            .await
            .map_err(|error| failed(&error))?;
        Ok(json!(pause))
    }

    async fn resume(&self, job: &JobName, actor: &str) -> Result<Value, Refusal> {
        let (_, target) = self.place(job)?;
        let resumed = pausing::resume(&target, &self.audit, job, actor)
            .await
            .map_err(|error| failed(&error))?;
        Ok(json!({ "job": job, "was_paused": resumed }))
    }

    /// The database of a job, and how to reach it.
    fn place(&self, job: &JobName) -> Result<(Name, ConnectTarget), Refusal> {
        let config = self.config();
        let database = config.jobs.get(job).map(|settings| settings.database.clone());
        let database = database.ok_or_else(|| unknown_job(job))?;
        let target = config.databases[&database].target.clone();
        Ok((database, target))
    }

    async fn run(&self, ask: RunNow, watcher: Watcher) -> Result<Value, Refusal> {
        let (database, _) = self.place(&ask.job)?;
        let post = self.fleet.posts().remove(&database);
        let gone = || Refusal::new(Why::NotLeading, "the daemon is stopping");
        let post = post.ok_or_else(gone)?;
        let (answer, admitted) = oneshot::channel();
        let job = ask.job.clone();
        post.commands
            .send(Command::Run(ask, answer))
            .await
            .map_err(|_| gone())?;
        let live = admitted
            .await
            .map_err(|_| gone())?
            .map_err(|refusal| not_admitted(&job, refusal))?;
        watcher.tell(Update::Started(live.run));
        let progress = tokio::spawn(tell_progress(live.clone(), watcher));
        let record = live.end().await;
        progress.abort();
        let unclosed = || {
            Refusal::new(Why::Failed, "the run ended without a record")
                .with_remedy("the daemon's log says why; `pgreeve history` shows what the ledger has")
        };
        let record = record.ok_or_else(unclosed)?;
        Ok(json!({ "run": record, "may_pass": record.may_pass }))
    }

    async fn cancel(&self, run: RunId, actor: &str) -> Result<Value, Refusal> {
        let posts = self.fleet.posts();
        let own = posts
            .iter()
            .find_map(|(name, post)| post.board.find(run).map(|live| (name, post, live)));
        if let Some((_, _, live)) = own {
            return self.cancel_own(live, actor).await;
        }
        self.cancel_elsewhere(&posts, run, actor).await
    }

    async fn cancel_own(&self, live: LiveRun, actor: &str) -> Result<Value, Refusal> {
        let entry = Entry::new(
            RecordKind::RunCancel,
            json!({ "trigger": live.trigger, "scheduled_for": live.scheduled_for }),
        );
        let entry = entry.run(live.run).job(live.job.clone()).actor(actor);
        // A run that cannot be recorded as cancelled must still be stopped.
        if let Err(error) = self.audit.append(entry).await {
            tracing::error!(error = %error, run.id = %live.run, "the request to cancel could not be put on record");
        }
        live.stops.end_now(actor);
        let record = tokio::time::timeout(CANCEL_LIMIT, live.end()).await;
        let record = record
            .map_err(|_| Refusal::new(Why::TryAgain, "the run has not ended yet; the daemon goes on ending it"))?;
        Ok(json!(record))
    }

    async fn cancel_elsewhere(&self, posts: &BTreeMap<Name, Post>, run: RunId, actor: &str) -> Result<Value, Refusal> {
        let mut trouble = None;
        for (name, post) in posts {
            match cancelling::cancel(&post.target, name.as_str(), &self.audit, run, actor).await {
                Ok(Some(record)) => return Ok(json!(record)),
                Ok(None) => {}
                Err(error) => trouble = Some(failed(&error)),
            }
        }
        let unknown = || {
            Refusal::new(Why::Unknown, format!("there is no run {run}"))
                .with_remedy("`pgreeve status` and `pgreeve history` show the runs")
        };
        Err(trouble.unwrap_or_else(unknown))
    }
}

impl Desk for Office {
    fn answer(&self, verb: Verb, actor: String, watcher: Watcher) -> BoxFuture<'static, Result<Value, Refusal>> {
        let office = self.clone();
        Box::pin(async move {
            if verb == Verb::Status {
                return Ok(office.status());
            }
            let answer = office.carry_out(verb, actor, watcher).await;
            office.seal().await;
            answer
        })
    }
}

impl Office {
    async fn carry_out(&self, verb: Verb, actor: String, watcher: Watcher) -> Result<Value, Refusal> {
        match verb {
            Verb::Status => Ok(self.status()),
            Verb::Reload => self.reload(&actor).await,
            Verb::Run { job, policy, note } => {
                let ask = RunNow {
                    job,
                    policy,
                    note,
                    actor,
                };
                self.run(ask, watcher).await
            }
            Verb::Pause { job, seconds, reason } => self.pause(&job, seconds, &reason, &actor).await,
            Verb::Resume { job } => self.resume(&job, &actor).await,
            Verb::Cancel { run } => self.cancel(run, &actor).await,
        }
    }

    /// What an operator did is signed at once; what the schedule does, each hour.
    async fn seal(&self) {
        if let Err(error) = self.audit.append_checkpoint().await {
            tracing::error!(error = %error, "the audit log could not be sealed");
        }
    }
}

async fn tell_progress(live: LiveRun, watcher: Watcher) {
    let mut states = live.progress.subscribe();
    while states.changed().await.is_ok() {
        let state = states.borrow_and_update().clone();
        watcher.tell(Update::Progress {
            unit: state.unit.to_owned(),
            done: state.done,
            total: state.total,
        });
        tokio::time::sleep(PROGRESS_EVERY).await;
    }
}

fn shown(live: &LiveRun) -> Value {
    let progress = live.progress.subscribe().borrow().clone();
    json!({
        "run_id": live.run, "job": live.job, "trigger": live.trigger, "scheduled_for": live.scheduled_for,
        "actor": live.actor, "since": live.since, "progress": progress,
    })
}

fn word(standing: &Standing) -> &'static str {
    match standing {
        Standing::Connecting => "connecting",
        Standing::Unreachable(_) => "unreachable",
        Standing::Standby => "standby",
        Standing::Following(_) => "following",
        Standing::Leading => "leading",
    }
}

fn detail(standing: &Standing) -> Option<&str> {
    match standing {
        Standing::Unreachable(text) | Standing::Following(text) => Some(text),
        Standing::Connecting | Standing::Standby | Standing::Leading => None,
    }
}

fn unknown_job(job: &JobName) -> Refusal {
    Refusal::new(Why::Unknown, format!("the daemon has no job `{job}`"))
        .with_remedy("`pgreeve reload` lets it read a changed configuration")
}

fn not_admitted(job: &JobName, refusal: RunRefusal) -> Refusal {
    match refusal {
        RunRefusal::UnknownJob => unknown_job(job),
        RunRefusal::OtherPolicy(policy) => Refusal::new(
            Why::OtherConfiguration,
            format!("the daemon's settings of `{job}` are others than the file's (its policy is {policy})"),
        )
        .with_remedy("`pgreeve reload`, then run again"),
        RunRefusal::NotLeading => Refusal::new(Why::NotLeading, "the daemon does not lead the job's database"),
        RunRefusal::Ledger(error) => Refusal {
            remedy: error.remedy(),
            ..Refusal::new(Why::TryAgain, format!("open the run in the ledger: {error}"))
        },
    }
}

fn failed(error: &RecoveryError) -> Refusal {
    let (why, remedy) = match error {
        RecoveryError::Ledger(error) if error.is_transient() => (Why::TryAgain, error.remedy()),
        RecoveryError::Ledger(error) => (Why::Failed, error.remedy()),
        RecoveryError::Audit(error) => (Why::Failed, Some(error.remedy.clone())),
    };
    Refusal {
        remedy,
        ..Refusal::new(why, error.to_string())
    }
}
