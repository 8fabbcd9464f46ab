//! From text to a tree of TOML values with their places; every mistake in the syntax is a finding.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

use super::sink::{At, Sink};
use super::source::SourceFile;

/// Reads a file as far as it can be read.
pub(super) fn parse<'a>(file: &'a SourceFile, sink: &Sink) -> DeTable<'a> {
    let (tree, errors) = DeTable::parse_recoverable(&file.text);
    let mut errors: Vec<_> = errors
        .into_iter()
        .map(|error| (error.span().unwrap_or(0..0), error))
        .collect();
    errors.sort_by_key(|(span, _)| span.start);
    // The first mistake on a line explains the others on it.
    errors.dedup_by_key(|(span, _)| file.line_of(span.start));
    for (span, error) in errors {
        let (message, help) = explain(file, &error, &span);
        sink.syntax(&At { file, span }, &message, help.as_deref());
    }
    tree.into_inner()
}

fn explain(file: &SourceFile, error: &Error, span: &Range<usize>) -> (String, Option<String>) {
    let message = error.message();
    let text = file.text.get(span.clone()).unwrap_or_default();
    if message == "duplicate key" {
        let first = first_of_two(file, span).map(|span| file.place(span));
        let message = match &first {
            Some(place) => format!("`{text}` stands here a second time; it was first set at {place}"),
            None => format!("`{text}` stands here a second time"),
        };
        let help = "keep one of the two, or give one another name";
        return (message, Some(help.to_owned()));
    }
    let help = message.starts_with("string values must be quoted").then(|| {
        // The text may also be a password.
        let secret = file.place(span.clone()).excerpt.is_none();
        if secret || text.is_empty() || text.contains(['"', '\'', '\\']) {
            "write a value in double quotes, such as \"90d\"".to_owned()
        } else {
            format!("write \"{text}\"")
        }
    });
    (format!("this is not TOML: {message}"), help)
}

/// Where the key was first set that stands at `span` again, when the two stand on different lines.
fn first_of_two(file: &SourceFile, span: &Range<usize>) -> Option<Range<usize>> {
    let line_start = file.text.get(..span.start)?.rfind('\n').map_or(0, |at| at + 1);
    let (before, rest) = file.text.split_at_checked(line_start)?;
    let line = rest.lines().next()?;
    let before = DeTable::parse_recoverable(before).0.into_inner();
    let line_tree = DeTable::parse_recoverable(line).0.into_inner();
    let mut table = if line.trim_start().starts_with('[') {
        &before
    } else {
        last_table(&before, &file.text)
    };
    let mut wanted = &line_tree;
    loop {
        let (key, value) = wanted.iter().next()?;
        let (found, below) = table.get_key_value(key)?;
        if key.span().start + line_start == span.start {
            return Some(found.span());
        }
        (wanted, table) = (value.get_ref().as_table()?, below.get_ref().as_table()?);
    }
}

/// The table whose header stands last in the text.
fn last_table<'t, 'i>(root: &'t DeTable<'i>, text: &str) -> &'t DeTable<'i> {
    fn visit<'t, 'i>(value: &'t Spanned<DeValue<'i>>, text: &str, last: &mut (usize, &'t DeTable<'i>)) {
        let Some(table) = value.get_ref().as_table() else {
            return;
        };
        let start = value.span().start;
        if start >= last.0 && text.get(start..).is_some_and(|text| text.starts_with('[')) {
            *last = (start, table);
        }
        for below in table.values() {
            visit(below, text, last);
        }
    }
    let mut last = (0, root);
    for value in root.values() {
        visit(value, text, &mut last);
    }
    last.1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str) -> Vec<String> {
        let file = SourceFile::new("c".into(), 0, text.to_owned(), 0o600);
        let sink = Sink::default();
        parse(&file, &sink);
        let short = |finding: super::super::finding::Finding| {
            format!("{}:{} {}", finding.line, finding.column, finding.message)
        };
        sink.into_findings().into_iter().map(short).collect()
    }

    #[test]
    fn a_key_set_twice_names_both_places() {
        let cases = [
            (
                "[jobs.a]\nx = 1\n[jobs.a]\ny = 1\n",
                "3:7 `a` stands here a second time; it was first set at c:1:7",
            ),
            (
                "[jobs.a]\nx = 1\n\nx = 2\n",
                "4:1 `x` stands here a second time; it was first set at c:2:1",
            ),
            (
                "x = 1\n[a]\nx = 1\n[b]\n[c]\nx.y = 1\nx.y = 2\n",
                "7:3 `y` stands here a second time; it was first set at c:6:3",
            ),
            (
                "a = 1\na = 2\n",
                "2:1 `a` stands here a second time; it was first set at c:1:1",
            ),
            ("a = { x = 1, x = 2 }\n", "1:14 `x` stands here a second time"),
        ];
        for (text, expected) in cases {
            assert_eq!(messages(text), [expected], "{text}");
        }
    }

    #[test]
    fn a_password_without_quotes_is_not_repeated() {
        let text = "url = postgresql://u:hunter2@h/d\npassword = hunter2\n";
        let file = SourceFile::new("c".into(), 0, text.to_owned(), 0o600);
        let sink = Sink::default();
        parse(&file, &sink);
        let findings = sink.into_findings();
        assert_eq!(findings.len(), 2, "{findings:?}");
        for finding in findings {
            assert!(!finding.to_string().contains("hunter"), "{finding}");
        }
    }

    #[test]
    fn several_mistakes_in_the_syntax_come_at_once() {
        assert_eq!(
            messages("[jobs.a]\nkeep = 90d\n\nretries = = 3\nflag = tru\n"),
            [
                "2:8 this is not TOML: string values must be quoted, expected literal string",
                "4:11 this is not TOML: extra `=`, expected nothing",
                "5:8 this is not TOML: invalid boolean, expected `true`",
            ]
        );
    }
}
