//! What the policies would be as a single statement each, on a copy of the table: the reference that
//! a run is compared with.
//!
//! The statements are those of the Churn Saver's own maintenance function, but for two things: the
//! cutoff is the run's, as a literal, instead of `now() - …`; and a consent's age counts from its
//! revocation, since counting from its creation deletes one that was revoked yesterday.

use crate::postgres::quote;

/// A policy as a single statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Naive {
    /// The job of the configuration that must have the same effect.
    pub job: &'static str,
    /// The table that the job works on, as SQL writes it.
    pub table: &'static str,
    /// The statement, with `{copy}` and `{cutoff}` in it.
    statement: &'static str,
    /// What of a row is compared; not the time at which it was changed.
    compared: &'static str,
}

/// The sample's policies.
pub const NAIVE: [Naive; 4] = [
    Naive {
        job: "purge-events",
        table: "public.events",
        statement: "DELETE FROM {copy} WHERE created_at < {cutoff} AND processed = true",
        compared: "*",
    },
    Naive {
        job: "purge-exports",
        table: "public.data_exports",
        statement: "DELETE FROM {copy} WHERE created_at < {cutoff} AND status = 'completed'",
        compared: "*",
    },
    Naive {
        job: "purge-consents",
        table: "public.consent_records",
        statement: "DELETE FROM {copy} WHERE revoked_at < {cutoff} AND revoked_at IS NOT NULL",
        compared: "*",
    },
    Naive {
        job: "abandon-sessions",
        table: "onboarding.sessions",
        statement: "UPDATE {copy} SET status = 'abandoned', abandoned_at = coalesce(abandoned_at, now())
                    WHERE last_activity_at < {cutoff} AND status = 'in_progress'",
        compared: "id, status, last_activity_at, abandoned_at IS NULL",
    },
];

impl Naive {
    /// The reference for a job of that name.
    #[must_use]
    pub fn of(job: &str) -> Option<&'static Self> {
        NAIVE.iter().find(|naive| naive.job == job)
    }

    /// Makes the copy, a table that does not outlive its session and that row security, triggers and
    /// foreign keys do not touch. To be done before the run.
    #[must_use]
    pub fn copy(&self) -> String {
        format!(
            "CREATE TEMPORARY TABLE {} AS TABLE {}",
            quote::identifier(self.job),
            self.table
        )
    }

    /// Applies the policy to the copy, with the cutoff that the run used: an instant as PostgreSQL
    /// reads it.
    #[must_use]
    pub fn apply(&self, cutoff: &str) -> String {
        self.statement
            .replace("{copy}", &quote::qualified("pg_temp", self.job))
            .replace("{cutoff}", &format!("timestamptz {}", quote::literal(cutoff)))
    }

    /// Counts the rows that the table and the copy do not share, duplicates included: 0 when the run
    /// did exactly what the single statement does.
    #[must_use]
    pub fn differences(&self) -> String {
        let compared = self.compared;
        let table = format!("SELECT {compared} FROM {}", self.table);
        let copy = format!("SELECT {compared} FROM {}", quote::qualified("pg_temp", self.job));
        format!(
            "SELECT count(*) FROM (({table} EXCEPT ALL {copy}) UNION ALL ({copy} EXCEPT ALL {table})) AS differences"
        )
    }
}
