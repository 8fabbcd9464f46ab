//! `[jobs.NAME] call = { … }`.

use super::field::Field;
use super::rows::is_column;
use crate::call::Call;
use crate::values::{TableName, ValueError};

/// PostgreSQL's limit.
const MOST_ARGUMENTS: usize = 100;

pub(super) fn read(field: &Field<'_>) -> Option<Call> {
    let mut section = field.section()?;
    let function = section.required("function").and_then(|field| function_of(&field));
    let arguments = section.optional("arguments");
    let arguments = arguments.map_or(Some(Vec::new()), |field| arguments_of(&field));
    let repeat = section.optional("repeat_while_positive");
    let repeat = repeat.map_or(Some(false), |field| field.boolean());
    let path = section.optional("search_path");
    let path = path.map_or(Some(Vec::new()), |field| schemas(&field));
    section.finish(&[]);
    Some(Call {
        function: function?,
        arguments: arguments?,
        repeat_while_positive: repeat?,
        search_path: path?,
    })
}

/// A function is named like a table.
fn function_of(field: &Field<'_>) -> Option<TableName> {
    let text = field.text()?;
    field.checked(text.parse().map_err(|_| ValueError {
        problem: format!("`{text}` is not a function's name"),
        help: "write \"function\" or \"schema.function\", as the catalog has it, without its arguments".to_owned(),
    }))
}

fn arguments_of(field: &Field<'_>) -> Option<Vec<String>> {
    let elements = field.array()?;
    if elements.len() > MOST_ARGUMENTS {
        field.error("has more than 100 arguments", "no function takes more");
        return None;
    }
    let values: Vec<Option<String>> = elements.iter().map(Field::column_value).collect();
    values.into_iter().collect()
}

fn schemas(field: &Field<'_>) -> Option<Vec<String>> {
    let elements = field.array()?;
    if elements.is_empty() {
        field.error("names no schema", "name at least one schema, or leave the key out");
        return None;
    }
    let names: Vec<Option<String>> = elements
        .iter()
        .map(|element| {
            let text = element.text()?;
            is_column(element, text).then(|| text.to_owned())
        })
        .collect();
    names.into_iter().collect()
}
