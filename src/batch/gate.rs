//! Gates: rollups that read the table and have not sealed what would be deleted.
//!
//! Every rollup of the table that the ledger knows is one, whether the policy names it or not: what
//! is deleted before it was counted is lost for good, and that must not hang on a line that somebody
//! forgot. What the policy names in `after` must be there besides.

use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::cutoff::{self, Cutoff, rfc3339};
use super::fenced;
use super::preflight::{Target, reading};
use super::rule::{Change, Rule};
use super::statement::AgeType;
use crate::job::{JobContext, JobError};
use crate::ledger::purges;
use crate::ledger::rollups::{self, Reader};
use crate::postgres::quote::identifier;
use crate::postgres::sqlstate::DatabaseError;
use crate::values::Timezone;

/// How long a purge waits for a rollup that computes.
const WAIT: &str = "60s";

/// One rollup.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gate {
    reader: Reader,
    /// The type of its time column, where that is not the policy's age column.
    other_column: Option<(String, AgeType)>,
}

impl Gate {
    /// Whether the policy's age says in which bucket a row is.
    fn lowers(&self) -> bool {
        self.other_column.is_none()
    }
}

/// The gates of a deletion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Gates {
    all: Vec<Gate>,
    /// The cutoff of the policy alone, where a gate lowered it.
    policy_cutoff: Option<String>,
    /// The rollup that lowered it.
    by: Option<Reader>,
}

impl Gates {
    /// Reads the gates of a rule. Only a deletion has any.
    pub(super) async fn read(connection: &mut PgConnection, rule: &Rule, target: &Target) -> Result<Self, JobError> {
        if rule.change != Change::Delete {
            return Ok(Self::default());
        }
        let mut readers = rollups::readers(connection, target.relation.oid)
            .await
            .map_err(reading(&target.relation.display()))?;
        for job in &rule.after {
            if !readers.iter().any(|reader| reader.job == job.as_str()) {
                readers.push(Reader {
                    job: job.to_string(),
                    time_column: None,
                    sealed_until: None,
                });
            }
        }
        let gates = readers.into_iter().map(|reader| {
            let other = reader.time_column.clone().filter(|column| *column != rule.age_column);
            let other = other.and_then(|name| {
                let column = target.columns.iter().find(|column| column.name == name)?;
                Some((name, AgeType::from_base_type(&column.base_type)?))
            });
            Gate {
                reader,
                other_column: other,
            }
        });
        Ok(Self {
            all: gates.collect(),
            ..Self::default()
        })
    }

    /// The cutoff that the gates allow.
    pub(super) async fn lower(
        &mut self,
        connection: &mut PgConnection,
        cutoff: Cutoff,
        zone: &Timezone,
        age_type: AgeType,
    ) -> Result<Cutoff, JobError> {
        let lowest = self
            .all
            .iter()
            .filter(|gate| gate.lowers() || gate.reader.sealed_until.is_none())
            .min_by_key(|gate| gate.reader.sealed_until);
        let Some(gate) = lowest else { return Ok(cutoff) };
        let reached = cutoff.instant.parse::<Timestamp>().unwrap_or(Timestamp::MAX);
        if gate.reader.sealed_until.is_some_and(|sealed| sealed >= reached) {
            return Ok(cutoff);
        }
        self.policy_cutoff = Some(rfc3339(&cutoff.instant));
        self.by = Some(gate.reader.clone());
        cutoff::at_instant(connection, gate.reader.sealed_until, zone, age_type).await
    }

    /// Conditions of the gates whose rollup goes by another column than the policy.
    pub(super) fn conditions(&self, target: &Target) -> Vec<String> {
        let alias = identifier(&target.relation.name);
        let condition = |gate: &Gate| {
            let (name, column_type) = gate.other_column.as_ref()?;
            let sealed = gate.reader.sealed_until?;
            let column = format!("{alias}.{}", identifier(name));
            // A wall clock's zone is the rollup's business: a day on the safe side.
            let value = match column_type {
                AgeType::Timestamptz => format!("'{sealed}'::timestamptz"),
                AgeType::Timestamp => format!("('{sealed}'::timestamptz AT TIME ZONE 'UTC' - interval '1 day')"),
                AgeType::Date => format!("('{sealed}'::timestamptz AT TIME ZONE 'UTC' - interval '1 day')::date"),
            };
            Some(format!("({column} < {value} OR {column} IS NULL)"))
        };
        self.all.iter().filter_map(condition).collect()
    }

