//! `[jobs.NAME] refresh = { … }`.

use super::field::Field;
use crate::rollup::views::Views;
use crate::values::TableName;

pub(super) fn read(field: &Field<'_>) -> Option<Views> {
    let mut section = field.section()?;
    let views = section.required("views").and_then(|field| views(&field));
    let concurrently = section.optional("concurrently");
    let concurrently = concurrently.map_or(Some(None), |field| field.boolean().map(Some));
    section.finish(&[]);
    Some(Views {
        views: views?,
        concurrently: concurrently?,
    })
}

/// At least one view, each once.
fn views(field: &Field<'_>) -> Option<Vec<TableName>> {
    let elements = field.array()?;
    if elements.is_empty() {
        field.error("names no view", "name at least one materialized view");
        return None;
    }
    let mut views: Vec<TableName> = Vec::new();
    for element in &elements {
        let Some(view) = element.parse::<TableName>() else {
            continue;
        };
        if views.contains(&view) {
            element.error(&format!("`{view}` is named twice"), "name each view once");
            continue;
        }
        views.push(view);
    }
    (views.len() == elements.len()).then_some(views)
}
