//! What is needed, and why. Decided from what was read; nothing here asks the server.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use sqlx::postgres::types::Oid;

use super::indexes::{Index, float};
use super::leftovers::Leftover;
use super::survey::Survey;
use super::tables::Table;
use super::{Action, Upkeep};

/// So many dead or changed rows are nothing, whatever part of a small table they are. As of autovacuum.
const FEW: i64 = 50;
/// So many added rows make a vacuum worth it, which lets index-only scans pass them and freezes them: this
/// many and this part. As of autovacuum.
const MANY_ADDED: i64 = 1000;
const ADDED_FRACTION: f64 = 0.2;
/// A table is frozen from this part of the age on at which autovacuum would, at whatever hour that is.
/// Later than where a vacuum begins to read every page that is not frozen (150 of 200 million).
const FREEZE_FRACTION: f64 = 0.8;

/// Something that is needed.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Of what an interrupted rebuild left.
    Drop(Leftover),
    /// Of a table.
    Tend(Tending),
    /// Of an index.
    Rebuild { index: Box<Index>, reason: String },
}

/// A vacuum, an analyze, or both.
#[derive(Debug, Clone)]
pub(super) struct Tending {
    pub(super) table: Table,
    pub(super) vacuum: bool,
    pub(super) analyze: bool,
    pub(super) reasons: Vec<String>,
}

impl Tending {
    pub(super) fn statement(&self) -> String {
        let verb = match (self.vacuum, self.analyze) {
            (true, true) => "VACUUM (ANALYZE)",
            (true, false) => "VACUUM",
            _ => "ANALYZE",
        };
        format!("{verb} {}", self.table.quoted())
    }
}

impl Step {
    /// What is done, in one word of the report.
    pub(super) fn action(&self) -> &'static str {
        match self {
            Self::Drop(_) => "drop_leftover",
            Self::Tend(tending) => match (tending.vacuum, tending.analyze) {
                (true, true) => "vacuum_analyze",
                (true, false) => "vacuum",
                _ => "analyze",
            },
            Self::Rebuild { .. } => "reindex",
        }
    }

    /// To what.
    pub(super) fn relation(&self) -> String {
        match self {
            Self::Drop(leftover) => leftover.display(),
            Self::Tend(tending) => tending.table.display(),
            Self::Rebuild { index, .. } => index.display(),
        }
    }

    pub(super) fn reason(&self) -> String {
        match self {
            Self::Drop(_) => "an interrupted rebuild left it".to_owned(),
            Self::Tend(tending) => tending.reasons.join("; "),
            Self::Rebuild { reason, .. } => reason.clone(),
        }
    }

    pub(super) fn statement(&self) -> String {
        match self {
            Self::Drop(leftover) => leftover.statement(),
            Self::Tend(tending) => tending.statement(),
            Self::Rebuild { index, .. } => format!("REINDEX INDEX CONCURRENTLY {}", index.quoted()),
        }
    }

    /// Whether a dump would keep it from being of use, or wait for it.
    pub(super) fn is_apart_from_backups(&self) -> bool {
        !matches!(self, Self::Tend(tending) if !tending.vacuum)
    }

    /// As plans show it.
    pub(super) fn describe(&self) -> Value {
        json!({
            "action": self.action(),
            "relation": self.relation(),
            "reason": self.reason(),
            "statement": self.statement(),
        })
    }
}

/// All steps in their order: what is in the way first, then the tables, those most in need first, then
/// the indexes with the most bloat.
pub(super) fn steps(upkeep: &Upkeep, survey: &Survey) -> Vec<Step> {
    let does = |action: Action| upkeep.actions.contains(&action);
    let mut steps: Vec<Step> = survey.leftovers.iter().cloned().map(Step::Drop).collect();
    let divided = if does(Action::Analyze) {
        divided(&survey.tables, upkeep.dead_fraction)
    } else {
        Vec::new()
    };
    let covered: HashSet<Oid> = divided.iter().map(|tending| tending.table.oid).collect();
    let mut tables: Vec<Tending> = survey
        .tables
        .iter()
        .filter(|table| !table.divided && table.stored)
        .filter_map(|table| {
            let vacuum = does(Action::Vacuum)
                .then(|| vacuum(table, upkeep.dead_fraction))
                .flatten();
            // The statistics of a divided table are gathered from all its partitions, and theirs with them.
            let analyze = (does(Action::Analyze) && !covered.contains(&table.root))
                .then(|| analyze(table, upkeep.dead_fraction))
                .flatten();
            (vacuum.is_some() || analyze.is_some()).then(|| Tending {
                table: table.clone(),
                vacuum: vacuum.is_some(),
                analyze: analyze.is_some(),
                reasons: vacuum.into_iter().chain(analyze).collect(),
            })
        })
        .collect();
    tables.sort_by(|one, other| {
        let ages = other
            .table
            .freeze_age
            .max(FREEZE_FRACTION)
            .total_cmp(&one.table.freeze_age.max(FREEZE_FRACTION));
        ages.then(other.table.dead.cmp(&one.table.dead))
    });
    steps.extend(tables.into_iter().chain(divided).map(Step::Tend));
    let mut rebuilds: Vec<(&Index, String)> = survey
        .indexes
        .iter()
        .filter_map(|index| Some((index, rebuild(index, upkeep.bloat_fraction)?)))
        .collect();
    rebuilds.sort_by(|(one, _), (other, _)| wasted(other).total_cmp(&wasted(one)));
    steps.extend(rebuilds.into_iter().map(|(index, reason)| Step::Rebuild {
        index: Box::new(index.clone()),
        reason,
    }));
    steps
}

