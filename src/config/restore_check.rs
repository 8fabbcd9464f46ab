//! `[jobs.NAME] restore_check = { … }`.

use std::collections::BTreeMap;

use super::field::Field;
use super::job::Scope;
use super::paths;
use super::suggest::nearest;
use crate::backup::prove::Assertion;
use crate::jobs::restore_check::RestoreCheckSettings;
use crate::values::{JobName, Name};

/// The backup jobs of the configuration, as far as they are written down: database and store.
pub(super) struct Backups<'a>(BTreeMap<&'a str, (Option<&'a str>, Option<&'a str>)>);

impl<'a> Backups<'a> {
    pub(super) fn of(jobs: &[(&'a str, Field<'a>)]) -> Self {
        let backups = jobs.iter().filter_map(|(name, field)| {
            let job = field.value.as_table()?;
            let backup = job.get("backup")?.get_ref().as_table()?;
            let text =
                |value: Option<&'a toml::Spanned<toml::de::DeValue<'a>>>| value.and_then(|v| v.get_ref().as_str());
            Some((*name, (text(job.get("database")), text(backup.get("store")))))
        });
        Self(backups.collect())
    }
}

pub(super) fn read(field: &Field<'_>, scope: &Scope<'_>) -> Option<RestoreCheckSettings> {
    let mut section = field.section()?;
    let backup = section.required("backup").and_then(|field| backup(&field, scope));
    let assertions = section.optional("assert");
    let has_assertions = assertions.is_some();
    let assertions = assertions.map_or(Some(Vec::new()), |field| assertions_of(&field));
    let level_field = section.optional("level");
    let level = match &level_field {
        Some(field) => field.count(0..=3),
        None => Some(if has_assertions { 3 } else { 2 }),
    };
    if let (Some(field), Some(level)) = (&level_field, level) {
        if has_assertions && level < 3 {
            field.error(
                "assertions are asked at level 3 only",
                "write level = 3, or leave `assert` out",
            );
        }
        if !has_assertions && level == 3 {
            field.error(
                "level 3 asks assertions, and there are none",
                "add `assert`, or write level = 2",
            );
        }
    }
    let identity_file = section.optional("identity_file");
    let identity_file = identity_file.map_or(Some(None), |field| {
        paths::secret_file(&field, scope.surroundings).map(Some)
    });
    section.finish(&[]);
    let (backup, database, store) = backup?;
    Some(RestoreCheckSettings {
        backup,
        database,
        store,
        level: u8::try_from(level?).ok()?,
        identity_file: identity_file?,
        assertions: assertions?,
    })
}

fn backup(field: &Field<'_>, scope: &Scope<'_>) -> Option<(JobName, Name, Name)> {
    let name: JobName = field.parse()?;
    let Some((database, store)) = scope.backups.0.get(name.as_str()) else {
        let known = || scope.backups.0.keys().copied();
        let help = match nearest(name.as_str(), known()) {
            Some(known) => format!("did you mean `{known}`?"),
            None => format!("the backup jobs are: {}", known().collect::<Vec<_>>().join(", ")),
        };
        field.error(&format!("there is no backup job `{name}`"), &help);
        return None;
    };
    // What is wrong with that job is reported there.
    let database = database.or_else(|| scope.databases.only())?;
    Some((name, database.parse().ok()?, (*store)?.parse().ok()?))
}

fn assertions_of(field: &Field<'_>) -> Option<Vec<Assertion>> {
    let elements = field.array()?;
    if elements.is_empty() {
        let help = "write assert = [{ query = \"SELECT count(*) > 0 FROM users\", expect = true }]";
        field.error("there is nothing to assert", help);
    }
    let read: Vec<Option<Assertion>> = elements.iter().map(assertion).collect();
    read.into_iter().collect()
}

fn assertion(field: &Field<'_>) -> Option<Assertion> {
    let mut section = field.section()?;
    let query = section.required("query");
    let expect = section.required("expect").and_then(|field| field.column_value());
    section.finish(&[]);
    let query = query?;
    let text = query.text()?;
    if text.trim().is_empty() || text.contains('\0') {
        query.error("this is no query", "write a SELECT that answers with one value");
        return None;
    }
    Some(Assertion {
        query: text.to_owned(),
        expect: expect?,
    })
}
