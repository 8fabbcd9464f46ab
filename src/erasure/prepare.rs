//! What a run would do: the plan, checked, and as operators see it.

use std::sync::Arc;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use super::plan::{self, ErasurePlan, Work};
use super::rule::Rule;
use super::statement::requests::RequestTable;
use super::{preflight, reach};
use crate::job::JobError;
use crate::postgres::grant::Grant;

/// A plan, ready to run.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What was asked for.
    pub rule: Arc<Rule>,
    /// What happens to each table.
    pub plan: ErasurePlan,
    /// How many requests of the application wait.
    pub waiting: u64,
}

/// Reads the catalog and decides what a run would do; changes nothing.
///
/// # Errors
/// Refused with all that nobody decided, or with what stands in the way.
pub async fn prepare(connection: &mut PgConnection, rule: &Arc<Rule>) -> Result<Prepared, JobError> {
    let reach = reach::read(connection, rule).await?;
    let mut plan = plan::decide(rule, reach)?;
    let warnings = preflight::check(connection, rule, &plan).await?;
    plan.warnings.extend(warnings);
    let waiting = match RequestTable::new(&plan, rule) {
        Some(table) => sqlx::query_scalar::<_, i64>(AssertSqlSafe(table.waiting()))
            .persistent(false)
            .fetch_one(connection)
            .await
            .map_err(|error| JobError::database(format!("read the requests in {}", table.display()), &error.into()))?
            .unsigned_abs(),
        None => 0,
    };
    Ok(Prepared {
        rule: Arc::clone(rule),
        plan,
        waiting,
    })
}

/// The statements that give the session's role what a rule needs.
///
/// # Errors
/// As [`prepare`], but for rights.
pub async fn grants(connection: &mut PgConnection, rule: &Rule) -> Result<Vec<Grant>, JobError> {
    let reach = reach::read(connection, rule).await?;
    let plan = plan::decide(rule, reach)?;
    preflight::grants(connection, rule, &plan).await
}

impl Prepared {
    /// The plan as operators see it and the audit log keeps it.
    #[must_use]
    pub fn intent(&self) -> Value {
        let plan = &self.plan;
        let tables: Vec<Value> = (plan.reach.nodes.iter())
            .map(|node| {
                let rule = node.rule.as_ref();
                let set = rule.map(|rule| &rule.set).filter(|set| !set.is_empty());
                json!({
                    "table": node.relation.display(), "action": node.action(), "set": set,
                    "basis": rule.and_then(|rule| rule.basis.as_deref()), "until": rule.and_then(|rule| rule.until),
                    "path": node.path,
                })
            })
            .collect();
        let stages: Vec<Vec<String>> = (plan.stages.iter())
            .map(|stage| stage.iter().map(|step| self.shown(step)).collect())
            .collect();
        json!({
            "subject": format!("{}.{}", self.rule.subject.table, self.rule.subject.key),
            "waiting": self.waiting,
            "tables": tables,
            "steps": stages,
            "objects": plan.objects.iter().filter_map(|(place, objects)| Some(json!({
                "table": plan.reach.nodes.get(*place)?.relation.display(), "store": objects.store, "key_column": objects.key_column,
            }))).collect::<Vec<_>>(),
            "schema": plan.schema(),
            "schema_digest": plan.schema_digest(),
            "warnings": plan.warnings,
        })
    }

    fn shown(&self, step: &plan::Step) -> String {
        let node = self.plan.reach.nodes.get(step.node);
        let table = node.map(|node| node.relation.display()).unwrap_or_default();
        match &step.work {
            Work::Keep => format!("{}. count what is kept of {table}", step.number),
            Work::Delete => format!("{}. delete from {table}", step.number),
            Work::Mask(set) => {
                let columns: Vec<&str> = set.iter().map(|(column, _)| column.as_str()).collect();
                format!("{}. mask {} of {table}", step.number, columns.join(", "))
            }
            Work::Unlink(link, columns) => {
                let by = self.plan.reach.links.get(*link).map(reach::Link::describe);
                format!(
                    "{}. take {} out of {table}: {}",
                    step.number,
                    columns.join(", "),
                    by.unwrap_or_default()
                )
            }
        }
    }
}
