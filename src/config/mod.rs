//! The configuration: read as types, checked for sense, every mistake reported in one pass.
//!
//! [`Config::load`] tells the way: `source` reads the files, `syntax` makes trees of values of them,
//! `section` and `field` read the trees as types, one file per section of the configuration says
//! which, and what is wrong gathers in a `sink` until all of it is known. Nothing here connects to
//! anything.

mod backup;
mod bucket;
mod call;
mod daemon;
mod database;
mod digest;
mod erasure;
mod export;
mod field;
mod finding;
mod gates;
mod health;
mod job;
mod partitions;
mod paths;
mod policy;
mod refresh;
mod restore_check;
mod retention;
mod rollup;
mod rows;
mod section;
mod sink;
mod size;
mod source;
mod store;
mod suggest;
mod surroundings;
mod syntax;
mod throttle;
mod transition;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::de::DeTable;

pub use self::daemon::DaemonSettings;
pub use self::database::DatabaseSettings;
use self::field::Field;
pub use self::finding::{Finding, Place, Severity};
pub use self::job::JobSettings;
use self::job::{Names, Scope};
use self::restore_check::Backups;
use self::section::Section;
use self::sink::{At, Sink};
use self::source::SourceFile;
pub use self::surroundings::Surroundings;
use crate::store::StoreSettings;
use crate::values::{JobName, Name};

/// A configuration that makes sense.
#[derive(Debug, Clone)]
pub struct Config {
    /// The files it was read from, in order.
    pub files: Vec<PathBuf>,
    /// Its identity: `sha256:` and 64 hexadecimal digits over what it means. Comments, order, files
    /// and passwords make no difference.
    pub fingerprint: String,
    /// `[daemon]`
    pub daemon: DaemonSettings,
    /// `[databases.NAME]`
    pub databases: BTreeMap<Name, DatabaseSettings>,
    /// `[stores.NAME]`
    pub stores: BTreeMap<Name, StoreSettings>,
    /// `[jobs.NAME]`
    pub jobs: BTreeMap<JobName, JobSettings>,
    /// Where the url of each database and store stands, by `databases.NAME` and `stores.NAME`.
    places: BTreeMap<String, Place>,
}

impl Config {
    /// Each store that a job uses.
    #[must_use]
    pub fn used_stores(&self) -> BTreeSet<&Name> {
        self.jobs
            .values()
            .flat_map(|job| job.kind.stores())
            .map(|(_, store)| store)
            .collect()
    }

    /// Where the url of a database stands.
    #[must_use]
    pub fn place_of_database(&self, name: &Name) -> Place {
        self.place_of(&format!("databases.{name}"))
    }

    /// Where the url of a store stands.
    #[must_use]
    pub fn place_of_store(&self, name: &Name) -> Place {
        self.place_of(&format!("stores.{name}"))
    }

    fn place_of(&self, path: &str) -> Place {
        let whole = || {
            let file = self.files.first().map(|file| file.display().to_string());
            Place::whole(file.unwrap_or_default())
        };
        self.places.get(path).cloned().unwrap_or_else(whole)
    }

    /// Reads a file and `conf.d/*.toml` beside it. Beside the configuration come its warnings.
    ///
    /// # Errors
    /// Every mistake in all files, and the warnings, in the order of files and lines; at least one is
    /// an error.
    pub fn load(path: &Path) -> Result<(Self, Vec<Finding>), Vec<Finding>> {
        Self::load_in(path, &Surroundings::of_this_process())
    }

    /// `[daemon]` alone, of a configuration that may have mistakes elsewhere: enough to reach the
    /// daemon that it belongs to.
    #[must_use]
    pub fn daemon_of(path: &Path) -> Option<DaemonSettings> {
        let (files, _) = source::read_all(path);
        let (config, _) = read(&files, &Surroundings::of_this_process());
        config.map(|config| config.daemon)
    }

    /// The identity of each job's settings, as [`Config::fingerprint`] is that of all of them.
    #[must_use]
    pub fn job_fingerprints(&self) -> BTreeMap<JobName, String> {
        digest::of_jobs(self)
    }

