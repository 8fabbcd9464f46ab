//! `[databases.NAME]`: where to connect, and as whom.

use super::field::Field;
use super::paths;
use super::section::Section;
use super::surroundings::Surroundings;
use crate::postgres::connect::ConnectTarget;

/// `[databases.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseSettings {
    /// Where to connect, and as whom.
    pub target: ConnectTarget,
    /// How many runs may be under way at the same time. 1 to 64.
    pub max_runs: u32,
}

const DEFAULT_MAX_RUNS: u32 = 4;
const MOST_RUNS: u32 = 64;

pub(super) fn read(field: &Field<'_>, surroundings: &Surroundings) -> Option<DatabaseSettings> {
    let mut section = field.section()?;
    let max_runs = section
        .optional("max_runs")
        .map_or(Some(DEFAULT_MAX_RUNS), |field| field.count(1..=MOST_RUNS));
    let target = target(&mut section, surroundings);
    section.finish(&[]);
    Some(DatabaseSettings {
        target: target?,
        max_runs: max_runs?,
    })
}

/// `url` and `password_file`.
pub(super) fn target(section: &mut Section<'_>, surroundings: &Surroundings) -> Option<ConnectTarget> {
    let url = section.required("url");
    let password_file = section.optional("password_file");
    let file = password_file
        .as_ref()
        .and_then(|field| paths::secret_file(field, surroundings));
    let url = url?;
    let mut target = url.checked(ConnectTarget::parse(url.text()?))?;
    if target.password.is_some() {
        if let Some(password_file) = &password_file {
            let help = "leave the password out of the url, and change it: it was written into a file";
            password_file.error("the url holds a password as well", help);
        } else if url.at.file.readable_by_others() {
            let help =
                "move the password into a file of its own and name it with password_file, or chmod 640 this file";
            url.error("holds a password in a file that everybody on this host can read", help);
        }
    }
    target.password_file = file;
    Some(target)
}
