//! The order of the steps: what refers to a row goes before the row. Tables that refer to each other
//! in a circle go together, in one statement, at whose end the server checks their keys.

use super::plan::{Step, Work};
use super::reach::Reach;
use super::rule::Action;

/// The stages of a plan, children first. `unlinks` are links with the columns that become null.
pub(super) fn stages(reach: &Reach, unlinks: &[(usize, Vec<String>)]) -> Vec<Vec<Step>> {
    let mut stages: Vec<Vec<(usize, Work)>> = Vec::new();
    let mut places: Vec<usize> = (0..reach.nodes.len()).collect();
    places.sort_by_key(|place| {
        let node = reach.nodes.get(*place);
        std::cmp::Reverse(node.map_or(0, |node| node.depth))
    });
    let with = |action: Action| {
        let nodes = &reach.nodes;
        places
            .iter()
            .copied()
            .filter(move |place| nodes.get(*place).is_some_and(|node| node.action() == action))
    };
    stages.extend(with(Action::Keep).map(|place| vec![(place, Work::Keep)]));
    let masks: Vec<(usize, Work)> = with(Action::Mask).filter_map(|place| mask(reach, place)).collect();
    // What masks a column that others refer to waits until those others are gone.
    let (late, early): (Vec<_>, Vec<_>) = masks
        .into_iter()
        .partition(|(place, work)| is_referred_to(reach, *place, work));
    stages.extend(early.into_iter().map(|step| vec![step]));
    // A soft reference to a row that stays is taken out like any other.
    let to_delete = |link: usize| {
        let parent = reach.links.get(link).and_then(|link| reach.nodes.get(link.parent));
        parent.is_some_and(|parent| parent.action() == Action::Delete)
    };
    let unlink = |(link, columns): &(usize, Vec<String>)| {
        let child = reach.links.get(*link)?.child;
        Some(vec![(child, Work::Unlink(*link, columns.clone()))])
    };
    stages.extend(unlinks.iter().filter(|(link, _)| !to_delete(*link)).filter_map(unlink));
    for circle in circles(reach, &places, unlinks) {
        let into = |link: &usize| reach.links.get(*link).is_some_and(|link| circle.contains(&link.parent));
        stages.extend(
            unlinks
                .iter()
                .filter(|(link, _)| to_delete(*link) && into(link))
                .filter_map(unlink),
        );
        stages.push(circle.into_iter().map(|place| (place, Work::Delete)).collect());
    }
    stages.extend(late.into_iter().map(|step| vec![step]));
    let mut number = 0;
    let mut step = |(node, work)| {
        number += 1;
        Step { number, node, work }
    };
    stages
        .into_iter()
        .map(|stage| stage.into_iter().map(&mut step).collect())
        .collect()
}

fn mask(reach: &Reach, place: usize) -> Option<(usize, Work)> {
    let rule = reach.nodes.get(place)?.rule.as_ref()?;
    let set = rule.set.iter().map(|(column, mask)| (column.clone(), mask.clone()));
    Some((place, Work::Mask(set.collect())))
}

fn is_referred_to(reach: &Reach, place: usize, work: &Work) -> bool {
    let Work::Mask(set) = work else { return false };
    let keys = reach.links.iter().filter(|link| link.parent == place && link.is_key());
    keys.flat_map(|link| &link.keys)
        .any(|key| set.iter().any(|(column, _)| column == key))
}

/// The deleted tables, in groups that refer to each other in a circle, children before parents
/// (Tarjan's strongly connected components, walked from child to parent and turned around).
fn circles(reach: &Reach, places: &[usize], unlinks: &[(usize, Vec<String>)]) -> Vec<Vec<usize>> {
    let deleted = |place: usize| {
        reach
            .nodes
            .get(place)
            .is_some_and(|node| node.action() == Action::Delete)
    };
    let children = |place: usize| -> Vec<usize> {
        // A reference that becomes null before keeps nothing.
        let stays = |at: &usize| !unlinks.iter().any(|(link, _)| link == at);
        let links = reach
            .links
            .iter()
            .enumerate()
            .filter(|(at, _)| stays(at))
            .map(|(_, link)| link);
        links
            .filter(|link| link.parent == place && link.child != place && link.is_key())
            .map(|link| link.child)
            .filter(|child| deleted(*child))
            .collect()
    };
    let mut state = Tarjan {
        index: vec![None; reach.nodes.len()],
        low: vec![0; reach.nodes.len()],
        stack: Vec::new(),
        on_stack: vec![false; reach.nodes.len()],
        next: 0,
        found: Vec::new(),
    };
    for place in places.iter().rev().copied().filter(|place| deleted(*place)) {
        state.visit(place, &children);
    }
    // A component comes out after all that it leads to: its children.
    state.found
}

struct Tarjan {
    index: Vec<Option<usize>>,
    low: Vec<usize>,
    stack: Vec<usize>,
    on_stack: Vec<bool>,
    next: usize,
    found: Vec<Vec<usize>>,
}

impl Tarjan {
    /// Visits a node and all it leads to, without recursion: a chain of tables may be long.
    fn visit(&mut self, start: usize, children: &impl Fn(usize) -> Vec<usize>) {
        if self.index.get(start).copied().flatten().is_some() {
            return;
        }
        let mut work = vec![(start, self.enter(start, children))];
        while let Some((place, rest)) = work.last_mut() {
            let place = *place;
            if let Some(child) = rest.pop() {
                match self.index.get(child).copied().flatten() {
                    None => work.push((child, self.enter(child, children))),
                    Some(index) if self.on_stack.get(child) == Some(&true) => self.lower(place, index),
                    Some(_) => {}
                }
                continue;
            }
            work.pop();
            let low = self.low.get(place).copied().unwrap_or_default();
            if let Some((parent, _)) = work.last() {
                self.lower(*parent, low);
            }
            if Some(low) == self.index.get(place).copied().flatten() {
                let from = self.stack.iter().rposition(|other| *other == place).unwrap_or_default();
                let circle = self.stack.split_off(from);
                for member in &circle {
                    if let Some(on_stack) = self.on_stack.get_mut(*member) {
                        *on_stack = false;
                    }
                }
                self.found.push(circle);
            }
        }
    }

    fn enter(&mut self, place: usize, children: &impl Fn(usize) -> Vec<usize>) -> Vec<usize> {
        if let (Some(index), Some(low), Some(on_stack)) = (
            self.index.get_mut(place),
            self.low.get_mut(place),
            self.on_stack.get_mut(place),
        ) {
            (*index, *low, *on_stack) = (Some(self.next), self.next, true);
        }
        self.next += 1;
        self.stack.push(place);
        children(place)
    }

    fn lower(&mut self, place: usize, to: usize) {
        if let Some(low) = self.low.get_mut(place) {
            *low = (*low).min(to);
        }
    }
}
