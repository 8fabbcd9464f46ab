//! What must hold before the first request: rights, row security, and that each table takes its
//! masks. Each is tried on a row or two and rolled back.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::mask::Mask;
use super::plan::{ErasurePlan, Work, holds_text};
use super::reach::{Node, reading, refuse};
use super::request::RequestId;
use super::rule::Rule;
use super::statement::Statements;
use super::statement::requests::RequestTable;
use crate::job::JobError;
use crate::ledger::erasures;
use crate::postgres::catalog::access::{self, Need};
use crate::postgres::catalog::columns::Column;
use crate::postgres::catalog::effects::{self, Event};
use crate::postgres::grant::Grant;
use crate::postgres::quote::identifier;
use crate::postgres::sqlstate::DatabaseError;

/// Checks a plan; answers with what an operator should know besides.
pub(super) async fn check(
    connection: &mut PgConnection,
    rule: &Rule,
    plan: &ErasurePlan,
) -> Result<Vec<String>, JobError> {
    let mut warnings = Vec::new();
    visible(connection, plan).await?;
    for grant in grants(connection, rule, plan).await? {
        if !grant.held {
            return Err(refuse("the role lacks a right that the erasure needs", grant.statement));
        }
    }
    for (place, node) in plan.reach.nodes.iter().enumerate() {
        for event in events(plan, place) {
            unhindered(connection, node, event, &mut warnings).await?;
        }
    }
    if let Some(table) = RequestTable::new(plan, rule) {
        let words = table.impossible_words();
        if !words.is_empty() {
            return Err(refuse(
                format!(
                    "the status column of {} cannot be {}",
                    table.display(),
                    words.join(", ")
                ),
                "write the words as the column's type has them",
            )
            .about("requests"));
        }
    }
    for step in plan.steps() {
        if let (Work::Mask(set), Some(node)) = (&step.work, plan.reach.nodes.get(step.node)) {
            for (column, mask) in set {
                fits(node, column, mask)?;
            }
        }
    }
    if erasures::exist(connection).await.map_err(reading("the ledger"))? {
        try_masks(connection, plan).await?;
    } else {
        warnings.push("the masks were not tried: the ledger is made by the first run".to_owned());
    }
    Ok(warnings)
}

/// What is done to the rows of a node.
fn events(plan: &ErasurePlan, place: usize) -> Vec<Event> {
    let mut events = Vec::new();
    for step in plan.steps().filter(|step| step.node == place) {
        let event = match step.work {
            Work::Keep => continue,
            Work::Delete => Event::Delete,
            Work::Mask(_) | Work::Unlink(..) => Event::Update,
        };
        if !events.contains(&event) {
            events.push(event);
        }
    }
    events
}

async fn visible(connection: &mut PgConnection, plan: &ErasurePlan) -> Result<(), JobError> {
    let oids: Vec<_> = plan.reach.nodes.iter().map(|node| node.relation.oid).collect();
    let failed = reading("the tables in reach");
    let access = access::of(connection, &oids, &Need::Update(Vec::new()))
        .await
        .map_err(&failed)?;
    let hidden: Vec<String> = (plan.reach.nodes.iter())
        .filter(|node| {
            access
                .iter()
                .any(|access| access.table == node.relation.oid && access.rows_hidden)
        })
        .map(|node| node.relation.display())
        .collect();
    if hidden.is_empty() {
        return Ok(());
    }
    let role = access::current_role(connection).await.map_err(&failed)?;
    Err(refuse(
        format!(
            "row-level security would hide rows of {} from the role {role}",
            hidden.join(", ")
        ),
        format!("ALTER ROLE {} BYPASSRLS", identifier(&role)),
    ))
}