    /// As plan and report show them.
    pub(super) fn shown(&self) -> Value {
        let moved = |gate: &Gate| self.by.as_ref().is_some_and(|by| by.job == gate.reader.job);
        let shown = |gate: &Gate| {
            json!({
                "job": gate.reader.job,
                "sealed_until": gate.reader.sealed_until,
                "policy_cutoff": self.policy_cutoff.as_ref().filter(|_| moved(gate)),
            })
        };
        Value::Array(self.all.iter().map(shown).collect())
    }

    /// Why less was deleted than the policy says; nothing where no gate moved the cutoff.
    pub(super) fn reason(&self) -> Option<String> {
        let by = self.by.as_ref()?;
        let how = match by.sealed_until {
            Some(sealed) => format!("has sealed until {sealed} only; younger rows wait for it"),
            None => "has sealed nothing yet; every row waits for it".to_owned(),
        };
        Some(format!("rollup: {} {how}", by.job))
    }

    /// Says, before the first row goes, how far rows may be gone from now on, so that no rollup
    /// computes a bucket from what is left; and makes sure that the gates are still open.
    pub(super) async fn announce(
        &self,
        context: &mut JobContext,
        target: &Target,
        cutoff: &Cutoff,
    ) -> Result<(), JobError> {
        let Ok(until) = cutoff.instant.parse::<Timestamp>() else {
            return Ok(());
        };
        let operation = format!("begin the purge of {}", target.relation.display());
        let failed = |error: DatabaseError| JobError::database(operation.clone(), &error);
        let (fence, run, job) = (context.fence, context.run, context.job.clone());
        let mut transaction = fenced::begin(context.session.connection(), fence, &operation).await?;
        // The deletions come after it in the one WAL, and the record that closes the run waits for the disk.
        sqlx::query("SELECT set_config('lock_timeout', $1, true), set_config('synchronous_commit', 'off', true)")
            .bind(WAIT)
            .execute(&mut *transaction)
            .await
            .map_err(|error| failed(error.into()))?;
        let known = rollups::exists(&mut transaction).await.map_err(failed)?;
        if known {
            rollups::purging(&mut transaction, target.relation.oid, until, &self.others())
                .await
                .map_err(failed)?;
            let readers = rollups::readers(&mut transaction, target.relation.oid)
                .await
                .map_err(failed)?;
            let closed = readers.iter().find(|reader| !self.is_open(reader, until));
            if let Some(reader) = closed {
                let cause = format!("the rollup {} was begun or reopened since the plan", reader.job);
                return Err(JobError::transient(operation, cause));
            }
            purges::begin(&mut transaction, &target.relation.plain(), &job, &cutoff.instant, run)
                .await
                .map_err(failed)?;
        }
        fenced::commit(transaction, &operation).await
    }

    /// The rollups that go by another column, each with how far it has sealed: no row of a later
    /// bucket goes.
    fn others(&self) -> Vec<(String, Timestamp)> {
        let others = self.all.iter().filter(|gate| !gate.lowers());
        others
            .filter_map(|gate| Some((gate.reader.job.clone(), gate.reader.sealed_until?)))
            .collect()
    }

    fn is_open(&self, reader: &Reader, until: Timestamp) -> bool {
        let known = self.all.iter().find(|gate| gate.reader.job == reader.job);
        let needed = match known {
            Some(gate) if !gate.lowers() => gate.reader.sealed_until,
            _ => Some(until),
        };
        needed.is_some() && reader.sealed_until >= needed
    }
}
