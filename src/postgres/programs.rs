//! PostgreSQL's own programs: where they are, and which version they have.

use std::path::{Path, PathBuf};

use super::sqlstate::DatabaseError;

/// Where Debian and Red Hat put the programs of each major version.
const VERSIONED_DIRECTORIES: [(&str, &str); 2] = [("/usr/lib/postgresql", "bin"), ("/usr", "bin")];

/// A directory to look in before all others.
pub const DIRECTORY_VARIABLE: &str = "PGREEVE_PG_BINDIR";

/// Finds a program such as `pg_dump`: in `$PGREEVE_PG_BINDIR` if that is set and nowhere else, then
/// in the newest version installed, then on the `PATH` (on Debian a wrapper that picks a version by
/// the port, so it comes last).
///
/// # Errors
/// Names the program and the package to install.
pub fn find(program: &str) -> Result<PathBuf, DatabaseError> {
    if let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE) {
        let file = Path::new(&directory).join(program);
        return file.is_file().then_some(file).ok_or_else(|| {
            DatabaseError::local(format!(
                "{program} is not in {DIRECTORY_VARIABLE} = {}",
                Path::new(&directory).display()
            ))
        });
    }
    let versioned = VERSIONED_DIRECTORIES
        .iter()
        .flat_map(|(root, bin)| newest_first(Path::new(root), bin));
    let path = std::env::var_os("PATH").unwrap_or_default();
    versioned
        // A relative entry would find whatever lies in the current directory.
        .chain(std::env::split_paths(&path).filter(|directory| directory.is_absolute()))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            let package = if program.starts_with("pg_") || program == "psql" {
                "postgresql-client"
            } else {
                "postgresql"
            };
            DatabaseError::local(format!(
                "{program} was not found; install the package {package}, or set {DIRECTORY_VARIABLE}"
            ))
        })
}

/// `ROOT/N/bin` or `ROOT/pgsql-N/bin`, highest N first.
fn newest_first(root: &Path, bin: &str) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            let version = name.strip_prefix("pgsql-").unwrap_or(name).parse().ok()?;
            Some((version, entry.path().join(bin)))
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, directory)| directory).collect()
}
