//! `[jobs.NAME]`: when, on which database, under which rules, and what.

use std::collections::BTreeMap;
use std::time::Duration;

use super::field::Field;
use super::finding::Place;
use super::policy::{self, Policy};
use super::restore_check::Backups;
use super::section::Section;
use super::suggest::nearest;
use super::surroundings::Surroundings;
use super::{
    backup, call, erasure, export, health, partitions, refresh, restore_check, retention, rollup, throttle, transition,
    upkeep,
};
use crate::batch::Throttle;
use crate::job::{Approval, Kind};
use crate::jobs::KindSettings;
use crate::schedule::cron::Schedule;
use crate::schedule::lint::lint;
use crate::schedule::policy::{Missed, Overlap};
use crate::values::{JobName, Name, Timezone};

/// The kinds of this version.
const KINDS: [Kind; 12] = [
    Kind::Retention,
    Kind::Transition,
    Kind::Erasure,
    Kind::Rollup,
    Kind::Refresh,
    Kind::Backup,
    Kind::Export,
    Kind::Partitions,
    Kind::Upkeep,
    Kind::Health,
    Kind::Call,
    Kind::RestoreCheck,
];

/// `[jobs.NAME]`, with the defaults filled in.
#[derive(Debug, Clone)]
pub struct JobSettings {
    /// Its name.
    pub name: JobName,
    /// The database's name in the configuration.
    pub database: Name,
    /// When it is due.
    pub schedule: Schedule,
    /// What to do about occurrences that nobody could run.
    pub missed: Missed,
    /// How far back such occurrences are looked for.
    pub catch_up_window: Duration,
    /// What to do about an occurrence during a run.
    pub overlap: Overlap,
    /// Jobs that share a name here never run at the same time on one database.
    pub groups: Vec<Name>,
    /// How long a run may wait for its turn before it is given up.
    pub start_deadline: Duration,
    /// A job starts up to so long after its slot, always the same time.
    pub jitter: Duration,
    /// Whether a destructive policy must be approved.
    pub approval: Approval,
    /// How long a run may take.
    pub run_timeout: Duration,
    /// How long a statement may wait for a lock; shorter than `run_timeout`.
    pub lock_timeout: Duration,
    /// How many more attempts follow a transient failure. 0 to 10.
    pub retries: u32,
    /// When a job that works on rows yields.
    pub throttle: Throttle,
    /// What it does.
    pub kind: KindSettings,
    /// Where its header stands.
    pub place: Place,
    places: BTreeMap<String, Place>,
}

impl JobSettings {
    /// Where the value of a key stands: a key of the kind (`table`), else one of the job
    /// (`schedule`); where neither is written, the job's header.
    #[must_use]
    pub fn place_of(&self, key: &str) -> &Place {
        let of_kind = format!("{}.{key}", self.kind.kind().as_str());
        let place = self.places.get(&of_kind).or_else(|| self.places.get(key));
        place.unwrap_or(&self.place)
    }
}

/// The names that a job may refer to.
pub(super) struct Names<'a> {
    /// What they name: `database` or `store`.
    noun: &'static str,
    names: Vec<&'a str>,
}

impl<'a> Names<'a> {
    pub(super) fn new(noun: &'static str, fields: &[(&'a str, Field<'a>)]) -> Self {
        let names = fields.iter().map(|(name, _)| *name).collect();
        Self { noun, names }
    }

    /// Reports a name that is not in the configuration.
    pub(super) fn refer(&self, field: &Field<'_>, name: &Name) -> Option<()> {
        if self.names.contains(&name.as_str()) {
            return Some(());
        }
        let problem = format!("there is no {} `{name}`", self.noun);
        let help = match nearest(name.as_str(), self.names.iter().copied()) {
            Some(known) => format!("did you mean `{known}`?"),
            None => format!("add [{}s.{name}]; there is: {}", self.noun, self.listed()),
        };
        field
            .sink
            .missing(&field.at, &format!("`{}`: {problem}", field.path), &help);
        None
    }

    /// The only name there is.
    pub(super) fn only(&self) -> Option<&'a str> {
        match self.names.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    fn listed(&self) -> String {
        match self.names.as_slice() {
            [] => "none".to_owned(),
            names => names.join(", "),
        }
    }
}

/// What every job is read against.
pub(super) struct Scope<'a> {
    pub(super) databases: Names<'a>,
    pub(super) stores: Names<'a>,
    pub(super) jobs: Names<'a>,
    pub(super) backups: Backups<'a>,
    pub(super) defaults: Policy<'a>,
    pub(super) timezone: Timezone,
    pub(super) surroundings: &'a Surroundings,
}