/// The statements that give the role what a plan needs, each with whether it has that.
pub(super) async fn grants(
    connection: &mut PgConnection,
    rule: &Rule,
    plan: &ErasurePlan,
) -> Result<Vec<Grant>, JobError> {
    let failed = reading("the tables in reach");
    let grantee = identifier(&access::current_role(connection).await.map_err(&failed)?);
    let requests = RequestTable::new(plan, rule);
    let mut grants: Vec<Grant> = Vec::new();
    let mut push = |statement: String, held: bool| {
        if !grants.iter().any(|grant| grant.statement == statement) {
            grants.push(Grant::new(statement, held));
        }
    };
    for (place, node) in plan.reach.nodes.iter().enumerate() {
        let table = node.relation.quoted();
        let mut columns: Vec<String> = Vec::new();
        let mut deletes = false;
        for step in plan.steps().filter(|step| step.node == place) {
            match &step.work {
                Work::Keep => {}
                Work::Delete => deletes = true,
                Work::Mask(set) => columns.extend(set.iter().map(|(column, _)| column.clone())),
                Work::Unlink(_, unlinked) => columns.extend(unlinked.iter().cloned()),
            }
        }
        if plan.reach.requests == Some(place) {
            columns.extend(requests.iter().flat_map(RequestTable::written));
        }
        columns.sort();
        columns.dedup();
        let oids = [node.relation.oid];
        let mut lacks = Vec::new();
        for need in [Some(Need::Update(columns.clone())), deletes.then_some(Need::Delete)]
            .into_iter()
            .flatten()
        {
            for access in access::of(connection, &oids, &need).await.map_err(&failed)? {
                lacks.extend(access.missing);
            }
        }
        let held = |word: &str| !lacks.iter().any(|lack| lack == word);
        push(
            format!(
                "GRANT USAGE ON SCHEMA {} TO {grantee}",
                identifier(&node.relation.schema)
            ),
            held("USAGE"),
        );
        push(format!("GRANT SELECT ON {table} TO {grantee}"), held("SELECT"));
        if deletes {
            push(format!("GRANT DELETE ON {table} TO {grantee}"), held("DELETE"));
        }
        if !columns.is_empty() {
            let columns: Vec<String> = columns.iter().map(|column| identifier(column)).collect();
            push(
                format!("GRANT UPDATE ({}) ON {table} TO {grantee}", columns.join(", ")),
                held("UPDATE"),
            );
        }
    }
    Ok(grants)
}

/// Refuses tables whose rules or publication would turn a change into something else; names triggers.
async fn unhindered(
    connection: &mut PgConnection,
    node: &Node,
    event: Event,
    warnings: &mut Vec<String>,
) -> Result<(), JobError> {
    let table = node.relation.display();
    let failed = reading(&table);
    let oids = [node.relation.oid];
    let word = if event == Event::Delete { "DELETE" } else { "UPDATE" };
    let rules = effects::rules(connection, &oids, event).await.map_err(&failed)?;
    if !rules.is_empty() {
        return Err(refuse(
            format!(
                "a rule rewrites {word} on {table} into something else: {}",
                rules.join(", ")
            ),
            "replace the rule by a trigger",
        ));
    }
    let unidentified = effects::without_replica_identity(connection, &oids, event)
        .await
        .map_err(&failed)?;
    if !unidentified.is_empty() {
        return Err(refuse(
            format!("{table} is published without a replica identity, so PostgreSQL refuses the {word}"),
            "add a primary key, or ALTER TABLE … REPLICA IDENTITY",
        ));
    }
    let triggers = effects::triggers(connection, &oids, event).await.map_err(&failed)?;
    if !triggers.is_empty() {
        warnings.push(format!(
            "{word} on {table} fires {}: what they copy is found by the scan afterwards, if at all",
            triggers.join(", ")
        ));
    }
    Ok(())
}

