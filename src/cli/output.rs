//! What the verbs print. Results go to standard output, everything else to standard error. A
//! reader that went away (a closed pipe) is no error.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;

use serde::Serialize;

use crate::config::Finding;

/// The first result that could not be written, in words.
static LOST: OnceLock<String> = OnceLock::new();

/// Why results were lost, if any were: a file on a full disk must not look like a whole document.
pub(super) fn lost() -> Option<&'static str> {
    LOST.get().map(String::as_str)
}

/// A line of a verb's result.
pub(super) fn line(text: &str) {
    bytes(format!("{text}\n").as_bytes());
}

/// A verb's result as it is.
pub(super) fn bytes(result: &[u8]) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(result).and_then(|()| stdout.flush())
        && error.kind() != ErrorKind::BrokenPipe
    {
        LOST.get_or_init(|| error.to_string());
    }
}

/// A label with its value; all labels of a result are equally wide.
pub(super) fn labelled(label: &str, text: &str) {
    // A value of several lines, such as a condition of SQL, goes on below its first.
    let text = text.replace('\n', &format!("\n{:LABEL$}  ", ""));
    line(&format!("{label:LABEL$}  {text}"));
}

/// How wide labels are: the longest of a report's keys.
const LABEL: usize = 17;

/// A verb's result as one JSON document.
pub(super) fn document(document: &impl Serialize) {
    // The documents are made of maps with text keys, numbers and texts; they always serialise.
    if let Ok(text) = serde_json::to_string_pretty(document) {
        line(&text);
    }
}

/// An error with its remedy.
pub(super) fn error(message: &str, remedy: Option<&str>) {
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "pgreeve: {message}");
    if let Some(remedy) = remedy {
        let _ = writeln!(stderr, "  help: {remedy}");
    }
}

/// A line beside the result.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Findings of the configuration, as a compiler shows them.
pub(super) fn findings(findings: &[Finding]) {
    for finding in findings {
        let _ = writeln!(io::stderr().lock(), "{finding}");
    }
}

/// Whether somebody watches standard error.
pub(super) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Overwrites the current line of a terminal.
pub(super) fn progress(text: &str) {
    let _ = write!(io::stderr().lock(), "\r\x1b[2K{text}");
    let _ = io::stderr().flush();
}

/// Rows of a table, columns as wide as they must be.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let render = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        line(text.trim_end());
    };
    render(&mut header.iter().copied());
    for row in rows {
        render(&mut row.iter().map(String::as_str));
    }
}