    /// As [`Config::load`], in given surroundings.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_in(path: &Path, surroundings: &Surroundings) -> Result<(Self, Vec<Finding>), Vec<Finding>> {
        let (files, mut findings) = source::read_all(path);
        let (config, found) = read(&files, surroundings);
        findings.extend(found);
        findings.extend(config.iter().flat_map(gates::check));
        let sound = findings.iter().all(|finding| finding.severity == Severity::Warning);
        match config {
            Some(config) if sound => Ok((config, findings)),
            _ => Err(findings),
        }
    }
}

/// Reads files as one configuration; what has errors may be left out of it.
fn read(files: &[SourceFile], surroundings: &Surroundings) -> (Option<Config>, Vec<Finding>) {
    let sink = Sink::default();
    let trees: Vec<DeTable<'_>> = files.iter().map(|file| syntax::parse(file, &sink)).collect();
    let config = files.first().map(|main| {
        let mut config = compose(&sink, main, files.iter().zip(&trees), surroundings);
        config.files = files.iter().map(|file| file.path.clone()).collect();
        config.fingerprint = digest::of(&config);
        config
    });
    (config, sink.into_findings())
}

/// The sections of all files, merged and read.
fn compose<'a>(
    sink: &'a Sink,
    main: &'a SourceFile,
    trees: impl Iterator<Item = (&'a SourceFile, &'a DeTable<'a>)>,
    surroundings: &'a Surroundings,
) -> Config {
    let start = At { file: main, span: 0..0 };
    let mut parts: [Vec<Field<'a>>; 5] = Default::default();
    for (file, tree) in trees {
        let header = At { file, span: 0..0 };
        let mut root = Section::empty(sink, "", header.clone());
        root.add(&header, tree);
        for (part, key) in parts
            .iter_mut()
            .zip(["daemon", "databases", "stores", "defaults", "jobs"])
        {
            part.extend(root.optional(key));
        }
        root.finish(&[]);
    }
    let [daemon, databases, stores, defaults, jobs] = parts;
    let merged = |path: &str, parts| Section::merged(sink, path, start.clone(), parts);

    let daemon = daemon::read(merged("daemon", daemon), surroundings);
    let mut defaults = merged("defaults", defaults);
    let default_policy = policy::read(&mut defaults);
    default_policy.resolve(&policy::Policy::default());
    defaults.finish(&[]);

    let databases = merged("databases", databases).take_all();
    let stores = merged("stores", stores).take_all();
    let jobs = merged("jobs", jobs).take_all();
    let scope = Scope {
        backups: Backups::of(&jobs),
        databases: Names::new("database", &databases),
        stores: Names::new("store", &stores),
        jobs: Names::new("job", &jobs),
        defaults: default_policy,
        timezone: daemon.timezone.clone(),
        surroundings,
    };
    if jobs.is_empty() && !sink.is_broken() {
        sink.warning(
            &start,
            "the configuration has no jobs",
            "add a [jobs.NAME] with a schedule and a kind",
        );
    }
    Config {
        files: Vec::new(),
        fingerprint: String::new(),
        daemon,
        databases: named(&databases, |_, field| database::read(field, surroundings)),
        stores: named(&stores, |_, field| store::read(field, surroundings)),
        jobs: named(&jobs, |name, field| job::read(name, field, &scope)),
        places: databases
            .iter()
            .chain(&stores)
            .filter_map(|(_, field)| place_of_url(field))
            .collect(),
    }
}

/// Where the `url` below a key stands, with the key's path.
fn place_of_url(field: &Field<'_>) -> Option<(String, Place)> {
    let url = field.value.as_table()?.get("url")?;
    Some((field.path.clone(), field.at.file.place(url.span())))
}

/// Reads each entry of a table whose keys are names; what is below a wrong name is read all the same.
fn named<'a, T>(
    entries: &[(&'a str, Field<'a>)],
    read: impl Fn(Option<Name>, &Field<'a>) -> Option<T>,
) -> BTreeMap<Name, T> {
    let mut settings = BTreeMap::new();
    for (key, field) in entries {
        let name = key.parse::<Name>();
        let value = read(name.clone().ok(), field);
        match (name, value) {
            (Ok(name), Some(value)) => {
                settings.insert(name, value);
            }
            (Ok(_), None) => {}
            (Err(error), _) => field.sink.error(&field.key, &error.problem, &error.help),
        }
    }
    settings
}
