//! What legal holds keep from a step, read in the step's own transaction.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::erasure::execute::Trouble;
use crate::erasure::plan::{ErasurePlan, Step, Work};
use crate::erasure::reach::{Link, LinkKind};
use crate::erasure::statement::{Restraint, Statements};
use crate::ledger::erasures::{self, Request, StepRow};
use crate::ledger::holds::{self, Standing};

/// What keeps rows from a step now.
pub(super) struct Kept {
    pub(super) restraint: Restraint,
    pub(super) holds: Vec<Uuid>,
}

/// Reads the holds in the step's own transaction; no other can be placed before it ends.
pub(super) async fn kept(
    transaction: &mut PgConnection,
    plan: &ErasurePlan,
    request: &Request,
    step: &Step,
) -> Result<Kept, Trouble> {
    let failed = |error| Trouble::of("read the legal holds", &error);
    holds::share(transaction).await.map_err(failed)?;
    let Some(node) = plan.reach.nodes.get(step.node) else {
        return Ok(Kept {
            restraint: Restraint::default(),
            holds: Vec::new(),
        });
    };
    let standing: Vec<Standing> = if step.work == Work::Keep {
        Vec::new()
    } else {
        holds::read(transaction, node.relation.oid)
            .await
            .map_err(failed)?
            .standing
    };
    let rows = erasures::steps(transaction, request.id).await.map_err(failed)?;
    let (children, mut ids) = if step.work == Work::Delete {
        kept_children(transaction, plan, request, step, &rows).await?
    } else {
        (Vec::new(), Vec::new())
    };
    ids.extend(standing.iter().map(|hold| hold.hold_id));
    ids.sort_unstable();
    ids.dedup();
    Ok(Kept {
        restraint: Statements::new(plan).restraint(step.node, &standing, &children),
        holds: ids,
    })
}

/// The links whose child still has rows that a hold keeps, and those holds. A row that they refer to
/// cannot go either.
async fn kept_children<'a>(
    transaction: &mut PgConnection,
    plan: &'a ErasurePlan,
    request: &Request,
    step: &Step,
    rows: &[StepRow],
) -> Result<(Vec<&'a Link>, Vec<Uuid>), Trouble> {
    let held_nodes: Vec<usize> = (plan.steps())
        .filter(|other| other.number != step.number)
        .filter(|other| rows.iter().any(|row| row.step == other.number && row.state == "held"))
        .map(|other| other.node)
        .collect();
    let is_kept = |link: &&Link| {
        link.parent == step.node && matches!(link.kind, LinkKind::Key(_)) && held_nodes.contains(&link.child)
    };
    let links: Vec<&Link> = plan.reach.links.iter().filter(is_kept).collect();
    if links.is_empty() {
        return Ok((links, Vec::new()));
    }
    let holds = erasures::holds_on(transaction, &[request.id.0])
        .await
        .map_err(|error| Trouble::of("read the steps", &error))?;
    Ok((links, holds.into_values().flatten().collect()))
}