pub(super) fn read<'a>(name: Option<JobName>, field: &Field<'a>, scope: &Scope<'a>) -> Option<JobSettings> {
    let mut section = field.section()?;
    let places = places(&section, field);
    let place = section.header().place();
    let database = database(&mut section, scope);
    let schedule = schedule(&mut section, scope);
    let policy = policy::read(&mut section).resolve(&scope.defaults);
    let groups = section
        .optional("groups")
        .map_or(Some(Vec::new()), |field| groups(&field));
    let throttle_field = section.optional("throttle");
    let throttle = throttle_field
        .as_ref()
        .map_or_else(|| Some(Throttle::default()), throttle::read);
    let kind = kind(&mut section, scope);
    if let (Some(field), Some(kind)) = (&throttle_field, &kind)
        && !matches!(kind, KindSettings::Retention(_) | KindSettings::Transition(_))
    {
        let problem = format!("a {} does not work on rows and cannot yield", kind.kind().as_str());
        field.error(&problem, "leave it out");
    }
    section.finish(&[]);
    Some(JobSettings {
        name: name?,
        database: database?,
        schedule: schedule?,
        missed: policy.missed,
        catch_up_window: policy.catch_up_window,
        overlap: policy.overlap,
        groups: groups?,
        start_deadline: policy.start_deadline,
        jitter: policy.jitter,
        approval: policy.approval,
        run_timeout: policy.run_timeout,
        lock_timeout: policy.lock_timeout,
        retries: policy.retries,
        throttle: throttle?,
        kind: kind?,
        place,
        places,
    })
}

/// Where the job's keys stand, and those of its kind as `KIND.KEY`.
fn places(section: &Section<'_>, field: &Field<'_>) -> BTreeMap<String, Place> {
    let mut places: BTreeMap<String, Place> = section.places().map(|(key, place)| (key.to_owned(), place)).collect();
    for (key, value) in field.value.as_table().into_iter().flatten() {
        for (inner, at) in value.get_ref().as_table().into_iter().flatten() {
            let place = field.at.file.place(at.span());
            places.insert(format!("{}.{}", key.get_ref(), inner.get_ref()), place);
        }
    }
    places
}

fn database(section: &mut Section<'_>, scope: &Scope<'_>) -> Option<Name> {
    if let Some(field) = section.optional("database") {
        let name = field.parse()?;
        return scope.databases.refer(&field, &name).map(|()| name);
    }
    if let [only] = scope.databases.names.as_slice() {
        return only.parse().ok();
    }
    let message = format!("`{}` does not say on which database it works", section.path());
    let help = match scope.databases.listed().as_str() {
        "none" => "add a [databases.NAME] with its url".to_owned(),
        names => format!("add `database`; there is: {names}"),
    };
    section.lacks(&["database"], message, help);
    None
}

fn schedule(section: &mut Section<'_>, scope: &Scope<'_>) -> Option<Schedule> {
    let timezone = section.optional("timezone");
    let text = section.required("schedule");
    let timezone = timezone.map_or(Some(scope.timezone.clone()), |field| field.parse());
    // A schedule is checked also beside an unknown zone.
    let zone_known = timezone.is_some();
    let field = text?;
    let parsed = Schedule::parse(field.text()?, timezone.unwrap_or_else(Timezone::utc));
    let schedule = field.checked(parsed)?;
    let now = scope.surroundings.now;
    if schedule.next_after(now).is_none() {
        let help = "write a date that exists, such as \"0 0 28 2 *\"";
        field.error(&format!("`{schedule}` never fires"), help);
        return None;
    }
    for lint in lint(&schedule, now) {
        field.warning(&lint.problem, &lint.help);
    }
    zone_known.then_some(schedule)
}

fn groups(field: &Field<'_>) -> Option<Vec<Name>> {
    let names: Vec<Option<Name>> = field.array()?.iter().map(Field::parse).collect();
    names.into_iter().collect()
}

/// The one kind of a job.
fn kind<'a>(section: &mut Section<'a>, scope: &Scope<'a>) -> Option<KindSettings> {
    let mut found: Vec<(Kind, Field<'a>)> = Vec::new();
    for kind in KINDS {
        found.extend(section.optional(kind.as_str()).map(|field| (kind, field)));
    }
    found.sort_by_key(|(_, field)| field.key.span.start);
    for (kind, field) in found.iter().skip(1) {
        let first = found.first().map_or("", |(kind, _)| kind.as_str());
        let message = format!("`{}` has two kinds, {first} and {}", section.path(), kind.as_str());
        field.sink.error(&field.key, &message, "write one job for each");
    }
    let settings: Vec<Option<KindSettings>> = found
        .iter()
        .map(|(kind, field)| match kind {
            Kind::Retention => retention::read(field, scope).map(KindSettings::Retention),
            Kind::Transition => transition::read(field).map(KindSettings::Transition),
            Kind::Rollup => rollup::read(field).map(KindSettings::Rollup),
            Kind::Refresh => refresh::read(field).map(KindSettings::Refresh),
            Kind::Backup => backup::read(field, scope).map(KindSettings::Backup),
            Kind::Export => export::read(field, scope).map(KindSettings::Export),
            Kind::Erasure => erasure::read(field, scope).map(|rule| KindSettings::Erasure(Box::new(rule))),
            Kind::Partitions => partitions::read(field).map(KindSettings::Partitions),
            Kind::Upkeep => upkeep::read(field).map(KindSettings::Upkeep),
            Kind::Health => health::read(field).map(KindSettings::Health),
            Kind::Call => call::read(field).map(KindSettings::Call),
            Kind::RestoreCheck => restore_check::read(field, scope).map(KindSettings::RestoreCheck),
        })
        .collect();
    if found.is_empty() {
        let message = format!("`{}` does not say what it does", section.path());
        let help = "add one of retention, transition, erasure, rollup, refresh, backup, export, partitions, upkeep, \
                    health, call and restore_check";
        let keys: Vec<_> = KINDS.iter().map(|kind| kind.as_str()).collect();
        section.lacks(&keys, message, help.to_owned());
    }
    settings.into_iter().next().flatten()
}