/// Refuses masks that a column cannot take, as far as the catalog tells.
fn fits(node: &Node, name: &str, mask: &Mask) -> Result<(), JobError> {
    let column = super::reach::find_column(node, name)?;
    let place = format!("{}.{name}", node.relation.display());
    let base = column.base_type.as_str();
    let bad = |cause: String, remedy: &str| Err(refuse(format!("{place}: {cause}"), remedy));
    if column.generated {
        return bad(
            "the server alone sets it (generated), so that no mask can".to_owned(),
            "mask the columns that it is made of",
        );
    }
    let text = holds_text(base) && !matches!(base, "json" | "jsonb") && !base.ends_with("[]");
    match mask {
        Mask::Null if column.not_null => bad(
            "it takes no null".to_owned(),
            "choose another mask, such as constant(…), hmac(…) or email_token",
        ),
        Mask::Hmac(_) | Mask::EmailToken if !text => bad(
            format!("{mask} makes text, and it is of type {}", column.full_type),
            "choose null or a constant",
        ),
        Mask::EmailToken if length(column).is_some_and(|length| length < 39) => bad(
            format!("{mask} makes 39 characters, and it is of type {}", column.full_type),
            "choose hmac(LENGTH) with a length that fits",
        ),
        Mask::Hmac(made) if length(column).is_some_and(|length| length < u32::from(*made)) => bad(
            format!("{mask} makes {made} characters, and it is of type {}", column.full_type),
            "choose a shorter one",
        ),
        Mask::TruncateDate(_) if !(base == "date" || base.starts_with("timestamp")) => bad(
            format!(
                "{mask} needs a date or a timestamp, and it is of type {}",
                column.full_type
            ),
            "choose another mask",
        ),
        Mask::JsonRemove(_) | Mask::JsonScrub(_) | Mask::JsonScrubOwn(_) if !matches!(base, "json" | "jsonb") => bad(
            format!("{mask} needs json or jsonb, and it is of type {}", column.full_type),
            "choose another mask",
        ),
        Mask::TextReplace if !(text || matches!(base, "json" | "jsonb")) => bad(
            format!("{mask} needs text or JSON, and it is of type {}", column.full_type),
            "choose another mask",
        ),
        Mask::ArrayRemove if !base.ends_with("[]") => bad(
            format!("{mask} needs an array, and it is of type {}", column.full_type),
            "choose another mask",
        ),
        _ => Ok(()),
    }
}

/// The length of `character varying(20)`.
fn length(column: &Column) -> Option<u32> {
    let (_, rest) = column.full_type.split_once('(')?;
    rest.split_once(')')?.0.parse().ok()
}

/// Tries each mask on up to two rows, in a transaction that is rolled back: UNIQUE, CHECK, types and
/// triggers answer as they would for a request.
async fn try_masks(connection: &mut PgConnection, plan: &ErasurePlan) -> Result<(), JobError> {
    let failed = |error: sqlx::Error| reading("the masks")(DatabaseError::from(error));
    let mut transaction = connection.begin().await.map_err(failed)?;
    let trial = RequestId::new();
    sqlx::query(
        "INSERT INTO pgreeve.erasure_request
             (request_id, job, source, requested_by, subject_key, subject_token, token_key, received_at, due_at, mask_key)
         VALUES ($1, '', 'operator', '', '', '', '', 'epoch', 'epoch', pg_catalog.decode(repeat('00', 128), 'hex'))",
    )
    .bind(trial.0)
    .execute(&mut *transaction)
    .await
    .map_err(failed)?;
    let statements = Statements::new(plan);
    let mut refusal = None;
    for step in plan.steps() {
        let (Work::Mask(set), Some(node)) = (&step.work, plan.reach.nodes.get(step.node)) else {
            continue;
        };
        for (column, mask) in set {
            for wanted in [true, false] {
                let Some(sql) = statements.try_mask(step.node, column, mask, wanted) else {
                    continue;
                };
                let mut savepoint = transaction.begin().await.map_err(failed)?;
                let tried = sqlx::query(AssertSqlSafe(sql))
                    .persistent(false)
                    .bind(trial.0)
                    .execute(&mut *savepoint)
                    .await;
                savepoint.rollback().await.map_err(failed)?;
                match tried {
                    Ok(done) if done.rows_affected() > 0 => break,
                    Ok(_) => {}
                    Err(error) => {
                        refusal = Some(not_taken(node, column, mask, &DatabaseError::from(error)));
                        break;
                    }
                }
            }
            if refusal.is_some() {
                break;
            }
        }
        if refusal.is_some() {
            break;
        }
    }
    transaction.rollback().await.map_err(failed)?;
    refusal.map_or(Ok(()), Err)
}

fn not_taken(node: &Node, column: &str, mask: &Mask, error: &DatabaseError) -> JobError {
    let place = format!("{}.{column}", node.relation.display());
    if error.is_transient() {
        return JobError::database(format!("try the mask {mask} on {place}"), error);
    }
    refuse(
        format!("{place} does not take the mask {mask}: {error}"),
        "choose a mask that the table's constraints and triggers accept; constant and null fail where values must be unique",
    )
}
