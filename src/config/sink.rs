//! Where findings are gathered while the files are read, and the places they name.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;

use super::finding::{Finding, Place, Severity};
use super::source::SourceFile;

/// A range of bytes of a file.
#[derive(Debug, Clone)]
pub(super) struct At<'a> {
    pub(super) file: &'a SourceFile,
    pub(super) span: Range<usize>,
}

impl At<'_> {
    pub(super) fn place(&self) -> Place {
        self.file.place(self.span.clone())
    }
}

/// Gathers findings in any order, and answers with them in the order of files and lines.
#[derive(Debug, Default)]
pub(super) struct Sink {
    found: RefCell<Vec<(usize, usize, Finding)>>,
    /// The lines, by file, whose text is no TOML. What was made of them means nothing.
    broken: RefCell<HashSet<(usize, usize)>>,
}

impl Sink {
    /// A place where the text is no TOML.
    pub(super) fn syntax(&self, at: &At<'_>, message: &str, help: Option<&str>) {
        self.keep(at, Severity::Error, message, help);
        self.broken
            .borrow_mut()
            .insert((at.file.order, at.file.line_of(at.span.start)));
    }

    /// Whether some text is no TOML, so that what seems to be missing may only be unread.
    pub(super) fn is_broken(&self) -> bool {
        !self.broken.borrow().is_empty()
    }

    pub(super) fn error(&self, at: &At<'_>, message: &str, help: &str) {
        self.report(at, Severity::Error, message, help);
    }

    pub(super) fn warning(&self, at: &At<'_>, message: &str, help: &str) {
        self.report(at, Severity::Warning, message, help);
    }

    /// An error about something that is not there.
    pub(super) fn missing(&self, at: &At<'_>, message: &str, help: &str) {
        if !self.is_broken() {
            self.error(at, message, help);
        }
    }

    fn report(&self, at: &At<'_>, severity: Severity, message: &str, help: &str) {
        let line = (at.file.order, at.file.line_of(at.span.start));
        if !self.broken.borrow().contains(&line) {
            self.keep(at, severity, message, Some(help));
        }
    }

    fn keep(&self, at: &At<'_>, severity: Severity, message: &str, help: Option<&str>) {
        let finding = Finding::new(severity, at.place(), message, help);
        let mut found = self.found.borrow_mut();
        if !found.iter().any(|(_, _, known)| *known == finding) {
            found.push((at.file.order, at.span.start, finding));
        }
    }

    /// All findings, in order.
    pub(super) fn into_findings(self) -> Vec<Finding> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|(file, byte, _)| (*file, *byte));
        found.into_iter().map(|(_, _, finding)| finding).collect()
    }
}
