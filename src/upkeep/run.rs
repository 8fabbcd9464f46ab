//! The steps, one after the other. One that fails does not keep the others from being done.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::Connection;

use super::UpkeepPlan;
use super::act::{Fate, act};
use super::need::Step;
use crate::job::{JobContext, JobError, JobReport, Outcome};
use crate::ledger::index_sizes;
use crate::ledger::leader::Fence;
use crate::postgres::connect::Session;
use crate::postgres::sqlstate::{DatabaseError, Nature};

/// The longest wait for a backup to end.
const BACKUP_TIME: Duration = Duration::from_mins(5);

/// Does all that is needed.
pub(super) async fn run(plan: &UpkeepPlan, context: &mut JobContext) -> Result<JobReport, JobError> {
    let started = Instant::now();
    let mut work = Work {
        plan,
        context,
        began: started,
        fates: Vec::new(),
        patience: BACKUP_TIME,
    };
    let ended = work.all().await;
    let fates = work.fates;
    let body = report(plan, &fates, started);
    ended.map_err(|error| error.with_partial(body.clone()))?;
    let left = plan.steps.iter().zip(&fates).filter_map(|(step, fate)| match fate {
        Fate::Done { short, .. } => short.as_ref().map(|short| format!("{}: {short}", step.relation())),
        Fate::Left(reason) => Some(format!("{}: {reason}", step.relation())),
    });
    let left: Vec<String> = left.chain(plan.survey.lacking.clone()).collect();
    if left.is_empty() {
        return Ok(JobReport {
            outcome: Outcome::Succeeded,
            reason: None,
            body,
        });
    }
    let reason = left.join("; ");
    if !fates.is_empty() && fates.iter().all(|fate| matches!(fate, Fate::Left(_))) {
        return Err(JobError::permanent("do the upkeep", reason).with_partial(body));
    }
    Ok(JobReport {
        outcome: Outcome::Partial,
        reason: Some(reason),
        body,
    })
}

fn report(plan: &UpkeepPlan, fates: &[Fate], started: Instant) -> Value {
    let steps: Vec<Value> = plan
        .steps
        .iter()
        .zip(fates)
        .map(|(step, fate)| {
            let mut entry = step.describe();
            match fate {
                Fate::Done { took, details, short } => {
                    entry["done"] = json!(true);
                    entry["duration_ms"] = json!(milliseconds(*took));
                    entry["error"] = json!(short);
                    for (key, value) in details.as_object().into_iter().flatten() {
                        entry[key.as_str()] = value.clone();
                    }
                }
                Fate::Left(reason) => {
                    entry["done"] = json!(false);
                    entry["error"] = json!(reason);
                }
            }
            entry
        })
        .collect();
    let done = fates.iter().filter(|fate| matches!(fate, Fate::Done { .. })).count();
    json!({
        "tables": plan.survey.tables.len(),
        "indexes": plan.survey.indexes.len(),
        "steps": steps,
        "done": done,
        "left": plan.steps.len().saturating_sub(done),
        "duration_ms": milliseconds(started.elapsed()),
        "warnings": plan.survey.warnings,
    })
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

struct Work<'a> {
    plan: &'a UpkeepPlan,
    context: &'a mut JobContext,
    began: Instant,
    /// What became of the steps so far, in their order.
    fates: Vec<Fate>,
    /// How long the next step may wait for a backup.
    patience: Duration,
}

impl Work<'_> {
    async fn all(&mut self) -> Result<(), JobError> {
        let failed = |error: DatabaseError| JobError::database("begin the upkeep", &error);
        at_the_pace_of_autovacuum(&mut self.context.session)
            .await
            .map_err(failed)?;
        self.remember().await.map_err(failed)?;
        let window = self.plan.upkeep.window();
        for step in &self.plan.steps {
            if self.context.stop.is_cancelled() {
                return Err(JobError::cancelled(operation(step)));
            }
            let fate = if window.is_some_and(|window| self.began.elapsed() >= window) {
                Fate::Left("the window was over".to_owned())
            } else {
                self.one(step).await?
            };
            match &fate {
                Fate::Done { short: None, took, .. } => tracing::info!(
                    action = step.action(), relation = %step.relation(), duration_ms = milliseconds(*took), "upkeep is done"
                ),
                Fate::Done {
                    short: Some(reason), ..
                }
                | Fate::Left(reason) => tracing::warn!(
                    action = step.action(), relation = %step.relation(), reason, "upkeep is not done, or not wholly"
                ),
            }
            self.fates.push(fate);
            let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
            let (done, all) = (count(self.fates.len()), count(self.plan.steps.len()));
            self.context.progress.set("steps", done, Some(all));
        }
        Ok(())
    }

    /// Notes the sizes of the indexes, which later ones are measured against.
    async fn remember(&mut self) -> Result<(), DatabaseError> {
        let mut transaction = self.context.session.connection().begin().await?;
        self.context.fence.hold(&mut transaction).await?;
        index_sizes::note(&mut transaction, &self.plan.seen).await?;
        index_sizes::forget(&mut transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn one(&mut self, step: &Step) -> Result<Fate, JobError> {
        if !step.is_apart_from_backups() {
            return self.fenced(step).await;
        }
        if !self.context.exclude_backups(self.patience).await? {
            // A dump takes hours; the other steps have waited long enough with this one.
            self.patience = Duration::from_millis(1);
            return Ok(Fate::Left("a backup holds its snapshot".to_owned()));
        }
        let fate = self.fenced(step).await;
        self.context.admit_backups().await;
        fate
    }

    /// What is no transaction cannot hold the fence; it is asked for right before.
    async fn fenced(&mut self, step: &Step) -> Result<Fate, JobError> {
        let done = match ask(&mut self.context.session, self.context.fence).await {
            Ok(()) => act(self.context, step, self.plan.upkeep.dead_fraction).await,
            Err(error) => Err(error),
        };
        let error = match done {
            Ok(fate) => return Ok(fate),
            Err(error) => error,
        };
        match error.sqlstate.as_deref() {
            Some("57014") if self.context.stop.is_cancelled() => Err(JobError::cancelled(operation(step))),
            Some("55P03" | "40P01") => Ok(Fate::Left(format!("other sessions kept it locked: {error}"))),
            Some("57014") => Err(JobError::database(operation(step), &error)),
            // The way to the server is gone, or the lead is: no other step would fare better.
            _ if error.is_transient() || error.nature == Nature::Displaced => {
                Err(JobError::database(operation(step), &error))
            }
            _ => Ok(Fate::Left(match error.remedy() {
                Some(remedy) => format!("{error}; {remedy}"),
                None => error.to_string(),
            })),
        }
    }
}

fn operation(step: &Step) -> String {
    format!("{} {}", step.action(), step.relation())
}

async fn ask(session: &mut Session, fence: Fence) -> Result<(), DatabaseError> {
    let mut transaction = session.connection().begin().await?;
    fence.hold(&mut transaction).await?;
    transaction.commit().await?;
    Ok(())
}

/// A vacuum by hand knows no pauses; this one makes those that the server's own does.
async fn at_the_pace_of_autovacuum(session: &mut Session) -> Result<(), DatabaseError> {
    sqlx::query(
        "SELECT set_config(v.name, a.setting, false)
         FROM pg_catalog.pg_settings a
         JOIN (VALUES ('autovacuum_vacuum_cost_delay', 'vacuum_cost_delay'),
                      ('autovacuum_vacuum_cost_limit', 'vacuum_cost_limit')) AS v (source, name) ON a.name = v.source
         WHERE a.setting <> '-1'",
    )
    .execute(session.connection())
    .await?;
    Ok(())
}
