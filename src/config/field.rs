//! One value of the configuration, read as the type it should be. Each reader reports what is wrong
//! with the value and answers `None`.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::section::Section;
use super::sink::{At, Sink};
use super::suggest::nearest;
use crate::values::{Period, ValueError};

/// A key with its value.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub(super) sink: &'a Sink,
    /// Its path, such as `jobs.purge-events.retention.keep`.
    pub(super) path: String,
    /// Where the key stands.
    pub(super) key: At<'a>,
    /// Where the value stands.
    pub(super) at: At<'a>,
    pub(super) value: &'a DeValue<'a>,
}

impl<'a> Field<'a> {
    /// Reports that the value makes no sense.
    pub(super) fn error(&self, problem: &str, help: &str) {
        self.sink.error(&self.at, &format!("`{}`: {problem}", self.path), help);
    }

    /// Reports that somebody should look at the value.
    pub(super) fn warning(&self, problem: &str, help: &str) {
        self.sink
            .warning(&self.at, &format!("`{}`: {problem}", self.path), help);
    }

    fn wrong_type(&self, wanted: &str, help: &str) {
        let found = match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.error(&format!("must be {wanted}, not {found}"), help);
    }

    /// A string.
    pub(super) fn text(&self) -> Option<&'a str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.wrong_type("a string", "write the value in double quotes");
        }
        text
    }

    /// A string that its type reads itself.
    pub(super) fn parse<T: FromStr<Err = ValueError>>(&self) -> Option<T> {
        let Some(text) = self.value.as_str() else {
            // What the type says of an empty text tells how to write it.
            let help = T::from_str("").err().map(|error| error.help);
            self.wrong_type(
                "a string",
                help.as_deref().unwrap_or("write the value in double quotes"),
            );
            return None;
        };
        self.checked(text.parse())
    }

    /// The value of a result, or a finding.
    pub(super) fn checked<T>(&self, result: Result<T, ValueError>) -> Option<T> {
        result.map_err(|error| self.error(&error.problem, &error.help)).ok()
    }

    /// A period of fixed length.
    pub(super) fn duration(&self, longest: Duration) -> Option<Duration> {
        let period: Period = self.parse()?;
        let Some(duration) = period.to_duration() else {
            let problem = format!("`{period}` has months or years, whose length depends on the date");
            self.error(
                &problem,
                "write days, hours, minutes or seconds, such as \"30d\" or \"2h\"",
            );
            return None;
        };
        if duration > longest {
            let help = format!("the longest time here is {} days", longest.as_secs() / 86_400);
            self.error(&format!("`{period}` is too long"), &help);
            return None;
        }
        Some(duration)
    }

    /// A whole number within a range.
    pub(super) fn whole(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let help = format!("write a whole number from {} to {}", range.start(), range.end());
        let Some(integer) = self.value.as_integer() else {
            self.wrong_type("an integer", &help);
            return None;
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .filter(|number| range.contains(number));
        if number.is_none() {
            self.error(&format!("{integer} is out of range"), &help);
        }
        number
    }

    /// A whole number within a range.
    pub(super) fn count(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let number = self.whole(u64::from(*range.start())..=u64::from(*range.end()))?;
        u32::try_from(number).ok()
    }

    /// A number greater than 0 and at most 1.
    pub(super) fn fraction(&self) -> Option<f64> {
        self.number(1.0)
    }

    /// A part of a whole, greater than 0 and at most so much.
    pub(super) fn number(&self, most: f64) -> Option<f64> {
        let help = "write a part of the whole, such as 0.25 for a quarter";
        let text = match self.value {
            DeValue::Float(number) => number.as_str(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
            _ => {
                self.wrong_type("a number", help);
                return None;
            }
        };
        let number = text
            .parse::<f64>()
            .ok()
            .filter(|number| *number > 0.0 && *number <= most);
        if number.is_none() {
            self.error(&format!("{text} is not greater than 0 and at most {most}"), help);
        }
        number
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Option<bool> {
        let value = self.value.as_bool();
        if value.is_none() {
            self.wrong_type("a boolean", "write true or false, without quotes");
        }
        value
    }

    /// One of a few words. `planned` are words of the design that this version does not have.
    pub(super) fn word<T: Copy>(&self, words: &[(&'static str, T)], planned: &[&str]) -> Option<T> {
        let all = words
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect::<Vec<_>>()
            .join(", ");
        let Some(text) = self.value.as_str() else {
            self.wrong_type("a string", &format!("write one of {all}"));
            return None;
        };
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let (problem, help) = if planned.contains(&text) {
                (
                    format!("`{text}` is not available in this version"),
                    format!("write one of {all}"),
                )
            } else {
                let problem = format!("`{text}` is not one of {all}");
                match nearest(text, words.iter().map(|(word, _)| *word)) {
                    Some(word) => (problem, format!("did you mean `{word}`?")),
                    None => (problem, format!("write one of {all}")),
                }
            };
            self.error(&problem, &help);
        }
        found
    }

    /// A value as it would stand in a column: a string, an integer or a boolean.
    pub(super) fn column_value(&self) -> Option<String> {
        match self.value {
            DeValue::String(text) if !text.contains('\0') => Some(text.clone().into_owned()),
            DeValue::String(_) => {
                self.error("holds a NUL character, which PostgreSQL cannot store", "leave it out");
                None
            }
            DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
            DeValue::Boolean(value) => Some(value.to_string()),
            _ => {
                self.wrong_type("a string, an integer or a boolean", "write the value as a string");
                None
            }
        }
    }

    /// An array, element by element.
    pub(super) fn array(&self) -> Option<Vec<Self>> {
        let Some(array) = self.value.as_array() else {
            self.wrong_type(
                "an array",
                "write the values in square brackets, such as [\"a\", \"b\"]",
            );
            return None;
        };
        let element = |element: &'a toml::Spanned<DeValue<'a>>| {
            let at = At {
                file: self.at.file,
                span: element.span(),
            };
            Self {
                key: at.clone(),
                at,
                value: element.get_ref(),
                ..self.clone()
            }
        };
        Some(array.iter().map(element).collect())
    }

    /// A table.
    pub(super) fn as_table(&self) -> Option<&'a DeTable<'a>> {
        let table = self.value.as_table();
        if table.is_none() {
            let help = format!("write [{0}] and its keys below, or {0} = {{ … }}", self.path);
            self.wrong_type("a table", &help);
        }
        table
    }

    /// A table, to be read key by key.
    pub(super) fn section(&self) -> Option<Section<'a>> {
        let table = self.as_table()?;
        let mut section = Section::empty(self.sink, &self.path, self.key.clone());
        section.add(&self.key, table);
        Some(section)
    }
}