/// Why a table should be vacuumed.
pub(super) fn vacuum(table: &Table, dead_fraction: f64) -> Option<String> {
    if table.freeze_age >= FREEZE_FRACTION {
        return Some(format!(
            "its oldest rows are at {:.0} % of the age at which autovacuum would freeze them",
            table.freeze_age * 100.0
        ));
    }
    if is_mostly_dead(table.dead, table.live, dead_fraction) {
        let part = float(table.dead) * 100.0 / float(table.dead.saturating_add(table.live));
        return Some(format!("{} of its rows are dead, {part:.0} %", table.dead));
    }
    if table.added > MANY_ADDED && float(table.added) >= ADDED_FRACTION * float(table.live) {
        return Some(format!("{} rows were added since the last vacuum", table.added));
    }
    (!table.vacuumed && table.live > FEW).then(|| "no vacuum of it is known".to_owned())
}

/// Whether more dead rows are there than may be.
pub(super) fn is_mostly_dead(dead: i64, live: i64, dead_fraction: f64) -> bool {
    dead > FEW && float(dead) >= dead_fraction * float(dead.saturating_add(live))
}

/// Why the statistics of a table should be gathered.
fn analyze(table: &Table, fraction: f64) -> Option<String> {
    if table.changed > FEW && float(table.changed) >= fraction * float(table.live) {
        return Some(format!("{} of its rows changed since it was analyzed", table.changed));
    }
    (table.analyzed.is_none() && table.live > 0).then(|| "it was never analyzed".to_owned())
}

/// The tables that are divided into partitions and whose statistics are older than those that autovacuum
/// gathered of a partition, or than changes to it. It never gathers those of the whole; an ANALYZE of the
/// whole is one of the partitions too, each a moment later, so theirs tell nothing.
fn divided(tables: &[Table], fraction: f64) -> Vec<Tending> {
    let mut newest: HashMap<Oid, f64> = HashMap::new();
    for table in tables.iter().filter(|table| !table.divided && table.live > 0) {
        let changed = if analyze(table, fraction).is_some() {
            f64::INFINITY
        } else {
            table.auto_analyzed.unwrap_or(f64::NEG_INFINITY)
        };
        let newest = newest.entry(table.root).or_insert(f64::NEG_INFINITY);
        *newest = newest.max(changed);
    }
    let roots = tables.iter().filter(|table| table.divided && table.root == table.oid);
    roots
        .filter_map(|table| {
            let newest = newest.get(&table.oid)?;
            let reason = match table.analyzed {
                None => "it was never analyzed as a whole, which autovacuum does not do",
                Some(analyzed) if *newest > analyzed => {
                    "its partitions changed since it was analyzed as a whole, which autovacuum does not do"
                }
                Some(_) => return None,
            };
            Some(Tending {
                table: table.clone(),
                vacuum: false,
                analyze: true,
                reasons: vec![reason.to_owned()],
            })
        })
        .collect()
}

/// Why an index should be rebuilt.
fn rebuild(index: &Index, bloat_fraction: f64) -> Option<String> {
    let bloat = index.bloat().filter(|bloat| *bloat >= bloat_fraction)?;
    (!index.excludes).then(|| {
        format!(
            "{:.0} % of its {} MiB are bloat",
            bloat * 100.0,
            index.bytes / (1024 * 1024)
        )
    })
}

