//! References that must be taken out of rows that stay.

use crate::erasure::mask::Mask;
use crate::erasure::reach::{Link, LinkKind, Node, Reach, refuse};
use crate::erasure::rule::Action;
use crate::job::JobError;

/// The references that must be taken out of rows that stay, with the columns that become null.
pub(super) fn unlinks(reach: &mut Reach, warnings: &mut Vec<String>) -> Result<Vec<(usize, Vec<String>)>, JobError> {
    let mut unlinks = Vec::new();
    for (at, link) in reach.links.iter().enumerate() {
        let (Some(child), Some(parent)) = (reach.nodes.get(link.child), reach.nodes.get(link.parent)) else {
            continue;
        };
        let goes = parent.action() == Action::Delete;
        if link.follow && (child.action() == Action::Delete || !link.is_key() || !goes) {
            continue;
        }
        if link.follow && child.action() == Action::Keep {
            return Err(refuse(
                format!(
                    "{} is kept and refers to {}, which is deleted, by {}",
                    child.relation.display(),
                    parent.relation.display(),
                    link.describe()
                ),
                "mask what is referred to instead of deleting it, or mask this table with set = { COLUMN = \"null\" }",
            ));
        }
        // The mask itself takes the reference out.
        let set = child.rule.as_ref().map(|rule| &rule.set);
        let masked = |column: &str| set.and_then(|set| set.get(column)) == Some(&Mask::Null);
        let columns = link.columns();
        let enough = match &link.kind {
            LinkKind::Key(key) if !key.match_simple => columns.iter().all(|column| masked(column)),
            _ => columns.iter().any(|column| masked(column)),
        };
        if link.follow && enough {
            continue;
        }
        match nullable(reach, link, child) {
            Some(columns) => unlinks.push((at, columns)),
            None if child.action() == Action::Delete && link.is_key() => warnings.push(format!(
                "{} refers to {} by {} and cannot be null: rows of others that do so stop a request",
                child.relation.display(),
                parent.relation.display(),
                link.describe()
            )),
            None => {
                return Err(refuse(
                    format!(
                        "{} refers to {}, which is deleted, by {}, and its columns cannot be null",
                        child.relation.display(),
                        parent.relation.display(),
                        link.describe()
                    ),
                    "choose the action \"delete\" for it, name the column in `via`, or mask what is referred to instead of \
                     deleting it",
                ));
            }
        }
    }
    Ok(unlinks)
}

/// The columns that can be made null to take a reference out.
fn nullable(reach: &Reach, link: &Link, child: &Node) -> Option<Vec<String>> {
    let free = |name: &&str| {
        child
            .column(name)
            .is_some_and(|column| !column.not_null && !column.generated)
    };
    let columns: Vec<&str> = link.columns();
    let open: Vec<&str> = columns.iter().copied().filter(|name| free(name)).collect();
    match &link.kind {
        LinkKind::Key(key) if !key.match_simple => (open.len() == columns.len()).then_some(())?,
        LinkKind::Soft(edge) if !edge.path.is_empty() => {
            return (!edge.has_each()).then(|| vec![edge.column.clone()]);
        }
        _ => (!open.is_empty()).then_some(())?,
    }
    // A column that another reference uses, too, such as a tenant's, stays where it can.
    let shared = |name: &&str| {
        let others = reach
            .links
            .iter()
            .filter(|other| other.child == link.child && !std::ptr::eq(*other, link));
        others
            .filter(|other| other.is_key())
            .any(|other| other.columns().contains(name))
    };
    let own: Vec<&str> = open.iter().copied().filter(|name| !shared(name)).collect();
    let simple = matches!(&link.kind, LinkKind::Key(key) if key.match_simple);
    let chosen = if simple && !own.is_empty() { own } else { open };
    Some(chosen.into_iter().map(str::to_owned).collect())
}
