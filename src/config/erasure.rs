//! `[jobs.NAME.erasure]`.

use std::collections::BTreeMap;

use super::backup;
use super::field::Field;
use super::job::Scope;
use super::paths;
use super::rows;
use crate::erasure::mask::Mask;
use crate::erasure::objects::RowObjects;
use crate::erasure::outbox::{Recipient, Recipients};
use crate::erasure::rule::{Action, Requests, Rule, SubjectRule, TableRule};
use crate::values::TableName;

pub(super) fn read(field: &Field<'_>, scope: &Scope<'_>) -> Option<Rule> {
    let mut section = field.section()?;
    let requests = section.optional("requests");
    let subject = section.required("subject");
    let edges = section.optional("edges");
    let tables = section.required("tables");
    let objects = section.optional("objects");
    let notify = section.optional("notify");
    section.finish(&[]);
    let objects = objects.map_or(Some(BTreeMap::new()), |field| objects_of(&field, scope));
    let notify = notify.map_or(Some(Recipients::default()), |field| recipients(&field, scope));
    let requests = match requests {
        Some(field) => Some(read_requests(&field)?),
        None => None,
    };
    let subject = subject.as_ref().and_then(read_subject);
    let edges = edges.map_or(Some(Vec::new()), |field| list(&field));
    let tables = tables.as_ref().and_then(read_tables);
    Some(Rule {
        requests,
        subject: subject?,
        edges: edges?,
        tables: tables?,
        objects: objects?,
        notify: notify?,
    })
}

/// `[jobs.NAME.erasure.objects]`: by table, as `tables`.
fn objects_of(field: &Field<'_>, scope: &Scope<'_>) -> Option<BTreeMap<TableName, RowObjects>> {
    let mut section = field.section()?;
    let named: Vec<_> = section.take_all();
    section.finish(&[]);
    let read = named.into_iter().map(|(name, field)| {
        let name = field.checked(name.parse());
        let mut section = field.section()?;
        let store = section.required("store").and_then(|field| backup::store(&field, scope));
        let key_column = section.required("key_column").and_then(|field| rows::column(&field));
        section.finish(&[]);
        Some((
            name?,
            RowObjects {
                store: store?,
                key_column: key_column?,
            },
        ))
    });
    let read: Vec<Option<_>> = read.collect();
    read.into_iter().collect()
}

fn recipients(field: &Field<'_>, scope: &Scope<'_>) -> Option<Recipients> {
    let mut section = field.section()?;
    let named: Vec<_> = section.take_all();
    section.finish(&[]);
    let read = named.into_iter().map(|(name, field)| {
        let name = field.checked(name.parse());
        let mut section = field.section()?;
        let url = section.required("url").and_then(|field| {
            let text = field.text()?;
            field.checked(Recipient::check_url(text))?;
            Some(text.to_owned())
        });
        let secret_file = section.optional("secret_file").map_or(Some(None), |field| {
            paths::secret_file(&field, scope.surroundings).map(Some)
        });
        section.finish(&[]);
        Some((
            name?,
            Recipient {
                url: url?,
                secret_file: secret_file?,
            },
        ))
    });
    let read: Vec<Option<_>> = read.collect();
    read.into_iter().collect()
}

/// Every element of an array, each parsed.
fn list<T: std::str::FromStr<Err = crate::values::ValueError>>(field: &Field<'_>) -> Option<Vec<T>> {
    let elements: Vec<Option<T>> = field.array()?.iter().map(Field::parse).collect();
    elements.into_iter().collect()
}

fn read_requests(field: &Field<'_>) -> Option<Requests> {
    let mut section = field.section()?;
    let table = section.required("table").and_then(|field| field.parse());
    let mut column = |key| section.required(key).and_then(|field| rows::column(&field));
    let (id, subject, status, received_at) = (column("id"), column("subject"), column("status"), column("received_at"));
    let finished_at = section
        .optional("finished_at")
        .map_or(Some(None), |field| rows::column(&field).map(Some));
    let mut word = |key| section.required(key).and_then(|field| status_word(&field));
    let (pending, done, failed) = (word("pending"), word("done"), word("failed"));
    let mut optional_word = |key| {
        let field = section.optional(key);
        field.map_or(Some(None), |field| status_word(&field).map(Some))
    };
    let (processing, rejected, awaiting_identity) = (
        optional_word("processing"),
        optional_word("rejected"),
        optional_word("awaiting_identity"),
    );
    let ignored_field = section.optional("ignored");
    section.finish(&[]);
    let ignored = ignored_field.map_or(Some(Vec::new()), |field| {
        let words: Vec<Option<String>> = field.array()?.iter().map(status_word).collect();
        words.into_iter().collect()
    });
    let requests = Requests {
        table: table?,
        id: id?,
        subject: subject?,
        status: status?,
        pending: pending?,
        processing: processing?,
        done: done?,
        failed: failed?,
        rejected: rejected?,
        awaiting_identity: awaiting_identity?,
        ignored: ignored?,
        received_at: received_at?,
        finished_at: finished_at?,
    };
    distinct_words(field, &requests).then_some(requests)
}

