//! What retention and transition have in common: whose rows, by which column, under which condition.

use super::field::Field;
use super::section::Section;
use crate::batch::predicate;
use crate::values::{TableName, Timezone};

/// The keys of a kind that works on the rows of one table.
pub(super) struct Rows {
    pub(super) table: Option<TableName>,
    pub(super) age_column: Option<String>,
    pub(super) predicate: Option<String>,
    pub(super) timezone: Option<Timezone>,
}

pub(super) fn read(section: &mut Section<'_>) -> Rows {
    Rows {
        table: section.required("table").and_then(|field| field.parse()),
        age_column: section.required("age_column").and_then(|field| column(&field)),
        predicate: section.optional("where").and_then(|field| condition(&field)),
        timezone: section.optional("timezone").and_then(|field| field.parse()),
    }
}

/// A column's name, exactly as the catalog has it.
pub(super) fn column(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    is_column(field, text).then(|| text.to_owned())
}

/// Some columns, each once.
pub(super) fn columns(field: &Field<'_>) -> Option<Vec<String>> {
    let elements = field.array()?;
    if elements.is_empty() {
        field.error("names no column", "name at least one column, or leave the key out");
    }
    let mut columns = Vec::new();
    for element in &elements {
        let Some(name) = column(element) else { continue };
        if columns.contains(&name) {
            element.error(&format!("`{name}` is named twice"), "name each column once");
            continue;
        }
        columns.push(name);
    }
    (!columns.is_empty() && columns.len() == elements.len()).then_some(columns)
}

/// Whether a text can be a column's name.
pub(super) fn is_column(field: &Field<'_>, text: &str) -> bool {
    let sound = !text.is_empty() && text.len() <= 63 && !text.contains('\0') && text.trim() == text;
    if !sound {
        let help = "write the name as the catalog has it, without quotes: 1 to 63 bytes";
        field.error(&format!("`{text}` is not a column's name"), help);
    }
    sound
}

/// One condition of SQL.
pub(super) fn condition(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    field.checked(predicate::check(text))?;
    Some(text.to_owned())
}
