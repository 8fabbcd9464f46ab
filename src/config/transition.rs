//! `[jobs.NAME] transition = { … }`.

use std::collections::BTreeMap;

use super::field::Field;
use super::rows;
use crate::jobs::transition::{FromState, TransitionSettings};

const FROM: &str = "write from = { COLUMN = [\"state\", …] }";
const SET: &str = "write set = { COLUMN = \"state\" }";

pub(super) fn read(field: &Field<'_>) -> Option<TransitionSettings> {
    let mut section = field.section()?;
    let rows = rows::read(&mut section);
    let age_fallback = section.optional("age_fallback").map(|field| rows::column(&field));
    let after = section.required("after").and_then(|field| field.parse());
    let from_field = section.required("from");
    let set_field = section.required("set");
    let stamp_field = section.optional("stamp");
    section.finish(&[]);
    let from = from_field.as_ref().and_then(from_state);
    let set = set_field.as_ref().and_then(assignments);
    let stamp = stamp_field
        .as_ref()
        .map_or(Some(Vec::new()), |field| stamps(field, set.as_ref()));
    if let (Some(from), Some(set), Some(field)) = (&from, &set, &set_field) {
        check_move(field, from, set);
    }
    Some(TransitionSettings {
        table: rows.table?,
        age_column: rows.age_column?,
        age_fallback: match age_fallback {
            Some(column) => Some(column?),
            None => None,
        },
        after: after?,
        from: from?,
        set: set?,
        stamp: stamp?,
        predicate: rows.predicate,
        timezone: rows.timezone,
    })
}

fn from_state(field: &Field<'_>) -> Option<FromState> {
    let columns = field.section()?.take_all();
    let [(column, states)] = columns.as_slice() else {
        field.error(&format!("names {} columns instead of one", columns.len()), FROM);
        return None;
    };
    if !rows::is_column(states, column) {
        return None;
    }
    let elements = states.array()?;
    let values: Vec<String> = elements.iter().filter_map(Field::column_value).collect();
    if elements.is_empty() {
        states.error("names no state that a row may move from", FROM);
    }
    (!values.is_empty() && values.len() == elements.len()).then(|| FromState {
        column: (*column).to_owned(),
        values,
    })
}

fn assignments(field: &Field<'_>) -> Option<BTreeMap<String, String>> {
    let columns = field.section()?.take_all();
    if columns.is_empty() {
        field.error("sets nothing", SET);
        return None;
    }
    let read = |(column, value): &(&str, Field<'_>)| {
        let sound = rows::is_column(value, column);
        let text = value.column_value()?;
        sound.then(|| ((*column).to_owned(), text))
    };
    let set: BTreeMap<String, String> = columns.iter().filter_map(read).collect();
    (set.len() == columns.len()).then_some(set)
}

fn stamps(field: &Field<'_>, set: Option<&BTreeMap<String, String>>) -> Option<Vec<String>> {
    let mut columns = Vec::new();
    let mut sound = true;
    for element in field.array()? {
        let Some(column) = rows::column(&element) else {
            sound = false;
            continue;
        };
        if columns.contains(&column) || set.is_some_and(|set| set.contains_key(&column)) {
            element.error(
                &format!("`{column}` is set already"),
                "name each column once, in `set` or in `stamp`",
            );
            sound = false;
        }
        columns.push(column);
    }
    sound.then_some(columns)
}

/// A row that has moved must not be due again, or it would move for ever.
fn check_move(field: &Field<'_>, from: &FromState, set: &BTreeMap<String, String>) {
    let column = &from.column;
    match set.get(column) {
        None => {
            let problem = format!("does not set `{column}`, so that no row would leave the states of `from`");
            field.error(&problem, &format!("set `{column}` to the state that rows move to"));
        }
        Some(state) if from.values.contains(state) => {
            let problem = format!("moves rows to `{state}`, from which they would move again");
            field.error(
                &problem,
                &format!("take \"{state}\" out of `from`, or set another state"),
            );
        }
        Some(_) => {}
    }
}