/// A request that is done must not be pending again.
fn distinct_words(field: &Field<'_>, requests: &Requests) -> bool {
    let waiting = [Some(&requests.pending), requests.awaiting_identity.as_ref()];
    let ended = [Some(&requests.done), Some(&requests.failed), requests.rejected.as_ref()];
    let all: Vec<&str> = requests.words().collect();
    for word in waiting.into_iter().chain([requests.processing.as_ref()]).flatten() {
        let times = all.iter().filter(|other| *other == word).count();
        if times > 1 {
            let problem = format!("the status word `{word}` stands for two things");
            field.error(
                &problem,
                "give pending, awaiting_identity and processing words of their own",
            );
            return false;
        }
    }
    if let Some(word) = ended.into_iter().flatten().find(|word| requests.ignored.contains(word)) {
        field.error(
            &format!("the status word `{word}` is also ignored"),
            "take it out of `ignored`",
        );
        return false;
    }
    true
}

fn status_word(field: &Field<'_>) -> Option<String> {
    let word = field.column_value()?;
    if word.is_empty() {
        field.error("is empty", "write the word that the status column holds");
        return None;
    }
    Some(word)
}

fn read_subject(field: &Field<'_>) -> Option<SubjectRule> {
    let mut section = field.section()?;
    let table = section.required("table").and_then(|field| field.parse());
    let key = section.required("key").and_then(|field| rows::column(&field));
    let identifiers = section
        .optional("identifiers")
        .map_or(Some(Vec::new()), |field| list(&field));
    section.finish(&[]);
    Some(SubjectRule {
        table: table?,
        key: key?,
        identifiers: identifiers?,
    })
}

fn read_tables(field: &Field<'_>) -> Option<BTreeMap<TableName, TableRule>> {
    let entries = field.section()?.take_all();
    let mut tables = BTreeMap::new();
    let mut sound = true;
    for (name, entry) in &entries {
        let table = match name.parse::<TableName>() {
            Ok(table) => Some(table),
            Err(error) => {
                entry.sink.error(&entry.key, &error.problem, &error.help);
                None
            }
        };
        match (table, read_table(entry)) {
            (Some(table), Some(rule)) => {
                tables.insert(table, rule);
            }
            _ => sound = false,
        }
    }
    if entries.is_empty() {
        field.error(
            "decides about no table",
            "add at least the subject's own table; `pgreeve erasure plan JOB --init` writes a first version",
        );
        sound = false;
    }
    sound.then_some(tables)
}

fn read_table(field: &Field<'_>) -> Option<TableRule> {
    let mut section = field.section()?;
    let action = section
        .required("action")
        .and_then(|field| field.word(&Action::WORDS, &[]));
    let set_field = section.optional("set");
    let basis_field = section.optional("basis");
    let until_field = section.optional("until");
    let via = section
        .optional("via")
        .map_or(Some(Vec::new()), |field| rows::columns(&field));
    section.finish(&[]);
    let set = set_field.as_ref().map_or(Some(BTreeMap::new()), read_masks);
    let basis = basis_field.as_ref().map_or(Some(None), |field| basis(field).map(Some));
    let until = until_field.as_ref().map_or(Some(None), |field| field.parse().map(Some));
    let rule = TableRule {
        action: action?,
        set: set?,
        basis: basis?,
        until: until?,
        via: via?,
    };
    fits(field, &rule, set_field.as_ref(), until_field.as_ref()).then_some(rule)
}

fn basis(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.trim().is_empty() {
        field.error("is empty", "name the ground, such as \"Art. 17(3)(b)\"");
        return None;
    }
    Some(text.to_owned())
}

fn read_masks(field: &Field<'_>) -> Option<BTreeMap<String, Mask>> {
    let columns = field.section()?.take_all();
    let read = |(column, value): &(&str, Field<'_>)| {
        let sound = rows::is_column(value, column);
        let mask = value.parse::<Mask>()?;
        sound.then(|| ((*column).to_owned(), mask))
    };
    let set: BTreeMap<String, Mask> = columns.iter().filter_map(read).collect();
    (set.len() == columns.len()).then_some(set)
}

/// Whether the keys fit the action.
fn fits(field: &Field<'_>, rule: &TableRule, set: Option<&Field<'_>>, until: Option<&Field<'_>>) -> bool {
    let action = rule.action.as_str();
    if rule.action == Action::Mask && rule.set.is_empty() {
        field.error(
            "masks nothing",
            "add set = { COLUMN = \"MASK\" }, or choose the action \"delete\" or \"keep\"",
        );
        return false;
    }
    if let (Some(set), false) = (set, rule.action == Action::Mask) {
        set.error(
            &format!("has no meaning with the action {action}"),
            "leave it out, or choose the action \"mask\"",
        );
        return false;
    }
    if rule.action == Action::Keep && rule.basis.is_none() {
        field.error(
            "keeps personal data without a ground",
            "add basis, such as \"Art. 17(3)(b)\" for a legal obligation to keep it",
        );
        return false;
    }
    if let (Some(until), false) = (until, rule.action == Action::Keep) {
        until.error(
            &format!("has no meaning with the action {action}"),
            "leave it out, or choose the action \"keep\"",
        );
        return false;
    }
    true
}
