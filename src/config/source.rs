//! The files of a configuration as texts: `config.toml`, then `conf.d/*.toml` beside it in the order
//! of their names.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::finding::{Excerpt, Finding, Place, Severity};

/// More than any configuration needs, and little enough to read by mistake.
const LARGEST_FILE: u64 = 4 << 20;

/// More dots than a key has names. Trees are dropped by recursion, so a key of a million names, which
/// the parser would take, would end the process.
const MOST_DOTS: usize = 500;

/// The permission to be read by anybody on the host.
const READABLE_BY_OTHERS: u32 = 0o004;

/// The permission to be changed by anybody on the host.
const WRITABLE_BY_OTHERS: u32 = 0o002;

/// One file.
#[derive(Debug)]
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    /// Its place in the order of reading, from 0.
    pub(super) order: usize,
    pub(super) text: String,
    mode: u32,
    /// Where each line begins, in bytes.
    lines: Vec<usize>,
}

impl SourceFile {
    pub(super) fn new(path: PathBuf, order: usize, text: String, mode: u32) -> Self {
        let first = if text.starts_with('\u{feff}') { 3 } else { 0 };
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(first).chain(breaks.map(|(at, _)| at + 1)).collect();
        Self {
            path,
            order,
            text,
            mode,
            lines,
        }
    }

    fn read(path: &Path, order: usize) -> Result<Self, Box<Finding>> {
        let open = |path: &Path| -> io::Result<(Vec<u8>, u32)> {
            let file = File::open(path)?;
            let mode = file.metadata()?.mode();
            let mut bytes = Vec::new();
            file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
            Ok((bytes, mode))
        };
        let whole = || Place::whole(path.display().to_string());
        let (bytes, mode) = open(path).map_err(|error| Box::new(unreadable(path, &error)))?;
        if bytes.len() as u64 > LARGEST_FILE {
            let message = "the file is larger than 4 MiB, which no configuration is";
            let finding = Finding::error(whole(), message, "name the configuration's own file");
            return Err(Box::new(finding));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let good = String::from_utf8_lossy(error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or(&[]));
            let good = Self::new(path.to_owned(), order, good.into_owned(), mode);
            let place = Place {
                excerpt: None,
                ..good.place(good.text.len()..good.text.len())
            };
            Finding::error(
                place,
                "the text is not UTF-8 from here on",
                "save the file as UTF-8, as TOML demands",
            )
        })?;
        let file = Self::new(path.to_owned(), order, text, mode);
        let dotted = |line: &str| !line.trim_start().starts_with('#') && line.matches('.').count() > MOST_DOTS;
        if let Some(number) = file.text.split('\n').position(dotted) {
            let place = Place {
                line: number + 1,
                ..whole()
            };
            let finding = Finding::error(place, "the line has more than 500 dots", "write it as several lines");
            return Err(Box::new(finding));
        }
        Ok(file)
    }

    /// Whether anybody on the host can read the file.
    pub(super) fn readable_by_others(&self) -> bool {
        self.mode & READABLE_BY_OTHERS != 0
    }

    /// The number of the line, from 0, that holds a byte.
    pub(super) fn line_of(&self, byte: usize) -> usize {
        self.lines.partition_point(|start| *start <= byte).saturating_sub(1)
    }

    /// Where a range of bytes begins.
    pub(super) fn place(&self, span: Range<usize>) -> Place {
        let start = span.start.min(self.text.len());
        let number = self.line_of(start);
        let begin = self.lines.get(number).copied().unwrap_or(0);
        let end = self.lines.get(number + 1).map_or(self.text.len(), |next| next - 1);
        let slice = |range: Range<usize>| self.text.get(range).unwrap_or_default();
        let line = slice(begin..end).trim_end_matches('\r');
        let meant = slice(start..span.end.min(begin + line.len())).chars().count();
        Place {
            file: self.path.display().to_string(),
            line: number + 1,
            column: slice(begin..start).chars().count() + 1,
            excerpt: (!may_hold_secret(line)).then(|| Excerpt {
                line: line.to_owned(),
                width: meant.max(1),
            }),
        }
    }

    /// What is unusual about the file itself.
    pub(super) fn finding(&self) -> Option<Finding> {
        (self.mode & WRITABLE_BY_OTHERS != 0).then(|| {
            Finding::new(
                Severity::Warning,
                Place::whole(self.path.display().to_string()),
                "everybody on this host can change the file, and with it what is deleted",
                Some("chmod o-w the file"),
            )
        })
    }
}

