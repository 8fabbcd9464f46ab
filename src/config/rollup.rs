//! `[jobs.NAME] rollup = { … }`.

use std::time::Duration;

use super::field::Field;
use super::rows::{column, columns, condition, is_column};
use super::section::Section;
use crate::batch::predicate;
use crate::rollup::measure::Measure;
use crate::rollup::spec::{Form, Mode, Query, Rollup, Source};
use crate::values::Period;

/// How long a bucket stays open where the policy does not say: clocks of applications are seldom
/// further off.
const LATENESS: Period = Period::seconds(600);

/// The longest time that a bucket may stay open.
const LONGEST: Duration = Duration::from_hours(24 * 366);

/// The keys of one form that the other does not have.
const OF_SOURCE: [&str; 7] = [
    "source",
    "time_column",
    "column_timezone",
    "bucket_column",
    "group_by",
    "measures",
    "mode",
];

pub(super) fn read(field: &Field<'_>) -> Option<Rollup> {
    let mut section = field.section()?;
    let bucket = section.required("bucket").and_then(|field| field.parse());
    let timezone = section.optional("timezone").map(|field| field.parse());
    let target = section.required("target").and_then(|field| field.parse());
    let lateness = section.optional("lateness").map_or(Some(LATENESS), |field| {
        field
            .duration(LONGEST)
            .map(|lateness| Period::seconds(lateness.as_secs()))
    });
    let form = match section.optional("query") {
        Some(query) => query_form(&mut section, &query).map(Form::Query),
        None => source_form(&mut section).map(Form::Source),
    };
    section.finish(&[]);
    Some(Rollup {
        bucket: bucket?,
        timezone: match timezone {
            Some(timezone) => Some(timezone?),
            None => None,
        },
        target: target?,
        lateness: lateness?,
        form: form?,
    })
}

fn source_form(section: &mut Section<'_>) -> Option<Source> {
    let source = section.required("source").and_then(|field| field.parse());
    let time_column = section.required("time_column").and_then(|field| column(&field));
    let column_timezone = section.optional("column_timezone").map(|field| field.parse());
    let bucket_column = section
        .optional("bucket_column")
        .map_or(Some("bucket".to_owned()), |field| column(&field));
    let group_by = section
        .optional("group_by")
        .map_or(Some(Vec::new()), |field| columns(&field));
    let predicate = section.optional("where").map(|field| condition(&field));
    let mode = section
        .optional("mode")
        .map_or(Some(Mode::Recompute), |field| field.word(&Mode::WORDS, &[]));
    let field = section.required("measures");
    let (bucket_column, group_by) = (bucket_column?, group_by?);
    let measures = field.and_then(|field| measures(&field, &bucket_column, &group_by));
    Some(Source {
        source: source?,
        time_column: time_column?,
        column_timezone: match column_timezone {
            Some(zone) => Some(zone?),
            None => None,
        },
        bucket_column,
        group_by,
        measures: measures?,
        predicate: match predicate {
            Some(predicate) => Some(predicate?),
            None => None,
        },
        mode: mode?,
    })
}

/// At least one measure, and no two columns of one name.
fn measures(field: &Field<'_>, bucket_column: &str, group_by: &[String]) -> Option<Vec<Measure>> {
    let entries = field.section()?.take_all();
    if entries.is_empty() {
        field.error(
            "names no measure",
            "write at least one, such as { events = \"count(*)\" }",
        );
        return None;
    }
    let mut taken: Vec<String> = std::iter::once(bucket_column.to_owned())
        .chain(group_by.iter().cloned())
        .collect();
    let mut measures = Vec::new();
    for (name, entry) in &entries {
        if !is_column(entry, name) {
            continue;
        }
        let Some(measure) = entry.text().and_then(|text| entry.checked(Measure::new(name, text))) else {
            continue;
        };
        let mut own: Vec<String> = measure.columns().into_iter().map(|(column, _)| column).collect();
        if measure.is_average() {
            own.push((*name).to_owned());
        }
        if let Some(twice) = own.iter().find(|column| taken.contains(column)) {
            let problem = format!("the column `{twice}` would be there twice");
            entry.error(
                &problem,
                "give the measure another name; an average NAME needs NAME_sum and NAME_count too",
            );
            continue;
        }
        if let Some(long) = own.iter().find(|column| column.len() > 63) {
            entry.error(
                &format!("`{long}` is longer than 63 bytes"),
                "give the measure a shorter name",
            );
            continue;
        }
        taken.extend(own);
        measures.push(measure);
    }
    (measures.len() == entries.len()).then_some(measures)
}

fn query_form(section: &mut Section<'_>, query: &Field<'_>) -> Option<Query> {
    for key in OF_SOURCE.into_iter().chain(["where"]) {
        if let Some(field) = section.optional(key) {
            let help = "write what the query does into the query, or leave `query` out";
            field.error("does not go with a `query`", help);
        }
    }
    let key = section.required("key");
    let text = query.text().and_then(|text| {
        query.checked(predicate::check_query(text))?;
        let begins = |word: &str| {
            let start = text.trim_start();
            start
                .get(..word.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(word))
        };
        if !(begins("select") || begins("with") || begins("(")) {
            query.error(
                "is not a SELECT",
                "write one SELECT that answers for the bucket it sees",
            );
            return None;
        }
        Some(text.to_owned())
    });
    Some(Query {
        query: text?,
        key: key.and_then(|field| expressions(&field))?,
    })
}

fn expressions(field: &Field<'_>) -> Option<Vec<String>> {
    let elements = field.array()?;
    if elements.is_empty() {
        field.error(
            "names no key",
            "name what tells a result's rows from all others, such as [\"metric_type\", \"metadata->>'date'\"]",
        );
        return None;
    }
    let expression = |element: &Field<'_>| {
        let text = element.text()?;
        element.checked(predicate::check(text))?;
        Some(text.to_owned())
    };
    elements.iter().map(expression).collect()
}
