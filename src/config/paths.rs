//! Keys that name files and directories; secrets are only ever named, as `*_file`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::field::Field;
use super::surroundings::Surroundings;

/// The one variable that is expanded, and only at the start of a `*_file`.
const VARIABLE: &str = "${CREDENTIALS_DIRECTORY}";

/// An absolute path of a directory.
pub(super) fn directory(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text()?;
    if text.contains("${") {
        let help = "write the path itself; only keys that end in _file know ${CREDENTIALS_DIRECTORY}";
        field.error("variables are not expanded here", help);
        return None;
    }
    absolute(field, PathBuf::from(text))
}

/// A file that holds a secret: it must be there, and should be readable by its owner and group only.
pub(super) fn secret_file(field: &Field<'_>, surroundings: &Surroundings) -> Option<PathBuf> {
    let path = absolute(field, expand(field, surroundings)?)?;
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) => {
            let (problem, help) = match error.kind() {
                io::ErrorKind::NotFound => (
                    format!("there is no file {}", path.display()),
                    "create it, readable only by pgreeve's user (chmod 640)",
                ),
                _ => (
                    format!("{} cannot be looked at: {error}", path.display()),
                    "give pgreeve's user the right to reach and read it",
                ),
            };
            field.error(&problem, help);
            return None;
        }
    };
    if !metadata.is_file() {
        field.error(
            &format!("{} is not a file", path.display()),
            "name a file whose first line is the secret",
        );
        return None;
    }
    if metadata.len() == 0 {
        field.error(
            &format!("{} is empty", path.display()),
            "write the secret into its first line",
        );
        return None;
    }
    if metadata.mode() & 0o004 != 0 {
        let problem = format!("everybody on this host can read {}", path.display());
        field.warning(&problem, "chmod 640 the file, with pgreeve's group");
    }
    Some(path)
}

fn expand(field: &Field<'_>, surroundings: &Surroundings) -> Option<PathBuf> {
    let text = field.text()?;
    let (base, rest) = match text.strip_prefix(VARIABLE) {
        None => (Path::new(""), text),
        Some(rest) => {
            let Some(base) = &surroundings.credentials_directory else {
                let problem = "the environment variable CREDENTIALS_DIRECTORY is not set";
                let help = "systemd sets it for a service with LoadCredential=; elsewhere set it to the directory of the secrets";
                field.error(problem, help);
                return None;
            };
            (base.as_path(), rest.trim_start_matches('/'))
        }
    };
    if rest.contains("${") {
        let help = "only ${CREDENTIALS_DIRECTORY}, at the start, is expanded";
        field.error("the path holds a variable that is not expanded", help);
        return None;
    }
    Some(base.join(rest))
}

fn absolute(field: &Field<'_>, path: PathBuf) -> Option<PathBuf> {
    let sound = path.is_absolute()
        && !path.components().any(|part| part == Component::ParentDir)
        && !path.as_os_str().as_encoded_bytes().contains(&0);
    if !sound {
        let problem = format!("`{}` is not an absolute path", path.display());
        field.error(&problem, "write the whole path, from / on and without ..");
        return None;
    }
    Some(path)
}
