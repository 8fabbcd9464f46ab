//! `[jobs.NAME] export = { … }`.

use super::backup;
use super::field::Field;
use super::job::Scope as Names;
use crate::backup::compress::Packing;
use crate::batch::ArchiveFormat;
use crate::export::Scope;
use crate::jobs::export::ExportSettings;

pub(super) fn read(field: &Field<'_>, scope: &Names<'_>) -> Option<ExportSettings> {
    let mut section = field.section()?;
    let store = section.required("store").and_then(|field| backup::store(&field, scope));
    let format = section.optional("format");
    let format = format.map_or(Some(ArchiveFormat::Jsonl), |field| {
        field.word(&ArchiveFormat::WORDS, &[])
    });
    let tables = section.required("tables").and_then(|field| backup::list(&field));
    let scope = section.required("scope").and_then(|field| self::scope(&field));
    let compress = section.optional("compress");
    let compress = compress.map_or(Some(Packing::default()), |field| field.parse());
    let keep = section.optional("keep");
    let keep = keep.map_or(Some(None), |field| backup::keep(&field).map(Some));
    section.finish(&[]);
    Some(ExportSettings {
        store: store?,
        format: format?,
        tables: tables?,
        scope: scope?,
        compress: compress?,
        keep: keep?,
    })
}

fn scope(field: &Field<'_>) -> Option<Scope> {
    let mut section = field.section()?;
    let column = section.required("column").and_then(|field| column(&field));
    let values = section.required("values").and_then(|field| values(&field));
    let edges = section.optional("edges");
    let edges = edges.map_or(Some(Vec::new()), |field| {
        let edges = backup::list::<crate::values::Edge>(&field)?;
        if edges.iter().any(|edge| !edge.path.is_empty()) {
            let help = "write \"table.column = table.key\" with plain columns";
            field.error("an export follows no reference inside JSON", help);
            return None;
        }
        Some(edges)
    });
    section.finish(&[]);
    Some(Scope {
        column: column?,
        values: values?,
        edges: edges?,
    })
}

fn column(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.is_empty() || text.contains('\0') {
        field.error(
            "this is no column",
            "write its name as the catalog has it, such as \"brand_id\"",
        );
        return None;
    }
    Some(text.to_owned())
}

/// Values as texts; the server reads them as the column's type.
fn values(field: &Field<'_>) -> Option<Vec<String>> {
    let elements = field.array()?;
    if elements.is_empty() {
        let help = "name whose rows are exported, such as values = [\"percymd\"]";
        field.error("is empty, and nobody's rows would be exported", help);
        return None;
    }
    let values: Vec<Option<String>> = elements.iter().map(Field::column_value).collect();
    let values: Option<Vec<String>> = values.into_iter().collect();
    if values.iter().flatten().any(|value| value.contains('\0')) {
        field.error(
            "a value holds a null character",
            "write the values as the column has them",
        );
        return None;
    }
    values
}
