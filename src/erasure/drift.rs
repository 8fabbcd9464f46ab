//! A schema that has grown since its plan was approved: a table, a foreign key or a column for text
//! that nobody has looked at stops the job, by name.

use serde_json::Value;
use sqlx::PgConnection;

use crate::job::JobError;
use crate::ledger::{erasures, policies};
use crate::postgres::sqlstate::DatabaseError;
use crate::values::{JobName, RunId};

/// Compares today's plan with the one that was approved, or that was shown first where none need be.
/// Answers with the policy's hash and who approved it.
pub(super) async fn check(
    connection: &mut PgConnection,
    run: RunId,
    job: &JobName,
    intent: &Value,
) -> Result<(String, Option<String>), JobError> {
    let failed = |error: DatabaseError| JobError::database("read the approved plan", &error);
    let Some((policy, approved, by)) = erasures::approved_plan(connection, run).await.map_err(failed)? else {
        return Err(JobError::permanent(
            "read the approved plan",
            "the run is not in the ledger",
        ));
    };
    let Some(before) = approved.get("schema") else {
        policies::propose(connection, &policy, job, intent)
            .await
            .map_err(failed)?;
        return Ok((policy, by));
    };
    let new = differences(before, &intent["schema"]);
    if new.is_empty() {
        return Ok((policy, by));
    }
    Err(JobError::refused(
        "compare the schema with the approved plan",
        format!("new in reach of the subject: {}", new.join(", ")),
        format!("look at `pgreeve plan {job}`, decide about them, then `pgreeve approve {policy}`"),
    )
    .about("tables"))
}

/// What the second schema has and the first has not, in words.
fn differences(before: &Value, now: &Value) -> Vec<String> {
    let mut new = Vec::new();
    for (table, parts) in now.as_object().into_iter().flatten() {
        let Some(old) = before.get(table) else {
            new.push(format!("the table {table}"));
            continue;
        };
        for (part, what) in [("columns", "column"), ("keys", "foreign key")] {
            let known = |name: &Value| old[part].as_array().is_some_and(|names| names.contains(name));
            for name in parts[part].as_array().into_iter().flatten().filter(|name| !known(name)) {
                new.push(format!("the {what} {} of {table}", name.as_str().unwrap_or_default()));
            }
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_new_is_named_and_what_is_gone_is_not() {
        let before =
            json!({ "users": { "columns": ["email", "old"], "keys": [] }, "gone": { "columns": [], "keys": [] } });
        let now = json!({
            "users": { "columns": ["email", "phone"], "keys": ["users_team_fkey"] },
            "notes": { "columns": ["body"], "keys": [] },
        });
        assert_eq!(
            differences(&before, &now),
            [
                "the table notes",
                "the column phone of users",
                "the foreign key users_team_fkey of users"
            ]
        );
        assert!(differences(&now, &now).is_empty());
    }
}
