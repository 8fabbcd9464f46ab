//! The legal holds that a run honours: read with the plan, and again in every batch.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Connection};
use uuid::Uuid;

use super::preflight::{Target, refuse};
use super::rule::{Change, Rule};
use super::statement::Statements;
use crate::job::JobError;
use crate::ledger::holds::{self, Holds};
use crate::postgres::catalog::effects;
use crate::postgres::sqlstate::DatabaseError;

/// The holds as a run knows them.
#[derive(Debug, Clone)]
pub(super) struct Held {
    table: Oid,
    display: String,
    /// Tables whose rows would go, or change, along with rows of the table.
    carried: Vec<Oid>,
    holds: Holds,
}

impl Held {
    /// Reads the holds that concern a rule.
    ///
    /// # Errors
    /// Refused when rows of a held table would go along by a foreign key.
    pub(super) async fn read(connection: &mut PgConnection, rule: &Rule, target: &Target) -> Result<Self, JobError> {
        let display = target.relation.display();
        let failed = reading(&display);
        // A row that nothing references carries nothing along.
        let carried = if rule.change == Change::Delete && !rule.skip_if_referenced {
            effects::carried_along(connection, target.relation.oid)
                .await
                .map_err(&failed)?
        } else {
            Vec::new()
        };
        let mut held = Self {
            table: target.relation.oid,
            display: display.clone(),
            carried,
            holds: Holds::default(),
        };
        held.refresh(connection).await?;
        Ok(held)
    }

    /// Reads the holds anew.
    pub(super) async fn refresh(&mut self, connection: &mut PgConnection) -> Result<(), JobError> {
        let failed = reading(&self.display);
        self.holds = holds::read(&mut *connection, self.table).await.map_err(&failed)?;
        for table in &self.carried {
            if self.holds.all.is_empty() {
                break;
            }
            let along = holds::read(&mut *connection, *table).await.map_err(&failed)?;
            if let Some(hold) = along.standing.first() {
                return Err(refuse(
                    &self.display,
                    format!(
                        "rows of {} go or change along with the rows they reference, and the hold {} covers some of them",
                        hold.name, hold.hold_id
                    ),
                    "set `skip_if_referenced = true`, so that rows that are referenced stay, or wait for the hold's release",
                ));
            }
        }
        Ok(())
    }

    /// The holds.
    pub(super) fn holds(&self) -> &Holds {
        &self.holds
    }

    /// The identities of the holds that cover rows of the table.
    pub(super) fn ids(&self) -> Vec<Uuid> {
        self.holds.standing.iter().map(|hold| hold.hold_id).collect()
    }

    /// Has each hold planned by itself, so that one that the table has outgrown is named, and what it
    /// says is not.
    pub(super) async fn probe(&self, connection: &mut PgConnection, bare: &Statements) -> Result<(), JobError> {
        for hold in &self.holds.standing {
            let mut one = bare.clone();
            one.hold(std::slice::from_ref(hold));
            let failed = reading(&self.display);
            let mut savepoint = connection.begin().await.map_err(|error| failed(error.into()))?;
            let planned = sqlx::query(AssertSqlSafe(format!("EXPLAIN {}", one.probe())))
                .persistent(false)
                .execute(&mut *savepoint)
                .await;
            savepoint.rollback().await.map_err(|error| failed(error.into()))?;
            let Err(error) = planned else { continue };
            let error = DatabaseError::from(error);
            if error.is_transient() {
                return Err(failed(error));
            }
            let code = error.sqlstate.as_deref().unwrap_or("unknown").to_owned();
            return Err(refuse(
                &self.display,
                format!(
                    "the condition of the hold {} does not fit the table any more (SQLSTATE {code})",
                    hold.hold_id
                ),
                "place a hold that does, then release this one; `pgreeve hold list` shows it",
            ));
        }
        Ok(())
    }
}

fn reading(table: &str) -> impl Fn(DatabaseError) -> JobError + use<> {
    let operation = format!("read the legal holds on {table}");
    move |error| JobError::database(operation.clone(), &error)
}
