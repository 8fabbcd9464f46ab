//! What is wrong, and where: the answer of `pgreeve check`.

use std::fmt;

use serde::Serialize;

/// Whether a [`Finding`] keeps the configuration from being used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It does.
    Error,
    /// It does not; somebody should look at it.
    Warning,
}

impl Severity {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A place in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, as it was found.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What stands there; `None` for a file as a whole and for a line that may hold a password.
    pub(super) excerpt: Option<Excerpt>,
}

/// A line of a file and how much of it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Excerpt {
    pub(super) line: String,
    /// In characters, at least 1.
    pub(super) width: usize,
}

impl Place {
    /// A file as a whole: its line and column are 1.
    #[must_use]
    pub fn whole(file: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line: 1,
            column: 1,
            excerpt: None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// One mistake, or one thing to look at. Its `Display` shows the line with a caret under the place;
/// neither holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file, as it was found.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to write or do instead.
    pub help: Option<String>,
    #[serde(skip)]
    excerpt: Option<Excerpt>,
}

impl Finding {
    /// A finding at a place.
    #[must_use]
    pub fn new(severity: Severity, place: Place, message: &str, help: Option<&str>) -> Self {
        Self {
            severity,
            file: place.file,
            line: place.line,
            column: place.column,
            message: printable(message),
            help: help.map(printable),
            excerpt: place.excerpt,
        }
    }

    /// Whether the configuration cannot be used because of it.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// An error at a place, with its remedy.
    #[must_use]
    pub fn error(place: Place, message: &str, help: &str) -> Self {
        Self::new(Severity::Error, place, message, Some(help))
    }
}

/// A text without characters that would act on a terminal; a quoted key may hold any.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.severity.as_str(), self.message)?;
        let margin = " ".repeat(self.line.to_string().len());
        writeln!(f, "{margin}--> {}:{}:{}", self.file, self.line, self.column)?;
        if let Some(excerpt) = &self.excerpt {
            // Tabs stay tabs, so that the caret stands where the terminal puts the text.
            let is_tab = |c| c == '\t';
            let indent: String = excerpt
                .line
                .chars()
                .take(self.column - 1)
                .map(|c| if is_tab(c) { '\t' } else { ' ' })
                .collect();
            let line: String = excerpt
                .line
                .chars()
                .map(|c| {
                    if c.is_control() && !is_tab(c) {
                        char::REPLACEMENT_CHARACTER
                    } else {
                        c
                    }
                })
                .collect();
            writeln!(f, "{margin} |")?;
            writeln!(f, "{} | {line}", self.line)?;
            writeln!(f, "{margin} | {indent}{}", "^".repeat(excerpt.width))?;
        }
        if let Some(help) = &self.help {
            writeln!(f, "{margin} = help: {help}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_shows_its_line_with_a_caret_below() {
        let place = Place {
            file: "config.toml".to_owned(),
            line: 12,
            column: 2,
            excerpt: Some(Excerpt {
                line: "\ttabel = \"a\u{1b}\"".to_owned(),
                width: 5,
            }),
        };
        let finding = Finding::error(place, "unknown key `tabel`", "did you mean `table`?");
        assert_eq!(
            finding.to_string(),
            "error: unknown key `tabel`\n  --> config.toml:12:2\n   |\n12 | \ttabel = \"a\u{fffd}\"\n   | \t^^^^^\n   = help: did you mean `table`?\n"
        );
        assert_eq!(
            serde_json::to_string(&finding).unwrap(),
            r#"{"severity":"error","file":"config.toml","line":12,"column":2,"message":"unknown key `tabel`","help":"did you mean `table`?"}"#
        );
    }
}
