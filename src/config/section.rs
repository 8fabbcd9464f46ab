//! A table of the configuration, read key by key. Asking for a key makes it known; what is left at
//! the end is an unknown key.

use std::collections::BTreeMap;

use toml::de::DeTable;

use super::field::Field;
use super::finding::Place;
use super::sink::{At, Sink};
use super::suggest::nearest;

/// A table of one file, or the tables of one name of several files.
pub(super) struct Section<'a> {
    sink: &'a Sink,
    /// Its path, such as `jobs.purge-events.retention`; empty for the root.
    path: String,
    /// Its header, or the key it is the value of.
    header: At<'a>,
    fields: BTreeMap<&'a str, Field<'a>>,
    known: Vec<&'static str>,
    missing: Vec<Missing>,
}

/// Something that must be there and is not.
struct Missing {
    /// The keys that would have been it. One of them misspelt is one mistake, not two.
    keys: Vec<&'static str>,
    message: String,
    help: String,
}

impl<'a> Section<'a> {
    /// A section without keys.
    pub(super) fn empty(sink: &'a Sink, path: &str, header: At<'a>) -> Self {
        Self {
            sink,
            path: path.to_owned(),
            header,
            fields: BTreeMap::new(),
            known: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// Adds the keys of a table. A key that another file has set is an error that names both places.
    pub(super) fn add(&mut self, header: &At<'a>, table: &'a DeTable<'a>) {
        if self.fields.is_empty() {
            self.header = header.clone();
        }
        let file = header.file;
        for (key, value) in table {
            let field = Field {
                sink: self.sink,
                path: self.path_of(key.get_ref()),
                key: At { file, span: key.span() },
                at: At {
                    file,
                    span: value.span(),
                },
                value: value.get_ref(),
            };
            if let Some(first) = self.fields.get(key.get_ref().as_ref()) {
                let message = format!("`{}` is already set at {}", field.path, first.key.place());
                let help = "keep one of the two, or give one another name";
                self.sink.error(&field.key, &message, help);
            } else {
                self.fields.insert(key.get_ref(), field);
            }
        }
    }

    /// The section below a key, with what several files say of it.
    pub(super) fn merged(sink: &'a Sink, path: &str, header: At<'a>, parts: Vec<Field<'a>>) -> Self {
        let mut section = Self::empty(sink, path, header);
        for part in parts {
            if let Some(table) = part.as_table() {
                section.add(&part.key, table);
            }
        }
        section
    }

    /// The section's path with a key.
    pub(super) fn path_of(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn header(&self) -> &At<'a> {
        &self.header
    }

    /// Where each key stands.
    pub(super) fn places(&self) -> impl Iterator<Item = (&'a str, Place)> {
        self.fields.iter().map(|(key, field)| (*key, field.at.place()))
    }

    /// Takes a key that may be left out.
    pub(super) fn optional(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.known.push(key);
        self.fields.remove(key)
    }

    /// Takes a key that must be there.
    pub(super) fn required(&mut self, key: &'static str) -> Option<Field<'a>> {
        let field = self.optional(key);
        if field.is_none() {
            let message = format!("the key `{key}` of `{}` is missing", self.path);
            self.lacks(&[key], message, format!("add `{key}`"));
        }
        field
    }

    /// Reports, at the end, that none of some keys is there, unless one of them is only misspelt.
    pub(super) fn lacks(&mut self, keys: &[&'static str], message: String, help: String) {
        self.missing.push(Missing {
            keys: keys.to_vec(),
            message,
            help,
        });
    }

    /// Takes all keys, for a table whose keys are names the operator chose.
    pub(super) fn take_all(&mut self) -> Vec<(&'a str, Field<'a>)> {
        std::mem::take(&mut self.fields).into_iter().collect()
    }

    /// Reports the keys that nobody asked for and the required ones that are not there. `planned` are
    /// keys of the design that this version does not have.
    pub(super) fn finish(self, planned: &[&'static str]) {
        let mut missing = self.missing;
        for (key, field) in &self.fields {
            if let Some(known) = planned.iter().find(|planned| *planned == key) {
                let message = format!("`{}` is not available in this version", field.path);
                let help = "leave it out; pgreeve refuses what it would not do";
                self.sink.error(&field.key, &message, help);
                missing.retain(|missing| !missing.keys.contains(known));
                continue;
            }
            let meant = nearest(key, self.known.iter().copied());
            let help = match meant {
                Some(word) => format!("did you mean `{word}`?"),
                None => format!("the keys here are {}", self.known.join(", ")),
            };
            missing.retain(|missing| !meant.is_some_and(|word| missing.keys.contains(&word)));
            self.sink
                .error(&field.key, &format!("unknown key `{}`", field.path), &help);
        }
        for missing in missing {
            self.sink.missing(&self.header, &missing.message, &missing.help);
        }
    }
}
