//! The one step at which an operator lets a rollup write: its table is made, or adopted, and in the
//! exact mode the source gets its triggers.

use sqlx::{AssertSqlSafe, PgConnection};

use super::check::{self, Subject, reading, refuse};
use super::spec::{Mode, Rollup};
use super::{target, triggers};
use crate::job::JobError;
use crate::ledger::rollups::{self, NewRollup, State};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::JobName;

/// What was done, or is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Initialised {
    /// The statements that make what is missing, without those on the ledger.
    pub statements: Vec<String>,
    /// Whether the table was there before, with rows.
    pub adopted: bool,
}

/// Initialises a rollup, or adopts its new definition, within a transaction.
///
/// # Errors
/// Refused when something does not fit; also when the target holds rows and `adopt` is not given.
pub async fn init(
    transaction: &mut PgConnection,
    rollup: &Rollup,
    job: &JobName,
    actor: &str,
    adopt: bool,
) -> Result<Initialised, JobError> {
    let failed = |error: DatabaseError| JobError::database(format!("initialise the rollup {job}"), &error);
    let state = rollups::lock(transaction, job).await.map_err(failed)?;
    compatible(rollup, job, state.as_ref())?;
    let mut checked = check::check(transaction, rollup).await?;
    let mut done = Initialised::default();
    if let Some(relation) = &checked.target {
        if state.is_none() && target::has_rows(transaction, relation).await? {
            if !adopt {
                return Err(refuse(
                    "target",
                    &relation.display(),
                    "the table holds rows, and a rollup replaces those of the buckets that it computes",
                    format!("`pgreeve rollup init {job} --adopt` if that is what you want"),
                ));
            }
            done.adopted = true;
        }
    } else if let (Some(source), Subject::Source { fresh, .. }) = (rollup.source(), &checked.subject) {
        let version: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::int4")
            .fetch_one(&mut *transaction)
            .await
            .map_err(|error| reading("the server's version")(error.into()))?;
        let statements = target::make(&rollup.target, source, fresh, version, job.as_str());
        run(transaction, &statements, "target", &rollup.target.to_string()).await?;
        done.statements.extend(statements);
        // What was made must pass the same checks as what was found.
        checked = check::check(transaction, rollup).await?;
    }
    let mut noting = true;
    if let (Some(source), Subject::Source { relation, tree, .. }) = (rollup.source(), &checked.subject) {
        if source.mode == Mode::Exact {
            let lacking = triggers::missing(transaction, job, tree).await?;
            noting = !lacking.contains(&relation.oid);
            // Those that are there may be disabled: all are put there anew, or none.
            let on = if lacking.is_empty() { &[][..] } else { tree };
            let tables = triggers::tables(transaction, on).await?;
            let mut statements = triggers::install(job, source, &checked, &tables);
            if !lacking.is_empty() {
                statements.insert(0, triggers::remove(job));
            }
            run(transaction, &statements, "mode", &relation.display()).await?;
            done.statements.extend(statements);
        } else if state.as_ref().is_some_and(|state| state.mode == "exact") {
            let statements = vec![triggers::remove(job)];
            run(transaction, &statements, "mode", &relation.display()).await?;
            done.statements.extend(statements);
        }
    }
    keep(transaction, rollup, job, actor, &checked, noting)
        .await
        .map_err(failed)?;
    Ok(done)
}

async fn keep(
    transaction: &mut PgConnection,
    rollup: &Rollup,
    job: &JobName,
    actor: &str,
    checked: &check::Checked,
    noting: bool,
) -> Result<(), DatabaseError> {
    let names = match &checked.subject {
        Subject::Source { relation, .. } => vec![relation.plain()],
        Subject::Query(metric) => metric.source_names.clone(),
    };
    let sources = match &checked.subject {
        Subject::Source { relation, .. } => vec![relation.oid],
        Subject::Query(metric) => metric.sources.clone(),
    };
    let zone = rollup.zone();
    let new = NewRollup {
        job,
        definition: &rollup.definition(),
        mode: rollup.mode(),
        sources: &sources,
        source_names: &names,
        time_column: rollup.source().map(|source| source.time_column.as_str()),
        target: &rollup.target.to_string(),
        bucket: &rollup.bucket.to_string(),
        timezone: zone.name(),
        actor,
    };
    rollups::keep(transaction, &new).await?;
    if !noting {
        // Nobody noted what was written while there was no trigger.
        rollups::unfill(transaction, job).await?;
    }
    Ok(())
}

/// Removes a rollup's state and triggers, within a transaction; its table stays. `false` when there is
/// none.
///
/// # Errors
/// When the database refuses.
pub async fn remove(transaction: &mut PgConnection, job: &JobName) -> Result<bool, JobError> {
    run(transaction, &[triggers::remove(job)], "mode", job.as_str()).await?;
    rollups::forget(transaction, job)
        .await
        .map_err(|error| JobError::database(format!("remove the rollup {job}"), &error))
}

/// A history of buckets that begin elsewhere cannot go on.
fn compatible(rollup: &Rollup, job: &JobName, state: Option<&State>) -> Result<(), JobError> {
    let Some(state) = state else { return Ok(()) };
    let changed = [
        ("bucket", &state.bucket, rollup.bucket.to_string()),
        ("target", &state.target, rollup.target.to_string()),
    ];
    for (setting, before, now) in changed {
        if *before != now {
            return Err(refuse(
                setting,
                &rollup.target.to_string(),
                format!("`{setting}` was {before} when the rollup was initialised, and is {now}"),
                format!("give the new rollup another name, or `pgreeve rollup remove {job}` first"),
            ));
        }
    }
    Ok(())
}

async fn run(
    transaction: &mut PgConnection,
    statements: &[String],
    setting: &'static str,
    table: &str,
) -> Result<(), JobError> {
    for statement in statements {
        sqlx::query(AssertSqlSafe(statement.clone()))
            .persistent(false)
            .execute(&mut *transaction)
            .await
            .map_err(|error| {
                let operation = format!("set up {table}");
                let error = DatabaseError::from(error);
                let failure = JobError::database(operation, &error).about(setting);
                if error.is("42501") {
                    failure.with_remedy(
                        "grant the role what the message names (CREATE on the schema, TRIGGER on the source), or have an \
                         owner run what `pgreeve rollup init JOB --print` shows",
                    )
                } else {
                    failure
                }
            })?;
    }
    Ok(())
}
