//! `[jobs.NAME] upkeep = { … }`.

use std::collections::BTreeSet;
use std::time::Duration;

use super::field::Field;
use super::size;
use crate::upkeep::{Action, Upkeep};
use crate::values::{Period, TableName};

/// The longest window.
const DAY: Duration = Duration::from_hours(24);

pub(super) fn read(field: &Field<'_>) -> Option<Upkeep> {
    let mut section = field.section()?;
    let tables = section.optional("tables");
    let tables = tables.map_or(Some(Vec::new()), |field| tables_of(&field));
    let actions = section.optional("actions");
    let actions = actions.map_or_else(
        || Some(Action::WORDS.into_iter().map(|(_, action)| action).collect()),
        |field| actions_of(&field),
    );
    let dead = section.optional("dead_fraction");
    let dead = dead.map_or(Some(Upkeep::DEAD_FRACTION), |field| field.fraction());
    let bloat = section.optional("bloat_fraction");
    let bloat = bloat.map_or(Some(Upkeep::BLOAT_FRACTION), |field| field.fraction());
    let smallest = section.optional("min_index_size");
    let smallest = smallest.map_or(Some(Upkeep::MIN_INDEX_SIZE), |field| {
        field.checked(size::bytes(field.text()?, ", such as \"16MB\""))
    });
    let window = section.optional("window");
    let window = window.map_or(Some(None), |field| window_of(&field).map(Some));
    section.finish(&[]);
    Some(Upkeep {
        tables: tables?,
        actions: actions?,
        dead_fraction: dead?,
        bloat_fraction: bloat?,
        min_index_size: smallest?,
        window: window?,
    })
}

/// At least one table, each once.
fn tables_of(field: &Field<'_>) -> Option<Vec<TableName>> {
    let elements = field.array()?;
    if elements.is_empty() {
        field.error(
            "names no table",
            "name tables, or leave the key out for all that the role may maintain",
        );
        return None;
    }
    let mut tables: Vec<TableName> = Vec::new();
    for element in &elements {
        let Some(table) = element.parse::<TableName>() else {
            continue;
        };
        if tables.contains(&table) {
            element.error(&format!("`{table}` is named twice"), "name each table once");
            continue;
        }
        tables.push(table);
    }
    (tables.len() == elements.len()).then_some(tables)
}

/// At least one action.
fn actions_of(field: &Field<'_>) -> Option<BTreeSet<Action>> {
    let elements = field.array()?;
    if elements.is_empty() {
        field.error(
            "names no action",
            "name at least one of \"vacuum\", \"analyze\", \"reindex\"",
        );
        return None;
    }
    let words: Vec<Option<Action>> = elements
        .iter()
        .map(|element| element.word(&Action::WORDS, &[]))
        .collect();
    words.into_iter().collect()
}

fn window_of(field: &Field<'_>) -> Option<Period> {
    field.duration(DAY)?;
    field.parse()
}
