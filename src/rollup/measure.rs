//! Measures: an aggregate with a name. An average is kept as a sum and a count, which can be merged
//! into longer buckets; averages cannot.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::batch::predicate;
use crate::values::ValueError;

/// An aggregate with the name of its column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measure {
    /// Its name.
    pub name: String,
    /// One aggregate in SQL.
    pub expression: String,
}

impl Measure {
    /// Checks the text of an aggregate.
    ///
    /// # Errors
    /// When it is not, lexically, one expression of SQL.
    pub fn new(name: &str, expression: &str) -> Result<Self, ValueError> {
        predicate::check(expression).map_err(|error| ValueError {
            problem: error
                .problem
                .replace("the condition", "the measure")
                .replace("not one condition", "not one measure"),
            help: "write one aggregate, such as \"count(*)\" or \"sum(amount) FILTER (WHERE status = 'paid')\""
                .to_owned(),
        })?;
        Ok(Self {
            name: name.to_owned(),
            expression: expression.to_owned(),
        })
    }

    /// The columns that keep it, each with its expression.
    #[must_use]
    pub fn columns(&self) -> Vec<(String, String)> {
        match average(&self.expression) {
            None => vec![(self.name.clone(), self.expression.clone())],
            Some((argument, filter)) => ["sum", "count"]
                .map(|word| (format!("{}_{word}", self.name), format!("{word}({argument}){filter}")))
                .to_vec(),
        }
    }

    /// Whether it is an average.
    #[must_use]
    pub fn is_average(&self) -> bool {
        average(&self.expression).is_some()
    }
}

/// The argument of an `avg(…)` that is the whole expression, and its FILTER.
fn average(expression: &str) -> Option<(&str, &str)> {
    let text = expression.trim();
    let rest = text
        .get(..3)
        .filter(|word| word.eq_ignore_ascii_case("avg"))
        .and(text.get(3..))?;
    let inside = rest.trim_start().strip_prefix('(')?;
    // The bracket that closes it is the first one before which everything is closed.
    let end = inside.match_indices(')').map(|(end, _)| end).find(|end| {
        inside
            .get(..*end)
            .is_some_and(|argument| predicate::check(argument).is_ok())
    })?;
    let filter = inside.get(end + 1..)?;
    let word = filter.trim_start().get(..6);
    let only_filter = word.is_some_and(|word| word.eq_ignore_ascii_case("filter"))
        && filter.trim_start().get(6..).is_some_and(is_bracketed);
    (filter.trim().is_empty() || only_filter).then(|| (&inside[..end], filter))
}

/// Whether a text is one pair of brackets with what is between them.
fn is_bracketed(text: &str) -> bool {
    let inside = text.trim().strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    inside.is_some_and(|inside| {
        let inside = inside.trim_start();
        let condition = inside
            .get(..5)
            .filter(|word| word.eq_ignore_ascii_case("where"))
            .and(inside.get(5..));
        condition.is_some_and(|condition| predicate::check(condition).is_ok())
    })
}

impl Serialize for Measure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(&self.name, &self.expression)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(expression: &str) -> Vec<(String, String)> {
        Measure::new("m", expression).unwrap().columns()
    }

    #[test]
    fn an_average_is_kept_as_sum_and_count() {
        let pair = |sum: &str, count: &str| {
            vec![
                ("m_sum".to_owned(), sum.to_owned()),
                ("m_count".to_owned(), count.to_owned()),
            ]
        };
        assert_eq!(columns("avg(x)"), pair("sum(x)", "count(x)"));
        assert_eq!(
            columns("AVG ( coalesce(x, ')') )"),
            pair("sum( coalesce(x, ')') )", "count( coalesce(x, ')') )")
        );
        assert_eq!(
            columns("avg(x) FILTER (WHERE y > (1))"),
            pair("sum(x) FILTER (WHERE y > (1))", "count(x) FILTER (WHERE y > (1))")
        );
        for whole in [
            "avg(x) * 100",
            "avg(x) + avg(y)",
            "average(x)",
            "1 - avg(x)",
            "avg(x) FILTER (WHERE a) + (b)",
        ] {
            assert_eq!(columns(whole), [("m".to_owned(), whole.to_owned())], "{whole}");
        }
    }

    #[test]
    fn a_measure_is_one_expression() {
        for text in [
            "",
            "count(*); DROP TABLE users",
            "count(*), sum(x)",
            "count(*",
            "count(*) -- x",
        ] {
            assert!(Measure::new("m", text).is_err(), "{text}");
        }
    }
}