fn wasted(index: &Index) -> f64 {
    index.bloat().unwrap_or(0.0) * float(index.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(live: i64, dead: i64) -> Table {
        Table {
            oid: Oid(1),
            root: Oid(1),
            schema: "public".to_owned(),
            name: "events".to_owned(),
            owner: "app".to_owned(),
            divided: false,
            live,
            dead,
            changed: 0,
            added: 0,
            vacuumed: true,
            analyzed: Some(1.0),
            auto_analyzed: None,
            freeze_age: 0.1,
            stored: true,
            may_vacuum: true,
            may_reindex: true,
            owned_by_superuser: false,
        }
    }

    fn survey(tables: Vec<Table>, indexes: Vec<Index>) -> Survey {
        Survey {
            tables,
            indexes,
            leftovers: Vec::new(),
            lacking: None,
            warnings: Vec::new(),
        }
    }

    fn upkeep() -> Upkeep {
        Upkeep {
            tables: Vec::new(),
            actions: [Action::Vacuum, Action::Analyze, Action::Reindex].into(),
            dead_fraction: 0.05,
            bloat_fraction: 0.3,
            min_index_size: 1,
            window: None,
        }
    }

    fn words(steps: &[Step]) -> Vec<String> {
        steps
            .iter()
            .map(|step| format!("{} {}", step.action(), step.relation()))
            .collect()
    }

    #[test]
    fn a_vacuum_is_due_at_the_fraction_and_not_one_row_before() {
        assert!(vacuum(&table(1900, 100), 0.05).is_some());
        assert_eq!(vacuum(&table(1901, 99), 0.05), None);
        // Fifty rows are nothing, whatever part of the table they are.
        assert_eq!(vacuum(&table(0, 50), 0.05), None);
        assert!(vacuum(&table(0, 51), 0.05).is_some());
    }

    #[test]
    fn a_vacuum_is_due_for_age_for_added_rows_and_where_none_is_known() {
        let base = table(10_000, 0);
        let with = |change: fn(&mut Table)| {
            let mut table = base.clone();
            change(&mut table);
            vacuum(&table, 0.05).is_some()
        };
        assert!(with(|table| table.freeze_age = 0.8) && !with(|table| table.freeze_age = 0.79));
        assert!(with(|table| table.added = 2000) && !with(|table| table.added = 1999));
        assert!(with(|table| table.vacuumed = false));
    }

    #[test]
    fn statistics_are_due_at_the_fraction_and_where_there_are_none() {
        let mut table = table(1000, 0);
        table.changed = 51;
        assert!(analyze(&table, 0.05).is_some());
        table.changed = 50;
        assert_eq!(analyze(&table, 0.05), None);
        table.analyzed = None;
        assert!(analyze(&table, 0.05).is_some());
        table.live = 0;
        assert_eq!(analyze(&table, 0.05), None);
    }

    #[test]
    fn a_divided_table_is_analyzed_as_a_whole_and_its_partitions_with_it() {
        let partition = |number: u32, auto_analyzed, changed| Table {
            oid: Oid(number),
            name: format!("events_{number}"),
            analyzed: Some(99.0),
            auto_analyzed,
            changed,
            ..table(1000, 0)
        };
        let whole = |analyzed| Table {
            divided: true,
            live: 0,
            analyzed,
            ..table(0, 0)
        };
        let steps_of = |whole, partitions: &[Table]| {
            let tables = [vec![whole], partitions.to_vec()].concat();
            words(&steps(&upkeep(), &survey(tables, Vec::new())))
        };
        let quiet = [partition(2, Some(5.0), 0), partition(3, Some(9.0), 0)];
        assert_eq!(steps_of(whole(None), &quiet), ["analyze public.events"]);
        assert_eq!(steps_of(whole(Some(8.0)), &quiet), ["analyze public.events"]);
        assert!(steps_of(whole(Some(9.0)), &quiet).is_empty());
        let busy = [partition(2, Some(5.0), 500), partition(3, Some(5.0), 0)];
        assert_eq!(steps_of(whole(Some(8.0)), &busy), ["analyze public.events"]);
    }

    #[test]
    fn the_most_needed_comes_first() {
        let mut old = table(10, 0);
        (old.name, old.freeze_age) = ("old".to_owned(), 0.9);
        let mut dead = table(10, 500);
        dead.name = "dead".to_owned();
        let mut deader = table(10, 501);
        deader.name = "deader".to_owned();
        let index = |name: &str, bytes: i64, fresh: f64| Index {
            oid: Oid(9),
            table: Oid(1),
            root: Oid(1),
            schema: "public".to_owned(),
            name: name.to_owned(),
            bytes,
            rows: Some(1.0),
            fresh: Some(fresh),
            excludes: false,
        };
        let indexes = vec![
            index("some", 1000, 700.0),
            index("fresh", 1000, 701.0),
            index("most", 10_000, 7000.0),
            Index {
                excludes: true,
                ..index("excluding", 1000, 1.0)
            },
            Index {
                fresh: None,
                ..index("unknown", 1000, 1.0)
            },
        ];
        let found = steps(&upkeep(), &survey(vec![dead, deader, old], indexes));
        assert_eq!(
            words(&found),
            [
                "vacuum public.old",
                "vacuum public.deader",
                "vacuum public.dead",
                "reindex public.most",
                "reindex public.some"
            ]
        );
    }
}
