//! Refuses what nobody decided, all of it at once.

use crate::erasure::mask::Mask;
use crate::erasure::reach::{LinkKind, Node, Reach, find_column, refuse};
use crate::erasure::rule::{Action, Rule, TableRule};
use crate::job::JobError;
use crate::values::ColumnName;

/// The application's request is the record that one was made: it stays, unless the rule decides.
pub(super) fn imply_requests(rule: &Rule, reach: &mut Reach) {
    let root_stays = reach.nodes.first().is_some_and(|root| root.action() != Action::Delete);
    let (Some(place), Some(requests)) = (reach.requests, &rule.requests) else {
        return;
    };
    let hard = reach
        .links
        .iter()
        .any(|link| link.child == place && link.parent == 0 && link.is_key());
    let Some(node) = reach.nodes.get_mut(place) else { return };
    if node.rule.is_some() {
        return;
    }
    let nullable = node.column(&requests.subject).is_some_and(|column| !column.not_null);
    let mask = |column: &str| [(column.to_owned(), Mask::Null)].into();
    node.rule = if !root_stays && hard && nullable {
        Some(TableRule {
            action: Action::Mask,
            set: mask(&requests.subject),
            basis: None,
            until: None,
            via: Vec::new(),
        })
    } else if root_stays || !hard {
        Some(TableRule {
            action: Action::Keep,
            set: std::collections::BTreeMap::new(),
            basis: Some("Art. 5(2): the record of the request".to_owned()),
            until: None,
            via: Vec::new(),
        })
    } else {
        None
    };
}

/// Refuses tables in reach that nobody decided about, all at once.
pub(super) fn undecided(reach: &Reach) -> Result<(), JobError> {
    let open: Vec<&Node> = reach.nodes.iter().filter(|node| node.rule.is_none()).collect();
    let Some(first) = open.first() else { return Ok(()) };
    let named: Vec<String> = open
        .iter()
        .map(|node| format!("{} ({})", node.relation.display(), node.path))
        .collect();
    Err(refuse(
        format!("no action was decided for {}", named.join("; ")),
        format!(
            "add to `tables`, such as \"{}\" = {{ action = \"delete\" }}, or mask, keep, unlink; `pgreeve erasure plan JOB \
             --init` proposes them",
            first.relation.display().replace('"', "\\\"")
        ),
    ))
}

/// Refuses columns of the rule that do not exist.
pub(super) fn columns_exist(rule: &Rule, reach: &Reach) -> Result<(), JobError> {
    if let Some(root) = reach.nodes.first() {
        let key = find_column(root, &rule.subject.key)?;
        if root.action() == Action::Mask && root.rule.as_ref().is_some_and(|rule| rule.set.contains_key(&key.name)) {
            return Err(refuse(
                format!("{} masks the subject's own key {}", root.relation.display(), key.name),
                "leave the key, or delete the row",
            ));
        }
    }
    for node in &reach.nodes {
        for name in node.rule.iter().flat_map(|rule| rule.set.keys().chain(&rule.via)) {
            find_column(node, name)?;
        }
    }
    for link in &reach.links {
        let (Some(child), Some(parent)) = (reach.nodes.get(link.child), reach.nodes.get(link.parent)) else {
            continue;
        };
        for key in &link.keys {
            find_column(parent, key)?;
        }
        if let LinkKind::Soft(edge) = &link.kind {
            let column = find_column(child, &edge.column)?;
            if !edge.path.is_empty()
                && !matches!(column.base_type.as_str(), "json" | "jsonb")
                && !column.base_type.ends_with("[]")
            {
                return Err(refuse(
                    format!(
                        "the edge {edge} looks into {}, which is of type {}",
                        edge.column, column.full_type
                    ),
                    "a path leads into a column of type json or jsonb",
                ));
            }
        }
    }
    if let (Some(requests), Some(node)) = (&rule.requests, reach.requests.and_then(|place| reach.nodes.get(place))) {
        let always = [&requests.id, &requests.subject, &requests.status, &requests.received_at];
        for name in always.into_iter().chain(&requests.finished_at) {
            find_column(node, name).map_err(|error| error.about("requests"))?;
        }
    }
    Ok(())
}

pub(super) fn identifiers(rule: &Rule, reach: &Reach) -> Result<Vec<(usize, String)>, JobError> {
    let place = |name: &ColumnName| -> Result<usize, JobError> {
        let Some(table) = &name.table else { return Ok(0) };
        let matching = reach.nodes.iter().position(|node| {
            node.relation.name == table.name
                && table
                    .schema
                    .as_ref()
                    .is_none_or(|schema| *schema == node.relation.schema)
        });
        matching.ok_or_else(|| {
            refuse(
                format!("the identifier {name} is of a table that is not in reach"),
                "name a column of a table that a foreign key or an edge leads to",
            )
            .about("subject")
        })
    };
    let mut found = Vec::new();
    for name in &rule.subject.identifiers {
        let place = place(name)?;
        if let Some(node) = reach.nodes.get(place) {
            find_column(node, &name.column).map_err(|error| error.about("subject"))?;
        }
        found.push((place, name.column.clone()));
    }
    Ok(found)
}