/// A line that findings do not repeat. Rather too many lines than one too few.
fn may_hold_secret(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    let login = line
        .replace("://", "")
        .rsplit_once('@')
        .is_some_and(|(login, _)| login.contains(':'));
    let named = ["password", "passwd", "secret", "token"].iter().any(|word| {
        line.match_indices(word)
            .any(|(at, _)| !line.get(at + word.len()..).unwrap_or_default().starts_with("_file"))
    });
    login || named
}

fn unreadable(path: &Path, error: &io::Error) -> Finding {
    let (message, help) = match error.kind() {
        io::ErrorKind::NotFound => (
            "there is no such file".to_owned(),
            "name the configuration with --config FILE or PGREEVE_CONFIG; the default is /etc/pgreeve/config.toml",
        ),
        io::ErrorKind::IsADirectory => (
            "this is a directory, not a file".to_owned(),
            "name the file in it, such as config.toml",
        ),
        io::ErrorKind::PermissionDenied => (
            "the file may not be read by this user".to_owned(),
            "give the group of pgreeve's user the right to read it (chgrp, chmod 640)",
        ),
        _ => (
            format!("the file cannot be read: {error}"),
            "check the file and its disk",
        ),
    };
    Finding::error(Place::whole(path.display().to_string()), &message, help)
}

/// Reads all files of a configuration. What cannot be read is a finding; the rest is still read.
pub(super) fn read_all(main: &Path) -> (Vec<SourceFile>, Vec<Finding>) {
    let (mut files, mut findings) = (Vec::new(), Vec::new());
    let directory = main.parent().unwrap_or(Path::new("")).join("conf.d");
    let parts = match part_paths(&directory) {
        Ok(parts) => parts,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let message = format!("the directory cannot be read: {error}");
            let place = Place::whole(directory.display().to_string());
            let help = "make conf.d a directory that pgreeve's user may read, or remove it";
            findings.push(Finding::error(place, &message, help));
            Vec::new()
        }
    };
    for path in std::iter::once(main.to_owned()).chain(parts) {
        match SourceFile::read(&path, files.len()) {
            Ok(file) => {
                findings.extend(file.finding());
                files.push(file);
            }
            Err(finding) => findings.push(*finding),
        }
    }
    (files, findings)
}

/// The `*.toml` files of a directory in the order of their names, without hidden ones: editors leave
/// those behind.
fn part_paths(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| {
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        !hidden && path.extension().is_some_and(|extension| extension == "toml")
    });
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> SourceFile {
        SourceFile::new("c.toml".into(), 0, text.to_owned(), 0o640)
    }

    #[test]
    fn a_place_counts_lines_and_characters_from_one() {
        let source = file("\u{feff}a = 1\r\nü = 'x' # end");
        let place = |needle: &str| {
            let at = source.text.find(needle).unwrap();
            source.place(at..at + needle.len())
        };
        assert_eq!(place("a").to_string(), "c.toml:1:1");
        assert_eq!(place("'x'").to_string(), "c.toml:2:5");
        assert_eq!(place("'x'").excerpt.unwrap().width, 3);
        let end = source.text.len();
        assert_eq!(source.place(end..end + 9).to_string(), "c.toml:2:14");
        assert_eq!(file("").place(0..0).to_string(), "c.toml:1:1");
        assert_eq!(file("a = 1\n").place(6..6).to_string(), "c.toml:2:1");
    }

    #[test]
    fn a_line_that_may_hold_a_password_is_not_repeated() {
        for line in [
            "url = \"postgresql://u:hunter2@h/d\"",
            "url = \"postgresql:///d?user=u&password=hunter2\"",
            "url = \"postgresql://u:hun@ter2@h/d\"",
            "url = \"u:hunter2@h\"",
            "Password = \"hunter2\"",
            "secret_access_key = \"hunter2\"",
        ] {
            assert_eq!(file(line).place(0..3).excerpt, None, "{line}");
        }
        for line in ["password_file = \"/etc/p\"", "url = \"postgresql://u@h:5432/d\""] {
            assert!(file(line).place(0..3).excerpt.is_some(), "{line}");
        }
    }
}
